"""Several nodes that know each other: the HTTP API and the commands answer for all of them, and what a node that dies leaves
behind is cleared away by another one, once.
"""

import asyncio
import json
import signal
import time
from urllib.parse import quote

import pytest
from websockets.exceptions import InvalidStatus

from cluster import Cluster, fresh_prefix, stopping
from hub import Hub, admin, token
from peer import WAIT_S, eventually, joined
from redis_servers import Redis, RedisCluster, SentinelPair, lacking

pytestmark = [pytest.mark.skipif(lacking() is not None, reason=str(lacking()))]
NAMES = ["node-1", "node-2", "node-3"]
LEASE_MS = 2000
TELLS = {"rooms.project.presence_events": True}


@pytest.fixture(scope="module")
def _redis():
    with Redis() as redis:
        yield redis


@pytest.fixture(scope="module")
def _nodes(_redis):
    cluster = Cluster(_redis.settings, count=3, shards=2, settings=TELLS)
    try:
        all_know_all(cluster)
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def nodes(_nodes):
    """Three nodes that all tests share which do nothing to them. Tests keep to rooms and users of their own."""
    yield _nodes
    assert all(hub.running() for hub in _nodes), f"a node ended in this test\n{_nodes.logs()}"


@pytest.fixture
def form(_redis):
    """Forms clusters that end with the test, with short leases."""
    with stopping() as clusters:

        def form_cluster(of_redis: dict | None = None, *, settings: dict | None = None, **named) -> Cluster:
            settings = {"broker.lease_ms": LEASE_MS} | TELLS | (settings or {})
            clusters.append(Cluster(of_redis or _redis.settings, settings=settings, **named))
            all_know_all(clusters[-1])
            return clusters[-1]

        yield form_cluster


def call(hub: Hub, method: str, path: str, body: object = None) -> tuple[int, dict]:
    status, _, text = hub.get(path, {"Authorization": f"Bearer {admin()}"}, method=method, body=body)
    return status, json.loads(text) if text else {}


def done(hub: Hub, method: str, path: str, body: object = None) -> dict:
    status, answer = call(hub, method, path, body)
    assert status == 200, (status, answer)
    return answer


def names(hub: Hub) -> list[str]:
    """The nodes that a node knows to live."""
    stats = done(hub, "GET", "/api/v1/websocket/stats")
    return sorted([node["node"] for node in stats["nodes"]] + stats.get("missing", []))


def all_know_all(cluster: Cluster) -> None:
    expected = sorted(hub.settings["node.name"] for hub in cluster if hub.running())
    deadline = time.monotonic() + WAIT_S
    while not all(names(hub) == expected for hub in cluster if hub.running()):
        assert time.monotonic() < deadline, [names(hub) for hub in cluster if hub.running()]
        time.sleep(0.02)


def client(name: str) -> dict:
    """What `joined` takes so that an administrator's connection and session have a name."""
    return {"jwt": admin(name), "query": f"client_id={name}&session_id={name}"}


# The API for all nodes.


async def test_any_node_lists_the_connections_of_all_and_says_where_they_are(nodes, room):
    tag = room.replace(":", "-")
    async with joined(nodes[0], **client(f"{tag}-b")) as one, joined(nodes[1], **client(f"{tag}-a")), joined(nodes[2], **client(f"{tag}-c")):
        await one.subscribe(room)
        for hub in nodes:
            page = done(hub, "GET", f"/api/v1/connections?search={tag}")
            assert [(item["client_id"], item["node"]) for item in page["connections"]] == [
                (f"{tag}-a", "node-2"),
                (f"{tag}-b", "node-1"),
                (f"{tag}-c", "node-3"),
            ]
            assert (page["total"], page["next"], sorted(page["nodes"])) == (3, None, NAMES)
            assert "partial" not in page and "missing" not in page
            assert page == done(hub, "GET", f"/ws/connections?search={tag}") | {"nodes": page["nodes"], "connections": page["connections"]}
        in_room = done(nodes[2], "GET", f"/api/v1/connections?room={quote(room)}")["connections"]
        assert [item["client_id"] for item in in_room] == [f"{tag}-b"]
        walked, after = [], ""
        while True:
            page = done(nodes[1], "GET", f"/api/v1/connections?search={tag}&limit=1{after}")
            walked += [item["client_id"] for item in page["connections"]]
            if page["next"] is None:
                break
            after = f"&after={page['next']}"
        assert walked == [f"{tag}-a", f"{tag}-b", f"{tag}-c"]


