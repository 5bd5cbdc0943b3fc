"""The forms of the native protocol that a client may ask for by its subprotocol: the same messages as JSON one by one."""

import contextlib
import json

import msgpack
import pytest

from hub import admin, token
from peer import joined

NATIVE = "ringhub.v1.json"
FORMS = [NATIVE, "ringhub.v1.json.batch", "ringhub.v1.msgpack", "ringhub.v1.msgpack.batch"]
DATA = [
    {"seq": 18446744073709551615, "low": -9223372036854775808, "half": 0.5, "tenth": 0.1, "huge": 1e300, "whole": 3.0},
    "a \"text\" with \\ and \n and \u0000 and ünï and 😀",
    [1, [2, [3, {"a": {}, "b": []}]], True, False, None],
    {str(number): [number] * 20 for number in range(500)},
    None,
    "x" * 70_000,
]


def bearer(value: str) -> dict:
    return {"Authorization": f"Bearer {value}"}


@contextlib.asynccontextmanager
async def everyone(hub):
    """A client in each form."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(joined(hub, token("bob"), subprotocols=[form])) for form in FORMS]


def same(one: object, other: object) -> bool:
    """Equal, and 3.0 is not 3, nor true 1."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


@pytest.mark.parametrize(
    "offered, chosen",
    [
        (["ringhub.v1.msgpack", NATIVE], "ringhub.v1.msgpack"),
        ([NATIVE, "ringhub.v1.msgpack"], NATIVE),
        (["ringhub.v2.cbor", "bearer.x", "ringhub.v1.msgpack.batch"], "ringhub.v1.msgpack.batch"),
        (["ringhub.v1.json.batch"], "ringhub.v1.json.batch"),
    ],
)
async def test_the_first_offer_that_the_hub_knows_is_chosen(hub, offered, chosen):
    async with joined(hub, subprotocols=offered) as client:
        assert client.connection.subprotocol == chosen


@pytest.mark.parametrize("form", FORMS)
async def test_what_one_publishes_in_any_form_all_forms_get(hub, room, form):
    async with joined(hub, subprotocols=[form]) as publisher, everyone(hub) as readers:
        for reader in readers:
            await reader.subscribe(room)
        for data in DATA:
            await publisher.done("publish", {"room": room, "type": "note.added", "data": data})
        all_events = [await reader.events(room, len(DATA)) for reader in readers]
        for events in all_events:
            assert [event["seq"] for event in events] == list(range(1, len(DATA) + 1))
            assert all(same(event["data"], data) for event, data in zip(events, DATA))
            assert same(events, all_events[0])


@pytest.mark.parametrize("form", FORMS)
async def test_history_presence_and_errors_are_answered_in_the_form_of_the_client(hub, room, form):
    async with joined(hub, subprotocols=[form]) as client:
        await client.subscribe(room)
        await client.done("publish", {"room": room, "type": "note.added", "data": DATA[0]})
        history = await client.done("history", {"room": room})
        assert same([event["data"] for event in history["events"]], [DATA[0]])
        assert (await client.done("presence", {"room": room}))["count"] == 1
        assert (await client.done("ping", DATA[2])) == DATA[2]
        assert (await client.refused("nonsense"))["code"] == "unknown_type"
        assert (await client.refused("subscribe", {"room": "nothing"}))["code"] == "bad_room"


@pytest.mark.parametrize("form", FORMS[1::2])
async def test_events_that_come_at_once_are_one_frame_in_a_batch(hub, room, form):
    async with joined(hub, subprotocols=[form]) as client:
        await client.subscribe(room)
        events = [{"room": room, "type": "note.added", "data": number} for number in range(200)]
        assert hub.get("/api/v1/publish", bearer(admin()), method="POST", body=events)[0] == 200
        events = await client.events(room, 200)
        assert [event["data"] for event in events] == list(range(200))
        assert len(client.frames) < 50, f"{len(client.frames)} frames for 200 events"


@pytest.mark.parametrize("form", FORMS)
async def test_a_session_is_resumed_in_any_form(hub, room, form):
    async with joined(hub, subprotocols=[FORMS[0]]) as first, joined(hub, token("bob")) as publisher:
        await first.subscribe(room)
        await publisher.done("publish", {"room": room, "type": "note.added", "data": 1})
        await first.events(room, 1)
        await first.close()
        for number in range(2, 6):
            await publisher.done("publish", {"room": room, "type": "note.added", "data": number})
        async with joined(hub, subprotocols=[form]) as second:
            resume = {"session_id": first.data["session_id"], "token": first.data["resume"]["token"], "cursors": {room: {"seq": 1}}}
            assert (await second.ask("resume", resume))["type"] == "resumed"
            assert [event["data"] for event in await second.events(room, 4)] == [2, 3, 4, 5]


