"""Engine.IO 4 and Socket.IO 5, byte by byte, against `ringhub conformance`: what the protocols' documents say a server does.

The documents are `docs/engine.io-protocol/v4-current.md` and `docs/socket.io-protocol/v5-current.md` in socket.io's repository.
Nothing here goes through a library of theirs, so that each message on the wire can be told, a wrong one included.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time

import pytest

from engine import SEPARATOR, Polling, Socket, http, opened, place, probe, websocket
from hub import Hub
from peer import CLOSE, TEXT, WAIT_S, Answer, Bare, request, upgrade_request

ENGINE = "/engine.io/"
SOCKET = "/socket.io/"
PATHS = pytest.mark.parametrize("path", [ENGINE, SOCKET])

PING_INTERVAL_MS = 300
PING_TIMEOUT_MS = 200
PAYLOAD_BYTES_MAX = 1_000_000
TERMS = {"pingInterval": PING_INTERVAL_MS, "pingTimeout": PING_TIMEOUT_MS, "maxPayload": PAYLOAD_BYTES_MAX}
CONNECT_TIMEOUT_S = 5


@pytest.fixture(scope="session")
def _conformance():
    hub = Hub(command="conformance")
    yield hub
    hub.stop()


@pytest.fixture
def hub(_conformance):
    """A server as the outside suites want it: short heartbeats, and nobody is asked for a token."""
    yield _conformance
    assert _conformance.running(), f"the server ended in this test\n{_conformance.log()}"


@contextlib.asynccontextmanager
async def within(hub: Hub, *namespaces: str):
    """A WebSocket that is in these namespaces, what they greet with read."""
    async with websocket(hub, SOCKET) as socket:
        for namespace in namespaces or ("",):
            await socket.send(f"40{namespace}")
            await socket.take(2)
        yield socket


async def refusal(hub: Hub, data: bytes) -> dict:
    """The body of a 400, whose code tells the client's library what it was."""
    answer = await request(hub, data)
    assert answer.status == 400, answer
    refused = json.loads(answer.body)
    assert refused.keys() == {"code", "message"}, refused
    return refused


async def no_upgrade(hub: Hub, target: str) -> None:
    """A WebSocket is refused with a 400; its body no library hands on."""
    answer = await request(hub, upgrade_request(target))
    assert answer.status == 400, answer


# Engine.IO: the handshake.


@PATHS
async def test_a_session_opens_over_polling(hub, path):
    first, second = await Polling.open(hub, path), await Polling.open(hub, path)
    assert first.sid != second.sid
    assert first.terms == TERMS | {"sid": first.sid, "upgrades": ["websocket"]}


@PATHS
async def test_a_session_opens_over_a_websocket(hub, path):
    async with websocket(hub, path) as socket:
        assert socket.terms == TERMS | {"sid": socket.terms["sid"], "upgrades": []}


@PATHS
async def test_unknown_parameters_mean_nothing(hub, path):
    answer = await request(hub, http("GET", place(path, "polling", more="&t=Pxyz123&token=abc&x=%20&flag")))
    assert answer.status == 200, answer
    async with websocket(hub, path, more="&t=1&foo=bar"):
        pass


@PATHS
@pytest.mark.parametrize("version", [None, "", "abc", "3", "5", "44"])
async def test_another_version_is_refused(hub, path, version):
    unsupported = {"code": 5, "message": "Unsupported protocol version"}
    assert await refusal(hub, http("GET", place(path, "polling", version=version))) == unsupported
    await no_upgrade(hub, place(path, "websocket", version=version))


@PATHS
@pytest.mark.parametrize("transport", [None, "", "abc", "webtransport", "POLLING"])
async def test_an_unknown_transport_is_refused(hub, path, transport):
    unknown = {"code": 0, "message": "Transport unknown"}
    assert await refusal(hub, http("GET", place(path, transport))) == unknown
    await no_upgrade(hub, place(path, transport))


