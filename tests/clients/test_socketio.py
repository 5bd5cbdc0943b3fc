"""The hub through PyPI's python-socketio (PROTOCOL §8), with threads and with asyncio; and what no library would say."""

import asyncio
import contextlib
import functools
import itertools
import json
import queue
import signal
import threading

import aiohttp
import pytest
import requests
import socketio
from engineio.payload import Payload

from engine import Polling, http, probe, websocket
from hub import admin, token
from peer import WAIT_S, Bare, eventually, joined
from proxies import certificates

# The library takes no payload of more packets from a poll, unless it is told to.
Payload.max_decode_packets = 1000

PATH = "/socket.io/"
MODES = pytest.mark.parametrize("mode", ["polling", "websocket", "upgrade"])
TRANSPORTS = {"polling": ["polling"], "websocket": ["websocket"], "upgrade": ["polling", "websocket"]}
NAMESPACES = ["/", "/ws"]


@pytest.fixture(scope="session")
def _shared(_hub):
    """Pings are frequent: where the library leaves while it posts, it forgets to say so, and waits for its poll to end."""
    hub = _hub({"socketio.ping_interval_ms": 1000})
    yield hub
    hub.stop()


def bearer(jwt: str) -> dict:
    return {"Authorization": f"Bearer {jwt}"}


def connection(hub, client_id: str) -> dict | None:
    """How the hub's API sees a connection; none where there is no such."""
    status, _, body = hub.get(f"/api/v1/connections/{client_id}", bearer(admin()))
    return json.loads(body) if status == 200 else None


def call(hub, method: str, path: str, body: object = None) -> dict | None:
    status, _, text = hub.get(path, bearer(admin()), method=method, body=body)
    assert status in (200, 204), (status, text)
    return json.loads(text) if text else None


def check_event(name: str, event: dict) -> None:
    expected = "connection_established" if name == "connection.established" else name
    assert event["type"] == expected and event["id"] and event["timestamp"], (name, event)


# With threads.


def may_use_websockets(hub) -> bool:
    """Not over TLS: one of the client's threads reads and another writes, and OpenSSL's connections are not made for that. Now
    and then the reader takes an open one for closed, whatever server is at the other end."""
    return not hub.tls


class Threaded:
    """A client of the synchronous kind, which keeps what arrives, by namespace."""

    def __init__(self, hub, **options):
        self.session = requests.Session()
        # A bundle that the environment names would be preferred to this one.
        self.session.trust_env = False
        if hub.tls:
            self.session.verify = str(certificates() / "ca.pem")
        self.client = socketio.Client(http_session=self.session, reconnection_delay=0.05, randomization_factor=0, **options)
        self.hub = hub
        self.events = {namespace: queue.Queue() for namespace in NAMESPACES}
        self.refusals: queue.Queue = queue.Queue()
        self.ends: queue.Queue = queue.Queue()
        for namespace in NAMESPACES:
            self.client.on("*", functools.partial(self._keep, namespace), namespace=namespace)
            self.client.on("connect_error", self.refusals.put, namespace=namespace)
            self.client.on("disconnect", self.ends.put, namespace=namespace)

    def _keep(self, namespace: str, name: str, *arguments) -> None:
        self.events[namespace].put((name, *arguments))

    def connect(self, mode: str, auth: dict, namespaces: list[str] | None = None) -> None:
        if mode != "polling" and not may_use_websockets(self.hub):
            pytest.skip("over TLS, websocket-client loses connections of two threads by itself")
        self.client.connect(self.hub.http_url, auth=auth, transports=TRANSPORTS[mode], namespaces=namespaces or ["/"], wait_timeout=WAIT_S)

    def next(self, name: str, namespace: str = "/", count: int = 1) -> list[dict]:
        """The next events of that name; others are passed over. The library has a thread for each, so that their order is lost."""
        found = []
        while len(found) < count:
            heard, *arguments = self.events[namespace].get(timeout=WAIT_S)
            (event,) = arguments
            check_event(heard, event)
            found += [event] if heard == name else []
        return sorted(found, key=lambda event: event.get("seq", 0))

    def done(self, name: str, data: object = None, namespace: str = "/") -> dict:
        answer = self.client.call(name, data, namespace=namespace, timeout=WAIT_S)
        assert answer["type"] != "error", answer
        return answer["data"]


