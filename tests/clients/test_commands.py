"""PROTOCOL §2, §4 and §5: the shape of messages, the smaller commands, and every error that leaves the connection open."""

import asyncio
import json

import pytest

from hub import MEMBER, admin, token
from peer import TEXT, Bare, joined


@pytest.mark.parametrize("ref", ["a", "x" * 64, "ünï", 0, 1, -5, 9007199254740991, 1 << 62], ids=repr)
async def test_the_answer_carries_the_id_as_it_was_sent(hub, ref):
    async with joined(hub) as alice:
        await alice.send("ping", {"n": 1}, id=ref)
        pong = await alice.next("pong")
        assert pong["ref"] == ref and type(pong["ref"]) is type(ref)
        assert pong["data"] == {"n": 1}


@pytest.mark.parametrize("data", [None, 0, "text", [1, {"a": None}], {}, {"deep": {"er": True}}], ids=repr)
async def test_a_ping_is_answered_with_its_data(hub, data):
    async with joined(hub) as alice:
        await alice.connection.send(json.dumps({"type": "ping", "id": 1, "data": data}))
        assert (await alice.next("pong"))["data"] == data


async def test_rooms_lists_what_one_is_subscribed_to(hub, room):
    async with joined(hub) as alice:
        before = set((await alice.done("rooms"))["rooms"])
        assert before == set(alice.data["rooms"])
        await alice.subscribe(room)
        await alice.subscribe(room)
        after = (await alice.done("rooms"))["rooms"]
        assert sorted(after) == sorted(before | {room})


async def test_metadata_is_merged_and_null_removes(hub):
    async with joined(hub) as alice:
        async def put(changes):
            data = await alice.done("metadata", {"set": changes})
            return data.get("metadata", data)

        assert await put({"a": 1, "b": {"c": [True]}}) == {"a": 1, "b": {"c": [True]}}
        assert await put({"a": None, "d": "x"}) == {"b": {"c": [True]}, "d": "x"}
        assert await put({}) == {"b": {"c": [True]}, "d": "x"}
        assert await put({"b": None, "d": None, "never": None}) == {}


async def test_too_much_metadata_is_too_large_and_changes_nothing(start):
    hub = start({"limits.metadata_bytes_max": 256}, shards=1)
    async with joined(hub) as alice:
        await alice.done("metadata", {"set": {"a": 1}})
        assert (await alice.refused("metadata", {"set": {"b": "x" * 1000}}))["code"] == "too_large"
        data = await alice.done("metadata", {"set": {}})
        assert data.get("metadata", data) == {"a": 1}


async def test_a_refreshed_token_keeps_the_connection_and_brings_its_permissions(hub, room):
    async with joined(hub, token("alice", ["websocket:connect", "websocket:subscribe"])) as alice:
        assert (await alice.refused("subscribe", {"room": room}))["code"] == "forbidden"
        data = await alice.done("auth.refresh", {"token": token("alice", ttl_s=3600)})
        assert data["expires_at"]
        await alice.subscribe(room)


async def test_a_bad_or_foreign_token_refreshes_nothing(hub, room):
    async with joined(hub) as alice:
        for bad in (token("bob"), token(ttl_s=-3600), "garbage", token(secret="wrong secret that is just as long as the good one, or so")):
            error = await alice.refused("auth.refresh", {"token": bad})
            assert error["code"] in ("unauthorized", "forbidden")
            assert bad not in error["message"]
        await alice.subscribe(room)


async def test_a_token_that_ends_is_announced_and_closes_with_4401(start):
    hub = start({"auth.leeway_s": 0, "auth.expiring_s": 2}, shards=1)
    async with joined(hub, token("alice", ttl_s=4)) as alice, joined(hub, token("bob", ttl_s=4)) as bob:
        expiring = await bob.next("auth.expiring")
        assert expiring["data"]["expires_at"]
        await alice.next("auth.expiring")
        await alice.done("auth.refresh", {"token": token("alice", ttl_s=600)})
        code, _ = await bob.closed()
        assert code == 4401
        await alice.done("ping")