@PATHS
async def test_a_session_is_opened_with_a_get_only(hub, path):
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        refused = await refusal(hub, http(method, place(path, "polling"), b"4hello"))
        assert refused == {"code": 2, "message": "Bad handshake method"}, method


@PATHS
async def test_a_session_knows_get_and_post_only(hub, path):
    session = await Polling.open(hub, path)
    for method in ("PUT", "DELETE"):
        await refusal(hub, http(method, session.target, b"4hello"))


@PATHS
async def test_a_transport_and_its_request_fit_each_other(hub, path):
    bad = {"code": 3, "message": "Bad request"}
    assert await refusal(hub, http("GET", place(path, "websocket"))) == bad
    await no_upgrade(hub, place(path, "polling"))
    session = await Polling.open(hub, path)
    assert await refusal(hub, http("GET", place(path, "websocket", session.sid))) == bad


@PATHS
@pytest.mark.parametrize("sid", ["unknown", "AAAAAAAAAAAAAAAAAAAA", "..%2F..", "%00"])
async def test_an_unknown_session_is_refused(hub, path, sid):
    unknown = {"code": 1, "message": "Session ID unknown"}
    assert await refusal(hub, http("GET", place(path, "polling", sid))) == unknown
    assert await refusal(hub, http("POST", place(path, "polling", sid), b"4hello")) == unknown
    await no_upgrade(hub, place(path, "websocket", sid))


async def test_a_session_belongs_to_its_path(hub):
    session = await Polling.open(hub, ENGINE)
    assert (await refusal(hub, http("GET", place(SOCKET, "polling", session.sid))))["code"] == 1


@PATHS
async def test_jsonp_is_refused(hub, path):
    await refusal(hub, http("GET", place(path, "polling", more="&j=0")))
    session = await Polling.open(hub, path)
    await refusal(hub, http("GET", f"{session.target}&j=1"))


# Engine.IO: messages.


@pytest.mark.parametrize(
    "packets",
    [("4hello",), ("4",), ("4test1", "4test2", "4test3"), ("4hello", "bAQIDBA=="), ("bAA==", "b", "4€ ünï 🦀"), tuple(f"4{n}" for n in range(500))],
    ids=["text", "empty", "several", "binary", "mixed", "many"],
)
async def test_polling_brings_messages_in_both_directions(hub, packets):
    session = await Polling.open(hub, ENGINE)
    await session.send(*packets)
    assert await session.take(len(packets)) == list(packets)


async def test_messages_keep_their_order_over_requests(hub):
    session = await Polling.open(hub, ENGINE)
    for number in range(20):
        await session.send(f"4{number}a", f"4{number}b")
    assert await session.take(40) == [f"4{number}{part}" for number in range(20) for part in "ab"]


async def test_a_poll_waits_for_a_message(hub):
    session = await Polling.open(hub, ENGINE)
    poll = asyncio.create_task(session.packets())
    await session.send("4late")
    packets = await poll
    # A ping that was due may have ended the poll first.
    assert (packets or await session.packets()) == ["4late"]


async def test_a_poll_is_answered_as_text(hub):
    session = await Polling.open(hub, ENGINE)
    await session.send("4hello", "bAQIDBA==")
    answer = await session.poll()
    assert answer.headers["content-type"].lower() == "text/plain; charset=utf-8"
    assert answer.body.decode().replace(f"2{SEPARATOR}", "") == f"4hello{SEPARATOR}bAQIDBA=="


async def test_polls_and_posts_share_a_kept_alive_connection(hub):
    async with await Bare.dial(hub) as bare:

        async def ask(data: bytes) -> Answer:
            await bare.say(data.replace(b"Connection: close\r\n", b""))
            return await bare.http()

        first = await ask(http("GET", place(ENGINE, "polling")))
        target = place(ENGINE, "polling", opened(first.body.decode(), ["websocket"])["sid"])
        for number in range(10):
            pushed = await ask(http("POST", target, f"4{number}".encode()))
            assert (pushed.status, pushed.body) == (200, b"ok")
            polled = await ask(http("GET", target))
            assert polled.body == f"4{number}".encode()