@contextlib.contextmanager
def threaded(hub, mode: str, auth: dict | None = None, namespaces: list[str] | None = None, **options):
    """A client that is connected and greeted, disconnected at the end of the block."""
    client = Threaded(hub, **options)
    client.connect(mode, auth or {"token": token()}, namespaces)
    try:
        client.greeting = client.next("connection.established", (namespaces or ["/"])[0])[0]["data"]
        yield client
    finally:
        client.client.disconnect()
        client.client.shutdown()
        client.session.close()


@MODES
def test_a_threaded_client_subscribes_publishes_and_hears(hub, room, mode):
    with threaded(hub, mode) as one, threaded(hub, mode, {"token": token("bob")}) as two:
        assert one.client.transport() == ("polling" if mode == "polling" else "websocket")
        assert one.greeting["user_id"] == "alice" and one.client.get_sid() == one.greeting["client_id"]
        for client in (one, two):
            assert client.done("subscribe", {"room": room})["seq"] == 0
        for number in range(20):
            one.client.emit("publish", {"room": room, "type": "note.added", "data": {"n": number, "text": "ünï"}})
        heard = [client.next("note.added", count=20) for client in (one, two)]
        assert heard[0] == heard[1]
        assert [event["seq"] for event in heard[0]] == list(range(1, 21))
        assert [event["data"]["n"] for event in heard[0]] == list(range(20))
        assert [event["seq"] for event in one.done("history", {"room": room, "since": {"last": 2}})["events"]] == [19, 20]


@MODES
def test_a_threaded_client_sends_bytes(hub, mode):
    with threaded(hub, mode, {"token": token(), "session_id": f"py-{mode}"}) as client:
        assert client.client.call("message", b"\x00\xff", timeout=WAIT_S)["type"] == "accepted"
        assert call(hub, "GET", f"/api/v1/sessions/py-{mode}/messages?timeout_s=5")["data"] == "AP8="
        client.client.emit("upload", ("name", b"abc", {"more": [b"d"]}))
        data = {"type": "upload", "data": ["name", "YWJj", {"more": ["ZA=="]}]}
        assert call(hub, "GET", f"/api/v1/sessions/py-{mode}/messages?timeout_s=5")["data"] == data


@MODES
def test_a_threaded_clients_namespaces_share_a_connection(hub, room, mode):
    with threaded(hub, mode, namespaces=NAMESPACES) as client:
        assert client.next("connection.established", "/ws")[0]["data"]["client_id"] == client.greeting["client_id"]
        other = f"{room}-other"
        client.done("subscribe", {"room": room})
        client.done("subscribe", {"room": other}, "/ws")
        for number in range(5):
            hub.publish(room, "here", number)
            hub.publish(other, "there", number)
        assert [event["data"] for event in client.next("here", count=5)] == list(range(5))
        assert [event["data"] for event in client.next("there", "/ws", 5)] == list(range(5))
        for namespace, stray in (("/", "there"), ("/ws", "here")):
            client.done("ping", {}, namespace)
            assert stray not in [name for name, *_ in list(client.events[namespace].queue)]


@MODES
def test_a_threaded_client_without_a_valid_token_is_told_why(hub, mode):
    for auth in ({}, {"token": "nonsense"}, {"token": token(ttl_s=-3600)}):
        client = Threaded(hub, reconnection=False)
        with pytest.raises(socketio.exceptions.ConnectionError):
            client.connect(mode, auth)
        refusal = client.refusals.get(timeout=WAIT_S)
        assert refusal["data"]["code"] == "unauthorized" and refusal["message"], refusal
        client.client.shutdown()


@MODES
def test_an_administrator_ends_a_threaded_client_for_good(hub, mode):
    with threaded(hub, mode, {"token": token(), "client_id": f"py-end-{mode}"}) as client:
        call(hub, "DELETE", f"/api/v1/connections/py-end-{mode}")
        assert client.ends.get(timeout=WAIT_S) == socketio.Client.reason.SERVER_DISCONNECT
        assert connection(hub, f"py-end-{mode}") is None


