"""Two nodes behind nginx and HAProxy, as tuning/ sets them up: clients need not stay at one node, but for polls of Socket.IO."""

import asyncio
import contextlib
import copy
import http.client
import json
import signal

import pytest

from cluster import Cluster
from engine import Polling, websocket
from events import reading
from hub import admin, token
from peer import Answer, Bare, eventually, joined
from proxies import TRUSTED, Proxy, tls
from redis_servers import Redis, lacking
from test_socketio import greeted, woven

pytestmark = [pytest.mark.skipif(lacking() is not None, reason=str(lacking()))]
PROXIES = ["nginx-cluster", "haproxy-cluster"]
# By which a client's requests stay at one node, and what is there instead where they need not.
STICKY = {
    "nginx-cluster": {"        hash $remote_addr consistent;\n": "        random;\n"},
    "haproxy-cluster": {"    balance source\n    hash-type consistent\n": "    balance roundrobin\n"},
}


class Balanced:
    """Two nodes behind a proxy, as one place that clients connect to."""

    host = "127.0.0.1"
    source: str | None = None

    def __init__(self, name: str, redis: Redis, changes: dict[str, str] | None = None):
        of_the_file = TRUSTED | {"limits.connections_per_address_max": 0, "session.resume_window_s": 120}
        self.cluster = Cluster(redis.settings, count=2, shards=1, settings=of_the_file | ({"listen.proxy_protocol": True} if name.startswith("haproxy") else {}))
        try:
            self.proxy = Proxy(name, *[hub.port for hub in self.cluster], changes=changes)
        except BaseException:
            self.cluster.discard()
            raise
        self.port, self.tls = self.proxy.port, tls()

    @property
    def url(self) -> str:
        return f"wss://{self.host}:{self.port}"

    @property
    def http_url(self) -> str:
        return f"https://{self.host}:{self.port}"

    def get(self, path: str, *, method: str = "GET", body: object = None) -> tuple[int, bytes]:
        connection = http.client.HTTPSConnection(self.host, self.port, timeout=10, context=self.tls)
        try:
            connection.request(method, path, json.dumps(body), {"Authorization": f"Bearer {admin()}", "Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def publish(self, room: str, data: object) -> int:
        """Its number; none where it was refused."""
        status, body = self.get("/api/v1/publish", method="POST", body={"room": room, "type": "n", "data": data})
        return json.loads(body)["seq"] if status == 200 else 0

    def stop(self) -> None:
        self.proxy.stop()
        self.cluster.stop()


@pytest.fixture(scope="module")
def _redis():
    with Redis() as redis:
        yield redis


@pytest.fixture(scope="module", params=PROXIES)
def hub(request, _redis):
    """Two nodes behind each proxy in turn. Nothing is done to them."""
    balanced = Balanced(request.param, _redis)
    yield balanced
    balanced.stop()


@pytest.fixture(params=PROXIES)
def start(request, _redis):
    """Two nodes of the test's own, behind each proxy in turn."""
    started = []

    def start_balanced(**named) -> Balanced:
        started.append(Balanced(request.param, _redis, **named))
        return started[-1]

    start_balanced.proxy = request.param
    yield start_balanced
    for balanced in started:
        balanced.proxy.stop()
        balanced.cluster.stop()


def node_of(peer) -> str:
    return peer.data["server"]["node"]


@contextlib.asynccontextmanager
async def at_other_than(hub: Balanced, node: str, jwt: str):
    """A client at another node, found by connecting again, as clients do that come back."""
    async with contextlib.AsyncExitStack() as others:
        for _ in range(20):
            peer = await others.enter_async_context(joined(hub, jwt))
            if node_of(peer) != node:
                yield peer
                return
    raise AssertionError(f"twenty clients in a row came to {node}")


async def test_clients_are_spread_over_the_nodes_and_are_in_the_same_rooms(hub, room):
    async with contextlib.AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(joined(hub, admin())) for _ in range(12)]
        nodes = [node_of(peer) for peer in peers]
        assert 4 <= nodes.count("node-1") <= 8, nodes
        for peer in peers:
            await peer.subscribe(room)
        for number in range(1, 13):
            await peers[number - 1].done("publish", {"room": room, "type": "n", "data": number})
        for peer in peers:
            assert [event["data"] for event in await peer.events(room, 12)] == list(range(1, 13))


async def test_a_native_client_goes_on_at_the_other_node(hub, room):
    async with joined(hub, admin()) as before:
        answer = await before.subscribe(room)
        node = node_of(before)
    for number in range(1, 6):
        assert await asyncio.to_thread(hub.publish, room, number) == number
    async with at_other_than(hub, node, admin()) as after:
        again = await after.subscribe(room, since={"seq": answer["seq"], "epoch": answer["epoch"]})
        assert (again["recovered"], again["replayed"]) == (True, 5)
        assert [event["data"] for event in await after.events(room, 5)] == [1, 2, 3, 4, 5]


async def test_a_stream_goes_on_wherever_it_comes_to(hub, room):
    last, number = None, 0
    for _ in range(10):
        async with reading(hub, room, jwt=admin(), headers={"Last-Event-ID": last} if last else None) as reader:
            assert not reader.events, "nothing was missed"
            if last:
                # What was published while it was away.
                assert [event["data"] for event in await reader.rooms_events(1)] == [number]
            number += 1
            assert await asyncio.to_thread(hub.publish, room, number) == number
            assert [event["data"] for event in await reader.rooms_events(1)] == [number]
            last = reader.last_event_id
        number += 1
        assert await asyncio.to_thread(hub.publish, room, number) == number


async def test_socket_io_over_websocket_needs_no_stickiness(start, room):
    hub = start(changes=STICKY[start.proxy])
    nodes = set()
    # All at a time: one after the other, with a request between, each may come to the same node by turns. So many because nginx
    # throws dice: of eight, all come to one node in one run of a hundred.
    async with contextlib.AsyncExitStack() as clients:
        for _ in range(24):
            client = await clients.enter_async_context(woven(hub, "websocket", {"token": admin()}))
            nodes.add(client.greeting["server"]["node"])
            await client.done("subscribe", {"room": room})
            number = await asyncio.to_thread(hub.publish, room, "x")
            assert (await client.next("n"))["seq"] == number
    assert nodes == {"node-1", "node-2"}


async def test_polls_of_socket_io_stay_at_one_node(hub, room):
    for mode in ("polling", "upgrade"):
        async with woven(hub, mode, {"token": admin()}) as client:
            await client.done("subscribe", {"room": room})
            for _ in range(20):
                number = await asyncio.to_thread(hub.publish, room, "x")
                assert (await client.next("n"))["seq"] == number


async def test_polls_of_clients_from_many_addresses_are_spread(hub):
    sources = [f"127.45.1.{number}" for number in range(1, 25)]
    nodes = [await node_of_polls_from(hub, source) for source in sources]
    assert set(nodes) == {"node-1", "node-2"}, nodes
    assert [await node_of_polls_from(hub, source) for source in sources] == nodes, "each comes to the node that it came to before"


async def node_of_polls_from(hub: Balanced, source: str) -> str:
    """Which node a client's session of polls is at."""

    there = copy.copy(hub)
    there.source = source
    polling = await Polling.open(there, "/socket.io/")
    return (await greeted(polling, {"token": token(f"poller-{source}")}))["greeting"]["server"]["node"]


async def test_polls_of_socket_io_without_stickiness_fail(start):
    """Why /socket.io/ has a backend of its own."""
    hub = start(changes=STICKY[start.proxy])
    answers: list[Answer] = []
    for _ in range(24):
        polling = await Polling.open(hub, "/socket.io/")
        answers.append(await polling.post("40"))
    refused = [answer for answer in answers if answer.status == 400]
    assert refused and all(json.loads(answer.body)["message"] == "Session ID unknown" for answer in refused)


async def test_a_dead_node_is_left_out(start, room):
    hub = start()
    async with joined(hub, admin()) as one, at_other_than(hub, node_of(one), admin()) as other:
        victim, witness = (one, other) if node_of(one) == "node-1" else (other, one)
        await witness.subscribe(room)
        await victim.subscribe(room)
        hub.cluster[0].signal(signal.SIGKILL)
        hub.cluster[0].wait()
        await victim.closed()
        # At once, without a failure: who can't be connected to is passed over.
        for number in range(1, 21):
            assert await asyncio.to_thread(hub.publish, room, number) == number
        for _ in range(6):
            async with joined(hub, admin()) as again:
                assert node_of(again) == "node-2"
        async with reading(hub, room, jwt=admin()) as reader:
            assert await asyncio.to_thread(hub.publish, room, 21) == 21
            assert (await reader.rooms_events(1))[0]["data"] == 21
        assert [event["data"] for event in await witness.events(room, 21)] == list(range(1, 22))
        await asyncio.to_thread(hub.cluster.restart, 0)
        nodes: set[str] = set()

        async def is_back() -> bool:
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(4):
                    nodes.add(node_of(await stack.enter_async_context(joined(hub, admin()))))
            return "node-1" in nodes

        async with asyncio.timeout(20):
            while not await is_back():
                await asyncio.sleep(0.2)


async def test_a_draining_node_sends_its_clients_to_the_other(start, room):
    hub = start()
    async with contextlib.AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(joined(hub, admin())) for _ in range(4)]
        leaving = [peer for peer in peers if node_of(peer) == "node-1"]
        assert leaving
        hub.cluster[0].signal(signal.SIGTERM)
        for peer in leaving:
            await peer.next("draining")
        for _ in range(6):
            async with joined(hub, admin()) as again:
                assert node_of(again) == "node-2"
        for peer in leaving:
            assert (await peer.closed())[0] == 1001
        assert await asyncio.to_thread(hub.cluster[0].wait) == 0
        assert await asyncio.to_thread(hub.publish, room, 1) == 1


