"""The flight recorder: what is told of a client's connections, and why it has an event or has it not."""

from __future__ import annotations

import asyncio
import json
import subprocess
import uuid

from hub import Hub, admin, binary, clean_environment, token
from peer import Peer, joined
from test_api import Backend
from test_operations import until


def explain(hub: Hub, client: str, event: str) -> dict:
    return Backend(hub).done("GET", f"/api/v1/connections/{client}/explain?event={event}")


def traces(hub: Hub, client: str, limit: int = 1000) -> list[dict]:
    answer = Backend(hub).done("GET", f"/api/v1/connections/{client}/trace?limit={limit}")
    assert answer["client_id"] == client
    return answer["connections"]


def records(hub: Hub, client: str) -> list[dict]:
    return traces(hub, client)[0]["records"]


def publish(hub: Hub, room: str, kind: str = "tick", data: object = None) -> str:
    status, answer = hub.publish(room, kind, data or {})
    assert status == 200, answer
    return answer["id"]


async def pressed(hub: Hub, peer: Peer, room: str, client: str, count: int, size: int) -> list[str]:
    """Publishes more than a client that does not read can be given; the events' ids."""
    ids = [publish(hub, room, "bulk", {"n": number, "text": "x" * size}) for number in range(count)]
    await until(lambda: Backend(hub).done("GET", f"/api/v1/connections/{client}")["queue_bytes"] > 0, "a full outbox")
    return ids


# Two shards: which of them has the client and which the room differs from room to room and from client to client.
ROOMS = [f"project:recorder-{number}" for number in range(6)]


async def test_written_and_not_subscribed_on_every_way_between_shards(hub):
    shards = set()
    async with joined(hub, query="client_id=w1") as one, joined(hub, token("bob"), query="client_id=w2") as two:
        for room in ROOMS:
            early = publish(hub, room)
            await one.subscribe(room)
            await two.subscribe(room)
            event = publish(hub, room)
            await one.events(room, 1)
            await two.events(room, 1)
            for client in ["w1", "w2"]:
                told = explain(hub, client, early)
                assert told["outcome"] == "not_subscribed" and "subscribed later" in told["detail"], told
                told = explain(hub, client, event)
                assert told["outcome"] == "written", told
                assert (told["room"], told["seq"], told["type"], told["event_id"]) == (room, 2, "tick", event)
                assert 0 <= told["after_publish_us"] < 5_000_000 and told["published_at"] <= told["written_at"]
                shards.add(told["shard"])
            await one.done("unsubscribe", {"room": room})
            late = publish(hub, room)
            told = explain(hub, "w1", late)
            assert told["outcome"] == "not_subscribed" and "had left" in told["detail"], told
            assert explain(hub, "w2", late)["outcome"] == "written"
    assert shards <= {0, 1}


async def test_filtered_by_type_by_filter_and_as_ones_own(hub):
    room = "project:recorder-filters"
    async with joined(hub, query="client_id=f1") as peer, joined(hub, token("bob"), query="client_id=f2") as all_of_it:
        await peer.subscribe(room, types=["build.failed", "build.done"], filters={"severity": {"min": 5}})
        await all_of_it.subscribe(room)
        by_type = publish(hub, room, "build.started", {"severity": 9})
        by_filter = publish(hub, room, "build.done", {"severity": 1})
        wanted = publish(hub, room, "build.done", {"severity": 7})
        assert [event["id"] for event in await peer.events(room, 1)] == [wanted]
        await all_of_it.events(room, 3)
        told = explain(hub, "f1", by_type)
        assert told["outcome"] == "filtered" and "type build.started" in told["detail"], told
        told = explain(hub, "f1", by_filter)
        assert told["outcome"] == "filtered" and "data did not pass" in told["detail"], told
        assert json.loads(told["filter"])["filters"] == {"severity": {"min": 5}}
        assert explain(hub, "f1", wanted)["outcome"] == "written"
        assert explain(hub, "f2", by_type)["outcome"] == "written"
        own = await all_of_it.done("publish", {"room": room, "type": "build.done", "data": {"severity": 8}, "echo": False})
        await peer.events(room, 1)
        told = explain(hub, "f2", own["id"])
        assert told["outcome"] == "filtered" and "echo: false" in told["detail"], told
        assert explain(hub, "f1", own["id"])["outcome"] == "written"
        kinds = [record["what"] for record in records(hub, "f1")]
        assert "filtered" in kinds and "events" in kinds


