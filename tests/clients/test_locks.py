"""PROTOCOL §4: field locks. Fights for a field, fencing numbers, expiry, locks of sessions that come back and of those that
don't, permissions, and the operator's bounds."""

import asyncio
import contextlib
import signal
import time
from datetime import datetime

import pytest

from hub import admin, token
from peer import Peer, joined

SHARDS = pytest.mark.parametrize("shards", [1, 3])


def at(room: str, field: str = "title", **more) -> dict:
    return {"room": room, "field": field, **more}


def seconds_left(expires_at: str) -> float:
    return datetime.fromisoformat(expires_at).timestamp() - time.time()


async def locked(peer: Peer, room: str, field: str = "title", **more) -> int:
    return (await peer.done("lock.acquire", at(room, field, **more)))["token"]


async def lock_event(peer: Peer, room: str) -> dict:
    event, = await peer.events(room, 1)
    assert event["type"].startswith("lock."), event
    return event


@SHARDS
async def test_two_editors_fight_for_a_field(start, shards):
    hub, room = start({}, shards=shards), "project:fight"
    async with joined(hub) as ann, joined(hub, token("bob")) as bob, joined(hub) as reader:
        await reader.subscribe(room)
        answer = await ann.done("lock.acquire", at(room, ttl_s=60))
        assert (answer["room"], answer["field"]) == (room, "title") and 0 < answer["token"] < 2**53
        assert 55 < seconds_left(answer["expires_at"]) < 61
        event = await lock_event(reader, room)
        whose = {name: ann.data[name] for name in ("client_id", "session_id", "user_id")}
        granted = {"field": "title", "token": answer["token"], "expires_at": answer["expires_at"]}
        assert (event["type"], event["seq"], event["data"]) == ("lock.acquired", 1, granted | whose)

        error = await bob.refused("lock.acquire", at(room))
        assert error["code"] == "lock_held"
        assert error["details"]["holder"] == whose and error["details"]["expires_at"] == answer["expires_at"]
        for kind in ("lock.renew", "lock.release"):
            assert (await bob.refused(kind, at(room, token=answer["token"])))["code"] == "lock_lost", "not his"
            assert (await ann.refused(kind, at(room, token=answer["token"] - 1)))["code"] == "lock_lost", "no such number"
        assert await locked(bob, room, "another field") > 0
        assert (await lock_event(reader, room))["data"]["field"] == "another field"

        renewed = await ann.done("lock.renew", at(room, token=answer["token"], ttl_s=300))
        assert renewed["token"] == answer["token"] and seconds_left(renewed["expires_at"]) > 290
        assert await locked(ann, room) == answer["token"], "what one holds is renewed"

        released = await ann.done("lock.release", at(room, token=answer["token"]))
        assert released == at(room, token=answer["token"])
        event = await lock_event(reader, room)
        assert (event["type"], event["data"]) == (
            "lock.released", {"field": "title", "token": answer["token"], "reason": "released"} | whose)
        assert (await ann.refused("lock.renew", at(room, token=answer["token"])))["code"] == "lock_lost"
        later = await locked(bob, room)
        assert later > answer["token"]
        assert (await lock_event(reader, room))["data"]["token"] == later
        assert await reader.settled() == [], "nothing is told of renewals and refusals"


async def test_a_lock_that_is_not_renewed_ends_in_time_and_its_number_is_worth_nothing(start, room):
    hub = start({}, shards=2)
    async with joined(hub) as ann, joined(hub) as bob:
        await bob.subscribe(room)
        began = time.monotonic()
        old = await locked(ann, room, ttl_s=1)
        assert (await lock_event(bob, room))["type"] == "lock.acquired"
        # Nothing else happens on the hub.
        event = await lock_event(bob, room)
        took = time.monotonic() - began
        assert (event["type"], event["data"]["token"]) == ("lock.expired", old)
        assert 1.0 <= took < 1.25, took
        new = await locked(bob, room)
        assert new > old
        for kind in ("lock.renew", "lock.release"):
            assert (await ann.refused(kind, at(room, token=old)))["code"] == "lock_lost"
        assert (await ann.refused("lock.acquire", at(room)))["code"] == "lock_held"


