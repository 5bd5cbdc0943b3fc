"""Several nodes over Redis: what clients of one node are told is what those of the others are told, whatever becomes of Redis.

Whole histories under many faults are looked at in test_cluster_faults.py.
"""

import asyncio
import contextlib
import itertools
import json
import os
import random
import re
import secrets
import shlex
import signal
import socket
import subprocess
import time

import pytest

from cluster import TIMEOUT_MS, Cluster, fresh_prefix, history, readiness, stopping
from events import reading
from hub import ROOT, START_S, Hub, HubFailed, admin, binary, clean_environment, free_port
from link import Link
from peer import Peer, eventually, joined, request, upgrade_request
from redis_servers import MASTER, Redis, RedisCluster, SentinelPair, lacking, restore, snapshot, until
from test_socketio import woven

pytestmark = [pytest.mark.skipif(lacking() is not None, reason=str(lacking()))]
# Redis is known to be away, or back, within this.
NOTICED_S = 3 * TIMEOUT_MS / 1000 + 5
# Bytes that a cut link carries: a third of the cuts fall into setting the connections up, scripts included.
CUT_WITHIN = 30_000


@pytest.fixture(scope="module")
def _redis():
    with Redis() as redis:
        yield redis


@pytest.fixture(scope="module")
def _nodes(_redis):
    cluster = Cluster(_redis.settings, count=3, shards=2)
    yield cluster
    cluster.stop()


@pytest.fixture
def nodes(_nodes):
    """Three nodes that all tests share which do nothing to them or to Redis. Tests keep to rooms of their own."""
    yield _nodes
    assert all(hub.running() for hub in _nodes), f"a node ended in this test\n{_nodes.logs()}"


@pytest.fixture
def redis():
    """A Redis of the test's own."""
    with Redis() as server:
        yield server


@pytest.fixture
def form():
    """Forms clusters that end with the test."""
    with stopping() as clusters:

        def form_cluster(*positional, **named) -> Cluster:
            clusters.append(Cluster(*positional, **named))
            return clusters[-1]

        yield form_cluster


async def publish(hub: Hub, room: str, data: object, **more) -> dict:
    """Over HTTP; it must succeed."""
    status, answer = await asyncio.to_thread(hub.publish, room, "n", data, **more)
    assert status == 200, answer
    return answer


async def refused(hub: Hub, room: str, data: object) -> dict:
    """Over HTTP; it must be refused as `unavailable`."""
    status, answer = await asyncio.to_thread(hub.publish, room, "n", data)
    assert (status, answer["error"]["code"]) == (503, "unavailable"), answer
    return answer["error"]


async def accepted(hub: Hub, room: str, data: object) -> dict:
    """Over HTTP, tried again for as long as the hub can't reach Redis. One that is in doubt is not published twice."""
    answers, key = [], secrets.token_hex(8)

    def is_published() -> bool:
        answers.append(hub.publish(room, "n", data, key=key))
        assert answers[-1][0] in (200, 503), answers[-1]
        return answers[-1][0] == 200

    await eventually(is_published, "a publish is accepted", within_s=NOTICED_S)
    return answers[-1][1]


async def is_ready(hub: Hub) -> None:
    await eventually(lambda: readiness(hub)[0] == 200, "the node is ready", within_s=NOTICED_S)


async def is_not_ready(hub: Hub) -> dict:
    await eventually(lambda: readiness(hub)[0] == 503, "the node is not ready", within_s=NOTICED_S)
    return (await asyncio.to_thread(readiness, hub))[1]


async def turned_away(hub: Hub) -> None:
    """A client that wants to connect is told to come back later."""
    answer = await request(hub, upgrade_request(headers={"Authorization": f"Bearer {admin()}"}))
    assert answer.status == 503 and int(answer.headers["retry-after"]) >= 1, answer
    assert answer.error()["code"] == "unavailable"


@contextlib.asynccontextmanager
async def one_on_each(cluster: Cluster, room: str, **options):
    """A subscribed administrator at every node."""
    async with contextlib.AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(joined(hub, admin())) for hub in cluster]
        for peer in peers:
            await peer.subscribe(room, **options)
        yield peers


def brief(events: list[dict]) -> list[tuple]:
    return [(event["seq"], event["id"], event["data"]) for event in events]


# Rooms, over all nodes.


async def test_members_at_all_nodes_are_given_the_same_events_in_the_same_order(nodes, room):
    each = 60
    async with one_on_each(nodes, room) as readers, one_on_each(nodes, f"{room}-unheard") as writers:

        async def by_socket(number: int, writer: Peer) -> list[dict]:
            return [await writer.done("publish", {"room": room, "type": "n", "data": [number, n]}) for n in range(each)]

        async def by_http(number: int, hub: Hub) -> list[dict]:
            return [await publish(hub, room, [number + 10, n]) for n in range(each)]

        publishers = [by_socket(number, writer) for number, writer in enumerate(writers)] + [by_http(number, hub) for number, hub in enumerate(nodes)]
        answers = await asyncio.gather(*publishers)
        total = each * len(publishers)
        heard = [brief(await reader.events(room, total)) for reader in readers]
    assert heard[0] == heard[1] == heard[2]
    assert [seq for seq, _, _ in heard[0]] == list(range(1, total + 1))
    # Every publisher was told where its events are, and they are in the order in which it published them.
    places = {event_id: (seq, data) for seq, event_id, data in heard[0]}
    for number, of_one in zip([0, 1, 2, 10, 11, 12], answers):
        assert [places[answer["id"]] for answer in of_one] == [(answer["seq"], [number, n]) for n, answer in enumerate(of_one)]
        assert [answer["seq"] for answer in of_one] == sorted(answer["seq"] for answer in of_one)
    assert len({answer["epoch"] for of_one in answers for answer in of_one}) == 1