async def test_a_call_may_be_for_one_node_alone(nodes, room):
    tag = room.replace(":", "-")
    async with joined(nodes[0], **client(f"{tag}-a")), joined(nodes[1], **client(f"{tag}-b")):
        local = done(nodes[0], "GET", f"/api/v1/connections?search={tag}&scope=local")
        assert [item["client_id"] for item in local["connections"]] == [f"{tag}-a"] and local["nodes"] == ["node-1"]
        other = done(nodes[0], "GET", f"/api/v1/connections?search={tag}&node=node-2")
        assert [item["client_id"] for item in other["connections"]] == [f"{tag}-b"] and other["nodes"] == ["node-2"]
        assert call(nodes[0], "GET", "/api/v1/connections?node=node-9")[0] == 404
        assert call(nodes[0], "GET", "/api/v1/connections?scope=galaxy")[0] == 400
        assert call(nodes[0], "GET", f"/api/v1/connections/{tag}-b?scope=local")[0] == 404


async def test_a_connection_is_shown_changed_and_ended_from_any_node(nodes, room):
    name = room.replace(":", "-")
    async with joined(nodes[0], **client(name)) as peer:
        shown = done(nodes[1], "GET", f"/api/v1/connections/{name}")
        assert (shown["client_id"], shown["node"]) == (name, "node-1")
        changed = done(nodes[2], "PATCH", f"/api/v1/connections/{name}", {"metadata": {"desk": 7}})
        assert changed == {"client_id": name, "metadata": {"desk": 7}, "node": "node-1"}
        assert done(nodes[1], "GET", f"/api/v1/sessions/{name}")["metadata"] == {"desk": 7}
        traced = done(nodes[1], "GET", f"/api/v1/connections/{name}/trace")["connections"]
        assert [one["node"] for one in traced] == ["node-1"]
        assert call(nodes[1], "GET", "/api/v1/connections/nobody-has-this")[0] == 404
        ended = done(nodes[1], "DELETE", f"/api/v1/connections/{name}?code=4000&reason=bye")
        assert ended["disconnected"] == 1 and sorted(ended["nodes"]) == NAMES
        assert await peer.closed() == (4000, "bye")
        assert call(nodes[1], "DELETE", f"/api/v1/connections/{name}")[0] == 404


@pytest.mark.parametrize("whom", ["user", "sessions"])
async def test_a_user_is_disconnected_at_all_nodes(nodes, room, whom):
    name = room.replace(":", "-")
    jwt = admin(name)
    async with joined(nodes[0], jwt, query=f"session_id={name}-1") as one, joined(nodes[1], jwt, query=f"session_id={name}-2") as two:
        who = {"user": name} if whom == "user" else {"sessions": [f"{name}-1", f"{name}-2", f"{name}-3"]}
        told = done(nodes[2], "POST", "/api/v1/reauthenticate", who)
        assert told["asked"] == 2
        for peer in (one, two):
            await peer.next("auth.expiring")
        withdrew = done(nodes[2], "POST", "/api/v1/withdraw", who | {"permissions": ["project:x:read"]})
        assert withdrew["connections"] == 2
        assert done(nodes[2], "POST", "/api/v1/disconnect", who | {"code": 4001})["disconnected"] == 2
        for peer in (one, two):
            assert (await peer.closed())[0] == 4001


async def test_a_room_is_one_with_the_members_of_all_nodes(nodes, room):
    room = room.replace("project:", "quote:")  # Of a kind whose members are not told of each other.
    async with joined(nodes[0], admin()) as one, joined(nodes[1], admin()) as two, joined(nodes[1], admin()) as three:
        for peer in (one, two, three):
            await peer.subscribe(room)
        status, answer = await asyncio.to_thread(nodes[2].publish, room, "n", {})
        assert status == 200
        for peer in (one, two, three):
            while (await peer.next("n"))["room"] != room:
                pass
        shown = done(nodes[2], "GET", f"/api/v1/rooms/{quote(room)}")
        assert (shown["members"], shown["seq"]) == (3, answer["seq"])
        assert {name: count for name, count in shown["members_by_node"].items() if count} == {"node-1": 1, "node-2": 2}
        listed = done(nodes[0], "GET", f"/api/v1/rooms?kind=quote&search={quote(room)}&occupied=true")
        assert [(one["room"], one["members"]) for one in listed["rooms"]] == [(room, 3)] and listed["next"] is None
        assert call(nodes[0], "GET", f"/api/v1/rooms/{quote(room)}-nobody-knows")[0] == 404


async def test_who_is_in_a_room_is_told_for_all_nodes(nodes, room):
    async with joined(nodes[0], **client(f"{room[8:]}-x")) as one, joined(nodes[1], **client(f"{room[8:]}-y")) as two, joined(nodes[2], admin()) as outside:
        for peer in (one, two):
            await peer.subscribe(room)
        for asked in (one, two, outside):
            told = await asked.done("presence", {"room": room})
            assert (told["count"], told["more"]) == (2, False)
            assert {member["client_id"] for member in told["members"]} == {f"{room[8:]}-x", f"{room[8:]}-y"}
        told = done(nodes[2], "GET", f"/api/v1/rooms/{quote(room)}/presence")
        assert {member["client_id"]: member["node"] for member in told["members"]} == {f"{room[8:]}-x": "node-1", f"{room[8:]}-y": "node-2"}
        assert sorted(told["nodes"]) == NAMES


