"""PROTOCOL §3 and §4: rooms are logs. Replays, history, idempotency keys, resuming, acknowledgements, slow readers."""

import asyncio
import contextlib
import json

import pytest
from websockets.asyncio.client import connect

from hub import admin, token
from peer import Peer, joined

SHARDS = pytest.mark.parametrize("shards", [1, 2])


async def publish(peer: Peer, room: str, count: int, **more) -> list[dict]:
    return [await peer.done("publish", {"room": room, "type": "n", "data": {"n": n}, **more}) for n in range(count)]


async def test_a_subscription_with_since_replays_what_came_after_it(hub, room):
    async with joined(hub, admin()) as writer, joined(hub, admin()) as reader:
        last = (await publish(writer, room, 5))[-1]
        since = {"seq": 2, "epoch": last["epoch"]}
        answer = await reader.done("subscribe", {"room": room, "since": since})
        assert (answer["seq"], answer["recovered"], answer["replayed"], answer["missed"]) == (5, True, 3, 0)
        await publish(writer, room, 1)
        assert [event["seq"] for event in await reader.events(room, 4)] == [3, 4, 5, 6]


async def test_since_counts_from_the_end_or_by_time_and_respects_the_selection(hub, room):
    async with joined(hub, admin()) as writer, joined(hub, admin()) as reader:
        await publish(writer, room, 4)
        await writer.done("publish", {"room": room, "type": "other", "data": {}})
        answer = await reader.done("subscribe", {"room": room, "since": {"last": 2}})
        assert (answer["recovered"], answer["replayed"], answer["missed"]) == (True, 2, 0)
        assert [event["seq"] for event in await reader.events(room, 2)] == [4, 5]
    async with joined(hub, admin()) as reader:
        answer = await reader.done("subscribe", {"room": room, "since": {"seconds": 60}, "types": ["other"]})
        assert (answer["recovered"], answer["replayed"]) == (True, 1)
        assert [event["type"] for event in await reader.events(room, 1)] == ["other"]


async def test_what_the_log_lost_is_counted(start, room):
    hub = start({"rooms.project.history_events_max": 3})
    async with joined(hub, admin()) as writer, joined(hub, admin()) as reader:
        epoch = (await publish(writer, room, 10))[-1]["epoch"]
        answer = await reader.done("subscribe", {"room": room, "since": {"seq": 4, "epoch": epoch}})
        assert (answer["recovered"], answer["replayed"], answer["missed"]) == (False, 3, 3)
        assert [event["seq"] for event in await reader.events(room, 3)] == [8, 9, 10]
    async with joined(hub, admin()) as reader:
        answer = await reader.done("subscribe", {"room": room, "since": {"seq": 4, "epoch": "0" * 16}})
        assert (answer["recovered"], answer["missed"]) == (False, None)


async def test_history_pages_in_both_directions(hub, room):
    async with joined(hub, admin()) as peer:
        await publish(peer, room, 5)
        page = await peer.done("history", {"room": room, "limit": 2})
        assert [event["seq"] for event in page["events"]] == [1, 2] and page["more"] is True and page["seq"] == 5
        page = await peer.done("history", {"room": room, "since": {"seq": 2}, "limit": 10})
        assert [event["seq"] for event in page["events"]] == [3, 4, 5] and page["more"] is False
        page = await peer.done("history", {"room": room, "limit": 2, "reverse": True})
        assert [event["seq"] for event in page["events"]] == [5, 4] and page["more"] is True
        page = await peer.done("history", {"room": room, "since": {"seq": 4}, "reverse": True})
        assert [event["seq"] for event in page["events"]] == [3, 2, 1] and page["more"] is False
        assert page["events"][0]["data"] == {"n": 2}


async def test_a_key_publishes_once(hub, room):
    async with joined(hub, admin()) as peer:
        await peer.subscribe(room)
        first, = await publish(peer, room, 1, key="order-7")
        again, = await publish(peer, room, 1, key="order-7")
        assert again["duplicate"] is True and again["id"] == first["id"] and again["seq"] == first["seq"] == 1
        await publish(peer, room, 1)
        assert [event["seq"] for event in await peer.events(room, 2)] == [1, 2]