async def test_a_batch_over_http_is_one_run_of_numbers_at_every_node(nodes, room):
    events = [{"room": room, "type": "n", "data": n} for n in range(1000)]
    async with one_on_each(nodes, room) as readers:
        status, _, body = await asyncio.to_thread(nodes[0].get, "/api/v1/publish", {"Authorization": f"Bearer {admin()}"}, method="POST", body=events)
        assert status == 200, body
        for reader in readers:
            heard = await reader.events(room, 1000)
            assert [(event["seq"], event["data"]) for event in heard] == [(n + 1, n) for n in range(1000)]


async def test_an_event_is_the_same_bytes_at_every_node(nodes, room):
    async with one_on_each(nodes, room) as readers:
        await publish(nodes[1], room, {"text": 'ünï "quoted" \\ \u2028 \x7f', "deep": [[[{"a": 1.50}]]], "big": 12345678901234567890})
        for reader in readers:
            await reader.events(room, 1)
        assert len({reader.frames[-1] for reader in readers}) == 1


async def test_a_log_is_the_same_at_every_node(nodes, room):
    published = [await publish(nodes[n % 3], room, n) for n in range(12)]
    logs = [await asyncio.to_thread(history, hub, room) for hub in nodes]
    assert logs[0] == logs[1] == logs[2]
    assert [(event["id"], event["seq"]) for event in logs[0]["events"]] == [(answer["id"], answer["seq"]) for answer in published]
    assert logs[0]["epoch"] == published[0]["epoch"]


async def test_since_at_another_node_replays_and_goes_on(nodes, room):
    answers = [await publish(nodes[0], room, n) for n in range(1, 8)]
    since = {"seq": 3, "epoch": answers[2]["epoch"]}
    async with joined(nodes[1], admin()) as reader:
        answer = await reader.subscribe(room, since=since)
        assert (answer["seq"], answer["epoch"], answer["recovered"], answer["replayed"], answer["missed"]) == (7, answers[0]["epoch"], True, 4, 0)
        await publish(nodes[2], room, 8)
        assert [event["data"] for event in await reader.events(room, 5)] == [4, 5, 6, 7, 8]
    async with joined(nodes[2], admin()) as reader:
        answer = await reader.subscribe(room, since={"last": 2})
        assert (answer["recovered"], answer["replayed"]) == (True, 2)
        page = await reader.done("history", {"room": room, "limit": 3, "reverse": True})
        assert [event["seq"] for event in page["events"]] == [8, 7, 6] and page["more"] is True


async def test_a_place_in_another_epoch_is_not_recovered(nodes, room):
    await publish(nodes[0], room, 1)
    async with joined(nodes[1], admin()) as reader:
        answer = await reader.subscribe(room, since={"seq": 1, "epoch": "0" * 16})
        assert (answer["recovered"], answer["missed"], answer["seq"]) == (False, None, 1)


async def test_logs_are_bounded_at_every_node(redis, form, room):
    nodes = form(redis.settings, count=2, settings={"rooms.project.history_events_max": 10})
    epoch = [await publish(nodes[0], room, n) for n in range(1, 41)][0]["epoch"]
    async with joined(nodes[1], admin()) as reader:
        answer = await reader.subscribe(room, since={"seq": 5, "epoch": epoch})
        assert (answer["recovered"], answer["replayed"], answer["missed"]) == (False, 10, 25)
        assert [event["data"] for event in await reader.events(room, 10)] == list(range(31, 41))
    # Redis keeps whole calls, and no more of them than that needs.
    keys = [key for key in redis.call("KEYS", "*") if key.endswith(b":log")]
    assert [redis.call("XLEN", key) for key in keys] == [10]


async def test_a_key_is_published_once_over_all_nodes(nodes, room):
    async with one_on_each(nodes, room) as readers:
        answers = [await publish(hub, room, "first of them", key="order-7") for hub in nodes]
        assert [answer["duplicate"] for answer in answers] == [False, True, True]
        assert len({(answer["id"], answer["seq"]) for answer in answers}) == 1
        # Asked at the same time at all nodes, one is the first.
        answers = await asyncio.gather(*[publish(hub, room, number, key="order-8") for number, hub in enumerate([*nodes, *nodes])])
        assert sorted(answer["duplicate"] for answer in answers) == [False] + [True] * 5
        assert len({(answer["id"], answer["seq"]) for answer in answers}) == 1
        await publish(nodes[0], room, "last")
        for reader in readers:
            assert [event["seq"] for event in await reader.events(room, 3)] == [1, 2, 3]


async def test_who_wants_no_echo_has_none_and_all_others_have_it(nodes, room):
    async with one_on_each(nodes, room) as (one, two, three), joined(nodes[0], admin()) as neighbour:
        await neighbour.subscribe(room)
        await one.done("publish", {"room": room, "type": "n", "data": 1, "echo": False})
        await two.done("publish", {"room": room, "type": "n", "data": 2})
        assert [event["data"] for event in await one.events(room, 1)] == [2]
        for peer in (two, three, neighbour):
            assert [event["data"] for event in await peer.events(room, 2)] == [1, 2]
        # The same shard and slot at another node are somebody else.
        async with joined(nodes[1], admin()) as twin:
            await twin.subscribe(room)
            await one.done("publish", {"room": room, "type": "n", "data": 3, "echo": False})
            assert (await twin.events(room, 1))[0]["data"] == 3


async def test_filters_and_types_select_what_comes_from_other_nodes(nodes, room):
    async with joined(nodes[0], admin()) as writer, joined(nodes[1], admin()) as choosy, joined(nodes[2], admin()) as picky:
        await choosy.subscribe(room, filters={"level": {"min": 5}})
        await picky.subscribe(room, types=["alarm"])
        for level in range(10):
            await writer.done("publish", {"room": room, "type": "alarm" if level % 2 else "note", "data": {"level": level}})
        assert [event["data"]["level"] for event in await choosy.events(room, 5)] == [5, 6, 7, 8, 9]
        assert [event["data"]["level"] for event in await picky.events(room, 5)] == [1, 3, 5, 7, 9]