async def test_a_websocket_brings_messages_in_both_directions(hub):
    async with websocket(hub, ENGINE) as socket:
        for message in ("4hello", "4", "4€ ünï 🦀", bytes([1, 2, 3, 4]), b"", bytes(70_000), "4" + "x" * 70_000):
            await socket.send(message)
            assert await socket.one() == message


async def test_a_websocket_asked_for_base64_gets_no_binary_frames(hub):
    async with websocket(hub, ENGINE, more="&b64=1") as socket:
        await socket.send("bAQIDBA==")
        assert await socket.one() == "bAQIDBA=="


async def test_messages_up_to_the_largest_payload_pass_and_larger_ones_do_not(hub):
    largest = "4" + "x" * (PAYLOAD_BYTES_MAX - 1)
    session = await Polling.open(hub, ENGINE)
    await session.send(largest)
    assert await session.take(1) == [largest]
    answer = await session.post(largest + "x")
    assert answer.status in (400, 413), answer
    async with websocket(hub, ENGINE) as socket:
        await socket.send(largest)
        assert await socket.one() == largest
    async with websocket(hub, ENGINE) as socket:
        with contextlib.suppress(ConnectionError):
            await socket.send(largest + "x")
        assert await socket.closed() == 1009


@pytest.mark.parametrize("body", [b"abc", b"", b"4a\x1e", b"\x1e4a", b"4a\x1e\x1e4b", b"7", b"b!!!", b"4\xff"])
async def test_a_malformed_payload_closes_the_session(hub, body):
    session = await Polling.open(hub, ENGINE)
    assert (await request(hub, http("POST", session.target, body))).status == 400
    await session.check_gone()


@pytest.mark.parametrize("packet", ["abc", "", "7", "2", "2probe"])
async def test_a_malformed_packet_closes_the_websocket(hub, packet):
    async with websocket(hub, ENGINE) as socket:
        await socket.send(packet)
        assert await socket.closed() == 1002


async def test_two_polls_at_once_close_the_session(hub):
    session = await Polling.open(hub, ENGINE)
    # Either may arrive first: the one that waits is told of the end, the other one is refused.
    answers = await asyncio.gather(session.poll(), session.poll())
    assert sorted((answer.status, answer.body[:1]) for answer in answers) == [(200, b"1"), (400, b"{")]
    await session.check_gone()


async def test_a_poll_that_is_given_up_closes_the_session(hub):
    session = await Polling.open(hub, ENGINE)
    async with await Bare.dial(hub) as bare:
        await bare.say(http("GET", session.target))
    # The second poll would be answered with a ping if the session went on. It may be there before the first one is seen to be
    # given up, or even before the first one itself.
    answer = await session.poll()
    assert answer.status == 400 or answer.body == b"1", answer
    await session.check_gone()


# Engine.IO: heartbeat and close.


@PATHS
async def test_the_server_pings_and_a_pong_keeps_the_session(hub, path):
    if path == SOCKET:
        async with within(hub) as socket:
            await check_heartbeat(socket)
    else:
        async with websocket(hub, ENGINE) as socket:
            await check_heartbeat(socket)
    session = await Polling.open(hub, path)
    if path == SOCKET:
        await session.send("40")
        await session.take(2)
    for _ in range(3):
        answer = await session.poll()
        assert (answer.status, answer.body) == (200, b"2")
        await session.send("3")


async def check_heartbeat(socket: Socket) -> None:
    """Three heartbeats, none ahead of its time by more than a timer may be."""
    for _ in range(3):
        started = time.monotonic()
        assert await socket.next() == "2"
        assert time.monotonic() - started > PING_INTERVAL_MS / 1000 * 0.8
        await socket.send("3")