async def test_the_figures_of_every_node_are_told(nodes, room):
    async with joined(nodes[0], admin()), joined(nodes[1], admin()):
        stats = done(nodes[2], "GET", "/api/v1/websocket/stats")
        figures = {node["node"]: node for node in stats["nodes"]}
        assert sorted(figures) == NAMES
        assert figures["node-1"]["total"]["connections"] >= 1 and figures["node-1"]["public"].endswith(str(nodes[0].port))
        assert all(node["status"] == "ok" and node["shards"] == 2 for node in stats["nodes"])
        tested = done(nodes[2], "POST", "/ws/broadcast/test")
        assert tested["connections"] == sum(node["total"]["connections"] for node in stats["nodes"])


async def test_health_pages_tell_which_nodes_live_and_that_this_one_is_known_to(nodes):
    for path in ("/ready", "/live", "/ws/health"):
        cluster = done(nodes[1], "GET", path)["cluster"]
        assert cluster["registry"] == "up" and sorted(cluster["nodes"]) == NAMES and cluster["nodes"][0] == "node-2", cluster
        assert 0 <= cluster["lease_age_ms"] < 5000 and cluster["calls_missing"] >= 0, cluster


# Commands over nodes.


async def test_a_message_reaches_a_client_a_session_and_a_user_at_another_node_and_is_counted(nodes, room):
    name = room.replace(":", "-")
    async with joined(nodes[0], **client(name)) as there, joined(nodes[1], **client(f"{name}-sender")) as sender:
        for to in ({"client": name}, {"session": name}, {"user": name}):
            sent = await sender.done("send", {"to": to, "type": "note", "data": {"to": to}})
            assert sent == {"delivered": 1, "queued": 0}, to
            assert (await there.next("note"))["data"] == {"to": to}
        many = await sender.done("send", {"to": {"sessions": [name, f"{name}-sender", f"{name}-none"]}, "type": "note", "data": {}})
        assert many == {"delivered": 2, "queued": 0}
        await there.next("note")
        drawn = there.data["client_id"]
        assert drawn == name
        refused = await sender.refused("send", {"to": {"client": f"{name}-none"}, "type": "note", "data": {}})
        assert refused["code"] == "not_found"
        body = {"sessions": [name], "users": [name], "clients": [name], "type": "note", "data": {"n": 1}}
        assert done(nodes[2], "POST", "/api/v1/messages", body) == {"delivered": 3, "queued": 0, "failed": []}
        for _ in range(3):
            assert (await there.next("note"))["data"] == {"n": 1}
    async with joined(nodes[1], admin()) as sender:
        await eventually(lambda: not done(nodes[2], "GET", f"/api/v1/sessions/{name}")["connected"], "it is away")
        sent = await sender.done("send", {"to": {"session": name}, "type": "note", "data": {}})
        assert sent == {"delivered": 0, "queued": 1}


async def test_what_a_client_says_to_the_backend_is_received_at_any_node(nodes, room):
    name = room.replace(":", "-")
    path = f"/api/v1/sessions/{name}/messages"
    async with joined(nodes[0], **client(name)) as peer:
        await peer.done("message", {"n": 1})
        assert done(nodes[1], "GET", path) == {"session_id": name, "data": {"n": 1}}
        waiting = asyncio.create_task(asyncio.to_thread(done, nodes[2], "GET", f"{path}?timeout_s=20"))
        await asyncio.sleep(0.2)
        await peer.done("message", {"n": 2})
        assert await waiting == {"session_id": name, "data": {"n": 2}}
        assert call(nodes[1], "GET", f"{path}?timeout_s=1")[0] == 204
        # Nobody waits any more, and the message is not lost with who did.
        await peer.done("message", {"n": 3})
        assert done(nodes[1], "GET", path) == {"session_id": name, "data": {"n": 3}}
        # However many gave up, there is a place for the next one.
        for _ in range(20):
            connection = nodes[1].connection()
            connection.request("GET", f"{path}?timeout_s=60", headers={"Authorization": f"Bearer {admin()}"})
            await asyncio.sleep(0.02)
            connection.close()
        # As long as a hub may take to see that somebody has gone: what comes before that goes with them.
        await asyncio.sleep(1)
        await peer.done("message", {"n": 4})
        await eventually(lambda: call(nodes[2], "GET", f"{path}?timeout_s=2") == (200, {"session_id": name, "data": {"n": 4}}), "it is there")
    assert call(nodes[1], "GET", f"/api/v1/sessions/{name}-none/messages?timeout_s=1")[0] == 404