async def test_clients_are_told_where_no_node_has_a_redis(room):
    with Redis() as redis:
        for name in PROXIES:
            hub = Balanced(name, redis)
            try:
                assert hub.publish(f"{room}-{name}", 1) == 1
                redis.kill()
                await eventually(lambda: hub.get("/ready")[0] == 503, "the nodes know")

                def is_told() -> bool:
                    status, body = hub.get("/api/v1/publish", method="POST", body={"room": room, "type": "n", "data": 2})
                    assert (status, json.loads(body)["error"]["code"]) == (503, "unavailable"), body
                    return b"no node serves" in body or not name.startswith("haproxy")

                await eventually(is_told, "whoever answers says the same")
                redis.start()
                await eventually(lambda: hub.publish(f"{room}-{name}", 3) == 2, "it serves again", within_s=20)
            finally:
                hub.stop()


async def test_tokens_stand_in_no_log_and_figures_stay_inside(hub):
    secret = token("logged")
    async with await Bare.dial(hub) as bare:
        await bare.say(f"GET /api/v1/rooms?token={secret} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
        await bare.rest()
    await eventually(lambda: "/api/v1/rooms" in hub.proxy.log(), "the request is logged")
    assert secret not in hub.proxy.log() + hub.cluster.logs()
    assert hub.get("/metrics")[0] == 404
