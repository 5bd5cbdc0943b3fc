"""PROTOCOL §4: who is in a room (`presence`), and the events that say who comes and goes (`presence_events`)."""

import asyncio
import time
from datetime import datetime

import pytest

from hub import admin, token
from peer import TIMESTAMP, WAIT_S, joined

SHARDS = pytest.mark.parametrize("shards", [1, 2])
TELLS = {"rooms.project.presence_events": True, "session.resume_window_s": 1}


async def count_is(peer, room: str, count: int) -> dict:
    """Asks until the room has so many members; the answer's data."""
    deadline = time.monotonic() + WAIT_S
    while (answer := await peer.done("presence", {"room": room}))["count"] != count:
        assert time.monotonic() < deadline, answer
        await asyncio.sleep(0.01)
    return answer


def told(event: dict) -> tuple[str, str]:
    return event["type"], event["data"]["client_id"]


@SHARDS
async def test_presence_lists_members_with_their_metadata_also_for_somebody_outside(start, shards):
    hub, room = start({}, shards=shards), "quote:1"
    began = time.time()
    async with joined(hub, admin("ann")) as ann, joined(hub, token("bob"), query="client_id=bob-1") as bob, joined(hub) as outside:
        assert await outside.done("presence", {"room": room}) == {"room": room, "seq": 0, "count": 0, "members": [], "more": False}
        for peer in (ann, bob):
            await peer.subscribe(room)
        await bob.done("metadata", {"set": {"name": "Bob", "cursor": {"line": 3}}})
        answer = await outside.done("presence", {"room": room})
        assert (answer["room"], answer["count"], answer["more"]) == (room, 2, False)
        members = {member["user_id"]: member for member in answer["members"]}
        assert set(members) == {"ann", "bob"}
        assert members["bob"]["client_id"] == "bob-1" and members["bob"]["session_id"] == bob.data["session_id"]
        assert members["bob"]["metadata"] == {"name": "Bob", "cursor": {"line": 3}}
        assert members["ann"]["metadata"] == {}
        for member in members.values():
            assert TIMESTAMP.match(member["joined_at"])
            assert began - 1 < datetime.fromisoformat(member["joined_at"]).timestamp() < time.time() + 1
        await bob.done("metadata", {"set": {"cursor": None}})
        members = (await outside.done("presence", {"room": room}))["members"]
        assert {"name": "Bob"} in [member["metadata"] for member in members], "as it is now"
        assert (await outside.done("presence", {"room": "global"}))["count"] == 3


async def test_presence_needs_what_a_subscription_needs(hub, room):
    permissions = ["websocket:connect", "websocket:subscribe", "project:mine:read"]
    async with joined(hub, token("carl", permissions)) as carl:
        assert (await carl.done("presence", {"room": "project:mine"}))["count"] == 0
        assert (await carl.refused("presence", {"room": room}))["code"] == "forbidden"
        assert (await carl.refused("presence", {"room": "nokind:x"}))["code"] == "bad_room"
        assert (await carl.refused("presence", {"room": "project:"}))["code"] == "bad_room"
        assert (await carl.refused("presence", {}))["code"] == "bad_command"
        assert (await carl.refused("presence", {"room": 7}))["code"] == "bad_command"
    async with joined(hub, token("dora", ["websocket:connect"])) as dora:
        assert (await dora.refused("presence", {"room": "global"}))["code"] == "forbidden"


@SHARDS
async def test_two_sessions_of_a_user_are_two_members_and_a_second_subscribe_is_none(start, shards):
    hub, room = start({}, shards=shards), "project:1"
    async with joined(hub, admin("ann")) as one, joined(hub, admin("ann")) as other:
        for peer in (one, other, one):
            await peer.subscribe(room)
        await one.subscribe(room, types=["x"])
        answer = await one.done("presence", {"room": room})
        assert answer["count"] == 2 and [member["user_id"] for member in answer["members"]] == ["ann", "ann"]
        await one.done("unsubscribe", {"room": room})
        answer = await one.done("presence", {"room": room})
        assert [member["client_id"] for member in answer["members"]] == [other.data["client_id"]]


@SHARDS
async def test_a_session_is_there_until_it_can_no_longer_be_resumed(start, shards):
    hub, room = start({"session.resume_window_s": 2}, shards=shards), "project:1"
    async with joined(hub, admin("ann")) as watcher:
        async with joined(hub, admin("bob")) as before:
            await before.subscribe(room)
            await before.done("metadata", {"set": {"tab": 1}})
            ask = {"session_id": before.data["session_id"], "token": before.data["resume"]["token"]}
            before.connection.transport.abort()
        gone, = (await watcher.done("presence", {"room": room}))["members"]
        assert (gone["client_id"], gone["metadata"]) == (before.data["client_id"], {"tab": 1})
        async with joined(hub, admin("bob")) as after:
            await after.done("resume", ask)
            back, = (await watcher.done("presence", {"room": room}))["members"]
            assert (back["client_id"], back["session_id"]) == (after.data["client_id"], ask["session_id"])
            assert back["metadata"] == {"tab": 1}
            await asyncio.sleep(2.2)
            await count_is(watcher, room, 1)
        assert (await watcher.done("presence", {"room": room}))["count"] == 1
        await count_is(watcher, room, 0)