async def test_a_client_id_is_held_by_one_connection_of_all_nodes(nodes, room):
    name = room.replace(":", "-")
    async with joined(nodes[0], admin(), query=f"client_id={name}"):
        for hub in nodes:
            with pytest.raises(InvalidStatus) as refused:
                async with joined(hub, admin(), query=f"client_id={name}"):
                    pass
            assert refused.value.response.status_code == 409
            assert json.loads(refused.value.response.body)["error"]["code"] == "conflict"

    async def is_free() -> bool:
        try:
            async with joined(nodes[1], admin(), query=f"client_id={name}"):
                return True
        except InvalidStatus:
            return False

    deadline = time.monotonic() + WAIT_S
    while not await is_free():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_members_at_all_nodes_are_told_who_comes_and_goes(nodes, room):
    name = room.replace(":", "-")
    async with joined(nodes[0], admin()) as reader:
        await reader.subscribe(room)
        async with joined(nodes[1], **client(name)) as other:
            await other.subscribe(room)
            while (event := await reader.next("presence.joined"))["data"]["client_id"] != name:
                pass
            await other.done("unsubscribe", {"room": room})
            assert (await reader.next("presence.left"))["data"]["client_id"] == name


# Sessions that go from node to node.


def resume_of(peer) -> dict:
    return {"session_id": peer.data["session_id"], "token": peer.data["resume"]["token"]}


@pytest.mark.parametrize("named", [True, False])
async def test_a_session_that_is_taken_up_at_another_node_is_closed_where_it_was_and_goes_on(nodes, room, named):
    name = room.replace(":", "-")
    jwt = admin(name)
    async with joined(nodes[0], jwt, query=f"session_id={name}") as old:
        await old.subscribe(room, types=["wanted"], filters={"n": {"min": 1}})
        await old.done("metadata", {"set": {"desk": 7}})
        resume = resume_of(old)
        query = f"session_id={name}" if named else ""
        async with joined(nodes[1], jwt, query=query) as new:
            if named:
                assert (await old.closed())[0] == 4409
                assert new.data["resume"]["token"] == resume["token"]
            for n, kind in enumerate(["wanted", "other", "wanted", "wanted"]):
                status, _ = await asyncio.to_thread(nodes[2].publish, room, kind, {"n": n})
                assert status == 200
            answer = await new.done("resume", resume)
            if not named:
                assert (await old.closed())[0] == 4409
            assert {result["room"] for result in answer["results"]} >= {room, f"session:{name}"}
            assert all(result.get("recovered") for result in answer["results"]), answer
            assert (await new.done("metadata", {"set": {}})) == {"desk": 7}
            if named:
                got = [await new.next("wanted") for _ in range(2)]
                assert [event["data"]["n"] for event in got] == [2, 3]
            await asyncio.to_thread(nodes[2].publish, room, "wanted", {"n": 9})
            while (event := await new.next("wanted"))["data"]["n"] != 9:
                pass
            assert done(nodes[2], "GET", f"/api/v1/sessions/{name}")["node"] == "node-2"


async def test_a_session_whose_connection_is_gone_is_resumed_at_another_node_with_what_it_missed(nodes, room):
    name = room.replace(":", "-")
    jwt = admin(name)
    async with joined(nodes[0], jwt) as old:
        await old.subscribe(room)
        await old.done("message", {"left": "behind"})
        resume = resume_of(old)
    path = f"/api/v1/sessions/{resume['session_id']}"
    await eventually(lambda: not done(nodes[2], "GET", path)["connected"], "it is away")
    _, published = await asyncio.to_thread(nodes[2].publish, room, "n", {"n": 1})
    to_session = done(nodes[2], "POST", f"{path}/messages", {"type": "note", "data": {"n": 2}})
    assert to_session == {"delivered": 0, "queued": 1}
    async with joined(nodes[1], jwt) as new:
        await new.done("resume", resume | {"cursors": {room: {"seq": published["seq"] - 1, "epoch": published["epoch"]}}})
        assert (await new.next("n"))["data"] == {"n": 1}
        assert (await new.next("note"))["data"] == {"n": 2}
        assert done(nodes[0], "GET", f"{path}/messages") == {"session_id": resume["session_id"], "data": {"left": "behind"}}
        # It is at one node.
        assert call(nodes[0], "GET", f"{path}?scope=local")[0] == 404


