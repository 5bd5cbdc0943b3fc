"""PROTOCOL §3, §4 and §6: joining rooms, publishing into them, and what arrives at whom."""

import itertools
import json

import pytest

from hub import admin, token
from peer import joined

NOTE = {"type": "note.added", "data": {"text": "hello"}}


async def test_a_subscription_is_answered_and_its_events_arrive(hub, room):
    async with joined(hub) as alice:
        answer = await alice.ask("subscribe", {"room": room})
        assert answer["type"] == "subscribed"
        data = answer["data"]
        assert data["room"] == room and data["seq"] == 0 and data["epoch"]
        assert {"recovered", "replayed", "missed"} <= data.keys()
        published = await alice.done("publish", {"room": room, **NOTE})
        assert published["room"] == room and published["seq"] == 1 and published["duplicate"] is False
        (event,) = await alice.events(room, 1)
        assert event["type"] == "note.added" and event["data"] == {"text": "hello"} and event["seq"] == 1
        assert event["id"] == published["id"]


async def test_every_subscriber_gets_the_same_bytes(hub, room):
    async with joined(hub) as one, joined(hub, token("bob")) as two, joined(hub, token("carol")) as three:
        for peer in (one, two, three):
            await peer.subscribe(room)
        for number in range(20):
            await one.done("publish", {"room": room, "type": "note.added", "data": {"n": number, "text": "ünïcødé \u2028"}})
        frames = []
        for peer in (one, two, three):
            await peer.events(room, 20)
            frames.append([frame for frame in peer.frames if '"note.added"' in frame])
        assert frames[0] == frames[1] == frames[2]
        assert len(frames[0]) == 20


async def test_a_room_counts_its_events_from_one_without_holes(hub, room):
    async with joined(hub) as alice:
        await alice.subscribe(room)
        for number in range(50):
            await alice.send("publish", {"room": room, "type": "note.added", "data": number})
        events = await alice.events(room, 50)
        assert [event["seq"] for event in events] == list(range(1, 51))
        assert [event["data"] for event in events] == list(range(50))
        assert len({event["id"] for event in events}) == 50


async def test_a_later_subscriber_learns_where_the_room_is(hub, room):
    async with joined(hub) as alice, joined(hub, token("bob")) as bob:
        first = await alice.subscribe(room)
        for _ in range(3):
            await alice.done("publish", {"room": room, **NOTE})
        later = await bob.subscribe(room)
        assert later["seq"] == 3 and later["epoch"] == first["epoch"]
        assert not [message for message in await bob.settled() if message.get("room") == room]


@pytest.mark.parametrize(
    "data",
    [
        None, True, -1, 0.5, 1e300, 9007199254740993, "", "text", [], {}, [1, [2, [3]]], {"a": {"b": [None, False]}},
        {"quote\"back\\slash/": "\b\f\n\r\t\x01"}, {"emoji": "🦀", "nul": "\x00", "lone": "\\ud800"}, {"": ""},
    ],
    ids=repr,
)  # fmt: skip
async def test_data_arrives_as_it_was_sent(hub, room, data):
    async with joined(hub) as alice:
        await alice.subscribe(room)
        await alice.done("publish", {"room": room, "type": "anything.at-all", "data": data})
        assert (await alice.events(room, 1))[0]["data"] == data


async def test_data_is_passed_on_byte_for_byte(hub, room):
    text = '{ "b":1.0,  "a" : 1E2,"b2":123456789012345678901234567890 ,"u":"\\u00e9" }'
    async with joined(hub) as alice:
        await alice.subscribe(room)
        await alice.connection.send(f'{{"type":"publish","data":{{"room":"{room}","type":"raw","data":{text}}}}}')
        await alice.events(room, 1)
        assert text in alice.frames[-1]