@MODES
def test_a_threaded_client_comes_back_and_resumes_by_the_command(start, room, mode):
    hub = start()
    with threaded(hub, mode, {"token": token()}) as client:
        at = client.done("subscribe", {"room": room})
        session = client.greeting
        for number in range(3):
            hub.publish(room, "n", number)
        assert [event["seq"] for event in client.next("n", count=3)] == [1, 2, 3]
        # With a code of its own the library is not told to stay away.
        call(hub, "DELETE", f"/api/v1/connections/{session['client_id']}?code=4000&reason=again")
        client.next("connection.established")
        hub.publish(room, "n", 3)
        cursors = {room: {"seq": 2, "epoch": at["epoch"]}}
        answer = client.done("resume", {"session_id": session["session_id"], "token": session["resume"]["token"], "cursors": cursors})
        (result,) = [result for result in answer["results"] if result["room"] == room]
        assert result["recovered"] is True and result["missed"] == 0
        assert [event["seq"] for event in client.next("n", count=2)] == [3, 4]


# With asyncio.


class Woven:
    """A client of asyncio's kind, which keeps what arrives."""

    def __init__(self, client: socketio.AsyncClient):
        self.client = client
        self.events: asyncio.Queue = asyncio.Queue()
        self.ends: asyncio.Queue = asyncio.Queue()
        client.on("*", self._keep)
        client.on("disconnect", self.ends.put)

    async def _keep(self, name: str, *arguments) -> None:
        (event,) = arguments
        check_event(name, event)
        await self.events.put((name, event))

    async def next(self, wanted: str) -> dict:
        async with asyncio.timeout(WAIT_S):
            while True:
                name, event = await self.events.get()
                if name == wanted:
                    return event

    async def done(self, name: str, data: object = None) -> dict:
        answer = await self.client.call(name, data, timeout=WAIT_S)
        assert answer["type"] != "error", answer
        return answer["data"]


@contextlib.asynccontextmanager
async def woven(hub, mode: str, auth: dict | None = None):
    connector = aiohttp.TCPConnector(ssl=hub.tls or True)
    async with aiohttp.ClientSession(connector=connector) as session:
        client = Woven(socketio.AsyncClient(http_session=session, reconnection_delay=0.05, randomization_factor=0))
        await client.client.connect(hub.http_url, auth=auth or {"token": token()}, transports=TRANSPORTS[mode], wait_timeout=WAIT_S)
        try:
            client.greeting = (await client.next("connection.established"))["data"]
            yield client
        finally:
            await client.client.disconnect()
            await client.client.shutdown()


@MODES
async def test_clients_of_asyncio_share_a_room_with_native_ones(hub, room, mode):
    async with woven(hub, mode) as one, woven(hub, mode, {"token": token("bob")}) as two, joined(hub) as native:
        for client in (one, two):
            await client.done("subscribe", {"room": room})
        await native.subscribe(room)
        for number in range(50):
            await one.client.emit("publish", {"room": room, "type": "n", "data": number})
        heard = await native.events(room, 50)
        assert [event["seq"] for event in heard] == list(range(1, 51))
        for client in (one, two):
            assert [await client.next("n") for _ in range(50)] == heard
        presence = await one.done("presence", {"room": room})
        assert presence["count"] == 3
        lock = await one.done("lock.acquire", {"room": room, "field": "title", "ttl_s": 60})
        assert (await native.refused("lock.acquire", {"room": room, "field": "title"}))["code"] == "lock_held"
        assert (await two.next("lock.acquired"))["data"]["token"] == lock["token"]


@MODES
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
async def test_a_client_of_asyncio_comes_back_to_a_hub_that_was_started_anew(start, room, mode, end):
    hub = start()
    async with woven(hub, mode) as client:
        hub.signal(end)
        assert await asyncio.to_thread(hub.wait) == (0 if end == signal.SIGTERM else -end)
        again = await asyncio.to_thread(start, port=hub.port)
        await client.next("connection.established")
        await client.done("subscribe", {"room": room})
        await asyncio.to_thread(again.publish, room, "n", 1)
        assert (await client.next("n"))["seq"] == 1


# What no library says.


async def greeted(session, auth: dict, namespace: str = "") -> dict:
    """Asks for a namespace that must be granted; what it is granted with, and the greeting."""
    await session.send(f"40{namespace}{json.dumps(auth)}")
    packets = await take_until(session, lambda packet: "connection.established" in packet)
    granted = json.loads(packets[0].removeprefix(f"40{namespace}"))
    return granted | {"greeting": json.loads(packets[-1].removeprefix(f"42{namespace}"))[1]["data"], "others": packets[1:-1]}