async def test_a_history_that_is_deleted_at_one_node_is_empty_at_all(nodes, room):
    async with one_on_each(nodes, room) as readers:
        for n in range(1, 6):
            await publish(nodes[0], room, n)
        for reader in readers:
            await reader.events(room, 5)
        status, _, body = await asyncio.to_thread(nodes[1].get, f"/api/v1/rooms/{room}/history", {"Authorization": f"Bearer {admin()}"}, method="DELETE")
        assert (status, json.loads(body)) == (200, {"room": room, "deleted": 5})
        for hub in nodes:
            await eventually(lambda hub=hub: history(hub, room)["events"] == [], "the log is empty")
        # The numbers go on, and members are not disturbed.
        answer = await publish(nodes[2], room, 6)
        assert answer["seq"] == 6
        for reader in readers:
            assert [event["seq"] for event in await reader.events(room, 1)] == [6]
        assert [event["seq"] for event in (await asyncio.to_thread(history, nodes[0], room))["events"]] == [6]


async def test_clients_of_socket_io_and_streams_at_other_nodes_are_given_the_same(nodes, room):
    jwt = admin()
    async with joined(nodes[0], jwt) as native, woven(nodes[1], "websocket", {"token": jwt}) as emitter, reading(nodes[2], room, jwt=jwt) as stream:
        await native.subscribe(room)
        await emitter.done("subscribe", {"room": room})
        await native.done("publish", {"room": room, "type": "n", "data": 1})
        assert (await emitter.next("n"))["seq"] == 1
        await emitter.done("publish", {"room": room, "type": "n", "data": 2})
        await publish(nodes[2], room, 3)
        heard = await native.events(room, 3)
        assert [event["data"] for event in heard] == [1, 2, 3]
        assert [await emitter.next("n") for _ in range(2)] == heard[1:]
        assert await stream.rooms_events(3) == heard
        last = stream.last_event_id
    await publish(nodes[0], room, 4)
    async with reading(nodes[1], room, jwt=jwt, headers={"Last-Event-ID": last}) as stream:
        assert [event["seq"] for event in await stream.rooms_events(1)] == [4]


async def test_what_is_for_a_user_reaches_that_user_at_every_node(nodes):
    user = f"user-{free_port()}"
    async with contextlib.AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(joined(hub, admin(user))) for hub in nodes]
        await publish(nodes[0], f"user:{user}", "for you")
        for peer in peers:
            assert (await peer.events(f"user:{user}", 1))[0]["data"] == "for you"


async def test_the_room_of_all_is_everybodys(nodes):
    mark = free_port()
    async with contextlib.AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(joined(hub, admin())) for hub in nodes]
        await publish(nodes[1], "global", mark)
        for peer in peers:
            while (await peer.events("global", 1))[0]["data"] != mark:
                pass


async def test_a_room_that_many_enter_and_leave_is_whole_for_everyone(nodes, room):
    seeded = random.Random(11)
    done = asyncio.Event()
    checked = 0

    async def write():
        for n in range(400):
            await publish(nodes[n % 3], room, n)
        done.set()

    async def visit():
        nonlocal checked
        place = None
        while not done.is_set() or place is None:
            async with joined(seeded.choice(nodes.nodes), admin()) as peer:
                answer = await peer.subscribe(room, **({"since": place} if place else {}))
                begin = answer["seq"] - answer["replayed"]
                assert answer["recovered"] and (place is None or begin == place["seq"]), (answer, place)
                place = {"seq": begin, "epoch": answer["epoch"]}
                for _ in range(seeded.randint(0, 20)):
                    if done.is_set() and not answer["replayed"]:
                        break
                    event = await peer.next("n")
                    assert event["seq"] == place["seq"] + 1
                    place["seq"] += 1
                    checked += 1
                    if place["seq"] == 400:
                        return

    await asyncio.gather(write(), *[visit() for _ in range(6)])
    assert checked > 400


async def test_a_node_that_joins_has_the_rooms_as_they_are(nodes, form, _redis, room):
    answers = [await publish(nodes[0], room, n) for n in range(5)]
    late = form(_redis.settings, count=1, settings={"broker.redis.prefix": nodes.settings["broker.redis.prefix"]})
    log = await asyncio.to_thread(history, late[0], room)
    assert [event["id"] for event in log["events"]] == [answer["id"] for answer in answers]
    async with joined(late[0], admin()) as reader:
        await reader.subscribe(room)
        await publish(nodes[1], room, 5)
        assert (await reader.events(room, 1))[0]["seq"] == 6


async def test_clusters_with_other_prefixes_are_strangers(nodes, form, _redis, room):
    others = form(_redis.settings, count=1)
    await publish(nodes[0], room, "ours")
    assert (await publish(others[0], room, "theirs"))["seq"] == 1
    assert [event["data"] for event in (await asyncio.to_thread(history, nodes[1], room))["events"]] == ["ours"]


async def test_rooms_are_spread_over_several_servers(form, room):
    with Redis() as one, Redis() as two, Redis() as three:
        servers = [one, two, three]
        nodes = form(one.settings | {"broker.redis.url": [server.url for server in servers]}, count=2)
        for n in range(60):
            assert (await publish(nodes[n % 2], f"{room}-{n}", n))["seq"] == 1
            assert (await publish(nodes[(n + 1) % 2], f"{room}-{n}", n))["seq"] == 2
        # An alert of the hub, as of a machine that is busy, has a log as well.
        counts = [len(server.call("KEYS", f"*{{{room}-*}}:log")) for server in servers]
        assert sum(counts) == 60 and min(counts) >= 5, counts
        # One of them away: its rooms are, the others are not.
        two.kill()
        body = await is_not_ready(nodes[0])
        assert (body["broker"]["servers"], body["broker"]["servers_up"]) == (3, 2)
        statuses = [(await asyncio.to_thread(nodes[0].publish, f"{room}-{n}", "n", n))[0] for n in range(60)]
        assert (statuses.count(503), statuses.count(200)) == (counts[1], 60 - counts[1])
        two.start()
        await is_ready(nodes[0])