BAD_JSON = ["", "{", "nope", '{"type":"ping"', '{"type":"ping"}}', "{'type':'ping'}", '{"type":"ping","data":{"a":01}}', '{"type":"ping","data":"\x01"}', "\ufeff{}", "[" * 2000]
BAD_COMMANDS = [
    "[]", "7", "null", '"ping"', "{}", '{"type":7}', '{"type":null}', '{"type":"ping","id":{}}', '{"type":"ping","id":1.5}', '{"type":"ping","id":true}',
    json.dumps({"type": "ping", "id": "x" * 65}), '{"type":"subscribe"}', '{"type":"subscribe","data":[]}', '{"type":"subscribe","data":{}}', '{"type":"subscribe","data":{"room":7}}',
    '{"type":"subscribe","data":{"rooms":"project:1"}}', '{"type":"subscribe","data":{"room":"project:1","types":"a"}}', '{"type":"publish","data":{"room":"project:1","data":{}}}',
    '{"type":"publish","data":{"type":"a","data":{}}}', '{"type":"publish","data":{"room":"project:1","type":7,"data":{}}}', '{"type":"send","data":{"type":"a","data":{}}}',
    '{"type":"send","data":{"to":{},"type":"a","data":{}}}', '{"type":"metadata","data":{"set":[]}}', '{"type":"auth.refresh","data":{}}',
]  # fmt: skip


@pytest.mark.parametrize("text", BAD_JSON, ids=lambda text: repr(text[:30]))
async def test_what_is_no_json_is_bad_json(hub, text):
    async with joined(hub) as alice:
        await alice.connection.send(text)
        assert (await alice.next("error"))["data"]["code"] == "bad_json"
        await alice.done("ping")


@pytest.mark.parametrize("text", BAD_COMMANDS, ids=lambda text: text[:60])
async def test_what_is_no_command_is_bad_command(hub, text):
    async with joined(hub) as alice:
        await alice.connection.send(text)
        error = await alice.next("error")
        assert error["data"]["code"] in (("bad_command", "bad_json") if not text.startswith("{") else ("bad_command",)), error
        await alice.done("ping")


async def test_an_unknown_type_is_unknown_type(hub):
    async with joined(hub) as alice:
        for kind in ("dance", "Subscribe", "subscribe ", "connection_established", ""):
            assert (await alice.refused(kind, {}))["code"] in (("unknown_type", "bad_command") if not kind else ("unknown_type",))


BAD_ROOMS = ["", "project", "project:", ":1", "unknown:1", "Project:1", "global:x", "project:" + "x" * 200, "project:a\nb", "project:\x00", "proj ect:1"]


@pytest.mark.parametrize("name", BAD_ROOMS, ids=lambda name: repr(name[:20]))
@pytest.mark.parametrize("command", ["subscribe", "publish"])
async def test_a_name_that_is_no_room_is_bad_room(hub, name, command):
    async with joined(hub, admin()) as root:
        assert (await root.refused(command, {"room": name, "type": "a", "data": {}}))["code"] == "bad_room"


@pytest.mark.parametrize("name", ["project:a", "project:ä/ö.x_y-z", "project:a:b:c", "project:" + "x" * 192], ids=lambda name: name[:20])
async def test_other_names_are_rooms(hub, name):
    async with joined(hub, admin()) as root:
        await root.subscribe(name)


BAD_FILTERS = [7, "x", [], {"a": {"min": "x"}}, {"a": {"bogus": 1}}, {"a": {"in": 7}}, {"a": {"prefix": 7}}, {"a": {"exists": 1}}, {"any": {}}, {"any": [7]}]


@pytest.mark.parametrize("filters", BAD_FILTERS, ids=repr)
async def test_a_filter_that_makes_no_sense_is_bad_filter(hub, room, filters):
    async with joined(hub) as alice:
        assert (await alice.refused("subscribe", {"room": room, "filters": filters}))["code"] == "bad_filter"
        assert room not in (await alice.done("rooms"))["rooms"]


