"""PROTOCOL §1 and the greeting of §2: who gets in, who doesn't and how each is told."""

import asyncio
import base64
import json
import uuid

import jwt
import pytest

from hub import MEMBER, SECRET, admin, token
from peer import CLOSE, TEXT, Bare, Peer, joined, request, upgrade_request

GOOD = "good"
BAD = "bad"


def bearer(value: str) -> dict:
    return {"Authorization": f"Bearer {value}"}


async def test_the_greeting_has_all_that_a_client_needs(hub):
    async with joined(hub, token("alice", roles=["operator"])) as alice:
        data = alice.data
        assert data["user_id"] == "alice"
        assert data["roles"] == ["operator"]
        assert {"user:alice", "global"} <= set(data["rooms"])
        assert data["client_id"] and data["session_id"]
        assert data["heartbeat"] == {"interval_s": 30, "timeout_s": 10}
        assert data["resume"]["token"] and data["resume"]["window_s"] == 120
        assert data["limits"]["message_bytes_max"] == 1048576
        assert data["limits"]["rooms_max"] == 1000
        assert "messages_per_s" in data["limits"]
        assert data["server"]["name"] == "ringhub" and data["server"]["version"] and data["server"]["node"]


async def test_ids_given_to_clients_are_unique(hub):
    async with joined(hub) as one, joined(hub) as two:
        assert one.data["client_id"] != two.data["client_id"]
        assert one.data["session_id"] != two.data["session_id"]
        assert uuid.UUID(one.greeting["id"]) != uuid.UUID(two.greeting["id"])


async def test_a_client_may_name_itself_and_its_session(hub):
    async with joined(hub, query="client_id=desk-1&session_id=s.1") as client:
        assert client.data["client_id"] == "desk-1"
        assert client.data["session_id"] == "s.1"


async def test_the_session_can_stand_in_the_path(hub):
    async with joined(hub, path="/ws/monitor/mission-7") as client:
        assert client.data["session_id"] == "mission-7"


@pytest.mark.parametrize("offered, echoed", [(["ringhub.v1.json"], "ringhub.v1.json"), (["other", "ringhub.v1.json"], "ringhub.v1.json"), ([], None)])
async def test_the_subprotocol_is_echoed_when_offered(hub, offered, echoed):
    async with joined(hub, subprotocols=offered or None) as client:
        assert client.connection.subprotocol == echoed


def credentials(place: str, value: str) -> dict:
    """How a token is given in one of the four places: headers, and what goes into the query."""
    return {
        "header": {"headers": bearer(value)},
        "query": {"query": f"token={value}"},
        "protocol": {"headers": {"Sec-WebSocket-Protocol": f"ringhub.v1.json, bearer.{value}"}},
        "cookie": {"headers": {"Cookie": f"theme=dark; ringhub_session={value}; lang=en"}},
    }[place]


def request_with(*given: tuple[str, str]) -> bytes:
    headers, query = {}, ""
    for place, value in given:
        how = credentials(place, value)
        headers |= how.get("headers", {})
        query = how.get("query", query)
    return upgrade_request(f"/ws?{query}" if query else "/ws", headers)


@pytest.fixture(scope="module")
def cookie_hub():
    from hub import Hub

    hub = Hub({"auth.cookie": "ringhub_session"}, shards=1)
    yield hub
    hub.stop()


PLACES = ["header", "query", "protocol", "cookie"]


@pytest.mark.parametrize("place", PLACES)
async def test_a_token_is_taken_from_each_of_its_places(cookie_hub, place):
    async with await Bare.dial(cookie_hub) as bare:
        await bare.say(request_with((place, token("alice"))))
        answer = await bare.head()
        assert answer.status == 101
        assert "bearer." not in answer.headers.get("sec-websocket-protocol", ""), "a token was echoed"
        assert json.loads((await bare.next(TEXT)).payload)["data"]["user_id"] == "alice"


@pytest.mark.parametrize("first, second", [(PLACES[i], PLACES[j]) for i in range(4) for j in range(i + 1, 4)])
async def test_the_first_place_that_holds_a_token_decides(cookie_hub, first, second):
    refused = await request(cookie_hub, request_with((first, "not.a.token"), (second, token())))
    assert refused.status == 401
    async with await Bare.dial(cookie_hub) as bare:
        await bare.say(request_with((first, token("alice")), (second, "not.a.token")))
        assert (await bare.head()).status == 101


def unsigned() -> str:
    def part(value):
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return f"{part({'alg': 'none', 'typ': 'JWT'})}.{part({'sub': 'alice', 'exp': 4102444800, 'permissions': MEMBER})}."


@pytest.mark.parametrize(
    "credential",
    [
        None,
        "",
        "garbage",
        token(secret="another secret of the right length, but not the hub's secret at all"),
        token(ttl_s=-3600),
        token(nbf=4102444800),
        token(exp=None),
        token(sub=None),
        token(algorithm="HS384"),
        unsigned(),
    ],
    ids=["none", "empty", "garbage", "foreign", "expired", "early", "endless", "nobody", "other-algorithm", "unsigned"],
)
async def test_no_or_bad_credentials_are_401(hub, credential):
    answer = await request(hub, upgrade_request(headers=None if credential is None else bearer(credential)))
    assert answer.status == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.error()["code"] == "unauthorized"
    assert not credential or credential not in answer.body.decode(), "the answer repeats the token"


