"""Clusters under faults, in the manner of Jepsen: publishers and readers at all nodes, somebody who breaks things, and a checker.

`RINGHUB_FAULT_SECONDS=600` goes on for longer; `RINGHUB_SEED=17` does other things in another order; `RINGHUB_FAULT_HISTORY=/path`
keeps the histories there, a file for each. What is done is drawn from the seed; when things happen is not, since nodes and
servers are real.
"""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from actors import Actors, Emitter, Native, Publisher, Resuming, Stream
from cluster import TIMEOUT_MS, Cluster, history
from history import ACKNOWLEDGED, History, Log, Promise, check
from link import Link
from redis_servers import MASTER, Redis, RedisCluster, SentinelPair, lacking, restore, snapshot

pytestmark = [pytest.mark.skipif(lacking() is not None, reason=str(lacking()))]

SECONDS = float(os.environ.get("RINGHUB_FAULT_SECONDS", 10))
SEED = int(os.environ.get("RINGHUB_SEED", 1))
NODES = 3
ROOMS = ["project:1", "project:2", "quote:1"]
# How long everything has to be well again, and all to be where the logs end.
HEAL_S = 45
# Logs that have all of a run.
WHOLE = {"history.events_max": 1_000_000, "history.bytes_max": 1 << 28}
# Logs that don't.
SHORT = {"history.events_max": 20}


@dataclass
class Scenario:
    """A cluster, who may break what of it, and what is promised all the same."""

    # Makes the servers, and says how each node reaches them, and what can be done to them.
    servers: Callable[[random.Random], contextlib.AbstractContextManager]
    promise: Promise = field(default_factory=Promise)
    settings: dict = field(default_factory=lambda: dict(WHOLE))
    # Events that are acknowledged each second, at least: a history in which nothing happened proves nothing.
    busy_per_s: float = 20


# A fault breaks something, waits, and mends it; it says what it does.
Fault = Callable[["Run"], AsyncIterator[str]]


@dataclass
class Broken:
    """What a scenario's servers are."""

    # How each node reaches them.
    of_redis: list[dict]
    # What is done to them.
    faults: list[Fault]
    # Makes sure that all are there again.
    heal: Callable[[], None]


class Run:
    """A cluster in use, and what is done to it."""

    def __init__(self, cluster: Cluster, actors: Actors, drawn: random.Random):
        self.cluster, self.actors, self.random = cluster, actors, drawn

    async def pause(self, low: float, high: float) -> None:
        await asyncio.sleep(self.random.uniform(low, high))

    def note(self, what: str) -> None:
        self.actors.history.faults.append((self.actors.now(), what))

    async def break_things(self, faults: list[Fault], until_s: float) -> None:
        """One fault after the other, in an order that has each of them once before one comes again."""
        waiting: list[Fault] = []
        while time.monotonic() < until_s:
            if not waiting:
                waiting = self.random.sample(faults, len(faults))
            self.actors.check()
            await self.pause(0.2, 1)
            async for what in waiting.pop()(self):
                self.note(what)


# What is done to nodes.


async def kill_a_node(run: Run) -> AsyncIterator[str]:
    number = run.random.randrange(NODES)
    yield f"node-{number + 1} is killed"
    run.cluster[number].kill()
    await run.pause(0.1, 1)
    # It may have to start while Redis is away.
    await asyncio.to_thread(run.cluster.restart, number, ready="/live")
    yield f"node-{number + 1} is started again"


async def freeze_a_node(run: Run) -> AsyncIterator[str]:
    hub = run.cluster[run.random.randrange(NODES)]
    yield f"{hub.settings['node.name']} is frozen"
    hub.signal(signal.SIGSTOP)
    await run.pause(0.1, 3 * TIMEOUT_MS / 1000)
    hub.signal(signal.SIGCONT)
    yield f"{hub.settings['node.name']} is thawed"


async def stop_a_node(run: Run) -> AsyncIterator[str]:
    number = run.random.randrange(NODES)
    hub = run.cluster[number]
    yield f"node-{number + 1} is stopped"
    hub.signal(signal.SIGTERM)
    assert await asyncio.to_thread(hub.wait) == 0
    await asyncio.to_thread(run.cluster.restart, number, ready="/live")
    yield f"node-{number + 1} is started again"


NODE_FAULTS: list[Fault] = [kill_a_node, freeze_a_node, stop_a_node]


# What is done to one Redis, and to the links to it.