@SHARDS
async def test_a_session_is_resumed_with_what_it_missed(start, shards):
    hub = start({}, shards=shards)
    async with joined(hub, admin()) as writer:
        async with joined(hub, admin("ann")) as before:
            session, resume = before.data["session_id"], before.data["resume"]["token"]
            for room in ("project:acked", "project:cursor", "project:time"):
                await before.subscribe(room)
                await publish(writer, room, 3)
                await before.events(room, 3)
            await before.done("metadata", {"set": {"tab": 1}})
            await before.send("ack", {"room": "project:acked", "seq": 2})
            await before.ask("ping", {})
            before.connection.transport.abort()
        await asyncio.sleep(0)
        for _ in range(200):
            sent = await writer.done("send", {"to": {"session": session}, "type": "hello", "data": {}})
            if sent == {"delivered": 0, "queued": 1}:
                break
        assert sent == {"delivered": 0, "queued": 1}
        for room in ("project:acked", "project:cursor", "project:time"):
            await publish(writer, room, 2)
        async with joined(hub, admin("ann")) as after:
            answer = await after.done(
                "resume", {"session_id": session, "token": resume, "cursors": {"project:cursor": {"seq": 1}}}
            )
            assert answer["session_id"] == session
            rooms = {result["room"]: result for result in answer["results"]}
            assert all(result["recovered"] for result in rooms.values()), rooms
            assert [event["seq"] for event in await after.events("project:acked", 3)] == [3, 4, 5]
            assert [event["seq"] for event in await after.events("project:cursor", 4)] == [2, 3, 4, 5]
            # With neither cursor nor acknowledgement the time of the disconnect decides, to the millisecond: what came in
            # that very millisecond comes again.
            seqs = [event["seq"] for event in await after.events("project:time", rooms["project:time"]["replayed"])]
            assert seqs == list(range(seqs[0], 6)) and seqs[0] <= 4
            assert (await after.done("metadata", {}))["tab"] == 1
            again = await after.done("resume", {"session_id": session, "token": answer["resume"]["token"]})
            assert again["session_id"] == session, "the session that one has can be resumed too"


@SHARDS
async def test_a_live_session_is_taken_over_by_whoever_has_its_token(start, shards):
    hub = start({}, shards=shards)
    async with joined(hub, admin("ann")) as old, joined(hub, admin("ann")) as new, joined(hub, admin("bob")) as other:
        ask = {"session_id": old.data["session_id"], "token": old.data["resume"]["token"]}
        await old.subscribe("project:kept")
        assert (await other.ask("resume", ask))["data"]["code"] == "forbidden", "another user's"
        assert (await new.ask("resume", {**ask, "token": "0" * 32}))["data"]["code"] == "forbidden"
        assert (await new.ask("resume", {**ask, "session_id": "nobody"}))["data"]["code"] == "not_found"
        await new.done("resume", ask)
        await old.connection.wait_closed()
        assert old.connection.close_code == 4409
        assert "project:kept" in (await new.done("rooms"))["rooms"]
        sent = await other.done("send", {"to": {"session": ask["session_id"]}, "type": "hello", "data": {}})
        assert sent == {"delivered": 1, "queued": 0}


async def test_permissions_are_checked_again_at_a_resume(hub, room):
    before = token("carl", permissions=["websocket:*", f"{room}:read"])
    after = token("carl", permissions=["websocket:connect", "websocket:subscribe"])
    async with joined(hub, before) as peer:
        ask = {"session_id": peer.data["session_id"], "token": peer.data["resume"]["token"]}
        await peer.subscribe(room)
    async with joined(hub, after) as peer:
        results = {result["room"]: result for result in (await peer.done("resume", ask))["results"]}
        assert results[room]["error"]["code"] == "forbidden"
        assert room not in (await peer.done("rooms"))["rooms"]


@SHARDS
async def test_a_slow_reader_is_told_exactly_what_it_missed(start, shards):
    hub = start({"limits.outbox_bytes_max": 65536, "history.bytes_max": "16MiB"}, shards=shards)
    room, count = "project:slow", 5000
    async with joined(hub, admin()) as writer:
        async with connect(f"{hub.url}/ws?token={admin()}", max_queue=1, ssl=hub.tls) as slow:
            await slow.recv()
            await slow.send(json.dumps({"type": "subscribe", "id": "s", "data": {"room": room}}))
            assert json.loads(await slow.recv())["type"] == "subscribed"
            data = {"pad": "x" * 2000}
            for _ in range(count):
                await writer.send("publish", {"room": room, "type": "n", "data": data})
            await writer.ask("ping", {})
            seq, gaps = 0, 0
            while seq < count:
                message = json.loads(await asyncio.wait_for(slow.recv(), 10))
                if message["type"] == "gap":
                    gap = message["data"]
                    assert gap["room"] == room and gap["from_seq"] == seq + 1 and gap["to_seq"] >= gap["from_seq"]
                    seq, gaps = gap["to_seq"], gaps + 1
                else:
                    assert message["seq"] == seq + 1
                    seq = message["seq"]
            assert gaps >= 1, "the reader was not slow enough to show anything"
            await writer.done("publish", {"room": room, "type": "n", "data": {}})
            assert json.loads(await asyncio.wait_for(slow.recv(), 10))["seq"] == count + 1