@pytest.mark.parametrize("leaves_first", [True, False])
async def test_a_session_takes_its_locks_along_to_another_node(nodes, room, leaves_first):
    name = room.replace(":", "-")
    field = {"room": room, "field": "price"}
    async with joined(nodes[2], admin()) as reader:
        await reader.subscribe(room)
        async with joined(nodes[0], admin(name), query=f"session_id={name}") as old:
            await old.subscribe(room)
            lock = await old.done("lock.acquire", field | {"ttl_s": 3})
            assert (await reader.next("lock.acquired"))["data"]["token"] == lock["token"]
            resume = resume_of(old)
            if leaves_first:
                await old.close()
                await eventually(lambda: not done(nodes[1], "GET", f"/api/v1/sessions/{name}")["connected"], "it is away")
            async with joined(nodes[1], admin(name)) as new:
                answer = await new.done("resume", resume)
                assert [(one["field"], one["token"], one["expires_at"]) for one in answer["locks"]] == [("price", lock["token"], lock["expires_at"])]
                renewed = await new.done("lock.renew", field | {"token": lock["token"], "ttl_s": 6})
                assert renewed["token"] == lock["token"]
                # Longer than it was held for at the node that it left.
                await asyncio.sleep(4)
                for peer in (reader, new):
                    told = [event["type"] for event in await peer.settled() if event["type"].startswith("lock.")]
                    assert set(told) <= {"lock.acquired"}, told
                refused = await reader.refused("lock.acquire", field | {"ttl_s": 1})
                assert refused["code"] == "lock_held" and refused["details"]["holder"]["session_id"] == name
                assert (await new.done("lock.release", field | {"token": lock["token"]}))["token"] == lock["token"]
                assert (await reader.next("lock.released"))["data"]["token"] == lock["token"]
                assert (await reader.done("lock.acquire", field | {"ttl_s": 1}))["token"] > lock["token"]


async def test_a_session_is_given_to_its_user_alone_and_by_its_token(nodes, room):
    name = room.replace(":", "-")
    async with joined(nodes[0], admin(name), query=f"session_id={name}") as owner:
        with pytest.raises(InvalidStatus) as refused:
            async with joined(nodes[1], token("mallory"), query=f"session_id={name}"):
                pass
        assert refused.value.response.status_code == 403
        async with joined(nodes[1], token("mallory")) as mallory:
            assert (await mallory.refused("resume", resume_of(owner)))["code"] == "forbidden"
        async with joined(nodes[1], admin(name)) as other:
            wrong = resume_of(owner) | {"token": "0" * 32}
            assert (await other.refused("resume", wrong))["code"] == "forbidden"
            nobody = resume_of(owner) | {"session_id": f"{name}-none"}
            assert (await other.refused("resume", nobody))["code"] == "not_found"
        assert (await owner.done("ping", {})) == {}


async def test_a_session_that_goes_to_another_node_is_in_its_rooms_all_the_time(nodes, room):
    name = room.replace(":", "-")
    async with joined(nodes[2], admin()) as reader:
        await reader.subscribe(room)
        async with joined(nodes[0], admin(name), query=f"session_id={name}") as old:
            await old.subscribe(room)
            while (await reader.next("presence.joined"))["data"]["session_id"] != name:
                pass
            async with joined(nodes[1], admin(name), query=f"session_id={name}") as new:
                await new.done("resume", resume_of(old))
                assert (await reader.done("presence", {"room": room}))["count"] == 2
                # Longer than a session may be under way.
                await asyncio.sleep(4)
                told = [event for event in await reader.settled() if event["type"].startswith("presence.")]
                assert [event["type"] for event in told if event["data"]["session_id"] == name] == []
                await new.done("unsubscribe", {"room": room})
                while (await reader.next("presence.left"))["data"]["session_id"] != name:
                    pass


async def test_a_session_goes_round_all_nodes_while_many_want_it(nodes, room):
    name = room.replace(":", "-")
    jwt = admin(name)

    async def take(number: int) -> bool:
        try:
            async with joined(nodes[number % 3], jwt, query=f"session_id={name}") as peer:
                await peer.done("ping", {})
                return True
        except Exception as error:  # noqa: BLE001 - taken over in the middle
            assert "4409" in str(error) or "503" in str(error) or "409" in str(error), error
            return False

    for _ in range(3):
        await asyncio.gather(*(take(number) for number in range(6)))
    async with joined(nodes[1], jwt, query=f"session_id={name}") as last:
        await last.subscribe(room)
        await asyncio.to_thread(nodes[0].publish, room, "n", {"last": True})
        assert (await last.next("n"))["data"] == {"last": True}
        page = done(nodes[0], "GET", f"/api/v1/connections?session={name}")
        assert [item["node"] for item in page["connections"]] == ["node-2"]


# Nodes that end, hang or die.


async def test_a_session_whose_node_died_is_not_found_and_its_cursors_go_on(form, room):
    cluster = form()
    async with joined(cluster[2], admin("owner")) as victim:
        await victim.subscribe(room)
        resume = resume_of(victim)
        status, published = await asyncio.to_thread(cluster[0].publish, room, "n", {"n": 1})
        assert status == 200
        cluster[2].kill()
        await victim.closed()
    async with joined(cluster[1], admin("owner")) as again:
        assert (await again.refused("resume", resume))["code"] == "not_found"
        since = {"seq": published["seq"] - 1, "epoch": published["epoch"]}
        assert (await again.done("subscribe", {"room": room, "since": since}))["recovered"]
        assert (await again.next("n"))["data"] == {"n": 1}