@contextlib.contextmanager
def one_redis(drawn: random.Random, *, loses_data: bool = False):
    with Redis() as redis:
        links = [Link(redis.port, seed=drawn.randrange(1 << 30)) for _ in range(NODES)]
        try:
            faults = [*faults_of_server(redis), *faults_of_links(links)] + (faults_of_data(redis) if loses_data else [])

            def heal() -> None:
                for link in links:
                    link.mend()
                redis.thaw() if redis.running() else redis.start()

            yield Broken([redis.settings | {"broker.redis.url": link.url} for link in links], faults, heal)
        finally:
            for link in links:
                link.stop()


def faults_of_server(redis: Redis) -> list[Fault]:
    async def kill(run: Run) -> AsyncIterator[str]:
        yield "Redis is killed"
        redis.kill()
        await run.pause(0, 1.5)
        await asyncio.to_thread(redis.start)
        yield "Redis is started with its data"

    async def freeze(run: Run) -> AsyncIterator[str]:
        yield "Redis is frozen"
        redis.freeze()
        await run.pause(0.1, 2.5 * TIMEOUT_MS / 1000)
        redis.thaw()
        yield "Redis is thawed"

    async def end_connections(run: Run) -> AsyncIterator[str]:
        kind = run.random.choice(["normal", "pubsub"])
        yield f"Redis ends all {kind} connections"
        await asyncio.to_thread(redis.call, "CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")

    async def run_out_of_memory(run: Run) -> AsyncIterator[str]:
        yield "Redis is out of memory"
        await asyncio.to_thread(redis.set, "maxmemory", 1)
        await run.pause(0.1, 1)
        await asyncio.to_thread(redis.set, "maxmemory", 0)
        yield "Redis has memory again"

    async def hold_writes(run: Run) -> AsyncIterator[str]:
        held_ms = run.random.randint(100, 2 * TIMEOUT_MS)
        yield f"Redis holds writes for {held_ms} ms"
        await asyncio.to_thread(redis.call, "CLIENT", "PAUSE", held_ms, "WRITE")
        await asyncio.sleep(held_ms / 1000)

    async def forget_scripts(run: Run) -> AsyncIterator[str]:
        yield "Redis forgets all scripts"
        await asyncio.to_thread(redis.call, "SCRIPT", "FLUSH")

    return [kill, freeze, end_connections, run_out_of_memory, hold_writes, forget_scripts]


def faults_of_data(redis: Redis) -> list[Fault]:
    async def lose_all(run: Run) -> AsyncIterator[str]:
        yield "Redis is killed"
        redis.kill()
        await run.pause(0, 1)
        await asyncio.to_thread(redis.start, wiped=True)
        yield "Redis is started without its data"

    async def lose_the_end(run: Run) -> AsyncIterator[str]:
        """As when a disk was behind: what was written last is gone."""
        kept = await asyncio.to_thread(snapshot, redis)
        await run.pause(0.3, 1)
        yield "Redis is killed"
        redis.kill()
        restore(redis, kept)
        await asyncio.to_thread(redis.start)
        yield "Redis is started with data of a moment ago"

    async def empty(run: Run) -> AsyncIterator[str]:
        yield "Redis is emptied"
        await asyncio.to_thread(redis.call, "FLUSHALL")

    return [lose_all, lose_the_end, empty]


def faults_of_links(links: list[Link]) -> list[Fault]:
    async def cut(run: Run) -> AsyncIterator[str]:
        number = run.random.randrange(len(links))
        yield f"the link of node-{number + 1} is cut"
        links[number].cut()

    async def cut_at_any_byte(run: Run) -> AsyncIterator[str]:
        link = run.random.choice(links)
        high = run.random.choice([2_000, 20_000, 60_000])
        yield f"the link of node-{links.index(link) + 1} is cut after up to {high} bytes, again and again"
        link.cut_after(1, high)
        await run.pause(0.5, 2)
        link.mend()
        yield f"the link of node-{links.index(link) + 1} is mended"

    async def hold(run: Run) -> AsyncIterator[str]:
        link = run.random.choice(links)
        yield f"the link of node-{links.index(link) + 1} carries nothing"
        link.hold()
        await run.pause(0.1, 3 * TIMEOUT_MS / 1000)
        if run.random.random() < 0.5:
            link.cut()
        link.mend()
        yield f"the link of node-{links.index(link) + 1} carries again"

    async def delay(run: Run) -> AsyncIterator[str]:
        link = run.random.choice(links)
        delay_s = run.random.choice([0.02, 0.2, 0.7])
        yield f"the link of node-{links.index(link) + 1} takes {delay_s} s"
        link.delay(delay_s)
        await run.pause(0.5, 2)
        link.mend()
        yield f"the link of node-{links.index(link) + 1} is as fast as before"

    async def refuse(run: Run) -> AsyncIterator[str]:
        link = run.random.choice(links)
        yield f"nobody listens at the link of node-{links.index(link) + 1}"
        link.refuse()
        await run.pause(0.1, 2)
        link.mend()
        yield f"the link of node-{links.index(link) + 1} is there again"

    return [cut, cut_at_any_byte, hold, delay, refuse]


