"""The HTTP API as a backend uses it (protocol, section 7): one plain HTTP client, every call."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import concurrent.futures
import json
import time
from urllib.parse import quote

import pytest

from hub import admin, token
from peer import joined


class Backend:
    """A backend with one token."""

    def __init__(self, hub, bearer: str | None = None):
        self.hub = hub
        self.headers = {"Authorization": f"Bearer {bearer or admin()}"}

    def call(self, method: str, path: str, body: object = None) -> tuple[int, object]:
        status, _, text = self.hub.get(path, self.headers, method=method, body=body)
        return status, json.loads(text) if text else None

    def done(self, method: str, path: str, body: object = None) -> dict:
        status, answer = self.call(method, path, body)
        assert status == 200, (status, answer)
        return answer

    def refused(self, method: str, path: str, body: object = None) -> tuple[int, str]:
        status, answer = self.call(method, path, body)
        assert status >= 400 and answer["error"]["message"], (status, answer)
        return status, answer["error"]["code"]


@pytest.fixture
def backend(hub) -> Backend:
    return Backend(hub)


@contextlib.asynccontextmanager
async def clients(hub):
    """Lets clients in that stay to the end of the block."""
    async with contextlib.AsyncExitStack() as stack:

        async def join(sub: str = "alice", client_id: str = ""):
            query = f"client_id={client_id}" if client_id else ""
            return await stack.enter_async_context(joined(hub, token(sub), query=query))

        yield join


async def test_connections_are_listed_page_by_page_and_found(hub, backend):
    async with clients(hub) as join:
        ids = [f"api-list-{number}" for number in range(5)]
        peers = [await join("lister", one) for one in ids]
        room = "project:api-list"
        await peers[2].subscribe(room)
        await peers[2].done("metadata", {"set": {"role": "editor"}})
        page = backend.done("GET", "/api/v1/connections?user=lister&limit=2")
        seen = []
        while True:
            seen += [one["client_id"] for one in page["connections"]]
            if page["next"] is None:
                break
            page = backend.done("GET", f"/api/v1/connections?user=lister&limit=2&after={page['next']}")
        assert seen == ids
        in_room = backend.done("GET", f"/ws/connections?room={quote(room)}")
        assert [one["client_id"] for one in in_room["connections"]] == [ids[2]] and in_room["total"] == 1
        one = backend.done("GET", f"/api/v1/connections/{ids[2]}")
        assert one["user_id"] == "lister" and room in one["rooms"] and one["metadata"] == {"role": "editor"}
        assert one["session_id"] == peers[2].data["session_id"]
        assert one["queue_bytes"] == 0 and one["received_bytes"] > 0 and one["sent_bytes"] > 0
        assert one["connected_at"] <= one["last_activity"]
        assert backend.done("GET", "/api/v1/connections?search=api-list-3")["total"] == 1
        assert backend.refused("GET", "/api/v1/connections/nobody") == (404, "not_found")
        assert backend.refused("GET", "/api/v1/connections?limit=0") == (400, "bad_command")
        assert backend.refused("GET", "/api/v1/connections?limit=many") == (400, "bad_command")
        for peer in peers:
            await peer.close()


async def test_metadata_is_set_and_a_connection_is_ended_with_code_and_reason(hub, backend):
    async with clients(hub) as join:
        peer = await join(client_id="api-end")
        changed = backend.done("PATCH", "/api/v1/connections/api-end", {"metadata": {"a": 1, "b": None}})
        assert changed == {"client_id": "api-end", "metadata": {"a": 1}}
        assert (await peer.done("metadata")) == {"a": 1}
        assert backend.refused("PATCH", "/api/v1/connections/api-end", {"other": 1}) == (400, "bad_command")
        assert backend.done("DELETE", "/api/v1/connections/api-end?code=4000&reason=enough") == {"disconnected": 1}
        assert await peer.closed() == (4000, "enough")
        assert backend.refused("DELETE", "/api/v1/connections/api-end") == (404, "not_found")
        peer = await join(client_id="api-end-2")
        backend.done("DELETE", "/api/v1/connections/api-end-2")
        assert (await peer.closed())[0] == 4500
        assert backend.refused("DELETE", "/api/v1/connections/x?code=99") == (400, "bad_command")
        assert backend.refused("DELETE", f"/api/v1/connections/x?reason={'r' * 124}") == (400, "bad_command")


async def test_users_and_sessions_are_disconnected(hub, backend):
    async with clients(hub) as join:
        mine = [await join("api-leaver") for _ in range(3)]
        answer = backend.done("POST", "/api/v1/disconnect", {"user": "api-leaver", "reason": "signed out"})
        assert answer == {"disconnected": 3}
        for peer in mine:
            assert await peer.closed() == (4500, "signed out")
        peer = await join()
        assert backend.done("POST", "/api/v1/disconnect", {"sessions": [peer.data["session_id"], "nobody"]}) == {"disconnected": 1}
        assert backend.refused("POST", "/api/v1/disconnect", {}) == (400, "bad_command")
        assert backend.refused("POST", "/api/v1/disconnect", {"user": "a", "client": "b"}) == (400, "bad_command")


async def test_messages_go_to_sessions_users_and_clients(hub, backend):
    async with clients(hub) as join:
        peer = await join("api-user", "api-to")
        session = peer.data["session_id"]
        event = {"type": "notification.created", "data": {"title": "t"}}
        assert backend.done("POST", f"/api/v1/sessions/{session}/messages", event) == {"delivered": 1, "queued": 0}
        many = backend.done("POST", "/api/v1/messages", {"sessions": [session], "users": ["api-user"], "clients": ["api-to", "nobody"]} | event)
        assert many["delivered"] == 3 and many["queued"] == 0
        assert [(one["to"], one["error"]["code"]) for one in many["failed"]] == [({"client": "nobody"}, "not_found")]
        for _ in range(4):
            assert (await peer.next("notification.created"))["data"] == {"title": "t"}
        assert backend.refused("POST", "/api/v1/messages", event) == (400, "bad_command")
        assert backend.refused("POST", "/api/v1/sessions/a%20b/messages", event) == (400, "bad_command")
        limited = Backend(hub, token("x", ["websocket:publish", "project:*:write"]))
        assert limited.refused("POST", f"/api/v1/sessions/{session}/messages", event) == (403, "forbidden")


async def test_a_session_is_shown_with_what_waits_for_it(hub, backend):
    async with clients(hub) as join:
        peer = await join("api-session")
        session = peer.data["session_id"]
        await peer.done("metadata", {"set": {"k": "v"}})
        shown = backend.done("GET", f"/api/v1/sessions/{session}")
        assert shown["connected"] and shown["client_id"] == peer.data["client_id"] and shown["metadata"] == {"k": "v"}
        await peer.done("message", {"n": 1})
        assert backend.done("GET", f"/api/v1/sessions/{session}")["inbox"] == 1
        await peer.close()
        event = {"type": "a", "data": {}}
        deadline = time.monotonic() + 5
        while backend.done("POST", f"/api/v1/sessions/{session}/messages", event)["queued"] == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        shown = backend.done("GET", f"/api/v1/sessions/{session}")
        assert not shown["connected"] and shown["queued"] >= 1 and shown["metadata"] == {"k": "v"} and shown["user_id"] == "api-session"
        assert backend.refused("GET", "/api/v1/sessions/nobody") == (404, "not_found")


async def test_what_a_client_says_is_received_once_and_in_order(hub, backend):
    async with clients(hub) as join:
        peer = await join()
        path = f"/api/v1/sessions/{peer.data['session_id']}/messages"
        assert backend.call("GET", f"{path}?timeout_s=0") == (204, None)
        for number in range(3):
            await peer.done("message", {"number": number})
        received = [backend.done("GET", f"{path}?timeout_s=5")["data"]["number"] for _ in range(3)]
        assert received == [0, 1, 2]
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(backend.done, "GET", f"{path}?timeout_s=4")
            await asyncio.sleep(0.3)
            assert hub.get("/live")[0] == 200, "nothing is held up"
            await peer.done("message", {"late": True})
            answer = await asyncio.wrap_future(waiting)
        assert answer == {"session_id": peer.data["session_id"], "data": {"late": True}}
        started = time.monotonic()
        assert backend.call("GET", f"{path}?timeout_s=1") == (204, None)
        assert 0.9 < time.monotonic() - started < 3
        assert backend.refused("GET", "/api/v1/sessions/nobody/messages?timeout_s=1") == (404, "not_found")
        # A caller who gives up takes no message with it.
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            given_up = pool.submit(_give_up, hub, path, backend.headers)
            await asyncio.wrap_future(given_up)
        await asyncio.sleep(0.6)
        await peer.done("message", {"kept": True})
        assert backend.done("GET", f"{path}?timeout_s=5")["data"] == {"kept": True}
        await peer.close()


def _give_up(hub, path, headers):
    connection = http.client.HTTPConnection(hub.host, hub.port, timeout=5)
    connection.request("GET", f"{path}?timeout_s=20", headers=headers)
    time.sleep(0.3)
    connection.close()


async def test_rooms_and_their_history_are_looked_into(hub, backend, room):
    async with clients(hub) as join:
        peer = await join()
        await peer.subscribe(room)
        for number in range(5):
            assert hub.publish(room, "a", {"n": number})[0] == 200
        shown = backend.done("GET", f"/api/v1/rooms/{quote(room)}")
        assert (shown["room"], shown["kind"], shown["members"], shown["seq"]) == (room, "project", 1, 5)
        assert (shown["history_events"], shown["first_seq"]) == (5, 1) and shown["history_bytes"] > 0
        listed = backend.done("GET", f"/api/v1/rooms?kind=project&search={quote(room)}&occupied=true")
        assert [one["room"] for one in listed["rooms"]] == [room]
        history = backend.done("GET", f"/api/v1/rooms/{quote(room)}/history?since=2&limit=2")
        assert [event["seq"] for event in history["events"]] == [3, 4] and history["more"] and history["seq"] == 5
        history = backend.done("GET", f"/api/v1/rooms/{quote(room)}/history?last=2&reverse=true")
        assert [event["seq"] for event in history["events"]][:2] == [5, 4]
        assert backend.refused("GET", f"/api/v1/rooms/{quote(room)}/history?since=2&last=2") == (400, "bad_command")
        assert backend.refused("GET", "/api/v1/rooms/nokind:x/history") == (400, "bad_room")
        stranger = Backend(hub, token("x", ["websocket:connect"]))
        assert stranger.refused("GET", f"/api/v1/rooms/{quote(room)}/history") == (403, "forbidden")
        assert stranger.refused("DELETE", f"/api/v1/rooms/{quote(room)}/history") == (403, "forbidden")
        assert backend.done("DELETE", f"/api/v1/rooms/{quote(room)}/history") == {"room": room, "deleted": 5}
        assert backend.done("GET", f"/api/v1/rooms/{quote(room)}/history")["events"] == []
        again = await peer.done("subscribe", {"room": room, "since": {"seq": 1}})
        assert (again["recovered"], again["missed"], again["seq"]) == (False, 4, 5)
        await peer.close()


async def test_who_is_in_a_room_is_told_as_to_a_client(hub, backend, room):
    path = f"/api/v1/rooms/{quote(room)}/presence"
    assert backend.done("GET", path) == {"room": room, "seq": 0, "count": 0, "members": [], "more": False}
    async with clients(hub) as join:
        peers = [await join(f"api-present-{number}") for number in range(3)]
        for peer in peers:
            await peer.subscribe(room)
        await peers[0].done("metadata", {"set": {"cursor": 7}})
        told = backend.done("GET", path)
        assert told == await peers[0].done("presence", {"room": room})
        assert told["count"] == 3 and {member["user_id"] for member in told["members"]} == {f"api-present-{n}" for n in range(3)}
        assert {"cursor": 7} in [member["metadata"] for member in told["members"]]
        part = backend.done("GET", f"{path}?limit=2")
        assert (part["count"], len(part["members"]), part["more"]) == (3, 2, True)
        member, stranger = Backend(hub, token()), Backend(hub, token("x", ["websocket:connect", "websocket:subscribe"]))
        assert member.done("GET", path)["count"] == 3
        assert stranger.refused("GET", path) == (403, "forbidden")
        assert Backend(hub, token("x", ["project:*:read"])).refused("GET", path) == (403, "forbidden")
        for bad in ("limit=0", "limit=1001", "limit=all"):
            assert backend.refused("GET", f"{path}?{bad}") == (400, "bad_command")
        assert backend.refused("GET", "/api/v1/rooms/nokind:x/presence") == (400, "bad_room")
    assert hub.get(path)[0] == 401


def pages(backend, query: str) -> list[dict]:
    """All locks, page by page."""
    locks, after = [], ""
    while True:
        page = backend.done("GET", f"/api/v1/locks?{query}{after}")
        locks += page["locks"]
        if page["next"] is None:
            return locks
        after = f"&after={quote(page['next'])}"


async def test_locks_are_listed_page_by_page_and_taken_away(hub, backend):
    rooms = [f"project:api-lock/{number}" for number in range(5)]
    async with clients(hub) as join:
        peer = await join("api-locker")
        await peer.subscribe(rooms[2])
        held = {}
        for room in rooms:
            for field in ("b/c", "a", "ü"):
                held[room, field] = await peer.done("lock.acquire", {"room": room, "field": field, "ttl_s": 60})
        places = [place for place in sorted(held)]
        mine = [lock for lock in pages(backend, "limit=4") if lock["holder"]["user_id"] == "api-locker"]
        assert [(lock["room"], lock["field"]) for lock in mine] == places
        first = mine[0]
        assert first["token"] == held[places[0]]["token"] and first["expires_at"] == held[places[0]]["expires_at"]
        assert first["holder"] == {"client_id": peer.data["client_id"], "session_id": peer.data["session_id"], "user_id": "api-locker"}
        one = f"room={quote(rooms[2], safe='')}"
        page = backend.done("GET", f"/api/v1/locks?{one}&limit=2")
        assert (len(page["locks"]), page["total"]) == (2, 3) and page["next"]
        assert [lock["field"] for lock in pages(backend, f"{one}&limit=1")] == ["a", "b/c", "ü"]
        assert backend.done("GET", "/api/v1/locks?limit=1000")["total"] >= 15

        path = f"/api/v1/locks/{quote(rooms[2], safe='')}/{quote('b/c', safe='')}"
        assert backend.done("DELETE", path) == {"room": rooms[2], "field": "b/c", "released": True}
        released = await peer.next("lock.released")
        assert (released["room"], released["data"]["field"], released["data"]["reason"]) == (rooms[2], "b/c", "forced")
        lost = (await peer.next("error"))["data"]
        assert (lost["code"], lost["details"]["token"]) == ("lock_lost", held[rooms[2], "b/c"]["token"])
        assert backend.refused("DELETE", path) == (404, "not_found")
        assert [lock["field"] for lock in pages(backend, one)] == ["a", "ü"]

        member, stranger = Backend(hub, token()), Backend(hub, token("x", ["websocket:connect"]))
        assert len(member.done("GET", f"/api/v1/locks?{one}")["locks"]) == 2
        assert stranger.refused("GET", f"/api/v1/locks?{one}") == (403, "forbidden")
        assert member.refused("GET", "/api/v1/locks") == (403, "forbidden")
        assert member.refused("DELETE", path) == (403, "forbidden")
        assert backend.refused("GET", "/api/v1/locks?limit=0") == (400, "bad_command")
        assert backend.refused("GET", "/api/v1/locks?room=nokind:x") == (400, "bad_room")
        assert backend.done("GET", "/api/v1/locks?room=project:nobody")["locks"] == []


async def test_a_broadcast_goes_to_rooms_or_to_everyone(hub, backend):
    async with clients(hub) as join:
        rooms = ["project:api-b1", "project:api-b2"]
        peer = await join()
        for one in rooms:
            await peer.subscribe(one)
        answer = backend.done("POST", "/api/v1/broadcast", {"rooms": [*rooms, "bad room"], "type": "a", "data": {}})
        assert (answer["rooms"], answer["delivered"]) == (2, 2)
        assert [one.get("room") or one["error"]["code"] for one in answer["results"]] == [*rooms, "bad_room"]
        answer = backend.done("POST", "/api/v1/broadcast", {"all": True, "type": "api.everyone"})
        assert answer["rooms"] == 1 and answer["delivered"] >= 1
        await peer.next("api.everyone")
        assert backend.done("POST", "/ws/broadcast/test")["connections"] >= 1
        alert = await peer.next("system_alert")
        assert alert["room"] == "global" and alert["data"]["severity"] == "info"
        assert backend.refused("POST", "/api/v1/broadcast", {"type": "a"}) == (400, "bad_command")
        assert backend.refused("POST", "/api/v1/broadcast", {"rooms": rooms, "all": True, "type": "a"}) == (400, "bad_command")
        member = Backend(hub, token())
        assert member.refused("POST", "/ws/broadcast/test") == (403, "forbidden")
        assert member.done("POST", "/api/v1/broadcast", {"all": True, "type": "a"})["results"][0]["error"]["code"] == "forbidden"
        await peer.close()


def test_calls_need_a_token_and_the_permission(hub):
    admin_only = [
        ("GET", "/api/v1/connections"), ("GET", "/ws/connections"), ("GET", "/api/v1/connections/x"), ("DELETE", "/api/v1/connections/x"),
        ("GET", "/api/v1/rooms"), ("GET", "/api/v1/sessions/x"), ("GET", "/api/v1/sessions/x/messages?timeout_s=0"),
    ]
    member = Backend(hub, token())
    for method, path in admin_only:
        assert hub.get(path, method=method)[0] == 401, path
        assert member.refused(method, path) == (403, "forbidden"), path
    assert hub.get("/api/v1/websocket/stats")[0] == 401
    stats = member.done("GET", "/api/v1/websocket/stats")
    assert stats["total"]["connections"] == sum(shard["connections"] for shard in stats["shards"]) and len(stats["shards"]) == 2
    assert stats["process"]["resident_bytes"] > 0


def test_events_are_streamed_a_line_each_and_answered_a_line_each(hub, room):
    """The answers come while the request goes on."""
    connection = http.client.HTTPConnection(hub.host, hub.port, timeout=10)
    connection.putrequest("POST", "/api/v1/publish")
    for name, value in [("Authorization", f"Bearer {admin()}"), ("Content-Type", "application/x-ndjson"), ("Transfer-Encoding", "chunked")]:
        connection.putheader(name, value)
    connection.endheaders()
    # http.client gives the socket up once it sees that the answer is the connection's last.
    socket = connection.sock.dup()

    def chunk(data: bytes) -> None:
        socket.sendall(b"%x\r\n%s\r\n" % (len(data), data))

    def line(number: int) -> bytes:
        return json.dumps({"room": room, "type": "a", "data": {"n": number}}).encode() + b"\n"

    chunk(line(1))
    answer = connection.getresponse()
    assert answer.status == 200 and answer.headers["Content-Type"] == "application/x-ndjson"
    assert json.loads(answer.readline())["seq"] == 1, "answered before the request has ended"
    chunk(line(2)[:10])
    chunk(line(2)[10:] + b"\n  \nnonsense\n[]\n" + line(3))
    answers = [json.loads(answer.readline()) for _ in range(4)]
    assert [one.get("seq") or one["error"]["code"] for one in answers] == [2, "bad_json", "bad_command", 3]
    for number in range(4, 2004):
        chunk(line(number))
        if number % 100 == 0:
            assert [json.loads(answer.readline())["seq"] for _ in range(100 if number > 100 else 97)][-1] == number
    chunk(line(2004).rstrip())
    socket.sendall(b"0\r\n\r\n")
    rest = [json.loads(one)["seq"] for one in answer.read().splitlines()]
    assert rest == [2001, 2002, 2003, 2004], "the last line needs no end"
    socket.close()


def test_a_line_without_an_end_is_refused_and_a_silent_stream_ends(start, room):
    hub = start({"limits.message_bytes_max": 4096})
    backend = {"Authorization": f"Bearer {admin()}", "Content-Type": "application/x-ndjson"}
    status, _, body = hub.get("/api/v1/publish", backend, method="POST", body=b"x" * (5 << 20))
    assert status == 413 or json.loads(body)["error"]["code"] == "too_large", (status, body)
    status, _, body = hub.get("/api/v1/publish", backend, method="POST", body=b"")
    assert (status, body) == (200, b"")