async def test_a_node_that_ends_is_missed_at_once_with_all_who_were_there(form, room):
    cluster = form(settings={"broker.lease_ms": 60_000, "drain.seconds": 1})
    async with joined(cluster[0], **client("reader")) as reader, joined(cluster[2], **client("leaving")) as leaving:
        await reader.subscribe(room)
        await leaving.subscribe(room)
        while (await reader.next("presence.joined"))["data"]["client_id"] != "leaving":
            pass
        cluster[2].signal(signal.SIGTERM)
        assert (await leaving.closed())[0] == 1001
        assert (await reader.next("presence.left"))["data"]["client_id"] == "leaving"
    assert await asyncio.to_thread(cluster[2].wait) == 0
    await eventually(lambda: names(cluster[0]) == NAMES[:2], "the others know", within_s=3)
    assert names(cluster[1]) == NAMES[:2]


async def test_a_node_without_clients_that_ends_is_missed_at_once(form):
    cluster = form(settings={"broker.lease_ms": 60_000})
    cluster[2].signal(signal.SIGTERM)
    assert await asyncio.to_thread(cluster[2].wait) == 0
    await eventually(lambda: names(cluster[0]) == NAMES[:2], "the others know", within_s=3)
    assert names(cluster[1]) == NAMES[:2]


async def test_a_node_that_dies_is_missed_when_its_lease_ends_and_its_name_is_free(form):
    cluster = form()
    name = "died"
    async with joined(cluster[2], **client(name)) as victim:
        assert done(cluster[0], "GET", f"/api/v1/connections/{name}")["node"] == "node-3"
        cluster[2].kill()
        killed = time.monotonic()
        await victim.closed()
        await eventually(lambda: names(cluster[0]) == NAMES[:2], "the others know", within_s=LEASE_MS / 1000 + 1)
        assert time.monotonic() - killed < LEASE_MS / 1000 + 1.5
    assert call(cluster[0], "GET", f"/api/v1/connections/{name}")[0] == 404
    async with joined(cluster[1], **client(name)) as again:
        assert again.data["client_id"] == name
    cluster.restart(2)
    await asyncio.to_thread(all_know_all, cluster)


async def test_of_a_dead_node_everybody_is_told_once_that_they_left(form, room):
    cluster = form()
    gone = [f"gone-{number}" for number in range(5)]
    async with joined(cluster[0], **client("reader")) as reader, joined(cluster[1], **client("other")) as other:
        await reader.subscribe(room)
        await other.subscribe(room)
        victims = [joined(cluster[2], **client(name)) for name in gone]
        for victim in victims:
            await (await victim.__aenter__()).subscribe(room)
        seen = set()
        while seen != {*gone, "other", "reader"}:
            seen.add((await reader.next("presence.joined"))["data"]["client_id"])
        figures = cluster[2].metrics()
        assert (figures["ringhub_nodes_alive"], figures["ringhub_nodes_client_ids"]) == (3, len(gone))
        assert figures["ringhub_nodes_present"] == len(gone)
        cluster[2].kill()
        left = [(await reader.next("presence.left"))["data"]["client_id"] for _ in gone]
        assert sorted(left) == gone
        await asyncio.sleep(LEASE_MS / 1000)
        await reader.done("ping", {})
        assert [event for event in await reader.settled() if event["type"].startswith("presence.")] == []
        assert (await reader.done("presence", {"room": room}))["count"] == 2
        assert sum(hub.metrics()["ringhub_nodes_cleaned_total"] for hub in (cluster[0], cluster[1])) == 1
        for victim in victims:
            await victim.__aexit__(None, None, None)


async def test_an_answer_without_a_node_that_hangs_is_partial_and_names_it(form):
    cluster = form(settings={"broker.lease_ms": 60_000})
    async with joined(cluster[0], **client("here")), joined(cluster[2], **client("there")):
        cluster[2].signal(signal.SIGSTOP)
        try:
            # It is stopped a moment later.
            await eventually(lambda: "partial" in done(cluster[0], "GET", "/api/v1/connections"), "it hangs")
            page = await asyncio.to_thread(done, cluster[0], "GET", "/api/v1/connections")
            assert [item["client_id"] for item in page["connections"]] == ["here"]
            assert (page["partial"], page["missing"], sorted(page["nodes"])) == (True, ["node-3"], NAMES[:2])
            status, answer = await asyncio.to_thread(call, cluster[0], "GET", "/api/v1/connections/there")
            assert (status, answer["error"]["code"]) == (503, "unavailable") and "node-3" in answer["error"]["message"]
            stats = await asyncio.to_thread(done, cluster[0], "GET", "/api/v1/websocket/stats")
            assert (stats["partial"], stats["missing"]) == (True, ["node-3"])
        finally:
            cluster[2].signal(signal.SIGCONT)
        assert done(cluster[0], "GET", "/api/v1/connections/there")["node"] == "node-3"