@PATHS
async def test_silence_after_a_ping_closes_the_session(hub, path):
    async with websocket(hub, path) as socket:
        started = time.monotonic()
        while (await socket.bare.frame()).opcode != CLOSE:
            pass
        took_ms = (time.monotonic() - started) * 1000
        assert 0.8 * (PING_INTERVAL_MS + PING_TIMEOUT_MS) < took_ms < 10 * (PING_INTERVAL_MS + PING_TIMEOUT_MS)
    session = await Polling.open(hub, path)
    started = time.monotonic()
    while (answer := await session.poll()).status == 200:
        assert answer.body in (b"2", b"1"), answer
    took_ms = (time.monotonic() - started) * 1000
    assert 0.8 * (PING_INTERVAL_MS + PING_TIMEOUT_MS) < took_ms < 10 * (PING_INTERVAL_MS + PING_TIMEOUT_MS)
    await session.check_gone()


@PATHS
async def test_a_close_ends_the_session(hub, path):
    async with websocket(hub, path) as socket:
        await socket.send("1")
        await socket.closed()
    session = await Polling.open(hub, path)
    await session.send("1")
    await session.check_gone()


async def test_a_close_ends_a_poll_that_waits(hub):
    """Until the poll was there first: that it has arrived is not to be seen from outside."""
    for _ in range(50):
        session = await Polling.open(hub, ENGINE)
        poll = asyncio.create_task(session.poll())
        await session.send("1")
        answer = await poll
        if answer.status == 200:
            assert answer.body == b"6"
            return await session.check_gone()
        assert answer.status == 400
    pytest.fail("the poll was never answered")


async def test_a_websocket_that_the_client_closes_ends_the_session(hub):
    async with websocket(hub, ENGINE) as socket:
        await socket.bare.send(CLOSE, b"\x03\xe8")
        assert await socket.closed() in (1000, None)


# Engine.IO: the upgrade.


@PATHS
async def test_a_polling_session_goes_on_over_a_websocket(hub, path):
    session = await Polling.open(hub, path)
    async with websocket(hub, path, session.sid) as socket:
        await probe(socket)
        await socket.send("5")
        if path == SOCKET:
            await socket.send("40")
            packets = await socket.take(2)
            assert packets[0].startswith('40{"sid":') and packets[1] == '42["auth",{}]'
        else:
            await socket.send("4hello")
            assert await socket.one() == "4hello"


@PATHS
@pytest.mark.parametrize("first", ["poll", "probe"])
async def test_a_poll_during_the_upgrade_ends_with_a_noop(hub, path, first):
    session = await Polling.open(hub, path)
    poll = asyncio.create_task(session.poll()) if first == "poll" else None
    async with websocket(hub, path, session.sid) as socket:
        await probe(socket)
        answer = await (poll or session.poll())
        # A ping that was due goes the old way.
        if answer.body == b"2":
            await session.send("3")
            answer = await session.poll()
        assert (answer.status, answer.body) == (200, b"6")
        await socket.send("5", "40" if path == SOCKET else "4hello")
        assert (await socket.one())[:2] == ("40" if path == SOCKET else "4h")


@PATHS
async def test_requests_of_an_upgraded_session_are_refused(hub, path):
    session = await Polling.open(hub, path)
    async with websocket(hub, path, session.sid) as socket:
        await probe(socket)
        await socket.send("5", "40" if path == SOCKET else "4there")
        await socket.take(2 if path == SOCKET else 1)
        assert (await session.poll()).status == 400
        assert (await session.post("4hello")).status == 400
        # The WebSocket goes on.
        await socket.send('42["message"]' if path == SOCKET else "4hello")
        assert await socket.one() == ('42["message-back"]' if path == SOCKET else "4hello")


async def second_is_turned_away(hub: Hub, path: str, sid: str) -> None:
    """A WebSocket is refused or closed, without a probe being answered."""
    async with await Bare.dial(hub) as bare:
        await bare.say(upgrade_request(place(path, "websocket", sid)))
        if (await bare.head()).status == 101:
            with contextlib.suppress(ConnectionError):
                await bare.send(TEXT, b"2probe")
            assert (await bare.frame()).opcode == CLOSE
        else:
            assert bare.answer.status == 400, bare.answer


