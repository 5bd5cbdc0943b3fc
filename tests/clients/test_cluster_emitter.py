"""Programs that emit with npm's @socket.io/redis-emitter: what they say is an event of the room, once, for clients of every
protocol and at every node."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest
from cluster import Cluster, history, stopping
from events import reading
from hub import START_S, admin
from peer import eventually, joined
from redis_servers import Redis, RedisCluster, until
from test_socketio import woven


@pytest.fixture(scope="module")
def redis():
    with Redis() as redis:
        yield redis


@pytest.fixture(scope="module")
def nodes(redis):
    cluster = Cluster(redis.settings | {"broker.redis.emitter_key": "app[1]"}, count=3)
    until(lambda: all_listen(cluster), START_S, "all nodes listen to emitters", cluster.logs)
    yield cluster
    cluster.stop()


def all_listen(cluster: Cluster) -> bool:
    """A node is ready before it does."""
    return all("emitters of Socket.IO are heard" in hub.log() for hub in cluster)


async def emit(redis: Redis, *said: list, key: str = "app[1]") -> None:
    command = ["node", str(Path(__file__).with_name("emitter.js")), redis.url, key]
    pipe = asyncio.subprocess.PIPE
    program = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.STDOUT)
    told, _ = await asyncio.wait_for(program.communicate("".join(json.dumps(one) + "\n" for one in said).encode()), 30)
    assert program.returncode == 0, told.decode()


async def test_what_is_emitted_reaches_clients_of_every_protocol_once(redis, nodes, room):
    jwt = admin()
    async with joined(nodes[0], jwt) as native, woven(nodes[1], "websocket", {"token": jwt}) as library, reading(nodes[2], room, jwt=jwt) as stream:
        await native.subscribe(room)
        await library.done("subscribe", {"room": room})
        await emit(redis, [[room], "/", "priced", {"amount": 1.5}], [[room], "/ws", "priced", 2, "EUR"], [[room], "/", "done"])
        events = await native.events(room, 3)
        assert [(event["type"], event["seq"], event["data"]) for event in events] == [("priced", 1, {"amount": 1.5}), ("priced", 2, [2, "EUR"]), ("done", 3, [])]
        assert [await library.next("priced") for _ in range(2)] == events[:2]
        assert await library.next("done") == events[2]
        assert await stream.rooms_events(3) == events
    assert [event["seq"] for event in history(nodes[0], room)["events"]] == [1, 2, 3]


async def test_what_is_for_several_rooms_or_for_all_goes_to_each(redis, nodes, room):
    async with joined(nodes[1], admin()) as peer:
        await peer.subscribe(room)
        await peer.subscribe(f"{room}-2")
        await emit(redis, [[room, f"{room}-2"], "/", "n", 1], [[], "/", "for.all", room])
        assert [event["data"] for event in await peer.events(room, 1)] == [1]
        assert [event["data"] for event in await peer.events(f"{room}-2", 1)] == [1]
        event = await peer.next("for.all")
        assert (event["room"], event["data"]) == ("global", room)


async def test_what_can_not_be_published_is_told_in_the_log_and_hurts_nobody(redis, nodes, room):
    with redis.commands() as commands:
        for payload in ["", "garbage", b"\xc1" * 100, b"\x93\x01\x02\x03", b"\xdd\xff\xff\xff\xff" * 1000]:
            commands.call("PUBLISH", "app[1]#/#", payload)
    async with joined(nodes[2], admin()) as peer:
        await peer.subscribe(room)
        said = [["nowhere", "/", "n", 0], [[room], "/elsewhere", "n", 1], [[room], "/", "no type", 2], [["nokind:1"], "/", "n", 3], [[room], "/", "n", 4]]
        said[0][0] = ["no room"]
        await emit(redis, *said)
        await emit(redis, [[room], "/", "n", 5], key="another")
        await emit(redis, [[room], "/", "n", 6])
        assert [event["data"] for event in await peer.events(room, 2)] == [4, 6]
    for _ in range(100):
        if re.search(r"emitter.*not published", nodes.logs()) and "could not be published" in nodes.logs():
            return
        await asyncio.sleep(0.1)
    raise AssertionError(nodes.logs())


async def test_what_is_emitted_at_any_server_of_a_cluster_is_heard_also_where_one_falls_silent(room):
    with RedisCluster(replicas=1) as redis, stopping() as clusters:
        nodes = Cluster(redis.settings | {"broker.redis.emitter_key": "app"}, count=1)
        clusters.append(nodes)
        await eventually(lambda: all_listen(nodes), "it listens to emitters")
        async with joined(nodes[0], admin()) as peer:
            await peer.subscribe(room)
            for number, server in enumerate(redis.primaries):
                await emit(server, [[room], "/", "n", number], key="app")
            # Different servers tell of them in any order.
            assert sorted([event["data"] for event in await peer.events(room, 3)]) == [0, 1, 2]
            (listened_to,) = [server for server in redis.primaries if server.call("PUBSUB", "NUMPAT")]
            other = next(server for server in redis.primaries if server is not listened_to)
            listened_to.freeze()
            # What is emitted before it listens elsewhere nobody hears.
            async with asyncio.timeout(20):
                while not any(event["type"] == "n" for event in await peer.settled()):
                    await emit(other, [[room], "/", "n", 3], key="app")
            listened_to.thaw()
            await asyncio.to_thread(redis.settle)
            await emit(listened_to, [[room], "/", "n", 4], key="app")
            while (await peer.events(room, 1))[0]["data"] != 4:
                pass