async def test_a_node_that_was_taken_for_dead_is_one_of_them_again_with_what_it_has(form, room):
    cluster = form()
    async with joined(cluster[0], **client("reader")) as reader, joined(cluster[2], **client("frozen")) as frozen:
        await reader.subscribe(room)
        await frozen.subscribe(room)
        # Two nodes tell of them, in any order.
        assert {(await reader.next("presence.joined"))["data"]["client_id"] for _ in range(2)} == {"reader", "frozen"}
        cluster[2].signal(signal.SIGSTOP)
        try:
            assert (await reader.next("presence.left"))["data"]["client_id"] == "frozen"
        finally:
            cluster[2].signal(signal.SIGCONT)
        await asyncio.to_thread(all_know_all, cluster)
        assert (await reader.next("presence.joined"))["data"]["client_id"] == "frozen"
        with pytest.raises(InvalidStatus) as refused:
            async with joined(cluster[1], **client("frozen")):
                pass
        assert refused.value.response.status_code == 409
        assert (await frozen.done("ping", {})) == {}


async def test_nodes_whose_registry_was_lost_know_each_other_again(form):
    with Redis() as redis:
        cluster = form(redis.settings)
        async with joined(cluster[0], **client("kept")):
            redis.call("FLUSHALL")
            await asyncio.to_thread(all_know_all, cluster)
            assert done(cluster[1], "GET", "/api/v1/connections/kept")["node"] == "node-1"

            async def is_refused() -> bool:
                try:
                    async with joined(cluster[1], **client("kept")):
                        raise AssertionError("the id is not known any more")
                except InvalidStatus as refused:
                    assert refused.response.status_code in (409, 503)
                    return refused.response.status_code == 409

            deadline = time.monotonic() + LEASE_MS / 1000 + 3
            while not await is_refused():
                assert time.monotonic() < deadline, "ids can't be claimed any more"
                await asyncio.sleep(0.1)


async def test_nobody_is_taken_for_dead_while_redis_hangs(form, room):
    with Redis() as redis:
        cluster = form(redis.settings)
        async with joined(cluster[0], **client("one")) as one, joined(cluster[1], **client("two")) as two:
            await one.subscribe(room)
            await two.subscribe(room)
            while (await one.next("presence.joined"))["data"]["client_id"] != "two":
                pass
            redis.freeze()
            await asyncio.sleep(3 * LEASE_MS / 1000)
            redis.thaw()
            await settled(cluster)
            await asyncio.sleep(LEASE_MS / 1000)
            await one.done("ping", {})
            assert [event for event in await one.settled() if event["type"] == "presence.left"] == []
            assert [hub.metrics()["ringhub_nodes_cleaned_total"] for hub in cluster] == [0, 0, 0]
            assert done(cluster[2], "GET", "/api/v1/connections/two")["node"] == "node-2"


async def does_it_all(cluster: Cluster, room: str) -> None:
    """What nodes do for each other, a bit of each."""
    name = room.replace(":", "-")
    async with joined(cluster[0], admin(name), query=f"client_id={name}&session_id={name}") as one, joined(cluster[1], admin()) as two:
        await two.subscribe(room)
        await one.subscribe(room)
        while (await two.next("presence.joined"))["data"]["client_id"] != name:
            pass
        assert done(cluster[2], "GET", f"/api/v1/connections/{name}")["node"] == "node-1"
        assert (await two.done("presence", {"room": room}))["count"] == 2
        assert await two.done("send", {"to": {"client": name}, "type": "note", "data": {}}) == {"delivered": 1, "queued": 0}
        with pytest.raises(InvalidStatus) as refused:
            async with joined(cluster[2], admin(), query=f"client_id={name}"):
                pass
        assert refused.value.response.status_code == 409
        resume = resume_of(one)
        async with joined(cluster[2], admin(name)) as three:
            await three.done("resume", resume)
            assert (await one.closed())[0] == 4409


def registry(cluster: Cluster) -> str:
    """A key of what nodes keep of each other."""
    return f"{cluster.settings['broker.redis.prefix']}:{{nodes}}:index"


@pytest.mark.parametrize("end", [Redis.kill, Redis.freeze], ids=["dead", "frozen"])
async def test_nodes_know_each_other_through_a_cluster_of_redis_and_its_failover(form, room, end):
    with RedisCluster(replicas=1) as redis:
        cluster = form(redis.settings)
        await does_it_all(cluster, f"{room}-before")
        owner = redis.owner(registry(cluster))
        end(owner)
        await asyncio.to_thread(redis.wait_for_failover, registry(cluster), owner)
        await settled(cluster)
        await does_it_all(cluster, f"{room}-after")
        if end is Redis.freeze:
            # It believes for a moment that it still has all of it.
            owner.thaw()
            await asyncio.to_thread(redis.settle)
            await settled(cluster)
            await does_it_all(cluster, f"{room}-thawed")
        assert all(hub.running() for hub in cluster)


