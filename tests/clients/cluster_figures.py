"""Figures of a cluster on this machine: what the way through Redis costs, what a Redis carries, how fast a fresh node is there.

    tests/.venv/bin/python tests/clients/cluster_figures.py [latency] [throughput] [rooms]

Redis keeps nothing on disk in these. Publishers and readers are programs in Python: what they cost themselves is in every
figure, so that latencies are told as differences, and throughput by what Redis's own process has used.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import multiprocessing
import statistics
import sys
import time

from cluster import Cluster
from hub import Hub, admin
from peer import joined
from redis_servers import Redis

# Nothing is given up because the machine is busy.
PATIENT = {"broker.redis.timeout_ms": 30_000}


def milliseconds(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    at = lambda part: ordered[min(len(ordered) - 1, int(len(ordered) * part))] * 1000  # noqa: E731
    return f"median {at(0.5):.3f} ms, 90 % {at(0.9):.3f} ms, 99 % {at(0.99):.3f} ms"


# Latency: from sending a publish to having its event, at the same node and at another.


async def deliveries(publisher_at: Hub, reader_at: Hub, per_s: int, seconds: float) -> list[float]:
    """An event at a time, at even intervals; how long each took."""
    count = int(per_s * seconds)
    sent: list[float] = []
    took: list[float] = []
    async with joined(publisher_at, admin()) as publisher, joined(reader_at, admin()) as reader:
        await reader.subscribe("project:figures")

        async def read() -> None:
            while len(took) < count:
                message = json.loads(await reader.connection.recv())
                if message.get("room") == "project:figures":
                    took.append(time.perf_counter() - sent[message["data"]])

        reading = asyncio.create_task(read())
        started = time.perf_counter()
        for number in range(count):
            due = started + number / per_s
            while (left := due - time.perf_counter()) > 0:
                # Sleeping is exact to a millisecond or so; what is left of that is waited for.
                await asyncio.sleep(left - 0.001 if left > 0.002 else 0)
            sent.append(time.perf_counter())
            await publisher.connection.send(json.dumps({"type": "publish", "data": {"room": "project:figures", "type": "n", "data": number}}))
        async with asyncio.timeout(60):
            await reading
    # The first tenth warms everything up.
    return took[count // 10 :]


def latency(options: argparse.Namespace) -> None:
    print(f"latency, {options.rate} events a second for {options.seconds:g} s, from publish to delivery, in turns:")
    alone, over = [], []
    with Redis(durable=False) as redis:
        one, two = Hub(shards=1), Cluster(redis.settings, count=2, shards=1, settings=PATIENT)
        try:
            for _ in range(options.rounds):
                alone.append(asyncio.run(deliveries(one, one, options.rate, options.seconds / options.rounds)))
                over.append(asyncio.run(deliveries(two[0], two[1], options.rate, options.seconds / options.rounds)))
        finally:
            one.discard()
            two.discard()
    for name, rounds in (("one node, no broker", alone), ("two nodes over Redis", over)):
        print(f"  {name:22} {milliseconds([took for one_round in rounds for took in one_round])}")
    # Of each pair of rounds, which the machine's other work touches alike.
    added = [statistics.median(there) - statistics.median(here) for here, there in zip(alone, over)]
    print(f"  added median           {statistics.median(added) * 1000:.3f} ms  (goal: at most 1 ms)")


# Throughput: events published in batches through both nodes, and how much of a core Redis used for them.


def pour(port: int, jwt: str, rooms: list[str], batch: int, batches: int, answered) -> None:
    """Publishes batches over HTTP, one after the other."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Authorization": f"Bearer {jwt}", "Content-Type": "application/json"}
    bodies = [json.dumps([{"room": room, "type": "n", "data": {"text": "x" * 80, "n": n}} for n in range(batch)]) for room in rooms]
    count = 0
    for number in range(batches):
        connection.request("POST", "/api/v1/publish", bodies[number % len(bodies)], headers)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status == 200:
            count += sum("seq" in event for event in json.loads(body))
        elif answer.status != 503:
            raise RuntimeError(f"{answer.status}: {body[:300]!r}")
    answered.put(count)