async def test_several_rooms_at_once_each_have_a_result(hub, room):
    async with joined(hub) as alice:
        data = await alice.done("subscribe", {"rooms": [room, f"{room}-b", "admin:secrets", "nonsense"]})
        results = {result["room"]: result for result in data["results"]}
        assert results[room]["epoch"] and results[f"{room}-b"]["seq"] == 0
        assert results["admin:secrets"]["error"]["code"] == "forbidden"
        assert results["nonsense"]["error"]["code"] == "bad_room"
        rooms = set((await alice.done("rooms"))["rooms"])
        assert {room, f"{room}-b"} <= rooms and "admin:secrets" not in rooms
        left = await alice.ask("unsubscribe", {"rooms": [room, f"{room}-b"]})
        assert left["type"] == "unsubscribed"
        assert room not in (await alice.done("rooms"))["rooms"]


async def test_after_leaving_nothing_more_arrives(hub, room):
    async with joined(hub) as alice, joined(hub, token("bob")) as bob:
        await alice.subscribe(room)
        await bob.subscribe(room)
        left = await bob.ask("unsubscribe", {"room": room})
        assert left["type"] == "unsubscribed" and left["data"]["room"] == room
        await alice.done("publish", {"room": room, **NOTE})
        await alice.events(room, 1)
        assert not [message for message in await bob.settled() if message.get("room") == room]


async def test_only_wanted_types_arrive(hub, room):
    async with joined(hub) as alice:
        await alice.subscribe(room, types=["b", "c"])
        for kind in "abcabc":
            await alice.done("publish", {"room": room, "type": kind, "data": {}})
        events = [message for message in await alice.settled() if message.get("room") == room]
        assert [(event["type"], event["seq"]) for event in events] == [("b", 2), ("c", 3), ("b", 5), ("c", 6)]


EVENTS = [
    {"level": 0.5, "status": "failed", "name": "db-1", "done": True, "deep": {"er": {"x": 1}}},
    {"level": 0.8, "status": "ok", "name": "db-2", "deep": {"er": {"x": 2}}},
    {"level": 1, "status": "blocked", "name": "web-1", "done": None},
    {"level": "0.9", "name": 7},
    {},
]