async def test_a_token_without_the_right_to_connect_is_403(hub):
    answer = await request(hub, upgrade_request(headers=bearer(token(permissions=["project:*:read"]))))
    assert (answer.status, answer.error()["code"]) == (403, "forbidden")


async def test_only_listed_origins_are_let_in(start):
    hub = start({"auth.origins": ["https://app.example.com"]}, shards=1)
    foreign = await request(hub, upgrade_request(headers=bearer(token()) | {"Origin": "https://evil.example.com"}))
    assert (foreign.status, foreign.error()["code"]) == (403, "forbidden")
    lookalike = await request(hub, upgrade_request(headers=bearer(token()) | {"Origin": "https://app.example.com.evil.org"}))
    assert lookalike.status == 403
    for headers in ({"Origin": "https://app.example.com"}, {}):
        async with await Bare.dial(hub) as bare:
            await bare.say(upgrade_request(headers=bearer(token()) | headers))
            assert (await bare.head()).status == 101, headers


@pytest.mark.parametrize("path", ["/nowhere", "/ws/nowhere", "/wss", "/echo/more"])
async def test_other_paths_are_404(hub, path):
    answer = await request(hub, upgrade_request(path, bearer(token())))
    assert (answer.status, answer.error()["code"]) == (404, "not_found")


async def test_the_echo_endpoint_is_off_unless_asked_for(start):
    answer = await request(start(shards=1), upgrade_request("/echo", bearer(token())))
    assert answer.status == 404


async def test_a_client_id_in_use_is_409_until_it_is_free(hub):
    async with joined(hub, query="client_id=only-one"):
        answer = await request(hub, upgrade_request("/ws?client_id=only-one", bearer(token())))
        assert (answer.status, answer.error()["code"]) == (409, "conflict")
    async with asyncio.timeout(10):
        while True:
            async with await Bare.dial(hub) as bare:
                await bare.say(upgrade_request("/ws?client_id=only-one", bearer(token())))
                if (await bare.head()).status == 101:
                    break


@pytest.mark.parametrize("query", ["client_id=", "client_id=a%20b", f"client_id={'x' * 65}", "session_id=%00", "session_id=a/b", "client_id=%zz"])
async def test_ids_outside_their_alphabet_are_400(hub, query):
    answer = await request(hub, upgrade_request(f"/ws?{query}", bearer(token())))
    assert answer.status == 400
    answer.error()


@pytest.mark.parametrize("version", [0, 8, 12, 14])
async def test_another_websocket_version_is_426_and_names_ours(hub, version):
    answer = await request(hub, upgrade_request(headers=bearer(token()), version=version))
    assert answer.status == 426
    assert answer.headers["sec-websocket-version"] == "13"
    answer.error()


KEY = base64.b64encode(b"0123456789abcdef").decode()
HEAD = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n"