@PATHS
async def test_a_second_websocket_of_an_upgraded_session_is_turned_away(hub, path):
    session = await Polling.open(hub, path)
    async with websocket(hub, path, session.sid) as socket:
        await probe(socket)
        await socket.send("5", "40" if path == SOCKET else "4there")
        await socket.take(2 if path == SOCKET else 1)
        await second_is_turned_away(hub, path, session.sid)
        await socket.send('42["message"]' if path == SOCKET else "4hello")
        assert await socket.one() == ('42["message-back"]' if path == SOCKET else "4hello")


async def test_a_websocket_that_was_not_an_upgrade_has_no_second(hub):
    async with websocket(hub, ENGINE) as socket:
        sid = socket.terms["sid"]
        await second_is_turned_away(hub, ENGINE, sid)
        assert (await request(hub, http("GET", place(ENGINE, "polling", sid)))).status == 400
        await socket.send("4hello")
        assert await socket.one() == "4hello"


async def test_a_probe_that_is_given_up_leaves_the_session_polling(hub):
    session = await Polling.open(hub, ENGINE)
    async with websocket(hub, ENGINE, session.sid) as socket:
        await probe(socket)
    await session.send("4hello")
    packets = await session.packets()
    while packets == ["6"] or not packets:
        packets = await session.packets()
    assert packets == ["4hello"]


async def test_an_unprobed_websocket_is_closed_and_leaves_the_session_polling(hub):
    session = await Polling.open(hub, ENGINE)
    async with websocket(hub, ENGINE, session.sid) as socket:
        await socket.send("4too soon")
        await socket.closed()
    await session.send("4hello")
    assert await session.take(1) == ["4hello"]


async def test_nothing_is_lost_or_doubled_or_out_of_order_over_an_upgrade(hub):
    for round in range(20):
        session = await Polling.open(hub, ENGINE)
        heard: list[str] = []

        async def poll_until_upgraded():
            while (answer := await session.poll()).status == 200:
                packets = answer.body.decode().split(SEPARATOR)
                heard.extend(packet for packet in packets if packet not in ("2", "6"))
                if "6" in packets:
                    return

        polling = asyncio.create_task(poll_until_upgraded())
        await session.send(*(f"4{number}" for number in range(10)))
        async with websocket(hub, ENGINE, session.sid) as socket:
            # The client stops polling once the probe is answered, but a post may still be on its way.
            posted = asyncio.create_task(session.send(*(f"4{number}" for number in range(10, 20))))
            if round % 2:
                await posted
            await probe(socket)
            await polling
            await posted
            await socket.send("5", *(f"4{number}" for number in range(20, 30)))
            heard += await socket.take(30 - len(heard))
        assert heard == [f"4{number}" for number in range(30)], round


# Socket.IO: namespaces.


@pytest.mark.parametrize("namespace", ["", "/custom,"])
@pytest.mark.parametrize("payload", ["", '{"token":"123"}', '{"a":{"b":[1,null,"€"]}}'])
async def test_a_namespace_is_granted_with_a_sid_and_the_payload_comes_back(hub, namespace, payload):
    async with websocket(hub, SOCKET) as socket:
        await socket.send(f"40{namespace}{payload}")
        granted, auth = await socket.take(2)
        assert granted.startswith(f"40{namespace}{{"), granted
        granted = json.loads(granted.removeprefix(f"40{namespace}"))
        assert granted.keys() == {"sid"} and isinstance(granted["sid"], str) and granted["sid"]
        assert auth == f'42{namespace}["auth",{payload or "{}"}]'


async def test_a_namespace_needs_no_comma(hub):
    async with websocket(hub, SOCKET) as socket:
        await socket.send("40/custom")
        granted, auth = await socket.take(2)
        assert granted.startswith('40/custom,{"sid":"') and auth == '42/custom,["auth",{}]'