@pytest.mark.parametrize(
    "message",
    [
        msgpack.packb(b"binary"),
        msgpack.packb({"type": "ping", "data": b"binary"}),
        msgpack.packb(msgpack.ExtType(5, b"x")),
        msgpack.packb({"type": "ping", "data": msgpack.Timestamp(1, 0)}),
        msgpack.packb({"type": "ping", 1: 2}),
        msgpack.packb(float("nan")),
        b"",
        b"\xc1",
        msgpack.packb({"type": "ping"})[:-1],
        msgpack.packb({"type": "ping"}) + b"\xc0",
        b"\x91" * 100_000,
        b"\xdd\xff\xff\xff\xff",
    ],
)
async def test_what_is_no_message_in_messagepack_is_refused(hub, message):
    async with joined(hub, subprotocols=["ringhub.v1.msgpack"]) as client:
        await client.connection.send(message)
        assert (await client.next("error"))["data"]["code"] == "bad_json"
        assert (await client.done("ping", {})) == {}


async def test_a_message_that_is_too_large_as_json_is_refused_and_the_connection_stays(hub):
    async with joined(hub, subprotocols=["ringhub.v1.msgpack"]) as client:
        await client.connection.send(msgpack.packb({"type": "ping", "data": "\u0001" * 300_000}))
        assert (await client.next("error"))["data"]["code"] == "too_large"
        assert (await client.done("ping", "\u0001" * 1000)) == "\u0001" * 1000


async def test_a_text_frame_of_a_client_of_messagepack_is_json(hub):
    async with joined(hub, subprotocols=["ringhub.v1.msgpack"]) as client:
        await client.connection.send(json.dumps({"type": "ping", "data": [1.5]}))
        assert (await client.next("pong"))["data"] == [1.5]


async def test_operators_see_in_which_form_a_connection_is(hub):
    async with everyone(hub) as clients:
        paths = [f"/api/v1/connections/{client.data['client_id']}" for client in clients]
        shown = [json.loads(hub.get(path, bearer(admin()))[2])["protocol"] for path in paths]
        assert shown == ["native", "native-batch", "msgpack", "msgpack-batch"]


# ---- changes ----


def merged(target: object, patch: object) -> object:
    """RFC 7396 §2."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


class States:
    """What a client knows of a room's events: the last data of each type."""

    def __init__(self):
        self.last: dict[str, tuple[int, object]] = {}
        self.changes = 0

    def take(self, event: dict) -> object:
        if "delta" in event:
            assert "data" not in event
            base, data = self.last[event["type"]]
            assert base == event["base"]
            data = merged(data, event["delta"])
            self.changes += 1
        else:
            data = event["data"]
        self.last[event["type"]] = (event["seq"], data)
        return data


@pytest.mark.parametrize("form", FORMS)
async def test_a_client_that_asks_for_changes_can_make_every_event_of_them(hub, room, form):
    async with joined(hub, subprotocols=[form]) as client, joined(hub, token("bob")) as other:
        await client.subscribe(room, delta=True)
        await other.subscribe(room)
        states = {kind: {"kind": kind, "text": "ünï" * 40, "list": list(range(20)), "inner": {"n": 0, "same": "x" * 30}} for kind in ("a.moved", "b.moved")}
        sent = []
        for number in range(60):
            kind = ("a.moved", "b.moved")[number % 3 == 0]
            state = states[kind] = json.loads(json.dumps(states[kind]))
            state["inner"]["n"] = number
            if number % 7 == 0:
                state["list"].append(None)
            if number % 11 == 0:
                state["gone"] = None if number % 2 else number
            elif number % 11 == 5:
                state.pop("gone", None)
            sent.append(state)
            assert hub.publish(room, kind, state)[0] == 200
        known = States()
        assert [known.take(event) for event in await client.events(room, 60)] == sent
        assert [event["data"] for event in await other.events(room, 60)] == sent
        assert known.changes > 40
        later = await client.done("history", {"room": room, "limit": 10})
        assert [event["data"] for event in later["events"]], "history is whole"


async def test_a_change_begins_anew_with_the_subscription(hub, room):
    async with joined(hub) as client:
        await client.subscribe(room, delta=True)
        state = {"n": 1, "text": "x" * 100}
        for number in range(3):
            hub.publish(room, "a.moved", state | {"n": number})
        assert ["delta" in event for event in await client.events(room, 3)] == [False, True, True]
        await client.subscribe(room, delta=True, since={"last": 1})
        for number in range(3):
            hub.publish(room, "a.moved", state | {"n": number})
        assert ["delta" in event for event in await client.events(room, 4)] == [False, False, True, True]
        await client.subscribe(room)
        hub.publish(room, "a.moved", state)
        assert ["delta" in event for event in await client.events(room, 1)] == [False]


async def test_changes_go_without_types_and_filters(hub, room):
    async with joined(hub) as client:
        for more in ({"types": ["a"]}, {"filters": {"n": 1}}):
            assert (await client.refused("subscribe", {"room": room, "delta": True, **more}))["code"] == "bad_command"
        assert (await client.refused("subscribe", {"room": room, "delta": "yes"}))["code"] == "bad_command"