@SHARDS
async def test_a_session_that_comes_back_still_has_its_locks(start, shards):
    hub, room = start({}, shards=shards), "project:back"
    async with joined(hub, admin()) as reader, joined(hub, admin()) as other:
        await reader.subscribe(room)
        async with joined(hub, admin("ann")) as before:
            session, resume = before.data["session_id"], before.data["resume"]["token"]
            mine = await locked(before, room, ttl_s=60)
            before.connection.transport.abort()
        assert (await other.refused("lock.acquire", at(room)))["details"]["holder"]["session_id"] == session
        async with joined(hub, admin("ann")) as after:
            back = await after.done("resume", {"session_id": session, "token": resume})
            assert [(lock["field"], lock["token"]) for lock in back["locks"]] == [("title", mine)]
            assert (await after.done("lock.renew", at(room, token=mine)))["token"] == mine
            assert await locked(after, room) == mine
            async with joined(hub, admin("ann")) as third:
                # It is taken over while it is live.
                await third.done("resume", {"session_id": session, "token": back["resume"]["token"]})
                assert (await after.closed())[0] == 4409
                assert (await other.refused("lock.acquire", at(room)))["code"] == "lock_held"
                await third.done("lock.release", at(room, token=mine))
        types = [(await lock_event(reader, room))["type"] for _ in range(2)]
        assert types == ["lock.acquired", "lock.released"]
        assert await reader.settled() == []


@SHARDS
async def test_a_session_that_does_not_come_back_loses_its_locks_when_its_time_is_over(start, shards):
    hub, room = start({"session.resume_window_s": 1}, shards=shards), "project:gone"
    async with joined(hub) as reader:
        await reader.subscribe(room)
        async with joined(hub, token("bob")) as bob:
            session = bob.data["session_id"]
            tokens = {await locked(bob, room, field, ttl_s=600) for field in ("title", "body")}
            bob.connection.transport.abort()
            gone = time.monotonic()
        events = [await lock_event(reader, room) for _ in range(4)]
        assert 0.9 < time.monotonic() - gone < 2
        freed = events[2:]
        assert {(event["type"], event["data"]["reason"]) for event in freed} == {("lock.released", "session_ended")}
        assert {event["data"]["token"] for event in freed} == tokens
        assert {event["data"]["session_id"] for event in freed} == {session}
        assert await locked(reader, room) > max(tokens)


async def test_without_a_window_locks_end_with_the_connection(start, room):
    hub = start({"session.resume_window_s": 0})
    async with joined(hub) as reader:
        await reader.subscribe(room)
        async with joined(hub, token("bob")) as bob:
            await locked(bob, room, ttl_s=600)
            await lock_event(reader, room)
        event = await lock_event(reader, room)
        assert (event["type"], event["data"]["reason"]) == ("lock.released", "session_ended")


async def test_an_editor_needs_to_read_and_write(hub, room):
    common = ["websocket:connect", "websocket:subscribe", "websocket:publish"]
    for lacks in ([*common, f"{room}:read"], [*common, f"{room}:write"], ["websocket:connect", f"{room}:read", f"{room}:write"]):
        async with joined(hub, token("carl", lacks)) as peer:
            for kind in ("lock.acquire", "lock.renew", "lock.release"):
                assert (await peer.refused(kind, at(room, token=1)))["code"] == "forbidden", (kind, lacks)
    async with joined(hub, token("carl", [*common, f"{room}:read", f"{room}:write"])) as peer:
        await locked(peer, room)
        assert (await peer.refused("lock.acquire", at("nothing:1")))["code"] == "bad_room"


async def test_whoever_may_write_no_more_holds_no_lock(hub, room):
    common = ["websocket:connect", "websocket:subscribe", "websocket:publish", f"{room}:read"]
    async with joined(hub, token("dora", [*common, f"{room}:write"])) as dora, joined(hub, admin()) as reader:
        await reader.subscribe(room)
        mine = await locked(dora, room)
        await dora.done("auth.refresh", {"token": token("dora", common)})
        events = [await lock_event(reader, room) for _ in range(2)]
        assert (events[1]["type"], events[1]["data"]["reason"]) == ("lock.released", "forbidden")
        assert (await dora.refused("lock.renew", at(room, token=mine)))["code"] == "forbidden"