async def test_queued_then_skipped_by_a_gap(start):
    hub = start({"history.events_max": 4, "limits.outbox_bytes_max": 65_536})
    room = "project:recorder-slow"
    async with joined(hub, query="client_id=slow") as peer:
        await peer.subscribe(room)
        first = publish(hub, room, "first")
        await peer.events(room, 1)
        peer.connection.transport.pause_reading()
        ids = await pressed(hub, peer, room, "slow", 400, 30_000)
        await until(lambda: any(record["what"] == "fell_behind" for record in records(hub, "slow")), "a reader that fell behind")
        queued = explain(hub, "slow", ids[-1])
        assert queued["outcome"] == "queued" and "fallen behind" in queued["detail"], queued
        outcomes = [explain(hub, "slow", event)["outcome"] for event in ids]
        assert outcomes[0] == "written" and set(outcomes) == {"written", "queued"}, outcomes
        in_outbox = [explain(hub, "slow", event) for event, outcome in zip(ids, outcomes) if outcome == "queued"]
        ahead = [told["bytes_ahead"] for told in in_outbox if "bytes_ahead" in told]
        assert ahead and ahead == sorted(ahead), ahead

        peer.connection.transport.resume_reading()
        gap = (await peer.next("gap"))["data"]
        last = publish(hub, room, "last")
        seen: set[str] = {first}
        while last not in seen:
            event = await peer.any_of("bulk", "last")
            seen.add(event["id"])
        for number, event in enumerate(ids, start=2):
            told = explain(hub, "slow", event)
            if gap["from_seq"] <= number <= gap["to_seq"]:
                assert told["outcome"] == "skipped" and told["reason"] == "history", told
                assert (told["from_seq"], told["to_seq"]) == (gap["from_seq"], gap["to_seq"])
                assert event not in seen
            elif told["outcome"] != "skipped":
                assert told["outcome"] == "written" and event in seen, (number, told)
        kinds = [record["what"] for record in records(hub, "slow")]
        # It may have fallen behind and caught up before, while the outbox was being filled.
        at = kinds.index("gap")
        assert "fell_behind" in kinds[:at] and "caught_up" in kinds[at:], kinds
        assert "waits" in kinds and "drained" in kinds


async def test_one_that_has_gone_is_remembered_with_all_its_connections(start):
    hub = start({"limits.outbox_bytes_max": 1 << 20})
    room = "project:recorder-gone"
    async with joined(hub, token("carol"), query="client_id=g1&session_id=gs1") as peer:
        await peer.subscribe(room, types=["tick"])
        written = publish(hub, room)
        filtered = publish(hub, room, "tock")
        await peer.events(room, 1)
        await peer.connection.close(3333, "enough")
    missed = publish(hub, room)
    assert explain(hub, "g1", written)["outcome"] == "written"
    told = explain(hub, "g1", filtered)
    assert told["outcome"] == "filtered" and told["closed_at"], told
    assert explain(hub, "g1", missed)["outcome"] == "not_subscribed"
    [gone] = traces(hub, "g1")
    assert (gone["session_id"], gone["user_id"], gone["truncated"]) == ("gs1", "carol", False)
    assert gone["closed_at"] >= gone["connected_at"] and gone["unsent_bytes"] == 0
    [closing] = [record for record in gone["records"] if record["what"] == "closing"]
    assert (closing["code"], closing["reason"]) == ("3333", "client")

    async with joined(hub, token("carol"), query="client_id=g1&session_id=gs1") as peer:
        await peer.subscribe(room, since={"last": 1})
        await peer.events(room, 1)
        told = explain(hub, "g1", missed)
        assert told["outcome"] == "written" and "log" in told["detail"], told
        newest, oldest = traces(hub, "g1")
        assert newest["closed_at"] is None and oldest["closed_at"]
        assert "replayed" in [record["what"] for record in newest["records"]]
        # What waits for a client that is cut off is lost to that connection.
        peer.connection.transport.pause_reading()
        ids = await pressed(hub, peer, room, "g1", 30, 900_000)
        peer.connection.transport.abort()
    await until(lambda: traces(hub, "g1")[0]["closed_at"], "the end")
    assert traces(hub, "g1")[0]["unsent_bytes"] > 0
    assert explain(hub, "g1", ids[-1])["outcome"] == "dropped"