async def test_nodes_know_each_other_where_their_registry_goes_to_another_server(form, room):
    with RedisCluster() as redis:
        cluster = form(redis.settings)
        async with joined(cluster[0], **client("kept")) as kept:
            for move in range(3):
                await asyncio.to_thread(redis.move_slot, registry(cluster))
                await settled(cluster)
                await does_it_all(cluster, f"{room}-{move}")
            assert done(cluster[2], "GET", "/api/v1/connections/kept")["node"] == "node-1"
            assert (await kept.done("ping", {})) == {}
        assert [hub.metrics()["ringhub_nodes_cleaned_total"] for hub in cluster] == [0, 0, 0]


async def test_what_can_not_be_registered_while_its_slot_is_on_its_way_is_later_and_is_not_told_all_the_time(form, room):
    with RedisCluster() as redis:
        cluster = form(redis.settings)
        async with joined(cluster[0], **client("one")) as one, joined(cluster[1], admin()) as two:
            move = redis.begin_to_move_slot(registry(cluster))
            began = time.monotonic()
            # Scripts that name keys of which some are not there are carried out by neither server.
            await two.subscribe(room)
            await one.subscribe(room)
            await asyncio.sleep(2)
            told = sum(line.count("refused something") for line in cluster.logs().splitlines())
            # Each node tells it once a second.
            assert 1 <= told <= 3 * (time.monotonic() - began + 1), told
            await asyncio.to_thread(move)
            while (await two.next("presence.joined"))["data"]["client_id"] != "one":
                pass
        await settled(cluster)
        await does_it_all(cluster, f"{room}-after")


async def test_nodes_find_a_cluster_of_redis_again_of_which_no_configured_server_is_left(form, room):
    with RedisCluster(replicas=1) as redis:
        prefix = fresh_prefix()
        # All of a registry has one slot, whatever it begins with.
        owner = redis.owner(f"{prefix}:{{nodes}}:index")
        cluster = form(redis.settings | {"broker.redis.url": owner.url}, settings={"broker.redis.prefix": prefix})
        await does_it_all(cluster, f"{room}-before")
        owner.kill()
        await asyncio.to_thread(redis.wait_for_failover, registry(cluster), owner)
        await settled(cluster)
        await does_it_all(cluster, f"{room}-after")


async def test_nodes_know_each_other_through_a_server_that_sentinels_watch_and_its_failover(form, room):
    with SentinelPair() as redis:
        cluster = form(redis.settings)
        await does_it_all(cluster, f"{room}-before")
        former = redis.current()
        former.kill()
        await asyncio.to_thread(redis.wait_for_failover, former)
        await settled(cluster)
        await does_it_all(cluster, f"{room}-after")


async def settled(cluster: Cluster) -> None:
    """Waits until rooms and ids can be had again at all nodes."""
    deadline = time.monotonic() + 30
    for number, hub in enumerate(cluster):
        while True:
            try:
                async with joined(hub, admin(f"probe-{number}"), query=f"client_id=probe-{number}"):
                    break
            except InvalidStatus as refused:
                assert refused.response.status_code in (409, 503), refused
            assert time.monotonic() < deadline, hub.log()
            await asyncio.sleep(0.1)
    await asyncio.to_thread(all_know_all, cluster)


async def test_two_nodes_with_one_name_are_complained_of(_redis):
    from cluster import fresh_prefix

    settings = _redis.settings | {"broker.redis.prefix": fresh_prefix(), "broker.lease_ms": 1000, "node.name": "twin"}
    hubs = [Hub(settings, shards=1) for _ in range(2)]
    try:
        await eventually(lambda: all("the same name" in hub.log() for hub in hubs), "both say so", within_s=5)
    finally:
        for hub in hubs:
            hub.kill()
            hub.discard()


async def test_one_node_alone_answers_as_ever(start, room):
    hub = start({}, shards=1)
    async with joined(hub, **client("alone")) as peer:
        await peer.subscribe(room)
        for path in ("/api/v1/connections", "/api/v1/connections/alone", f"/api/v1/rooms/{quote(room)}", f"/api/v1/rooms/{quote(room)}/presence"):
            answer = done(hub, "GET", path)
            assert not {"node", "nodes", "partial", "missing", "members_by_node"} & set(answer), answer
        assert "node" not in done(hub, "GET", "/api/v1/connections")["connections"][0]
        assert "nodes" not in done(hub, "GET", "/api/v1/websocket/stats")
        assert call(hub, "GET", "/api/v1/connections?node=nobody")[0] == 404