async def test_an_unknown_namespace_is_refused_and_others_may_be_asked_for(hub):
    async with websocket(hub, SOCKET) as socket:
        await socket.send("40/random", '40/random,{"token":"123"}', "40/customs,", "40/Custom,")
        assert await socket.take(4) == [
            '44/random,{"message":"Invalid namespace"}',
            '44/random,{"message":"Invalid namespace"}',
            '44/customs,{"message":"Invalid namespace"}',
            '44/Custom,{"message":"Invalid namespace"}',
        ]
        await socket.send("40")
        assert (await socket.take(2))[1] == '42["auth",{}]'


async def test_a_clients_id_is_not_its_engines_which_is_a_secret(hub):
    session = await Polling.open(hub, SOCKET)
    await session.send("40", "40/custom,")
    packets = await session.take(4)
    sids = [json.loads(packet[packet.index("{") :])["sid"] for packet in packets if packet.startswith("40")]
    assert len(sids) == 2 and session.sid not in sids, packets


@pytest.mark.parametrize("left", ["41/custom,", "41/custom"])
async def test_a_client_leaves_a_namespace_and_stays_in_the_other(hub, left):
    async with within(hub, "", "/custom,") as socket:
        await socket.send('42/custom,["message",1]')
        assert await socket.one() == '42/custom,["message-back",1]'
        await socket.send(left, '42["message","to the main namespace"]')
        assert await socket.one() == '42["message-back","to the main namespace"]'
        await socket.send("40/custom,")
        assert (await socket.take(2))[1] == '42/custom,["auth",{}]'


async def test_leaving_the_only_namespace_leaves_the_engine_open(hub):
    async with within(hub) as socket:
        await socket.send("41")
        assert await socket.next() == "2"
        await socket.send("3", "40")
        assert (await socket.take(2))[1] == '42["auth",{}]'


@pytest.mark.parametrize("transport", ["polling", "websocket"])
async def test_a_client_that_enters_no_namespace_is_let_go(hub, transport):
    """Its heartbeats go on, so that it is not those that end it."""
    started = time.monotonic()
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        if transport == "websocket":
            async with websocket(hub, SOCKET) as socket:
                await socket.closed()
        else:
            session = await Polling.open(hub, SOCKET)
            while (answer := await session.poll()).status == 200:
                if answer.body == b"2":
                    await session.post("3")
            await session.check_gone()
    assert time.monotonic() - started > (PING_INTERVAL_MS + PING_TIMEOUT_MS) / 1000


async def test_a_refused_namespace_does_not_count_as_entered(hub):
    async with websocket(hub, SOCKET) as socket, asyncio.timeout(CONNECT_TIMEOUT_S):
        await socket.send("40/random")
        assert await socket.one() == '44/random,{"message":"Invalid namespace"}'
        await socket.closed()


# Socket.IO: events and acknowledgements.

PLACEHOLDERS = '{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}'


@pytest.mark.parametrize("namespace", ["", "/custom,"])
@pytest.mark.parametrize("arguments", ['1,"2",{"3":[true]}', "null", '"€ \\u2028 \\" 🦀"', "-1.5e3,[[[]]]", '{"__proto__":{"x":1}}', "12345678901234567890"])
async def test_an_event_comes_back_with_the_same_arguments(hub, namespace, arguments):
    async with within(hub, namespace) as socket:
        await socket.send(f'42{namespace}["message",{arguments}]')
        event = await socket.one()
        assert event.startswith(f'42{namespace}["message-back",') and event.endswith("]"), event
        assert json.loads(event.removeprefix(f"42{namespace}"))[1:] == json.loads(f"[{arguments}]")


async def test_arguments_come_back_byte_for_byte(hub):
    async with within(hub) as socket:
        await socket.send('42["message",1,"2",{"3":[true]}]', '42["message"]', '42456["message-with-ack",1,"2",{"3":[false]}]', '420["message-with-ack"]')
        assert await socket.take(4) == ['42["message-back",1,"2",{"3":[true]}]', '42["message-back"]', '43456[1,"2",{"3":[false]}]', "430[]"]