async def test_what_is_not_there_and_who_may_ask(hub):
    backend = Backend(hub)
    never = "/api/v1/connections/recorder-never"
    event = publish(hub, "project:recorder-nothing")
    assert backend.refused("GET", f"{never}/trace") == (404, "not_found")
    assert backend.refused("GET", f"{never}/explain?event={event}") == (404, "not_found")
    async with joined(hub, query="client_id=n1"):
        path = "/api/v1/connections/n1"
        unknown = explain(hub, "n1", "0197a3b4-0000-7000-8000-000000000000")
        assert unknown["outcome"] == "unknown" and "too long ago" in unknown["detail"], unknown
        future = f"{(1 << 47):012x}"
        unknown = explain(hub, "n1", f"{future[:8]}-{future[8:]}-7000-8000-000000000000")
        assert unknown["outcome"] == "unknown" and "no event" in unknown["detail"], unknown
        assert backend.refused("GET", f"{path}/explain?event=nonsense")[0] == 400
        assert backend.refused("GET", f"{path}/explain")[0] == 400
        assert backend.refused("GET", f"{path}/trace?limit=0")[0] == 400
        assert backend.refused("GET", f"{path}/trace?limit=1001")[0] == 400
        for path in [f"{path}/trace", f"{path}/explain?event={event}"]:
            assert Backend(hub, token()).refused("GET", path)[0] == 403
            assert hub.get(path)[0] == 401


async def test_what_a_client_did_is_recorded_in_its_order(hub):
    room = "project:recorder-order"
    async with joined(hub, query="client_id=o1") as peer:
        await peer.subscribe(room, types=["a"])
        await peer.refused("subscribe", {"room": "nonsense"})
        await peer.done("ping", {"n": 1})
        await peer.done("unsubscribe", {"room": room})
        await peer.connection.send("{not json")
        await peer.next("error")
        Backend(hub).done("DELETE", "/api/v1/connections/o1?code=4123&reason=no")
        await peer.closed()
    [trace] = traces(hub, "o1")
    whats = [(record["what"], record.get("type") or record.get("room") or record.get("code")) for record in trace["records"]]
    own = [("subscribed", "user:alice"), ("subscribed", "session:" + trace["session_id"]), ("subscribed", "global")]
    assert all(one in whats for one in own), whats
    expected = [
        ("opened", None),
        ("received", "subscribe"),
        ("subscribed", room),
        ("answered", "subscribed"),
        ("received", "subscribe"),
        ("refused", "bad_room"),
        ("answered", "error"),
        ("received", "ping"),
        ("answered", "pong"),
        ("received", "unsubscribe"),
        ("unsubscribed", room),
        ("answered", "unsubscribed"),
        ("received", "unreadable"),
        ("refused", "bad_json"),
        ("answered", "error"),
        ("closing", "4123"),
    ]
    at = 0
    for one in expected:
        at = whats.index(one, at) + 1
    assert all("payload" not in record for record in trace["records"]), "none unless it is asked for"
    [subscribed] = [record for record in trace["records"] if record["what"] == "subscribed" and record["room"] == room]
    assert json.loads(subscribed["filter"]) == {"types": ["a"]}
    assert len(traces(hub, "o1", 3)[0]["records"]) == 3 and traces(hub, "o1", 3)[0]["truncated"]