# What is done to a primary with a replica, and to a Cluster.


@contextlib.contextmanager
def sentinels(drawn: random.Random):
    with SentinelPair() as pair:
        for server in pair.pair:
            # A primary that nobody follows must not take what would be lost with it.
            server.set("min-replicas-to-write", 1)
            server.set("min-replicas-max-lag", 2)

        async def fail_over(run: Run) -> AsyncIterator[str]:
            former = await asyncio.to_thread(pair.current)
            how = run.random.choice(["killed", "frozen", "told to step down"])
            yield f"the primary is {how}"
            match how:
                case "killed":
                    former.kill()
                case "frozen":
                    former.freeze()
                case _:
                    await asyncio.to_thread(pair.sentinels[0].call, "SENTINEL", "FAILOVER", MASTER)
            await asyncio.to_thread(pair.wait_for_failover, former)
            yield "another server is the primary"
            await run.pause(0, 2)
            if how == "killed":
                await asyncio.to_thread(pair.rejoin, former)
            else:
                former.thaw()
                await asyncio.to_thread(pair.settle)
            yield "the former primary is its replica"

        async def kill_the_replica(run: Run) -> AsyncIterator[str]:
            replica = await asyncio.to_thread(pair.other)
            yield "the replica is killed"
            replica.kill()
            await run.pause(0.5, 2)
            await asyncio.to_thread(replica.start)
            await asyncio.to_thread(pair.settle)
            yield "the replica is back"

        def heal() -> None:
            for server in pair.servers:
                server.thaw() if server.running() else server.start()
            pair.settle()

        yield Broken([pair.settings] * NODES, [fail_over, kill_the_replica], heal)


@contextlib.contextmanager
def redis_cluster(drawn: random.Random):
    with RedisCluster(replicas=1) as cluster:

        async def fail_over(run: Run) -> AsyncIterator[str]:
            key = f"{run.cluster.settings['broker.redis.prefix']}:{{{run.random.choice(ROOMS)}}}:meta"
            former = await asyncio.to_thread(cluster.owner, key)
            is_frozen = run.random.random() < 0.5
            yield f"a primary of the Cluster is {'frozen' if is_frozen else 'killed'}"
            former.freeze() if is_frozen else former.kill()
            await asyncio.to_thread(cluster.wait_for_failover, key, former)
            yield "its replica has taken over"
            await run.pause(0, 1)
            former.thaw() if is_frozen else await asyncio.to_thread(former.start)
            await asyncio.to_thread(cluster.settle)
            yield "it is back, as a replica"

        def heal() -> None:
            for server in cluster.servers:
                server.thaw() if server.running() else server.start()
            cluster.settle()

        yield Broken([cluster.settings] * NODES, [fail_over], heal)


SCENARIOS = {
    "one Redis": Scenario(one_redis),
    "one Redis and short logs": Scenario(one_redis, Promise(gaps=True), dict(SHORT)),
    "one Redis that loses data": Scenario(lambda drawn: one_redis(drawn, loses_data=True), Promise(epochs=True)),
    # What a primary had told but not passed on is lost with it: such a log is another one. What was acknowledged, a replica has.
    # One that was frozen does what waits in its sockets before it learns that it is none any more: a fork.
    # Nothing is acknowledged for as long as there is no replica, which is most of the time here.
    "sentinels": Scenario(sentinels, Promise(epochs=True, forks=True), WHOLE | {"broker.redis.replicas_min": 1}, busy_per_s=3),
    "a Cluster": Scenario(redis_cluster, Promise(epochs=True, forks=True), WHOLE | {"broker.redis.replicas_min": 1}),
}