async def take_until(session, wanted) -> list[str]:
    """What comes up to a packet, that one included; what comes along with it is kept for the next call."""
    waiting = session.__dict__.setdefault("waiting", [])
    taken = []
    async with asyncio.timeout(WAIT_S):
        while True:
            if not waiting:
                waiting += await session.packets() if isinstance(session, Polling) else await session.take()
            taken.append(waiting.pop(0))
            if wanted(taken[-1]):
                return taken


_ids = itertools.count()


async def ask(session, name: str, data: object) -> dict:
    """A command that must succeed; its answer's data. What comes ahead of it is lost."""
    number = next(_ids)
    await session.send(f"42{number}{json.dumps([name, data])}")
    answer = (await take_until(session, lambda packet: packet.startswith(f"43{number}[")))[-1]
    (answer,) = json.loads(answer.removeprefix(f"43{number}"))
    assert answer["type"] != "error", answer
    return answer["data"]


async def events(session, room: str, up_to: int) -> list[int]:
    """The numbers of a room's events, up to one."""

    def seq(packet: str) -> int | None:
        event = json.loads(packet[2:])[1] if packet.startswith("42[") else {}
        return event.get("seq") if event.get("room") == room else None

    return [number for packet in await take_until(session, lambda packet: seq(packet) == up_to) if (number := seq(packet))]


@contextlib.asynccontextmanager
async def session_over(hub, transport: str):
    if transport == "polling":
        yield await Polling.open(hub, PATH)
    else:
        async with websocket(hub, PATH) as socket:
            yield socket


OVER = pytest.mark.parametrize("transport", ["polling", "websocket"])


@OVER
async def test_a_refused_namespace_may_be_asked_for_again_on_the_same_engine(hub, transport):
    async with session_over(hub, transport) as session:
        for auth in ({}, {"token": "nonsense"}, {"token": token(ttl_s=-3600)}, {"token": 5}, {"token": token(secret="another one that is long enough for it")}):
            await session.send(f"40{json.dumps(auth)}")
            (packet,) = await take_until(session, lambda _: True)
            assert packet.startswith("44{"), packet
            refusal = json.loads(packet[2:])
            assert refusal["message"] and refusal["data"]["code"] == "unauthorized", refusal
        granted = await greeted(session, {"token": token()})
        assert granted["sid"] == granted["greeting"]["client_id"]


@OVER
async def test_namespaces_of_a_connection_are_one_users(hub, transport):
    async with session_over(hub, transport) as session:
        first = await greeted(session, {"token": token("alice")})
        await session.send(f"40/ws,{json.dumps({'token': token('bob')})}", f"40/ws,{json.dumps({'token': 'nonsense'})}")
        refusals = []
        while len(refusals) < 2:
            refusals += await take_until(session, lambda packet: packet.startswith("44/ws,"))
        assert [json.loads(refusal.removeprefix("44/ws,"))["data"]["code"] for refusal in refusals] == ["forbidden", "unauthorized"]
        second = await greeted(session, {"token": token("alice")}, "/ws,")
        assert second["greeting"]["client_id"] == first["greeting"]["client_id"]


@OVER
async def test_a_library_that_asks_twice_is_granted_its_namespace_twice(hub, transport):
    async with session_over(hub, transport) as session:
        first = await greeted(session, {"token": token()})
        second = await greeted(session, {"token": token()})
        assert (second["sid"], second["pid"]) == (first["sid"], first["pid"])


@OVER
async def test_only_its_own_user_recovers_a_session(hub, room, transport):
    async with session_over(hub, transport) as session:
        first = await greeted(session, {"token": token("alice")})
        await ask(session, "subscribe", {"room": room})
        await session.send("1")
    for auth in ({"token": token("mallory"), "pid": first["pid"]}, {"token": token("alice"), "pid": first["pid"][:-1] + "x"}, {"token": token("alice"), "pid": ""}):
        async with session_over(hub, transport) as session:
            granted = await greeted(session, auth)
            assert granted["pid"] != first["pid"], "the library would take the session for recovered"
            assert granted["greeting"]["session_id"] != first["greeting"]["session_id"]
            assert room not in (await ask(session, "rooms", {}))["rooms"]