# Redis that is not there, or not as it should be.


async def test_what_redis_had_on_disk_is_there_when_it_comes_back(redis, form, room):
    nodes = form(redis.settings)
    async with one_on_each(nodes, room) as readers:
        for n in range(1, 21):
            await publish(nodes[n % 3], room, n)
        redis.restart()
        for n in range(21, 31):
            await accepted(nodes[n % 3], room, n)
        for reader in readers:
            assert [event["seq"] for event in await reader.events(room, 30)] == list(range(1, 31))
            assert not [message for message in await reader.settled() if message["type"] == "gap"]
    logs = [await asyncio.to_thread(history, hub, room) for hub in nodes]
    assert logs[0] == logs[1] == logs[2] and len(logs[0]["events"]) == 30


async def test_members_are_told_of_another_epoch_when_redis_comes_back_without_its_data(redis, form, room):
    nodes = form(redis.settings)
    async with one_on_each(nodes, room) as readers, reading(nodes[0], room, jwt=admin()) as stream:
        before = [await publish(nodes[n % 3], room, n) for n in range(1, 4)]
        for reader in readers:
            await reader.events(room, 3)
        await stream.rooms_events(3)
        redis.restart(wiped=True)
        after = await accepted(nodes[1], room, "anew")
        assert after["epoch"] != before[0]["epoch"] and after["seq"] == 1
        for reader in readers:
            while (gap := (await reader.next("gap"))["data"])["room"] != room:
                pass
            # What is known of the new log when the member is told; what comes then comes after that.
            assert gap in [{"room": room, "from_seq": 1, "to_seq": to_seq, "reason": "epoch", "epoch": after["epoch"]} for to_seq in (0, 1)]
            again = await publish(nodes[0], room, "again")
            events = await reader.events(room, again["seq"] - gap["to_seq"])
            assert [event["seq"] for event in events] == list(range(gap["to_seq"] + 1, again["seq"] + 1))
        gap = await stream.named("gap")
        assert (gap["data"]["reason"], gap["data"]["epoch"]) == ("epoch", after["epoch"])
        # Who comes back with a place of the former log is told as much.
        async with joined(nodes[2], admin()) as late:
            answer = await late.subscribe(room, since={"seq": 3, "epoch": before[0]["epoch"]})
            assert (answer["recovered"], answer["missed"], answer["epoch"]) == (False, None, after["epoch"])


async def test_an_emptied_redis_is_noticed_without_a_restart(redis, form, room):
    nodes = form(redis.settings)
    async with one_on_each(nodes, room) as readers:
        before = await publish(nodes[0], room, 1)
        for reader in readers:
            await reader.events(room, 1)
        redis.call("FLUSHALL")
        after = await publish(nodes[1], room, 2)
        assert after["epoch"] != before["epoch"]
        for reader in readers:
            while (gap := (await reader.next("gap"))["data"])["room"] != room:
                pass
            assert (gap["reason"], gap["epoch"]) == ("epoch", after["epoch"])


async def test_a_cluster_starts_while_redis_is_away_and_says_what_it_lacks(form, room):
    port = free_port()
    url = f"redis://127.0.0.1:{port}"
    nodes = form({"broker.kind": "redis", "broker.redis.url": url}, count=2, ready="/live")
    status, body = await asyncio.to_thread(readiness, nodes[0])
    assert status == 503 and "broker" in body["status"], body
    assert (body["broker"]["servers"], body["broker"]["servers_up"]) == (1, 0)
    await refused(nodes[0], room, 1)
    await turned_away(nodes[1])
    with Redis(port=port):
        for hub in nodes:
            await is_ready(hub)
        async with one_on_each(nodes, room) as readers:
            assert (await publish(nodes[0], room, 2))["seq"] == 1
            for reader in readers:
                assert (await reader.events(room, 1))[0]["data"] == 2
    assert f":{port}" in nodes[0].log(), "its log says which server"


async def test_publishes_are_refused_while_redis_is_away_and_what_was_accepted_is_delivered(redis, form, room):
    nodes = form(redis.settings)
    async with one_on_each(nodes, room) as readers:
        answers = [await publish(nodes[n % 3], room, n) for n in range(1, 11)]
        redis.kill()
        for hub in nodes:
            await is_not_ready(hub)
            error = await refused(hub, room, "never")
            assert "may still be published" not in error["message"], "nothing was sent: there is no doubt"
        # Members stay.
        for reader in readers:
            assert (await reader.refused("publish", {"room": room, "type": "n", "data": "never"}))["code"] == "unavailable"
            await reader.done("ping")
        # Newcomers have rooms of their own, whose state nobody knows now.
        await turned_away(nodes[0])
        redis.start()
        answers.append(await accepted(nodes[2], room, 11))
        assert answers[-1]["seq"] == 11
        # Of what was accepted last, Redis may have died before it told everybody: that comes now.
        for reader in readers:
            assert brief(await reader.events(room, 11)) == [(answer["seq"], answer["id"], n) for n, answer in enumerate(answers, 1)]


async def test_publishes_wait_for_redis_where_they_are_told_to(redis, form, room):
    nodes = form(redis.settings, count=2, settings={"broker.buffer_ms": 30_000})
    async with one_on_each(nodes, room) as readers:
        await publish(nodes[0], room, 0)
        redis.kill()
        await is_not_ready(nodes[0])
        waiting = [asyncio.create_task(publish(nodes[n % 2], room, n)) for n in range(1, 7)]
        await asyncio.sleep(0.3)
        assert not any(task.done() for task in waiting)
        redis.start()
        answers = await asyncio.gather(*waiting)
        assert sorted(answer["seq"] for answer in answers) == list(range(2, 8))
        for reader in readers:
            assert sorted(event["data"] for event in await reader.events(room, 7)) == list(range(7))