async def test_too_many_rooms_are_refused_and_leaving_makes_place(start):
    hub = start({"limits.rooms_max": 6}, shards=1)
    async with joined(hub) as alice:
        assert alice.data["limits"]["rooms_max"] == 6
        taken = []
        while (answer := await alice.ask("subscribe", {"room": f"project:{len(taken)}"}))["type"] == "subscribed":
            taken.append(answer["data"]["room"])
            assert len(taken) <= 6
        assert answer["data"]["code"] == "room_limit"
        await alice.done("unsubscribe", {"room": taken[0]})
        await alice.subscribe("project:other")


async def test_leaving_a_room_one_is_not_in_says_so_and_does_no_harm(hub, room):
    async with joined(hub) as alice:
        answer = await alice.ask("unsubscribe", {"room": room})
        assert answer["type"] == "unsubscribed" or answer["data"]["code"] == "not_found"
        await alice.done("ping")


async def test_deeply_nested_data_is_refused_and_the_connection_lives(hub, room):
    async with joined(hub) as alice:
        await alice.connection.send('{"type":"publish","id":1,"data":{"room":"%s","type":"a","data":%s}}' % (room, "[" * 500 + "]" * 500))
        assert (await alice.next("error"))["data"]["code"] in ("bad_json", "bad_command", "too_large")
        await alice.done("ping")


async def test_duplicate_fields_and_unknown_fields_do_not_confuse(hub, room):
    async with joined(hub) as alice:
        await alice.connection.send('{"extra":[{}],"data":{"x":1},"id":"q","type":"ping"}')
        pong = await alice.next("pong")
        assert pong["ref"] == "q" and pong["data"] == {"x": 1}


async def test_too_many_messages_per_second_are_told_when_to_come_back(start):
    hub = start({"limits.messages_per_s": 5, "limits.messages_burst": 10, "limits.flood_s": 60}, shards=1)
    async with joined(hub) as alice:
        assert alice.data["limits"]["messages_per_s"] == 5
        for number in range(30):
            await alice.send("ping", number, id=number)
        limited = []
        for _ in range(30):
            message = await alice.any_of("pong", "error")
            if message["type"] == "error":
                limited.append(message["data"])
        assert 15 <= len(limited) <= 21
        assert {error["code"] for error in limited} == {"rate_limited"}
        wait_ms = limited[-1].get("retry_after_ms") or limited[-1]["details"]["retry_after_ms"]
        assert 0 < wait_ms <= 10_000
        async with asyncio.timeout(5):
            await alice.send("ping", "again", id=0)
            while (await alice.any_of("pong", "error"))["type"] == "error":
                await alice.send("ping", "again", id=0)


async def test_a_message_over_the_rate_is_answered_under_its_id(start):
    hub = start({"limits.messages_per_s": 1, "limits.messages_burst": 1, "limits.flood_s": 60}, shards=1)
    async with joined(hub) as alice:
        for number in range(5):
            await alice.send("ping", number, id=number)
        errors = [await alice.next("error") for _ in range(4)]
        assert [error.get("ref") for error in errors] == [1, 2, 3, 4]


async def test_ten_bad_messages_within_a_minute_close_with_1008(hub):
    async with await Bare.upgraded(hub) as bare:
        for _ in range(10):
            await bare.send(TEXT, b"garbage")
        assert (await bare.closed())[0] == 1008


async def test_nine_bad_messages_do_not(hub):
    async with joined(hub) as alice:
        for _ in range(9):
            await alice.connection.send("garbage")
        await alice.done("ping")
        assert (await asyncio.gather(*[alice.next("error") for _ in range(9)]))[-1]["data"]["code"] == "bad_json"


async def test_refusals_for_lack_of_permission_are_no_bad_messages(hub):
    async with joined(hub, token(permissions=["websocket:connect", "websocket:subscribe"])) as alice:
        for _ in range(20):
            assert (await alice.refused("subscribe", {"room": "project:1"}))["code"] == "forbidden"
        await alice.done("ping")