@SHARDS
async def test_alerts_overtake_the_telemetry_that_waits_for_a_slow_reader(start, shards):
    hub = start({"rooms.quote.urgent": True, "limits.outbox_bytes_max": "64MiB", "rooms.project.history_events_max": 20_000}, shards=shards)
    telemetry, alerts, count = "project:telemetry", "quote:alerts", 8000
    async with joined(hub, admin()) as writer:
        async with connect(f"{hub.url}/ws?token={admin()}", max_queue=1) as slow:
            await slow.recv()
            for room in (telemetry, alerts):
                await slow.send(json.dumps({"type": "subscribe", "id": room, "data": {"room": room}}))
                assert json.loads(await slow.recv())["type"] == "subscribed"
            # Far more than the kernel's buffers take, and all of it within the outbox.
            for _ in range(count):
                await writer.send("publish", {"room": telemetry, "type": "n", "data": {"pad": "x" * 2500}})
            await writer.ask("ping", {})
            await publish(writer, alerts, 3)
            seqs, alerts_at = {telemetry: [], alerts: []}, []
            while len(seqs[telemetry]) < count:
                event = json.loads(await asyncio.wait_for(slow.recv(), 10))
                seqs[event["room"]].append(event["seq"])
                if event["room"] == alerts:
                    alerts_at.append(len(seqs[telemetry]))
            assert seqs == {telemetry: list(range(1, count + 1)), alerts: [1, 2, 3]}
            assert alerts_at[0] == alerts_at[-1] < count // 2, "all alerts come before most of what was published earlier"


@SHARDS
async def test_a_hundred_readers_that_do_not_read_stay_within_their_bound(start, shards):
    readers, outbox_bytes_max, seconds, per_s = 100, 256 << 10, 10, 1000
    hub = start({"limits.outbox_bytes_max": outbox_bytes_max}, shards=shards)
    room = "quote:slow"
    async with contextlib.AsyncExitStack() as stack:
        writer = await stack.enter_async_context(joined(hub, admin()))
        slow = [await stack.enter_async_context(connect(f"{hub.url}/ws?token={admin()}", max_queue=1)) for _ in range(readers)]
        for reader in slow:
            await reader.recv()
            await reader.send(json.dumps({"type": "subscribe", "id": "s", "data": {"room": room}}))
            assert json.loads(await reader.recv())["type"] == "subscribed"
        before_kb, waits, clock = hub.resident_kb(), [], asyncio.get_running_loop()
        began = clock.time()
        for part in range(seconds * 10):
            for _ in range(per_s // 10):
                await writer.send("publish", {"room": room, "type": "n", "data": {"pad": "x" * 1024}})
            await writer.ask("ping", {})
            if part % 10 == 9:
                metrics = await asyncio.to_thread(hub.metrics)
                waits.append(metrics["ringhub_outbox_bytes"] - metrics["ringhub_log_bytes"])
            await asyncio.sleep(began + (part + 1) / 10 - clock.time())
        grown_bytes = (hub.resident_kb() - before_kb) * 1024
        print(f"{shards} shards: at most {max(waits) / 1024 / readers:.1f} KiB wait per reader, resident {grown_bytes / 1024 / readers:+.1f} KiB")
        assert metrics["ringhub_slow_readers_total"] >= readers, "they were not slow enough to show anything"
        assert max(waits) <= readers * outbox_bytes_max
        # The log, and what the allocator keeps.
        assert grown_bytes <= readers * outbox_bytes_max + (16 << 20)
        # Meanwhile nobody else notices, and they can still go on.
        assert (await asyncio.wait_for(writer.ask("ping", {}), 1))["type"] == "pong"
        seq = 0
        while seq < seconds * per_s:
            message = json.loads(await asyncio.wait_for(slow[0].recv(), 10))
            first, last = (message["data"]["from_seq"], message["data"]["to_seq"]) if message["type"] == "gap" else (message["seq"],) * 2
            assert first == seq + 1
            seq = last