@SHARDS
async def test_members_are_told_once_who_comes_and_who_goes(start, shards):
    hub, room = start(TELLS, shards=shards), "project:1"
    async with joined(hub, admin("ann")) as ann:
        await ann.subscribe(room)
        assert told((await ann.events(room, 1))[0]) == ("presence.joined", ann.data["client_id"]), "also of itself"
        async with joined(hub, admin("bob")) as bob:
            await bob.done("metadata", {"set": {"name": "Bob"}})
            await bob.subscribe(room)
            event, = await ann.events(room, 1)
            assert told(event) == ("presence.joined", bob.data["client_id"]) and event["seq"] == 2
            member, = [one for one in (await ann.done("presence", {"room": room}))["members"] if one["user_id"] == "bob"]
            assert event["data"] == member, "an event says what the list says"
            await bob.subscribe(room, types=["x"])
            ask = {"session_id": bob.data["session_id"], "token": bob.data["resume"]["token"]}
            bob.connection.transport.abort()
        async with joined(hub, admin("bob")) as bob:
            await bob.done("resume", ask)
            again, = [one for one in (await ann.done("presence", {"room": room}))["members"] if one["user_id"] == "bob"]
            assert again["joined_at"] == member["joined_at"] and again["client_id"] == bob.data["client_id"]
            assert [message for message in await ann.settled() if "seq" in message] == [], "a reconnect is no event"
            await bob.done("unsubscribe", {"room": room})
            assert told((await ann.events(room, 1))[0]) == ("presence.left", bob.data["client_id"])
            await bob.subscribe(room)
            assert told((await ann.events(room, 1))[0]) == ("presence.joined", bob.data["client_id"])
        began = time.monotonic()
        event, = await ann.events(room, 1)
        assert told(event) == ("presence.left", bob.data["client_id"]) and event["data"]["metadata"] == {"name": "Bob"}
        assert time.monotonic() - began > 0.8, "only when it could not be resumed any more"
        history = (await ann.done("history", {"room": room}))["events"]
        assert [event["type"].removeprefix("presence.") for event in history] == ["joined", "joined", "left", "joined", "left"]


async def test_without_a_window_members_leave_with_their_connections(start):
    hub, room = start(TELLS | {"session.resume_window_s": 0}), "project:1"
    async with joined(hub, admin("ann")) as ann:
        await ann.subscribe(room)
        for _ in range(3):
            async with joined(hub, admin("bob")) as bob:
                await bob.subscribe(room)
        events = (await ann.events(room, 7))[1:]
        assert [event["type"] for event in events] == ["presence.joined", "presence.left"] * 3
        assert (await ann.done("presence", {"room": room}))["count"] == 1


@SHARDS
async def test_a_session_that_is_taken_over_stays_one_member(start, shards):
    hub, room = start(TELLS | {"session.resume_window_s": 30}, shards=shards), "project:1"
    async with joined(hub, admin("ann")) as ann:
        await ann.subscribe(room)
        peers = []
        async with joined(hub, admin("bob"), query="session_id=tab") as first:
            await first.subscribe(room)
            for _ in range(5):
                async with joined(hub, admin("bob"), query="session_id=tab") as peer:
                    await peer.subscribe(room)
                    peers.append(peer.data["client_id"])
                    answer = await ann.done("presence", {"room": room})
                    # By user: who joined within one millisecond stand in no order.
                    clients = {member["user_id"]: member["client_id"] for member in answer["members"]}
                    assert (answer["count"], clients["bob"]) == (2, peers[-1]), answer
        events = [message for message in await ann.settled() if "seq" in message]
        assert [told(event)[0] for event in events] == ["presence.joined"] * 2


@SHARDS
async def test_many_members_are_counted_exactly(start, shards):
    hub, room = start({}, shards=shards), "project:1"
    async with asyncio.TaskGroup() as group, joined(hub, admin("ann")) as ann:
        leave = asyncio.Event()

        async def member(number: int) -> None:
            async with joined(hub, admin(f"u{number}")) as peer:
                await peer.subscribe(room)
                await leave.wait()
                if number % 2:
                    await peer.done("unsubscribe", {"room": room})

        for number in range(200):
            group.create_task(member(number))
        answer = await count_is(ann, room, 200)
        assert len({member["session_id"] for member in answer["members"]}) == 200
        times = [member["joined_at"] for member in answer["members"]]
        assert times == sorted(times)
        leave.set()
        await count_is(ann, room, 100)