def throughput(options: argparse.Namespace) -> None:
    rooms = [f"project:{number}" for number in range(64)]
    batches = max(1, options.events // options.batch // options.publishers)
    with Redis(durable=False) as redis:
        cluster = Cluster(redis.settings, count=2, shards=1, settings=PATIENT | {"history.events_max": 1000})
        try:
            asyncio.run(pour_all(cluster, redis, rooms, batches, options))
        finally:
            cluster.discard()


async def pour_all(cluster: Cluster, redis: Redis, rooms: list[str], batches: int, options: argparse.Namespace) -> None:
    # A member at each node of every room, whose filter lets nothing through: what it costs to deliver is no figure of Redis.
    async with joined(cluster[0], admin()) as one, joined(cluster[1], admin()) as two:
        for peer in (one, two):
            for room in rooms:
                await peer.subscribe(room, filters={"n": {"min": 10**9}})
        answered = multiprocessing.Queue()
        share = -(-len(rooms) // options.publishers)
        work = [
            multiprocessing.Process(target=pour, args=(cluster[number % 2].port, admin(), rooms[number * share : (number + 1) * share], options.batch, batches, answered))
            for number in range(options.publishers)
        ]
        before, started = cpu_s(redis), time.monotonic()
        for process in work:
            process.start()
        events = sum([await asyncio.to_thread(answered.get) for _ in work])
        took, used = time.monotonic() - started, cpu_s(redis) - before
        for process in work:
            process.join()
        carried = [hub.metrics()["ringhub_broker_events_in_total"] for hub in cluster]
        assert events and min(carried) >= events, (events, carried)
    asked = batches * options.batch * len(work)
    print(f"throughput, {asked} events of 100 bytes in batches of {options.batch} by {options.publishers} publishers, in {len(rooms)} rooms that both nodes follow:")
    print(f"  published              {events} in {took:.2f} s: {events / took:,.0f} a second (nodes, publishers and Redis share this machine)")
    print(f"  Redis used             {used:.2f} s of a core: {events / used:,.0f} events a second and core  (goal: at least 100,000)")
    calls = cluster[0].metrics()["ringhub_broker_calls_total"] + cluster[1].metrics()["ringhub_broker_calls_total"]
    print(f"  events a call          {events / calls:.1f}")


def cpu_s(redis: Redis) -> float:
    used = redis.info("cpu")
    return float(used["used_cpu_user"]) + float(used["used_cpu_sys"])


# Rooms: a client subscribes to many at a node that knows none of them.


def fresh_node(options: argparse.Namespace) -> None:
    rooms = [f"project:{number}" for number in range(options.rooms)]
    settings = PATIENT | {"limits.rooms_max": options.rooms + 10}
    with Redis(durable=False) as redis:
        cluster = Cluster(redis.settings, count=2, shards=1, settings=settings)
        try:
            for first in range(0, len(rooms), 500):
                events = [{"room": room, "type": "n", "data": {"n": n}} for room in rooms[first : first + 500] for n in range(2)]
                status, _, body = cluster[0].get("/api/v1/publish", {"Authorization": f"Bearer {admin()}"}, method="POST", body=events)
                assert status == 200, body
            took = asyncio.run(subscribe_all(cluster[1], rooms))
        finally:
            cluster.discard()
    print(f"rooms, {len(rooms)} with two events each, subscribed to at a node that knows none of them:")
    print(f"  the last answer after  {took:.2f} s  (goal: 2 s for 10,000)")


async def subscribe_all(hub: Hub, rooms: list[str]) -> float:
    async with joined(hub, admin()) as peer:
        started = time.monotonic()
        waiting = list(range(0, len(rooms), 100))
        under_way: set[int] = set()
        while waiting or under_way:
            # No more than a connection may have under way.
            while waiting and len(under_way) < 8:
                first = waiting.pop()
                under_way.add(first)
                await peer.send("subscribe", {"rooms": rooms[first : first + 100]}, id=first)
            message = json.loads(await asyncio.wait_for(peer.connection.recv(), 60))
            if message.get("ref") in under_way:
                assert message["type"] == "subscribed" and all(result.get("seq") == 2 for result in message["data"]["results"]), message
                under_way.discard(message["ref"])
        return time.monotonic() - started


FIGURES = {"latency": latency, "throughput": throughput, "rooms": fresh_node}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figures", nargs="*", help=f"of {', '.join(FIGURES)}; all where none is named")
    parser.add_argument("--rate", type=int, default=1000, help="latency: events a second")
    parser.add_argument("--seconds", type=float, default=20, help="latency: how long, for each")
    parser.add_argument("--rounds", type=int, default=5, help="latency: turns that it takes")
    parser.add_argument("--events", type=int, default=400_000, help="throughput: events in all")
    parser.add_argument("--batch", type=int, default=500, help="throughput: events of one request")
    parser.add_argument("--publishers", type=int, default=4, help="throughput: programs that publish")
    parser.add_argument("--rooms", type=int, default=10_000, help="rooms: how many")
    options = parser.parse_args()
    if unknown := set(options.figures) - FIGURES.keys():
        parser.error(f"no figure {', '.join(unknown)}")
    for name in options.figures or FIGURES:
        FIGURES[name](options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
