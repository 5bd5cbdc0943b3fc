"""A backend in Python, with nothing but the standard library's HTTP client: it makes every call that `/openapi.json` names."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import time
import uuid
from urllib.parse import quote, urlencode

from hub import admin, token
from peer import joined

GITHUB_SECRET = "a secret that only this test's GitHub knows"


class Driver:
    """Makes calls by the paths of the description, and notes those that were carried out."""

    def __init__(self, hub):
        self.hub = hub
        self.headers = {"Authorization": f"Bearer {admin()}"}
        self.driven: set[tuple[str, str]] = set()

    def call(self, method: str, path: str, body: object = None, *, expected: int = 200, query: dict | None = None, headers: dict | None = None, **names: str):
        target = re.sub(r"{(\w+)}", lambda name: quote(names.pop(name[1]), safe=""), path)
        assert not names, f"{path} has no {names}"
        target += f"?{urlencode(query)}" if query else ""
        status, _, text = self.hub.get(target, self.headers | (headers or {}), method=method, body=body)
        assert status == expected, (method, target, status, text)
        self.driven.add((method, path))
        return json.loads(text) if text.startswith((b"{", b"[")) else text


async def test_a_backend_makes_every_call_of_the_description(start, tmp_path):
    hub = start({"webhooks.github_secret": [GITHUB_SECRET], "store.path": str(tmp_path / "history.db")})
    backend = Driver(hub)
    health(backend)
    async with joined(hub, token("ada", [*MEMBER]), query="client_id=backend-1&session_id=backend-s") as peer:
        room = "project:backend/1"
        await peer.subscribe(room)
        await events(backend, peer, room)
        await connections(backend, peer, room)
        await sessions(backend, peer)
        rooms(backend, room)
        await locks(backend, peer, room)
        await access(backend, peer, room)
    webhooks(backend)

    described = backend.call("GET", "/openapi.json")["paths"]
    named = {(method.upper(), path) for path, calls in described.items() for method in calls}
    assert backend.driven == named, (named - backend.driven, backend.driven - named)


MEMBER = ["websocket:connect", "websocket:subscribe", "websocket:publish", "project:*:read", "project:*:write"]


def health(backend):
    for path in ["/live", "/ready", "/ws/health"]:
        page = backend.call("GET", path)
        assert page["status"] == "ok" and page["total"]["connections"] == 0, page
    assert b"ringhub_connections" in backend.call("GET", "/metrics")
    assert b"export class Ringhub " in backend.call("GET", "/ringhub.js")
    assert b"dashboard/app.js" in backend.call("GET", "/dashboard")
    assert b"import " in backend.call("GET", "/dashboard/{file}", file="app.js")
    # There is no demo beside this hub.
    assert backend.call("GET", "/demo", expected=404)["error"]["code"] == "not_found"
    backend.call("GET", "/demo/{file}", file="demo.js", expected=404)
    assert backend.call("GET", "/api/v1/websocket/stats")["lately"]
    assert backend.call("GET", "/api/v1/alerts")["active"] == []
    assert backend.call("GET", "/api/v1/performance", query={"since": int(time.time()) - 60})["step_s"] == 10


async def events(backend, peer, room):
    event = {"room": room, "type": "note.added", "data": {"text": "ünï"}}
    assert backend.call("POST", "/api/v1/publish", event)["seq"] == 1
    assert [one["seq"] for one in backend.call("POST", "/api/v1/publish", [event, event])] == [2, 3]
    assert [one["data"] for one in await peer.events(room, 3)] == [event["data"]] * 3
    answer = backend.call("POST", "/api/v1/broadcast", {"rooms": [room, "project:nobody"], "type": "b", "data": {}})
    assert (answer["rooms"], answer["delivered"]) == (2, 1)
    assert (await peer.next("b"))["seq"] == 4
    assert backend.call("POST", "/ws/broadcast/test")["connections"] == 1
    assert (await peer.next("system_alert"))["data"]["test"] is True


async def connections(backend, peer, room):
    for path in ["/api/v1/connections", "/ws/connections"]:
        page = backend.call("GET", path, query={"user": "ada", "room": room, "limit": 1})
        assert (page["total"], page["connections"][0]["client_id"]) == (1, "backend-1")
    changed = backend.call("PATCH", "/api/v1/connections/{client_id}", {"metadata": {"tab": "quotes"}}, client_id="backend-1")
    assert changed["metadata"] == {"tab": "quotes"} == await peer.done("metadata")
    assert backend.call("GET", "/api/v1/connections/{client_id}", client_id="backend-1")["metadata"] == {"tab": "quotes"}
    assert backend.call("GET", "/api/v1/connections/{client_id}/trace", query={"limit": 5}, client_id="backend-1")
    event = backend.call("GET", "/api/v1/rooms/{room}/history", query={"last": 1}, room=room)["events"][0]["id"]
    told = backend.call("GET", "/api/v1/connections/{client_id}/explain", query={"event": event}, client_id="backend-1")
    assert told["outcome"] == "written"


async def sessions(backend, peer):
    shown = backend.call("GET", "/api/v1/sessions/{session_id}", session_id="backend-s")
    assert (shown["connected"], shown["client_id"]) == (True, "backend-1")
    event = {"type": "notification.created", "data": {"title": "hello"}}
    path = "/api/v1/sessions/{session_id}/messages"
    assert backend.call("POST", path, event, session_id="backend-s") == {"delivered": 1, "queued": 0}
    sent = backend.call("POST", "/api/v1/messages", {"sessions": ["backend-s"], "users": ["ada"], "clients": ["backend-1"]} | event)
    assert (sent["delivered"], sent["failed"]) == (3, [])
    assert [(await peer.next("notification.created"))["data"] for _ in range(4)] == [{"title": "hello"}] * 4
    await peer.done("message", {"question": 6})
    assert backend.call("GET", path, query={"timeout_s": 5}, session_id="backend-s")["data"] == {"question": 6}
    assert backend.call("GET", path, query={"timeout_s": 0}, expected=204, session_id="backend-s") == b""


def rooms(backend, room):
    page = backend.call("GET", "/api/v1/rooms", query={"kind": "project", "search": "backend", "occupied": "true"})
    assert [(one["room"], one["members"], one["seq"]) for one in page["rooms"]] == [(room, 1, 4)]
    assert backend.call("GET", "/api/v1/rooms/{room}", room=room)["history_events"] == 4
    there = backend.call("GET", "/api/v1/rooms/{room}/presence", room=room)
    assert (there["count"], there["members"][0]["user_id"], there["members"][0]["metadata"]) == (1, "ada", {"tab": "quotes"})
    history = backend.call("GET", "/api/v1/rooms/{room}/history", query={"last": 2}, room=room)
    assert [event["seq"] for event in history["events"]] == [3, 4]
    assert backend.call("DELETE", "/api/v1/rooms/{room}/history", room=room) == {"room": room, "deleted": 4}


async def locks(backend, peer, room):
    lock = await peer.done("lock.acquire", {"room": room, "field": "title/1", "ttl_s": 60})
    (held,) = backend.call("GET", "/api/v1/locks", query={"room": room})["locks"]
    assert (held["field"], held["token"], held["holder"]["user_id"]) == ("title/1", lock["token"], "ada")
    assert backend.call("DELETE", "/api/v1/locks/{room}/{field}", room=room, field="title/1")["released"] is True
    assert (await peer.next("lock.released"))["data"]["reason"] == "forced"


async def access(backend, peer, room):
    assert backend.call("POST", "/api/v1/reauthenticate", {"session": "backend-s", "grace_s": 60}) == {"asked": 1}
    await peer.next("auth.expiring")
    await peer.done("auth.refresh", {"token": token("ada", [*MEMBER])})
    withdrew = backend.call("POST", "/api/v1/withdraw", {"user": "ada", "permissions": [f"{room}:read"]})
    assert (withdrew["connections"], withdrew["closed"]) == (1, 0)
    assert (await peer.next("unsubscribed"))["data"]["room"] == room
    async with joined(backend.hub, token("ada"), query="client_id=backend-2"):
        assert backend.call("DELETE", "/api/v1/connections/{client_id}", query={"code": 4000}, client_id="backend-2") == {"disconnected": 1}
    assert backend.call("POST", "/api/v1/disconnect", {"user": "ada", "code": 4001, "reason": "enough"}) == {"disconnected": 1}
    assert await peer.closed() == (4001, "enough")


def webhooks(backend):
    body = json.dumps({"zen": "Design for failure.", "hook_id": 1}).encode()
    signature = hmac.new(GITHUB_SECRET.encode(), body, hashlib.sha256).hexdigest()
    headers = {"X-GitHub-Event": "ping", "X-GitHub-Delivery": str(uuid.uuid4()), "X-Hub-Signature-256": f"sha256={signature}", "Content-Type": "application/json"}
    assert backend.call("POST", "/webhooks/github", body, headers=headers) == {"pong": True}
