"""A cluster in a network of its own, whose links are cut without a word, lose packets, and take their time."""

import asyncio
import contextlib
import random
import time

import pytest

from cluster import TIMEOUT_MS, fresh_prefix, history, readiness
from disturbance import Disturbance
from hub import Hub, admin
from network import Network, network
from peer import eventually, joined
from redis_servers import Redis, lacking

pytestmark = [pytest.mark.skipif(lacking() is not None, reason=str(lacking()))]
NODES = 3
# Where Redis is; the nodes are at the places before it.
SERVER = NODES
# A connection that is cut off without a word is given up and made again within this.
BACK_S = 5 * TIMEOUT_MS / 1000 + 10


class Spread:
    """Redis and nodes, each at a place of its own."""

    def __init__(self, net: Network):
        self.net = net
        self.redis = Redis(host=net.address(SERVER), prefix=net.prefix(SERVER))
        self.nodes: list[Hub] = []
        settings = self.redis.settings | {"broker.redis.prefix": fresh_prefix(), "broker.redis.timeout_ms": TIMEOUT_MS}
        try:
            for number in range(NODES):
                self.nodes.append(Hub(settings | {"node.name": f"node-{number + 1}"}, shards=1, host=net.address(number), prefix=net.prefix(number)))
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        for hub in self.nodes:
            hub.discard()
        self.redis.discard()

    def publish(self, number: int, room: str, data: object) -> None:
        """Until it is acknowledged, under a key."""
        while self.nodes[number].publish(room, "n", data, key=str(data))[0] != 200:
            pass


@pytest.fixture
def spread():
    with network(NODES + 1) as net:
        made = Spread(net)
        try:
            yield made
            for hub in made.nodes:
                hub.stop()
        finally:
            made.discard()


@contextlib.asynccontextmanager
async def one_on_each(spread: Spread, room: str):
    async with contextlib.AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(joined(hub, admin())) for hub in spread.nodes]
        for peer in peers:
            await peer.subscribe(room)
        yield peers


async def is_ready(hub: Hub) -> None:
    await eventually(lambda: readiness(hub)[0] == 200, "the node is ready", within_s=BACK_S)


async def is_not_ready(hub: Hub) -> None:
    await eventually(lambda: readiness(hub)[0] == 503, "the node is not ready", within_s=BACK_S)


async def test_a_redis_that_is_cut_off_is_noticed_by_all_and_nothing_is_lost(spread, room):
    async with one_on_each(spread, room) as readers:
        for n in range(10):
            await asyncio.to_thread(spread.publish, n % NODES, room, n)
        spread.net.cut(SERVER)
        for hub in spread.nodes:
            await is_not_ready(hub)
            status, answer = await asyncio.to_thread(hub.publish, room, "n", "refused")
            assert (status, answer["error"]["code"]) == (503, "unavailable")
        for reader in readers:
            await reader.done("ping")
        spread.net.join(SERVER)
        for hub in spread.nodes:
            await is_ready(hub)
        for n in range(10, 20):
            await asyncio.to_thread(spread.publish, n % NODES, room, n)
        for reader in readers:
            assert [event["data"] for event in await reader.events(room, 20)] == list(range(20))


async def test_a_node_that_is_parted_from_redis_catches_up_and_the_others_do_not_notice(spread, room):
    async with one_on_each(spread, room) as readers:
        await asyncio.to_thread(spread.publish, 0, room, 0)
        spread.net.part(1, SERVER)
        for n in range(1, 30):
            await asyncio.to_thread(spread.publish, 2 * (n % 2), room, n)
        await is_not_ready(spread.nodes[1])
        assert [readiness(spread.nodes[number])[0] for number in (0, 2)] == [200, 200]
        spread.net.unite(1, SERVER)
        await is_ready(spread.nodes[1])
        await asyncio.to_thread(spread.publish, 1, room, 30)
        for reader in readers:
            assert [event["data"] for event in await reader.events(room, 31)] == list(range(31))


@pytest.mark.parametrize(
    "how",
    [Disturbance(delay_ms=100, jitter_ms=50), Disturbance(loss=0.1), Disturbance(delay_ms=20, jitter_ms=20, duplicate=0.1, reorder=0.25)],
    ids=["late", "lossy", "out of order"],
)
async def test_a_bad_network_delays_and_loses_nothing(spread, room, how):
    async with one_on_each(spread, room) as readers:
        try:
            spread.net.disturb(SERVER, how)
        except OSError as error:
            pytest.skip(f"this machine has neither netem nor a TAP device: {error}")
        detour = spread.net.detours.get(SERVER)
        if not how.reorder:
            started = time.monotonic()
            spread.redis.call("PING")
            assert time.monotonic() - started >= (how.delay_ms - how.jitter_ms) / 1000
        # What is in doubt is published again under its key: each once, in an order that all see.
        await asyncio.gather(*[asyncio.to_thread(publish_all, spread, number, room, 20) for number in range(NODES)])
        spread.net.calm(SERVER)
        if detour:
            assert detour.passed > 0 and (detour.lost > 0, detour.doubled > 0) == (how.loss > 0, how.duplicate > 0)
        for hub in spread.nodes:
            await is_ready(hub)
        heard = [[event["data"] for event in await reader.events(room, NODES * 20)] for reader in readers]
        log = await asyncio.to_thread(history, spread.nodes[0], room)
        data = [event["data"] for event in log["events"]]
        assert sorted(data) == sorted(f"{number}-{n}" for number in range(NODES) for n in range(20))
        assert heard == [data] * len(readers)


async def test_a_network_that_comes_and_goes_loses_nothing(spread, room):
    seeded = random.Random(5)
    async with one_on_each(spread, room) as readers:
        writing = [asyncio.create_task(asyncio.to_thread(publish_all, spread, number, room, 200)) for number in range(NODES)]
        # Too short for a connection to be given up, and now and then long enough.
        for _ in range(12):
            spread.net.cut(SERVER)
            await asyncio.sleep(seeded.choice([0.02, 0.1, 0.3, 1.5 * TIMEOUT_MS / 1000]))
            spread.net.join(SERVER)
            await asyncio.sleep(seeded.uniform(0.02, 0.5))
        for hub in spread.nodes:
            await is_ready(hub)
        await asyncio.gather(*writing)
        heard = [[event["data"] for event in await reader.events(room, NODES * 200)] for reader in readers]
        log = await asyncio.to_thread(history, spread.nodes[0], room)
        data = [event["data"] for event in log["events"]]
        assert sorted(data) == sorted(f"{number}-{n}" for number in range(NODES) for n in range(200))
        assert heard == [data] * len(readers)


def publish_all(spread: Spread, number: int, room: str, count: int) -> None:
    for n in range(count):
        spread.publish(number, room, f"{number}-{n}")