@pytest.mark.parametrize(
    "data",
    [
        upgrade_request(without=("Sec-WebSocket-Key",)),
        upgrade_request(headers={"Sec-WebSocket-Key": "c2hvcnQ="}),
        upgrade_request(headers={"Sec-WebSocket-Key": "not base64 at all!!!!!!!"}),
        upgrade_request(without=("Host",)),
        f"POST /ws HTTP/1.1\r\nHost: h\r\n{HEAD}\r\n".encode(),
        f"GET /ws HTTP/1.0\r\nHost: h\r\n{HEAD}\r\n".encode(),
        f"GET /ws HTTP/1.1\r\nHost: h\r\nHost: i\r\n{HEAD}\r\n".encode(),
        f"GET /ws HTTP/1.1\r\nHost: h\r\nSec-WebSocket-Key: {KEY}\r\n{HEAD}\r\n".encode(),
        f"GET /ws HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n{HEAD}\r\n".encode(),
        f"GET /ws HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n{HEAD}\r\nabc".encode(),
        f"GET /ws HTTP/1.1\r\nHost: h\r\nX: a\r\n folded\r\n{HEAD}\r\n".encode(),
        f"GET /ws HTTP/1.1\nHost: h\n{HEAD}\n".encode(),
        f"GET /ws HTTP/1.1\r\nHost: h\r\nX: a\x00b\r\n{HEAD}\r\n".encode(),
        f"GET /ws HTTP/1.1\r\nHost : h\r\n{HEAD}\r\n".encode(),
        f"GET /w s HTTP/1.1\r\nHost: h\r\n{HEAD}\r\n".encode(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    ],
    ids=[
        "no-key", "short-key", "odd-key", "no-host", "post", "http-1.0", "two-hosts", "two-keys", "length-and-chunked", "body",
        "folded", "bare-lf", "nul", "space-before-colon", "space-in-target", "tls-hello",
    ],
)  # fmt: skip
async def test_a_bad_upgrade_is_400(hub, data):
    answer = await request(hub, data)
    assert answer.status == 400
    answer.error()


async def test_a_plain_get_of_the_websocket_path_is_refused(hub):
    answer = await request(hub, b"GET /ws HTTP/1.1\r\nHost: h\r\n\r\n")
    assert answer.status in (400, 426)
    answer.error()


async def test_a_header_block_over_the_limit_is_431(hub):
    answer = await request(hub, upgrade_request(headers={"X-Long": "x" * 20_000}))
    assert answer.status == 431
    answer.error()


async def test_a_slow_handshake_is_ended(start):
    hub = start({"limits.handshake_s": 1}, shards=1)
    async with await Bare.dial(hub) as silent, await Bare.dial(hub) as slow:
        await slow.say(upgrade_request()[:40])
        await silent.rest()
        await slow.rest()
        assert silent.reader.at_eof() and slow.reader.at_eof()


async def test_an_upgrade_in_single_bytes_with_a_frame_behind_it_works(hub):
    async with await Bare.dial(hub) as bare:
        for byte in upgrade_request(headers=bearer(token())):
            await bare.say(bytes([byte]))
        assert (await bare.head()).status == 101
        assert json.loads((await bare.next(TEXT)).payload)["type"] == "connection_established"


async def test_frames_sent_along_with_the_upgrade_are_not_lost(hub):
    from peer import encode

    async with await Bare.dial(hub) as bare:
        await bare.say(upgrade_request(headers=bearer(token())) + encode(TEXT, b'{"type":"ping","id":1,"data":{"early":true}}'))
        assert (await bare.head()).status == 101
        assert json.loads((await bare.next(TEXT)).payload)["type"] == "connection_established"
        pong = json.loads((await bare.next(TEXT)).payload)
        assert (pong["type"], pong["ref"], pong["data"]) == ("pong", 1, {"early": True})


async def test_too_many_connects_from_one_address_are_429(start):
    hub = start({"limits.connects_per_s": 2}, shards=1)
    while await request_status(hub) == 101:
        pass
    limited = await request(hub, upgrade_request(headers=bearer(token())))
    assert limited.status == 429
    assert int(limited.headers["retry-after"]) >= 1
    assert limited.error()["code"] == "rate_limited"


@pytest.mark.parametrize("option, statuses", [("limits.connections_max", (503,)), ("limits.connections_per_user_max", (429, 503)), ("limits.connections_per_address_max", (429, 503))])
async def test_a_full_hub_says_so_and_takes_the_next_when_one_has_left(start, option, statuses):
    hub = start({option: 2}, shards=1)
    one = await Bare.upgraded(hub)
    async with one, await Bare.upgraded(hub):
        answer = await request(hub, upgrade_request(headers=bearer(token())))
        assert answer.status in statuses
        assert int(answer.headers["retry-after"]) >= 1
        answer.error()
        await one.send(CLOSE, b"\x03\xe8")
        await one.rest()
        async with asyncio.timeout(10):
            while (await request_status(hub)) != 101:
                pass


async def request_status(hub) -> int:
    async with await Bare.dial(hub) as bare:
        await bare.say(upgrade_request(headers=bearer(token())))
        return (await bare.head()).status


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
async def test_the_configured_algorithm_is_the_only_one_taken(start, algorithm):
    hub = start({"auth.algorithm": algorithm}, shards=1)
    for other in ("HS256", "HS384", "HS512"):
        async with await Bare.dial(hub) as bare:
            await bare.say(upgrade_request(headers=bearer(token(algorithm=other))))
            assert (await bare.head()).status == (101 if other == algorithm else 401)


async def test_audience_and_issuer_are_checked_when_configured(start):
    hub = start({"auth.audience": ["hub"], "auth.issuer": ["login"]}, shards=1)
    for claims, status in [({}, 401), ({"aud": "hub"}, 401), ({"aud": "other", "iss": "login"}, 401), ({"aud": ["x", "hub"], "iss": "login"}, 101)]:
        async with await Bare.dial(hub) as bare:
            await bare.say(upgrade_request(headers=bearer(token(**claims))))
            assert (await bare.head()).status == status, claims


async def test_roles_bring_the_permissions_of_the_configured_table(start):
    hub = start({"roles.viewer": ["websocket:connect", "websocket:subscribe", "project:*:read"]}, shards=1)
    async with joined(hub, token(permissions=None or [], roles=["viewer"])) as viewer:
        await viewer.subscribe("project:1")
        assert (await viewer.refused("publish", {"room": "project:1", "type": "note", "data": {}}))["code"] == "forbidden"


async def test_without_auth_everybody_is_an_admin(start):
    hub = start(arguments=("--no-auth",), shards=1)
    async with await Bare.dial(hub) as bare:
        await bare.say(upgrade_request())
        assert (await bare.head()).status == 101
        assert json.loads((await bare.next(TEXT)).payload)["type"] == "connection_established"
        await bare.command("subscribe", {"room": "admin:all"}, id=1)
        assert json.loads((await bare.next(TEXT)).payload)["type"] == "subscribed"