async def test_payloads_are_kept_where_asked_for_and_never_tokens(start):
    hub = start({"recorder.payload_bytes": 200, "recorder.records": 1000})
    refreshed, other = token("alice", jti=uuid.uuid4().hex), token("alice", jti=uuid.uuid4().hex)
    async with joined(hub, query="client_id=p1&session_id=ps1") as peer:
        await peer.done("ping", {"text": "y" * 500, "mark": "z"})
        await peer.done("auth.refresh", {"token": refreshed})
        resume = peer.data["resume"]["token"]
        await peer.done("resume", {"session_id": "ps1", "token": resume, "cursors": {}})
        # Nearly a refresh, and not JSON at all: what was meant can't be known.
        await peer.connection.send(json.dumps({"type": "auth.refesh", "data": {"token": other}}))
        await peer.connection.send('{"type": "auth.refresh", "data": {"token": "' + other)
        text = json.dumps(traces(hub, "p1"))
        await peer.done("ping", {})
        assert all(secret not in text for secret in [refreshed, other, refreshed[:40], resume, resume[:16]])
        payloads = {(record["what"], record["type"]): record.get("payload") for record in records(hub, "p1") if "type" in record}
        assert len(payloads["received", "ping"]) <= 200
        assert payloads["answered", "pong"] and not payloads["received", "auth.refresh"] and not payloads["answered", "resumed"]
        longest = max(len(record.get("payload", "")) for record in records(hub, "p1"))
        assert longest == 200


async def test_records_that_were_overwritten_are_too_long_ago(start):
    hub = start({"recorder.records": 64})
    room = "project:recorder-short"
    async with joined(hub, query="client_id=short") as peer:
        await peer.subscribe(room)
        first = publish(hub, room)
        await peer.events(room, 1)
        assert explain(hub, "short", first)["outcome"] == "written"
        for _ in range(300):
            last = publish(hub, room)
        await peer.events(room, 300)
        told = explain(hub, "short", first)
        assert told["outcome"] == "unknown" and "too long ago" in told["detail"], told
        assert explain(hub, "short", last)["outcome"] == "written"
        assert traces(hub, "short")[0]["truncated"]
    metrics = hub.metrics()
    assert 0 < metrics["ringhub_recorder_memory_bytes"] < 200_000


async def test_nothing_is_recorded_where_it_is_switched_off(start):
    hub = start({"recorder.records": 0})
    event = publish(hub, "project:recorder-off")
    async with joined(hub, query="client_id=off"):
        for path in ["trace", f"explain?event={event}"]:
            assert Backend(hub).refused("GET", f"/api/v1/connections/off/{path}") == (503, "unavailable")
        assert hub.metrics()["ringhub_recorder_memory_bytes"] == 0


async def test_the_program_explains(hub):
    room = "project:recorder-program"

    def run(*arguments: str, bearer: str | None = None) -> subprocess.CompletedProcess:
        environment = clean_environment() | {"RINGHUB_TOKEN": bearer or admin()}
        command = [str(binary()), "explain", *arguments, "--url", f"{hub.url}/ws"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)

    async with joined(hub, query="client_id=x:1") as peer:
        await peer.subscribe(room)
        event = publish(hub, room)
        await peer.events(room, 1)
        done = await asyncio.to_thread(run, "x:1", event)
        assert done.returncode == 0 and done.stdout.startswith("written\n") and room in done.stdout, done
        done = await asyncio.to_thread(run, "x:1", event, "--json")
        assert json.loads(done.stdout)["outcome"] == "written"
        done = await asyncio.to_thread(run, "x:2", event)
        assert done.returncode == 1 and "not_found" in done.stderr, done
        done = await asyncio.to_thread(run, "x:1", event, bearer=token())
        assert done.returncode == 1 and "forbidden" in done.stderr, done