@pytest.mark.parametrize(
    "filters, matching",
    [
        ({"level": {"min": 0.8}}, [1, 2]),
        ({"level": {"min": 0.8, "max": 0.9}}, [1]),
        ({"level": {"max": 0.5}}, [0]),
        ({"level": 1}, [2]),
        ({"status": "failed"}, [0]),
        ({"status": {"in": ["failed", "blocked"]}}, [0, 2]),
        ({"name": {"prefix": "db-"}}, [0, 1]),
        ({"done": {"exists": True}}, [0, 2]),
        ({"status": {"exists": False}}, [3, 4]),
        ({"deep.er.x": 2}, [1]),
        ({"deep.er": {"exists": True}}, [0, 1]),
        ({"status": "ok", "level": {"min": 0.8}}, [1]),
        ({"status": "ok", "level": {"min": 0.9}}, []),
        ({"any": [{"status": "ok"}, {"name": {"prefix": "web"}}]}, [1, 2]),
        ({}, [0, 1, 2, 3, 4]),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
async def test_filters_let_through_what_matches(hub, room, filters, matching):
    async with joined(hub) as alice:
        await alice.subscribe(room, filters=filters)
        for data in EVENTS:
            await alice.done("publish", {"room": room, "type": "state", "data": data})
        events = [message["seq"] - 1 for message in await alice.settled() if message.get("room") == room]
        assert events == matching


async def test_not_turns_a_condition_around(hub, room):
    async with joined(hub) as alice:
        await alice.subscribe(room, filters={"status": {"not": "failed"}})
        for data in EVENTS[:3]:
            await alice.done("publish", {"room": room, "type": "state", "data": data})
        assert [message["seq"] for message in await alice.settled() if message.get("room") == room] == [2, 3]


async def test_subscribers_with_different_filters_share_a_room(hub, room):
    async with joined(hub) as low, joined(hub) as high, joined(hub) as everything:
        await low.subscribe(room, filters={"n": {"max": 4}})
        await high.subscribe(room, filters={"n": {"min": 5}})
        await everything.subscribe(room)
        for n in range(10):
            await everything.done("publish", {"room": room, "type": "n", "data": {"n": n}})
        for peer, wanted in ((low, range(5)), (high, range(5, 10)), (everything, range(10))):
            assert [event["data"]["n"] for event in await peer.events(room, len(wanted))] == list(wanted)


SHORT = [
    ({"type": "epistemic_updates", "agent_id": "A"}, "agent:A", "epistemic_update"),
    ({"type": "pattern_alerts", "agent_id": "A"}, "agent:A", "pattern_alert"),
    ({"type": "prediction_updates", "agent_id": "A"}, "agent:A", "prediction_update"),
    ({"type": "system_alerts"}, "global", "system_alert"),
]
COGNITION = {"agent_id": "A", "confidence_level": 0.9, "message": "m", "severity": "info", "level": "info", "pattern": "p", "prediction": "x", "confidence": 0.9}


@pytest.mark.parametrize("short, where, kind", SHORT, ids=[short[2] for short in SHORT])
async def test_short_forms_join_the_room_they_stand_for(hub, room, short, where, kind):
    agent = room.partition(":")[2] + kind
    short = {name: agent if value == "A" else value for name, value in short.items()}
    where = where.replace("A", agent)
    async with joined(hub, admin()) as watcher:
        await watcher.done("subscribe", short)
        assert where in (await watcher.done("rooms"))["rooms"]
        await watcher.done("publish", {"room": where, "type": "other.kind", "data": {}})
        sent = await watcher.done("publish", {"room": where, "type": kind, "data": COGNITION | {"agent_id": agent}})
        event = (await watcher.events(where, 1))[0]
        while event["id"] != sent["id"]:
            assert event["type"] == kind or where == "global"
            event = (await watcher.events(where, 1))[0]
        assert event["type"] == kind
        await watcher.done("unsubscribe", short)


async def test_a_short_form_takes_filters(hub, room):
    agent = room.partition(":")[2]
    async with joined(hub) as watcher:
        await watcher.done("subscribe", {"type": "epistemic_updates", "agent_id": agent, "filters": {"confidence_level": {"min": 0.8}}})
        for level in (0.7, 0.8, 0.9, 0.1):
            await watcher.done("publish", {"room": f"agent:{agent}", "type": "epistemic_update", "data": COGNITION | {"agent_id": agent, "confidence_level": level}})
        events = [message for message in await watcher.settled() if message.get("room") == f"agent:{agent}"]
        assert [event["data"]["confidence_level"] for event in events] == [0.8, 0.9]


async def test_echo_false_keeps_an_event_from_its_publisher_alone(hub, room):
    async with joined(hub) as alice, joined(hub) as other:
        await alice.subscribe(room)
        await other.subscribe(room)
        await alice.done("publish", {"room": room, **NOTE, "echo": False})
        await alice.done("publish", {"room": room, **NOTE})
        assert [event["seq"] for event in await other.events(room, 2)] == [1, 2]
        assert [message["seq"] for message in await alice.settled() if message.get("room") == room] == [2]


async def test_the_same_key_is_published_once(hub, room):
    async with joined(hub) as alice:
        await alice.subscribe(room)
        first = await alice.done("publish", {"room": room, **NOTE, "key": "order-1"})
        again = await alice.done("publish", {"room": room, **NOTE, "key": "order-1"})
        other = await alice.done("publish", {"room": room, **NOTE, "key": "order-2"})
        assert first["duplicate"] is False and again["duplicate"] is True and other["duplicate"] is False
        assert (again["id"], again["seq"]) == (first["id"], first["seq"])
        assert other["seq"] == 2
        assert len([message for message in await alice.settled() if message.get("room") == room]) == 2


async def test_publishing_does_not_need_membership(hub, room):
    async with joined(hub) as alice, joined(hub) as other:
        await other.subscribe(room)
        await alice.done("publish", {"room": room, **NOTE})
        await other.events(room, 1)
        assert not [message for message in await alice.settled() if message.get("room") == room]


async def test_a_command_without_an_id_is_only_answered_when_it_fails(hub, room):
    async with joined(hub) as alice:
        await alice.send("subscribe", {"room": room})
        await alice.send("subscribe", {"room": "nonsense"})
        messages = await alice.settled()
        assert [message["type"] for message in messages] == ["error"]
        assert "ref" not in messages[0]


JOINS = [
    (["project:1:read"], "project:1", True),
    (["project:*:read"], "project:1", True),
    (["project:2:read"], "project:1", False),
    (["project:1:write"], "project:1", False),
    (["*:*:read"], "quote:7", True),
    (["quote:7:read"], "quote:7", True),
    (["workflow:7:read"], "workflow:7", True),
    (["analytics:7:read"], "analytics:7", True),
    (["agent:a:monitor"], "agent:a", True),
    (["agent:*:monitor"], "agent:b", True),
    (["agent:a:read"], "agent:a", False),
    ([], "user:alice", True),
    ([], "user:bob", False),
    ([], "global", True),
    (["admin:all:read"], "admin:all", False),
    (["websocket:admin"], "admin:all", True),
    (["websocket:admin"], "user:bob", True),
    (["websocket:admin"], "session:any", True),
    ([], "session:other", False),
]


@pytest.mark.parametrize("permissions, where, allowed", JOINS, ids=[f"{'+'.join(row[0]) or 'nothing'} {row[1]}" for row in JOINS])
async def test_who_may_join_what(hub, permissions, where, allowed):
    jwt = token("alice", ["websocket:connect", "websocket:subscribe", *permissions])
    async with joined(hub, jwt) as alice:
        answer = await alice.ask("subscribe", {"room": where})
        assert answer["type"] == ("subscribed" if allowed else "error"), answer
        if not allowed:
            assert answer["data"]["code"] == "forbidden"


async def test_ones_own_session_may_be_joined(hub):
    async with joined(hub, query="session_id=own-session") as alice:
        await alice.subscribe("session:own-session")


async def test_subscribing_needs_the_right_to_subscribe(hub):
    async with joined(hub, token(permissions=["websocket:connect", "project:*:read"])) as alice:
        assert (await alice.refused("subscribe", {"room": "project:1"}))["code"] == "forbidden"


@pytest.mark.parametrize("missing", ["websocket:publish", "project:*:write"])
async def test_publishing_needs_the_right_to_publish_and_to_write(hub, room, missing):
    granted = {"websocket:connect", "websocket:publish", "project:*:write"} - {missing}
    async with joined(hub, token(permissions=sorted(granted))) as alice:
        assert (await alice.refused("publish", {"room": room, **NOTE}))["code"] == "forbidden"


async def test_declared_kinds_work_like_the_built_in_ones(start):
    hub = start({"rooms.game.join": ["game:{name}:play"]}, shards=1)
    async with joined(hub, token(permissions=["websocket:connect", "websocket:subscribe", "game:chess:play"])) as player:
        await player.subscribe("game:chess")
        assert (await player.refused("subscribe", {"room": "game:go"}))["code"] == "forbidden"


TYPED = ["project.updated", "agent.status_changed", "workflow.progress", "pr.created", "issue.closed", "quote.updated", "epistemic_update"]


@pytest.mark.parametrize("kind", TYPED)
async def test_known_types_must_have_their_shape(hub, room, kind):
    async with joined(hub) as alice:
        for data in ("text", 7, [1], None):
            assert (await alice.refused("publish", {"room": room, "type": kind, "data": data}))["code"] == "bad_command"
        assert (await alice.subscribe(room))["seq"] == 0


async def test_unknown_extra_fields_of_a_known_type_are_kept(hub, room):
    async with joined(hub) as alice:
        await alice.subscribe(room)
        await alice.done("publish", {"room": room, "type": "project.updated", "data": {"body": "x", "extra": [1]}})
        assert (await alice.events(room, 1))[0]["data"] == {"body": "x", "extra": [1]}


async def test_strict_hubs_take_known_types_only(start, room):
    hub = start({"events.strict": True}, shards=1)
    async with joined(hub) as alice:
        assert (await alice.refused("publish", {"room": room, **NOTE}))["code"] in ("unknown_type", "bad_command")
        await alice.done("publish", {"room": room, "type": "project.updated", "data": {"project_id": "1"}})


# Direct messages.


async def test_a_message_to_a_client_session_or_user_arrives_there_only(hub):
    async with (
        joined(hub, token("dora"), query="client_id=dora-1&session_id=dora-s") as dora,
        joined(hub, token("emil"), query="session_id=emil-s") as emil,
        joined(hub, admin()) as sender,
    ):
        for to in ({"client": "dora-1"}, {"session": "dora-s"}, {"sessions": ["dora-s"]}, {"user": "dora"}):
            sent = await sender.done("send", {"to": to, "type": "hello", "data": {"to": to}})
            assert sent["delivered"] == 1, to
            event = await dora.next("hello")
            assert event["data"] == {"to": to}
        sent = await sender.done("send", {"to": {"sessions": ["dora-s", "emil-s"]}, "type": "hello", "data": 1})
        assert sent["delivered"] == 2
        await dora.next("hello")
        await emil.next("hello")
        assert not [message for message in await emil.settled() if message["type"] == "hello"]
        assert not [message for message in await sender.settled() if message["type"] == "hello"]


async def test_a_user_is_reached_on_all_connections(hub):
    async with joined(hub, token("fritz")) as one, joined(hub, token("fritz")) as two, joined(hub, admin()) as sender:
        assert (await sender.done("send", {"to": {"user": "fritz"}, "type": "hello", "data": 1}))["delivered"] == 2
        first, second = await one.next("hello"), await two.next("hello")
        assert first == second


async def test_a_client_that_is_not_there_is_not_reached(hub):
    async with joined(hub, admin()) as sender:
        answer = await sender.ask("send", {"to": {"client": "nobody-here"}, "type": "hello", "data": 1})
        if answer["type"] == "error":
            assert answer["data"]["code"] == "not_found"
        else:
            assert answer["data"]["delivered"] == 0


async def test_sending_needs_permission(hub):
    async with joined(hub, token("gerd", ["websocket:connect", "websocket:subscribe"])) as gerd:
        assert (await gerd.refused("send", {"to": {"user": "alice"}, "type": "hello", "data": 1}))["code"] == "forbidden"


# Over HTTP.


async def test_what_is_published_over_http_arrives(hub, room):
    async with joined(hub) as alice:
        await alice.subscribe(room)
        status, one = hub.publish(room, "note.added", {"n": 1})
        assert status == 200 and one["seq"] == 1
        event = (await alice.events(room, 1))[0]
        assert event["id"] == one["id"] and event["data"] == {"n": 1}
        credentials = {"Authorization": f"Bearer {admin()}"}
        status, _, body = hub.get("/api/v1/publish", credentials, method="POST", body=[{"room": room, "type": "n", "data": n} for n in range(20)])
        assert status == 200
        answers = json.loads(body)
        answers = answers["results"] if isinstance(answers, dict) else answers
        assert [answer["seq"] for answer in answers] == list(range(2, 22))
        assert [event["data"] for event in await alice.events(room, 20)] == list(range(20))


async def test_both_ways_of_publishing_count_on(hub, room):
    async with joined(hub) as alice:
        await alice.subscribe(room)
        for number in itertools.islice(itertools.count(), 5):
            await alice.done("publish", {"room": room, "type": "n", "data": number})
            hub.publish(room, "n", number)
        assert [event["seq"] for event in await alice.events(room, 10)] == list(range(1, 11))