@pytest.mark.parametrize("name", SCENARIOS)
async def test_whatever_breaks_events_are_given_once_and_in_order_or_told_to_be_missed(name):
    scenario = SCENARIOS[name]
    drawn = random.Random(f"{SEED} {name}")
    record = History()
    with scenario.servers(drawn) as broken:
        cluster = Cluster(broken.of_redis, settings=scenario.settings)
        try:
            await run_scenario(cluster, broken, record, drawn)
            cluster.stop()
        except BaseException:
            print(cluster.logs())
            raise
        finally:
            cluster.discard()
            keep(record, name)
    summary = record.summary()
    print(f"{name}, seed {SEED}: {summary}")
    findings = check(record, scenario.promise)
    faults = "\n".join(f"  {at_s:7.3f} s  {what}" for at_s, what in record.faults)
    assert not findings, f"seed {SEED}: {len(findings)} findings\n" + "\n".join(findings[:40]) + f"\n{summary}\n{faults}"
    assert summary["acknowledged"] > scenario.busy_per_s * SECONDS and summary["deliveries"] > 5 * summary["acknowledged"], summary
    assert summary["locks"] > scenario.busy_per_s * SECONDS / 10, summary
    assert summary["faults"] >= 6 and summary["connections"] > 2 * len(ROOMS) * NODES, summary


def keep(record: History, name: str) -> None:
    if folder := os.environ.get("RINGHUB_FAULT_HISTORY"):
        record.save(Path(folder) / f"{name.replace(' ', '-')}-{SEED}.jsonl")


async def run_scenario(cluster: Cluster, broken: Broken, record: History, drawn: random.Random) -> None:
    """Publishes, reads and locks while things break; then all is mended, and told how it ended."""
    actors = Actors(cluster, ROOMS, record, SEED)
    run = Run(cluster, actors, drawn)
    for node in range(NODES):
        actors.publish(Publisher.by_socket, f"socket-{node + 1}", node)
        actors.publish(Publisher.by_http, f"http-{node + 1}")
        actors.read(Native, f"native-{node + 1}", node)
    actors.publish(Publisher.with_keys, "keys-1")
    actors.publish(Publisher.with_keys, "keys-2")
    actors.read(Resuming, "resuming-1", 0)
    actors.read(Resuming, "resuming-2")
    actors.read(Native, "wandering-1")
    actors.read(Native, "wandering-2")
    actors.read(Stream, "stream-1")
    actors.read(Stream, "stream-2", 1)
    actors.read(Emitter, "emitter-1")
    for number in range(3):
        actors.lock(f"locker-{number + 1}")
    until_s = time.monotonic() + SECONDS
    await asyncio.gather(run.break_things(broken.faults, until_s), run.break_things(NODE_FAULTS, until_s))
    await asyncio.to_thread(broken.heal)
    await asyncio.to_thread(wait_until_ready, cluster)
    await actors.end_publishing()
    ends = await asyncio.to_thread(last_words, actors)
    await actors.end_reading(ends, HEAL_S)
    record.logs = await asyncio.to_thread(logs, cluster)


def wait_until_ready(cluster: Cluster) -> None:
    deadline = time.monotonic() + HEAL_S
    for hub in cluster:
        while hub.get("/ready")[0] != 200:
            assert time.monotonic() < deadline, f"{hub.settings['node.name']} is not ready {HEAL_S} s after all was mended\n{hub.log()}"
            time.sleep(0.05)


def last_words(actors: Actors) -> dict[str, tuple[str, int]]:
    """Publishes in every room once more, now that nothing is broken: where the logs end."""
    ends = {}
    for number, room in enumerate(actors.rooms):
        hub = actors.cluster[number % NODES]
        publisher = Publisher(actors, "last words", number % NODES)
        publish = publisher.begin(hub)
        publish.room = room
        deadline = time.monotonic() + HEAL_S
        while publish.outcome != ACKNOWLEDGED:
            publish.invoked_s = actors.now()
            status, answer = hub.publish(room, "n", {"value": publish.value}, key=f"last-{room}")
            if status == 200:
                publisher.acknowledge(publish, answer)
            assert time.monotonic() < deadline, f"{room} takes no events at {hub.settings['node.name']}: {answer}"
        ends[room] = (publish.epoch, publish.seq)
    return ends


def logs(cluster: Cluster) -> list[Log]:
    """What the nodes say of the rooms' logs."""
    found = []
    for room in ROOMS:
        for hub in cluster:
            told = history(hub, room)
            events = [(event["seq"], event["id"], event["data"]["value"]) for event in told["events"]]
            found.append(Log(hub.settings["node.name"], room, told["epoch"], told["seq"], events))
    return found