async def test_an_acknowledgement_comes_in_its_namespace(hub):
    async with within(hub, "", "/custom,") as socket:
        await socket.send('42/custom,7["message-with-ack",1]', '427["message-with-ack",2]')
        assert await socket.take(2) == ["43/custom,7[1]", "437[2]"]


async def test_attachments_come_back_behind_their_packet(hub):
    async with within(hub) as socket:
        await socket.send(f'452-["message",{PLACEHOLDERS}]', bytes([1, 2, 3]), bytes([4, 5, 6]))
        assert await socket.take(3) == [f'452-["message-back",{PLACEHOLDERS}]', bytes([1, 2, 3]), bytes([4, 5, 6])]
        await socket.send(f'452-789["message-with-ack",{PLACEHOLDERS}]', bytes([1, 2, 3]), bytes([4, 5, 6]))
        assert await socket.take(3) == [f"462-789[{PLACEHOLDERS}]", bytes([1, 2, 3]), bytes([4, 5, 6])]


async def test_attachments_come_back_in_a_namespace_and_from_within_objects(hub):
    async with within(hub, "/custom,") as socket:
        inside = '{"a":[{"_placeholder":true,"num":0}],"b":2}'
        await socket.send(f'451-/custom,12["message-with-ack",{inside},"c"]', bytes(range(256)))
        assert await socket.take(2) == [f'461-/custom,12[{inside},"c"]', bytes(range(256))]
        await socket.send(f'451-/custom,["message",{inside}]', b"")
        assert await socket.take(2) == [f'451-/custom,["message-back",{inside}]', b""]


async def test_ten_attachments_are_taken(hub):
    marks = ",".join(f'{{"_placeholder":true,"num":{number}}}' for number in range(10))
    attachments = [bytes([number]) * number for number in range(10)]
    async with within(hub) as socket:
        await socket.send(f'4510-["message",{marks}]', *attachments)
        assert await socket.take(11) == [f'4510-["message-back",{marks}]', *attachments]


async def test_attachments_are_base64_on_polls_and_may_come_in_requests_of_their_own(hub):
    session = await Polling.open(hub, SOCKET)
    await session.send("40")
    await session.take(2)
    back = [f'452-["message-back",{PLACEHOLDERS}]', "bAQID", "bBAUG"]
    await session.send(f'452-["message",{PLACEHOLDERS}]', "bAQID", "bBAUG")
    assert await session.take(3) == back
    for packet in (f'452-["message",{PLACEHOLDERS}]', "bAQID", "bBAUG"):
        await session.send(packet)
    assert await session.take(3) == back
    await session.send('42["message",1]', f'452-3["message-with-ack",{PLACEHOLDERS}]', "bAQID")
    await session.send("bBAUG", '42["message",2]')
    assert await session.take(5) == ['42["message-back",1]', f"462-3[{PLACEHOLDERS}]", "bAQID", "bBAUG", '42["message-back",2]']


async def test_a_heartbeat_may_stand_between_a_packet_and_its_attachments(hub):
    async with within(hub) as socket:
        await socket.send('451-["message",{"_placeholder":true,"num":0}]')
        assert await socket.next() == "2"
        await socket.send("3", b"there")
        assert await socket.take(2) == ['451-["message-back",{"_placeholder":true,"num":0}]', b"there"]


async def test_a_packet_that_began_on_polls_ends_on_the_websocket(hub):
    session = await Polling.open(hub, SOCKET)
    await session.send("40", '451-["message",{"_placeholder":true,"num":0}]')
    await session.take(2)
    async with websocket(hub, SOCKET, session.sid) as socket:
        await probe(socket)
        await socket.send("5", b"there")
        assert await socket.take(2) == ['451-["message-back",{"_placeholder":true,"num":0}]', b"there"]