async def test_publishes_that_wait_too_long_are_refused(redis, form, room):
    nodes = form(redis.settings, count=1, settings={"broker.buffer_ms": 500})
    redis.kill()
    await is_not_ready(nodes[0])
    started = time.monotonic()
    await refused(nodes[0], room, 1)
    assert 0.4 < time.monotonic() - started < 3


async def test_a_frozen_redis_leaves_publishes_in_doubt_and_comes_back_without_a_loss(redis, form, room):
    nodes = form(redis.settings)
    async with one_on_each(nodes, room) as readers:
        await publish(nodes[0], room, "before")
        redis.freeze()
        error = await refused(nodes[0], room, "in doubt")
        assert "may still be published" in error["message"]
        for reader in readers:
            await reader.done("ping")
        redis.thaw()
        after = await accepted(nodes[1], room, "after")
        heard = [brief(await reader.events(room, after["seq"])) for reader in readers]
        # A node whose link was cut has it a moment later; its readers have it, and so it has.
        log = await asyncio.to_thread(history, nodes[2], room)
        assert [event["data"] for event in log["events"]] in (["before", "after"], ["before", "in doubt", "after"])
        assert log["seq"] == after["seq"]
        assert heard == [brief(log["events"])] * len(readers)


async def test_a_redis_out_of_memory_refuses_and_takes_again(redis, form, room):
    nodes = form(redis.settings)
    async with one_on_each(nodes, room) as readers:
        await publish(nodes[0], room, 1)
        redis.set("maxmemory-policy", "noeviction")
        redis.set("maxmemory", "1")
        error = await refused(nodes[1], room, "never")
        assert "may still be published" not in error["message"], "Redis said no: there is no doubt"
        # A writer at another node fares no better, and everybody's links are as they were.
        assert (await readers[2].refused("publish", {"room": room, "type": "n", "data": "never"}))["code"] == "unavailable"
        redis.set("maxmemory", "0")
        await accepted(nodes[1], room, 2)
        for reader in readers:
            assert [event["data"] for event in await reader.events(room, 2)] == [1, 2]


async def test_a_redis_that_takes_no_writes_is_told_as_unavailable(redis, form, room):
    with Redis() as other:
        nodes = form(redis.settings, count=2)
        async with one_on_each(nodes, room) as readers:
            await publish(nodes[0], room, 1)
            redis.call("REPLICAOF", "127.0.0.1", other.port)
            await eventually(lambda: nodes[0].publish(room, "n", "never")[0] == 503, "the replica takes no writes", within_s=NOTICED_S)
            await refused(nodes[1], room, "never")
            redis.call("REPLICAOF", "NO", "ONE")
            # As a replica it has taken over the emptiness of its primary: the log is another one.
            after = await accepted(nodes[0], room, 2)
            for reader in readers:
                events = await reader.events(room, 2)
                assert (events[0]["data"], events[-1]["data"], events[-1]["seq"]) == (1, 2, after["seq"])