async def test_what_is_no_lock_command_is_refused(hub, room):
    async with joined(hub) as peer:
        for data in (at(room, ttl_s=0), at(room, ttl_s=3601), at(room, "x" * 201), at(room, ""), at(room, "a\nb"), {"room": room}):
            assert (await peer.refused("lock.acquire", data))["code"] == "bad_command", data
        answer = await peer.done("lock.acquire", at(room, 'a "quoted" \\ field é'))
        assert answer["field"] == 'a "quoted" \\ field é'
        assert 25 < seconds_left(answer["expires_at"]) < 31, "30 s where nothing is said"


async def test_locks_are_bounded_per_session_and_per_room(start):
    hub = start({"limits.locks_per_session_max": 3, "limits.locks_per_room_max": 4})
    async with joined(hub) as ann, joined(hub) as bob:
        for n in range(6):
            await ann.send("lock.acquire", at("project:1", f"f{n}"), id=n)
        await ann.done("ping", {})
        answers = [await ann.any_of("lock.acquired", "error") for _ in range(6)]
        answers.sort(key=lambda answer: answer["ref"])
        codes = [answer["data"].get("code") for answer in answers]
        assert codes == [None] * 3 + ["unavailable"] * 3
        assert await locked(ann, "project:1", "f0"), "what one holds takes no place"
        await locked(bob, "project:1", "g0")
        assert (await bob.refused("lock.acquire", at("project:1", "g1")))["code"] == "unavailable"
        await locked(bob, "project:2", "g1")
        await ann.done("lock.release", at("project:1", "f0", token=answers[0]["data"]["token"]))
        await locked(ann, "project:2", "f3")


async def test_who_was_refused_often_is_next(hub, room):
    async with joined(hub) as greedy, joined(hub, token("bob")) as patient:
        mine = await locked(greedy, room)
        for _ in range(3):
            await patient.refused("lock.acquire", at(room))
        await greedy.send("lock.release", at(room, token=mine))
        error = await greedy.refused("lock.acquire", at(room))
        assert error["code"] == "lock_held" and error["details"]["holder"] is None
        assert await locked(patient, room) > mine


async def test_numbers_grow_over_a_restart(start, room):
    tokens = []
    for _ in range(2):
        hub = start({})
        async with joined(hub) as peer:
            for _ in range(3):
                tokens.append(await locked(peer, room))
                await peer.done("lock.release", at(room, token=tokens[-1]))
        hub.signal(signal.SIGTERM)
        assert hub.wait() == 0
    assert tokens == sorted(set(tokens))


async def test_locks_are_counted(start, room):
    hub = start({})

    def figures() -> dict[str, int]:
        found: dict[str, int] = {}
        for line in hub.get("/metrics")[2].decode().splitlines():
            name, _, value = line.partition(" ")
            if name.startswith("ringhub_locks"):
                name = name.split("{")[0]
                found[name] = found.get(name, 0) + int(float(value))
        return found

    async with joined(hub) as ann, joined(hub, token("bob")) as bob:
        await ann.subscribe(room)
        await locked(ann, room, ttl_s=1)
        await locked(ann, room, "kept")
        await bob.refused("lock.acquire", at(room))
        while (await lock_event(ann, room))["type"] != "lock.expired":
            pass
        await bob.done("ping", {})
        with contextlib.suppress(asyncio.TimeoutError):
            async with asyncio.timeout(5):
                while await asyncio.to_thread(figures) != (expected := {
                    "ringhub_locks": 1,
                    "ringhub_locks_acquired_total": 2,
                    "ringhub_locks_refused_total": 1,
                    "ringhub_locks_expired_total": 1,
                }):
                    await asyncio.sleep(0.02)
        assert await asyncio.to_thread(figures) == expected