async def test_many_packets_of_one_payload_are_all_handled_in_order(hub):
    session = await Polling.open(hub, SOCKET)
    await session.send("40", *(f'42{number}["message-with-ack",{number}]' for number in range(300)))
    packets = await session.take(302)
    assert packets[1] == '42["auth",{}]'
    assert packets[2:] == [f"43{number}[{number}]" for number in range(300)]


MALFORMED = [
    "4",
    "4abc",
    "47",
    "42",
    "42[]",
    "42{}",
    '42"message"',
    '42["message"',
    "42[{}]",
    "42[null]",
    '42["connect"]',
    '42["disconnect"]',
    '42abc["message-with-ack",1]',
    '42/custom,["message"]',
    '42/random,["message"]',
    "40[1]",
    "43[]",
    '43abc["x"]',
    '44{"message":"no"}',
    '45["message",{"_placeholder":true,"num":0}]',
    '45-["message",{"_placeholder":true,"num":0}]',
    '45x-["message",{"_placeholder":true,"num":0}]',
    '4511-["message",{"_placeholder":true,"num":0}]',
    '4599999999999-["message",{"_placeholder":true,"num":0}]',
]


@pytest.mark.parametrize("packet", MALFORMED)
async def test_what_is_no_packet_closes_the_session(hub, packet):
    async with within(hub) as socket:
        await socket.send(packet)
        assert await socket.closed() == 1002
    session = await Polling.open(hub, SOCKET)
    await session.send("40")
    await session.take(2)
    assert (await session.post(packet)).status == 400
    await session.check_gone()


@pytest.mark.parametrize(
    "packets",
    [
        (b"no packet asked for this",),
        ('451-["message",{"_placeholder":true,"num":0}]', '42["message"]'),
        ('451-["message",{"_placeholder":true,"num":1}]', b"there"),
        ('451-["message",{"_placeholder":true,"num":-1}]', b"there"),
        ('451-["message",{"_placeholder":true,"num":"0"}]', b"there"),
    ],
    ids=["none", "text", "beyond", "negative", "string"],
)
async def test_attachments_that_do_not_fit_close_the_session(hub, packets):
    async with within(hub) as socket:
        await socket.send(*packets)
        assert await socket.closed() == 1002


@pytest.mark.parametrize("packet", ['42["message"]', "41", "43[]"])
async def test_what_comes_before_a_namespace_is_entered_closes_the_session(hub, packet):
    async with websocket(hub, SOCKET) as socket:
        if packet == "41":
            # It may cross a refusal, and asks for nothing.
            await socket.send(packet, "40")
            assert (await socket.one()).startswith("40{")
        else:
            await socket.send(packet)
            assert await socket.closed() == 1002


async def test_a_packet_with_its_attachments_is_not_larger_than_the_largest_message(hub):
    async with within(hub) as socket:
        await socket.send(f'452-["message",{PLACEHOLDERS}]', bytes(PAYLOAD_BYTES_MAX // 2))
        with contextlib.suppress(ConnectionError):
            await socket.send(bytes(PAYLOAD_BYTES_MAX // 2))
        assert await socket.closed() == 1009


async def test_many_sessions_at_once_do_not_mix(hub):
    async def polls(name: str) -> None:
        session = await Polling.open(hub, ENGINE)
        for number in range(5):
            await session.send(f"4{name}-{number}")
            assert await session.take(1) == [f"4{name}-{number}"]
        await session.send("1")

    async def upgrades(name: str) -> None:
        session = await Polling.open(hub, ENGINE)
        async with websocket(hub, ENGINE, session.sid) as socket:
            await probe(socket)
            await socket.send("5")
            for number in range(5):
                await socket.send(f"4{name}-{number}")
                assert await socket.one() == f"4{name}-{number}"

    async with asyncio.timeout(WAIT_S * 3):
        await asyncio.gather(*(task(f"{task.__name__}{number}") for task in (polls, upgrades) for number in range(40)))