@OVER
async def test_a_recovered_session_is_greeted_with_what_it_is_resumed_by(hub, room, transport):
    async with session_over(hub, transport) as session:
        first = await greeted(session, {"token": token()})
        at = await ask(session, "subscribe", {"room": room})
        await session.send("1")
    await asyncio.to_thread(hub.publish, room, "n", 1)
    async with session_over(hub, transport) as session:
        second = await greeted(session, {"token": token(), "pid": first["pid"]})
        assert second["pid"] == first["pid"] and not second["others"]
        assert second["greeting"]["session_id"] == first["greeting"]["session_id"]
        assert await events(session, room, 1) == [1]
        await session.send("1")
    async with session_over(hub, transport) as session:
        await greeted(session, {"token": token()})
        resume = {"session_id": first["greeting"]["session_id"], "token": second["greeting"]["resume"]["token"]}
        await ask(session, "resume", resume | {"cursors": {room: {"seq": 0, "epoch": at["epoch"]}}})
        assert await events(session, room, 1) == [1]


async def test_a_polls_answer_that_never_arrived_comes_again(hub, room):
    session = await Polling.open(hub, PATH)
    first = await greeted(session, {"token": token()})
    await ask(session, "subscribe", {"room": room})
    async with await Bare.dial(hub) as bare:
        await bare.say(http("GET", session.target))
        for number in range(5):
            await asyncio.to_thread(hub.publish, room, "n", number)
        bare.writer.transport.abort()
    session = await Polling.open(hub, PATH)
    assert (await greeted(session, {"token": token(), "pid": first["pid"]}))["pid"] == first["pid"]
    assert await events(session, room, 5) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("transport", ["polling", "upgrade"])
async def test_a_departing_client_hears_of_it_ahead_of_the_close(hub, transport):
    """The library takes a DISCONNECT a moment later than the close of a payload: it must not come in the same one."""
    session = await Polling.open(hub, PATH)
    granted = await greeted(session, {"token": token()})
    client_id = granted["greeting"]["client_id"]
    if transport == "upgrade":
        async with websocket(hub, PATH, session.sid) as socket:
            await probe(socket)
            await socket.send("5")
            await ask(socket, "ping", {})
            await asyncio.to_thread(call, hub, "DELETE", f"/api/v1/connections/{client_id}")
            assert await socket.next() == "41"
            assert await socket.closed() == 4500
        return
    poll = asyncio.create_task(session.poll())
    await asyncio.to_thread(call, hub, "DELETE", f"/api/v1/connections/{client_id}")
    answer = await poll
    assert (answer.status, answer.body) == (200, b"41")
    await session.check_gone()


async def test_a_polled_session_is_reached_from_every_connection(start, room):
    """More connections than shards, so that requests arrive on each."""
    hub = start(shards=4)
    session = await Polling.open(hub, PATH)
    await greeted(session, {"token": token()})
    await ask(session, "subscribe", {"room": room})
    for number in range(1, 21):
        assert (await ask(session, "publish", {"room": room, "type": "n", "data": number, "echo": False}))["seq"] == number
    assert await asyncio.to_thread(hub.publish, room, "n", 21)
    assert await events(session, room, 21) == [21]


async def test_a_silent_client_is_let_go_and_its_place_is_free(start):
    hub = start({"socketio.ping_interval_ms": 200, "socketio.ping_timeout_ms": 200})
    session = await Polling.open(hub, PATH)
    client_id = (await greeted(session, {"token": token(), "client_id": "silent"}))["greeting"]["client_id"]
    await eventually(lambda: connection(hub, client_id) is None, "the hub lets it go")
    await session.check_gone()
    async with websocket(hub, PATH) as socket:
        assert (await greeted(socket, {"token": token(), "client_id": "silent"}))["sid"] == "silent"


def test_many_threaded_clients_hear_all_of_a_room(hub, room):
    """Ten clients in ten threads, half of them on polls, or all."""
    heard: dict[int, list[int]] = {}
    ready, go = threading.Barrier(11, timeout=WAIT_S * 2), threading.Barrier(11, timeout=WAIT_S * 2)

    def run(number: int) -> None:
        mode = "websocket" if number % 2 and may_use_websockets(hub) else "polling"
        with threaded(hub, mode, {"token": token(f"user-{number}")}) as client:
            client.done("subscribe", {"room": room})
            ready.wait()
            heard[number] = [event["seq"] for event in client.next("n", count=200)]
            go.wait()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    ready.wait()
    for first in range(0, 200, 20):
        batch = [{"room": room, "type": "n", "data": number} for number in range(first, first + 20)]
        assert hub.get("/api/v1/publish", bearer(admin()), method="POST", body=batch)[0] == 200
    go.wait()
    for thread in threads:
        thread.join(WAIT_S)
    assert heard == {number: list(range(1, 201)) for number in range(10)}