@pytest.mark.parametrize("kind", ["pubsub", "normal"])
async def test_links_that_redis_ends_are_made_again_and_nothing_is_lost(redis, form, room, kind):
    nodes = form(redis.settings)
    async with one_on_each(nodes, room) as readers:
        for n in range(1, 41):
            if n % 10 == 0:
                redis.call("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
            await accepted(nodes[n % 3], room, n)
        last = await accepted(nodes[0], room, "last")
        heard = [brief(await reader.events(room, last["seq"])) for reader in readers]
        assert heard[0] == heard[1] == heard[2]
        # A publish that was in doubt is published again by the test.
        assert list(dict.fromkeys(data for _, _, data in heard[0])) == [*range(1, 41), "last"]


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_link_that_is_cut_at_any_byte_loses_nothing_and_doubles_nothing(redis, form, room, seed):
    links = [Link(redis.port, seed=seed * 10 + number) for number in range(2)]
    try:
        nodes = form([redis.settings | {"broker.redis.url": link.url} for link in links] + [redis.settings], ready="/ready")
        async with one_on_each(nodes, room) as readers:
            for link in links:
                link.cut_after(1, CUT_WITHIN)
            is_over = asyncio.Event()
            published = []

            async def write(number: int) -> None:
                for n in itertools.count():
                    if is_over.is_set() and n >= 40:
                        return
                    key = f"{number}-{n}"
                    # With a key, what is in doubt can be published again.
                    while (await asyncio.to_thread(nodes[number].publish, room, "n", key, key=key))[0] != 200:
                        await asyncio.sleep(0.01)
                    published.append(key)

            writing = [asyncio.create_task(write(number)) for number in range(3)]
            await eventually(lambda: min(link.cuts for link in links) >= 6, "the links are cut", within_s=30)
            for link in links:
                link.mend()
            is_over.set()
            await asyncio.gather(*writing)
            heard = [brief(await reader.events(room, len(published))) for reader in readers]
            log = await asyncio.to_thread(history, nodes[2], room)
            assert sorted(event["data"] for event in log["events"]) == sorted(published), "each once"
            assert heard == [brief(log["events"])] * len(readers)
    finally:
        for link in links:
            link.stop()


async def test_a_link_that_carries_nothing_is_noticed_and_left(redis, form, room):
    link = Link(redis.port)
    try:
        nodes = form([redis.settings | {"broker.redis.url": link.url}, redis.settings])
        async with one_on_each(nodes, room) as readers:
            await publish(nodes[0], room, 1)
            link.hold()
            body = await is_not_ready(nodes[0])
            assert body["broker"]["servers_up"] == 0
            assert (await publish(nodes[1], room, 2))["seq"] == 2, "the other node's link is well"
            link.cut()
            link.mend()
            await is_ready(nodes[0])
            assert (await accepted(nodes[0], room, 3))["seq"] == 3
            for reader in readers:
                assert [event["data"] for event in await reader.events(room, 3)] == [1, 2, 3]
    finally:
        link.stop()


async def test_a_client_that_is_ahead_of_a_node_that_lags_is_no_proof_of_a_loss(redis, form, room):
    link = Link(redis.port)
    try:
        nodes = form([redis.settings | {"broker.redis.url": link.url}, redis.settings])
        async with one_on_each(nodes, room) as readers, joined(nodes[0], admin()) as moved, joined(nodes[0], admin()) as stale:
            answers = [await publish(nodes[1], room, n) for n in range(1, 6)]
            await readers[0].events(room, 5)
            # The first node hears nothing more, and does not know it yet.
            link.hold()
            answers += [await publish(nodes[1], room, n) for n in range(6, 11)]
            asked = [asyncio.create_task(peer.subscribe(room, since={"seq": seq, "epoch": answers[0]["epoch"]})) for peer, seq in ((moved, 8), (stale, 10))]
            await asyncio.sleep(0.3)
            link.mend()
            told = await asyncio.gather(*asked)
            assert [(answer["epoch"], answer["seq"] - answer["replayed"], answer["recovered"], answer["missed"]) for answer in told] == [
                (answers[0]["epoch"], 8, True, 0),
                (answers[0]["epoch"], 10, True, 0),
            ]
            await accepted(nodes[0], room, 11)
            for peer, expected in ((readers[0], range(6, 12)), (readers[1], range(1, 12)), (moved, range(9, 12)), (stale, range(11, 12))):
                assert [(event["seq"], event["data"]) for event in await peer.events(room, len(expected))] == [(n, n) for n in expected]
    finally:
        link.stop()


async def test_a_log_that_lost_its_end_is_another_one_even_if_only_a_client_knows(redis, form, room):
    nodes = form(redis.settings, count=2)
    answers = [await publish(nodes[0], room, n) for n in range(1, 6)]
    kept = snapshot(redis)
    answers += [await publish(nodes[0], room, n) for n in range(6, 11)]
    for number in range(2):
        nodes[number].kill()
    redis.kill()
    restore(redis, kept)
    redis.start()
    for number in range(2):
        await asyncio.to_thread(nodes.restart, number)
    async with joined(nodes[0], admin()) as reader:
        answer = await reader.subscribe(room, since={"seq": 10, "epoch": answers[0]["epoch"]})
        assert not answer["recovered"] and answer["epoch"] != answers[0]["epoch"], answer
        after = await publish(nodes[1], room, "another")
        assert (after["seq"], after["epoch"]) == (6, answer["epoch"])


async def test_a_publish_after_a_lost_end_is_answered_with_another_epoch(redis, form, room):
    nodes = form(redis.settings)
    async with one_on_each(nodes, room) as readers:
        answers = [await publish(nodes[n % 3], room, n) for n in range(1, 6)]
        kept = snapshot(redis)
        answers += [await publish(nodes[n % 3], room, n) for n in range(6, 11)]
        for reader in readers:
            await reader.events(room, 10)
        redis.kill()
        restore(redis, kept)
        redis.start()
        # At all nodes at once: whichever is first.
        after = await asyncio.gather(*[accepted(hub, room, "after") for hub in nodes])
        assert sorted(answer["seq"] for answer in after) == [6, 7, 8]
        assert {answer["epoch"] for answer in after} == {(await asyncio.to_thread(history, nodes[0], room))["epoch"]}
        assert after[0]["epoch"] != answers[0]["epoch"]


async def test_a_slow_link_delays_and_keeps_the_order(redis, form, room):
    link = Link(redis.port)
    try:
        nodes = form([redis.settings | {"broker.redis.url": link.url}, redis.settings])
        link.delay(0.1)
        async with one_on_each(nodes, room) as readers:
            answers = await asyncio.gather(*[publish(nodes[n % 2], room, n) for n in range(40)])
            assert sorted(answer["seq"] for answer in answers) == list(range(1, 41))
            for reader in readers:
                assert [event["seq"] for event in await reader.events(room, 40)] == list(range(1, 41))
    finally:
        link.stop()


# Starts that can't succeed.

# What a user may, its password, and a word of the reason.
REFUSED_STARTS = {
    "a wrong password": ("~* &* +@all", "wrong", "password"),
    "no password where one is needed": ("~* &* +@all", None, "password"),
    "other keys": ("~other:* &* +@all", "secret", "perm"),
    "other channels": ("~* resetchannels &other:* +@all", "secret", "perm"),
    "no scripts": ("~* &* +@all -@scripting", "secret", "perm"),
}


@pytest.mark.parametrize("wrong", REFUSED_STARTS)
def test_a_start_is_refused_with_its_reason(form, wrong):
    rules, password, word = REFUSED_STARTS[wrong]
    with Redis(user=("hub", f"on >secret {rules}")) as redis:
        of_user = {"broker.redis.username": "hub", "broker.redis.password": password} if password else {}
        with pytest.raises(HubFailed) as failure:
            form(redis.settings | of_user, count=1)
        told = str(failure.value)
        assert "ended at start" in told and str(redis.port) in told, told
        log = told.split("\n", 1)[1]
        assert word in log.lower() and "secret" not in log, log


@pytest.mark.parametrize("url", ["http://127.0.0.1:6379", "redis://", "127.0.0.1:6379", "redis://127.0.0.1:notaport"])
def test_a_url_that_is_none_is_refused(form, url):
    with pytest.raises(HubFailed) as failure:
        form({"broker.kind": "redis", "broker.redis.url": url}, count=1)
    assert "broker.redis.url" in str(failure.value), failure.value


def test_a_broker_without_an_address_is_refused(form):
    with pytest.raises(HubFailed) as failure:
        form({"broker.kind": "redis"}, count=1)
    assert "broker.redis.url" in str(failure.value), failure.value


async def test_tls_and_an_acl_user_who_may_no_more_than_is_needed(form, room):
    prefix = fresh_prefix()
    rules = f"on >secret resetkeys ~{prefix}:* resetchannels &{prefix}:* {ACL}"
    with Redis(encrypted=True, user=("hub", rules)) as redis:
        of_user = {"broker.redis.username": "hub", "broker.redis.password": "secret", "broker.redis.prefix": prefix}
        nodes = form(redis.settings, settings=of_user, count=2)
        async with one_on_each(nodes, room) as readers:
            for n in range(1, 11):
                await publish(nodes[n % 2], room, n, key=f"key-{n}")
            for reader in readers:
                assert [event["data"] for event in await reader.events(room, 10)] == list(range(1, 11))
        status, _, body = await asyncio.to_thread(nodes[0].get, f"/api/v1/rooms/{room}/history", {"Authorization": f"Bearer {admin()}"}, method="DELETE")
        assert (status, json.loads(body)["deleted"]) == (200, 10)
        assert b"NOPERM" not in json.dumps([str(line) for line in redis.call("ACL", "LOG")]).encode()
        # The password counts, and so does who signed the certificate.
        with pytest.raises(HubFailed):
            form(redis.settings, settings=of_user | {"broker.redis.password": "other"}, count=1)
        unknown = {name: value for name, value in redis.settings.items() if not name.endswith("ca_file")}
        with pytest.raises(HubFailed) as failure:
            form(unknown, settings=of_user, count=1)
        told = str(failure.value)
        assert "ended at start" in told and "certificate" in told.lower() and "broker.redis.ca_file" in told, told


# What a hub may have to do at Redis.
ACL = "+@connection +@scripting +@pubsub +@read +@write -@dangerous"


# Nodes that die, and servers that take over.


async def test_a_node_that_is_killed_costs_its_clients_a_reconnect(redis, form, room):
    nodes = form(redis.settings)
    async with joined(nodes[0], admin()) as witness:
        await witness.subscribe(room)
        async with joined(nodes[2], admin()) as doomed:
            answer = await doomed.subscribe(room)
            for n in range(1, 11):
                await publish(nodes[n % 3], room, n)
            await doomed.events(room, 10)
            nodes[2].signal(signal.SIGKILL)
            await doomed.closed()
        nodes[2].wait()
        for n in range(11, 21):
            await publish(nodes[n % 2], room, n)
        async with joined(nodes[1], admin()) as moved:
            again = await moved.subscribe(room, since={"seq": 10, "epoch": answer["epoch"]})
            assert (again["recovered"], again["replayed"]) == (True, 10)
            await asyncio.to_thread(nodes.restart, 2)
            await publish(nodes[2], room, 21)
            assert [event["data"] for event in await moved.events(room, 11)] == list(range(11, 22))
        assert [event["data"] for event in await witness.events(room, 21)] == list(range(1, 22))


def test_a_node_starts_and_ends_while_redis_takes_nothing(form):
    # As a primary whose replicas are gone.
    with Redis("--min-replicas-to-write", "1") as redis:
        nodes = form(redis.settings, count=1, ready="/live")
        until(lambda: "listening" in nodes[0].log(), START_S, "it has started", nodes[0].log)
        status, answer = nodes[0].publish("project:1", "n", 1)
        assert (status, answer["error"]["code"]) == (503, "unavailable")
        nodes[0].signal(signal.SIGTERM)
        assert nodes[0].wait() == 0


async def test_a_node_that_was_frozen_catches_up(redis, form, room):
    nodes = form(redis.settings)
    async with one_on_each(nodes, room) as readers:
        await publish(nodes[0], room, 1)
        nodes[1].signal(signal.SIGSTOP)
        try:
            for n in range(2, 51):
                await publish(nodes[0], room, n)
            # Longer than Redis may be silent.
            await asyncio.sleep(2 * TIMEOUT_MS / 1000)
        finally:
            nodes[1].signal(signal.SIGCONT)
        await publish(nodes[2], room, 51)
        for reader in readers:
            assert [event["data"] for event in await reader.events(room, 51)] == list(range(1, 52))
        assert (await accepted(nodes[1], room, 52))["seq"] == 52


async def test_a_failover_by_sentinels_loses_nothing_that_replicas_have(form, room):
    with SentinelPair() as pair:
        nodes = form(pair.settings, settings={"broker.redis.replicas_min": 1})
        async with one_on_each(nodes, room) as readers:
            for n in range(1, 21):
                await publish(nodes[n % 3], room, n)
            former = pair.current()
            former.kill()
            await asyncio.to_thread(pair.wait_for_failover, former)
            # Acknowledged is what a replica has, and there is none before the former primary is back.
            await asyncio.to_thread(pair.rejoin, former)
            for hub in nodes:
                await is_ready(hub)
            for n in range(21, 31):
                await accepted(nodes[n % 3], room, n)
            for reader in readers:
                heard = [event["data"] for event in await reader.events(room, 20)]
                assert heard == list(range(1, 21))
                while (await reader.events(room, 1))[0]["data"] != 30:
                    pass
                assert not [message for message in await reader.settled() if message["type"] == "gap" and message["data"]["room"] == room]


def test_sentinels_that_do_not_know_the_name_are_told(form):
    with SentinelPair() as pair:
        with pytest.raises(HubFailed) as failure:
            form(pair.settings | {"broker.redis.sentinel_master": "nobody"}, count=1)
        told = str(failure.value)
        assert "sentinel_master" in told or "nobody" in told or MASTER in told, told


@pytest.mark.parametrize("end, begin", [(Redis.kill, Redis.start), (Redis.freeze, Redis.thaw)], ids=["dead", "frozen"])
@pytest.mark.parametrize("which", range(3))
async def test_a_cluster_without_one_of_its_servers_serves_the_rooms_of_the_others(form, room, end, begin, which):
    with RedisCluster() as cluster:
        nodes = form(cluster.settings)
        rooms = [f"{room}-{n}" for n in range(30)]
        prefix = nodes.settings["broker.redis.prefix"]
        owners = {one: cluster.owner(f"{prefix}:{{{one}}}:meta") for one in rooms}
        # Each once: what a node needs for itself has a slot as well.
        victim = cluster.primaries[which]
        lost = [one for one in rooms if owners[one] is victim]
        kept = [one for one in rooms if owners[one] is not victim]
        assert lost and kept
        async with one_on_each(nodes, kept[0]) as readers, one_on_each(nodes, lost[0]) as waiting:
            for one in rooms:
                assert (await publish(nodes[0], one, 1))["seq"] == 1
            end(victim)
            assert (await accepted(nodes[1], kept[0], 2))["seq"] == 2
            for reader in readers:
                assert [event["data"] for event in await reader.events(kept[0], 2)] == [1, 2]
            await refused(nodes[1], lost[0], "never")
            late = await asyncio.to_thread(
                form, cluster.settings, count=1, settings={"broker.redis.prefix": f"{prefix}-late"}, ready="/live"
            )
            assert (await accepted(late[0], kept[0], 1))["seq"] == 1
            begin(victim)
            await asyncio.to_thread(cluster.settle)
            after = await accepted(nodes[2], lost[0], 3)
            for reader in waiting:
                heard = [event["data"] for event in await reader.events(lost[0], after["seq"])]
                # One that was frozen does what waits in its sockets.
                assert [data for data in heard if data != "never"] == [1, 3]
                assert heard == [1, 3] or end is Redis.freeze


@pytest.mark.parametrize("end, begin", [(Redis.kill, Redis.start), (Redis.freeze, Redis.thaw)], ids=["dead", "frozen"])
async def test_a_failover_in_a_cluster_keeps_its_rooms(form, room, end, begin):
    with RedisCluster(replicas=1) as cluster:
        nodes = form(cluster.settings, settings={"broker.redis.replicas_min": 1})
        key = f"{nodes.settings['broker.redis.prefix']}:{{{room}}}:meta"
        async with one_on_each(nodes, room) as readers:
            for n in range(1, 11):
                await publish(nodes[n % 3], room, n)
            former = cluster.owner(key)
            end(former)
            await asyncio.to_thread(cluster.wait_for_failover, key, former)
            begin(former)
            await asyncio.to_thread(cluster.settle)
            await accepted(nodes[0], room, 11)
            for reader in readers:
                assert [event["data"] for event in await reader.events(room, 10)] == list(range(1, 11))
                while (await reader.events(room, 1))[0]["data"] != 11:
                    pass


async def test_a_primary_that_falls_silent_keeps_no_event_from_those_who_follow_its_rooms(form, room):
    """Nothing says that a connection to it has ended, and no later event shows that one is missing."""
    with RedisCluster(replicas=1) as cluster:
        nodes = form(cluster.settings)
        key = f"{nodes.settings['broker.redis.prefix']}:{{{room}}}:meta"
        async with one_on_each(nodes, room) as readers:
            assert (await publish(nodes[0], room, 1))["seq"] == 1
            for reader in readers:
                await reader.events(room, 1)
            former = cluster.owner(key)
            # With a replica that lacks it, the event would be gone with the primary.
            await eventually(lambda: cluster.is_replicated(former), "the replica has the event")
            former.freeze()
            await asyncio.to_thread(cluster.wait_for_failover, key, former)
            assert (await accepted(nodes[0], room, 2))["seq"] == 2
            for reader in readers:
                assert [event["data"] for event in await reader.events(room, 1)] == [2]
            former.thaw()


async def test_rooms_move_with_their_slots(form, room):
    with RedisCluster() as cluster:
        nodes = form(cluster.settings, count=2)
        key = f"{nodes.settings['broker.redis.prefix']}:{{{room}}}:meta"
        async with one_on_each(nodes, room) as readers:
            for n in range(1, 6):
                await publish(nodes[n % 2], room, n)
            await asyncio.to_thread(cluster.move_slot, key)
            for n in range(6, 11):
                await accepted(nodes[n % 2], room, n)
            for reader in readers:
                heard = [event["data"] for event in await reader.events(room, 10)]
                assert heard == list(range(1, 11))


# The script to try a cluster out.


async def test_the_script_to_try_a_cluster_out_does_what_it_says():
    for port in (6399, 8001, 8002, 8003):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            pytest.skip(f"somebody listens at port {port}")
    script = subprocess.Popen([ROOT / "tests/cluster/run"], stdout=subprocess.PIPE, text=True, env=clean_environment() | {"HUB_BIN": str(binary())})
    try:
        text = await asyncio.to_thread(read_until, script.stdout, "Ctrl-C ends everything")
        (tail,) = [line for line in text.splitlines() if " tail " in line]
        (curl,) = [line for line in text.splitlines() if line.strip().startswith("curl")]
        pids = [int(pid) for pid in re.findall(r"pid (\d+)", text)]
        assert len(pids) == 3
        reader = await asyncio.create_subprocess_exec(*shlex.split(tail), cwd=ROOT, stdout=subprocess.PIPE, env=clean_environment())
        try:
            # What is published before the reader is there, it does not print.
            async with asyncio.timeout(10):
                line = None
                while line is None:
                    subprocess.run(shlex.split(curl), check=True, capture_output=True)
                    with contextlib.suppress(TimeoutError):
                        line = await asyncio.wait_for(reader.stdout.readline(), 0.3)
            assert b"note.added" in line and b"hello" in line
        finally:
            reader.kill()
            await reader.wait()
        script.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(script.wait, 15) == 130
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
    finally:
        script.terminate()
        script.wait(15)


def read_until(stream, words: str) -> str:
    text = ""
    while words not in text and (line := stream.readline()):
        text += line
    return text
