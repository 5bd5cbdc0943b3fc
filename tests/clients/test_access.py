"""Taking access away over HTTP: connections that have to prove themselves again, and permissions that are withdrawn."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime

import pytest

from hub import admin, token
from peer import joined
from test_api import Backend
from websockets.exceptions import InvalidStatus

READER = ["websocket:connect", "websocket:subscribe", "websocket:publish", "project:*:read", "project:*:write"]


@pytest.fixture
def backend(hub) -> Backend:
    return Backend(hub)


def at(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


async def resumed(peer, greeting: dict, rooms: list[str]) -> dict:
    """Resumes a session with cursors of these rooms; the results by room."""
    cursors = {room: {"seq": 0} for room in rooms}
    answer = await peer.done("resume", {"session_id": greeting["session_id"], "token": greeting["resume"]["token"], "cursors": cursors})
    return {result["room"]: result for result in answer["results"]}


async def test_who_shows_no_token_in_time_is_closed_and_who_does_stays(hub, backend):
    async with joined(hub, token("re-1"), query="client_id=re-silent") as silent, joined(hub, token("re-1"), query="client_id=re-proves") as proves:
        before = time.time()
        assert backend.done("POST", "/api/v1/reauthenticate", {"user": "re-1", "grace_s": 2}) == {"asked": 2}
        for peer in (silent, proves):
            expires = at((await peer.next("auth.expiring"))["data"]["expires_at"])
            assert 1 <= expires - before <= 4
        shown = backend.done("GET", "/api/v1/connections/re-proves")
        assert at(shown["expires_at"]) == expires
        await proves.refused("auth.refresh", {"token": "no token"})
        fresh = token("re-1")
        assert (await proves.done("auth.refresh", {"token": fresh}))["expires_at"]
        assert await silent.closed() == (4401, "no valid token came in time")
        assert time.time() >= expires - 0.1
        await asyncio.sleep(0.5)
        assert await proves.settled() == []
        assert at(backend.done("GET", "/api/v1/connections/re-proves")["expires_at"]) > time.time() + 100


async def test_a_client_a_session_and_sessions_are_asked_for_a_token(hub, backend):
    async with joined(hub, token("re-2"), query="client_id=re-2") as peer:
        session = peer.data["session_id"]
        for target in ({"client": "re-2"}, {"session": session}, {"sessions": [session, "nobody"]}):
            assert backend.done("POST", "/api/v1/reauthenticate", target) == {"asked": 1}
            expires = at((await peer.next("auth.expiring"))["data"]["expires_at"])
        # The first question stands: another one does not put it off.
        backend.done("POST", "/api/v1/reauthenticate", {"client": "re-2", "grace_s": 3600})
        assert at((await peer.next("auth.expiring"))["data"]["expires_at"]) == expires <= time.time() + 31
        await peer.done("auth.refresh", {"token": token("re-2")})
    assert backend.refused("POST", "/api/v1/reauthenticate", {"client": "re-nobody"}) == (404, "not_found")
    assert backend.refused("POST", "/api/v1/reauthenticate", {"session": "re-nobody"}) == (404, "not_found")
    assert backend.done("POST", "/api/v1/reauthenticate", {"user": "re-nobody"}) == {"asked": 0}
    for bad in ({}, {"client": "a", "user": "b"}, {"user": "a", "grace_s": 0}, {"user": "a", "grace_s": 3601}, {"user": "a", "grace_s": "1"}):
        assert backend.refused("POST", "/api/v1/reauthenticate", bad) == (400, "bad_command"), bad


async def test_a_withdrawn_permission_ends_at_once_and_the_rest_stays(hub, backend):
    lost, kept = "project:w-lost", "project:w-kept"
    async with joined(hub, token("w-1", READER), query="client_id=w-1") as peer, joined(hub, admin()) as other:
        await peer.subscribe(lost)
        await peer.subscribe(kept)
        await other.subscribe(lost)
        lock = await peer.done("lock.acquire", {"room": lost, "field": "title", "ttl_s": 60})
        answer = backend.done("POST", "/api/v1/withdraw", {"client": "w-1", "permissions": ["project:w-lost:read"]})
        assert answer == {"connections": 1, "closed": 0, "sessions": 0}
        gone = await peer.next("unsubscribed")
        assert gone["data"] == {"room": lost, "reason": "forbidden"} and "ref" not in gone
        error = (await peer.next("error"))["data"]
        assert (error["code"], error["details"]) == ("forbidden", {"room": lost})
        released = await other.next("lock.released")
        assert (released["data"]["token"], released["data"]["reason"]) == (lock["token"], "forbidden")
        for room in (lost, kept):
            assert hub.publish(room, "a", {})[0] == 200
        assert [event["room"] for event in await peer.settled() if event["type"] == "a"] == [kept]
        assert (await peer.refused("subscribe", {"room": lost}))["code"] == "forbidden"
        assert (await peer.refused("history", {"room": lost}))["code"] == "forbidden"
        await peer.done("publish", {"room": lost, "type": "a", "data": {}})
        assert backend.done("GET", f"/api/v1/rooms/{lost}")["members"] == 1
        # A pattern takes what it covers.
        backend.done("POST", "/api/v1/withdraw", {"session": peer.data["session_id"], "permissions": ["project:*:write", "project:*:read"]})
        assert (await peer.next("unsubscribed"))["data"]["room"] == kept
        assert (await peer.refused("publish", {"room": kept, "type": "a", "data": {}}))["code"] == "forbidden"
        assert set((await peer.done("rooms"))["rooms"]) == {"user:w-1", f"session:{peer.data['session_id']}", "global"}


async def test_without_the_permission_to_connect_and_where_it_is_asked_for_the_connection_ends(hub, backend):
    async with joined(hub, token("w-2"), query="client_id=w-2a") as first, joined(hub, token("w-2"), query="client_id=w-2b") as second:
        answer = backend.done("POST", "/api/v1/withdraw", {"client": "w-2a", "permissions": ["websocket:connect"]})
        assert answer == {"connections": 1, "closed": 1, "sessions": 0}
        assert await first.closed() == (4403, "websocket:connect was withdrawn")
        answer = backend.done("POST", "/api/v1/withdraw", {"user": "w-2", "permissions": ["project:1:read"], "disconnect": True, "reason": "off the team"})
        assert (answer["connections"], answer["closed"]) == (1, 1) and answer["sessions"] >= 1
        assert await second.closed() == (4403, "off the team")
    async with joined(hub, admin("w-root"), query="client_id=w-root") as root:
        backend.done("POST", "/api/v1/withdraw", {"client": "w-root", "permissions": ["websocket:admin"]})
        assert (await root.closed())[0] == 4403
    assert backend.refused("POST", "/api/v1/withdraw", {"client": "nobody", "permissions": ["a:b"]}) == (404, "not_found")
    assert backend.done("POST", "/api/v1/withdraw", {"user": "nobody", "permissions": ["a:b"]}) == {"connections": 0, "closed": 0, "sessions": 0}
    for bad in ({}, {"permissions": []}, {"permissions": [""]}, {"permissions": ["word"]}, {"permissions": ["a:b"] * 101}, {"permissions": ["a:b"], "reason": "r" * 124}):
        assert backend.refused("POST", "/api/v1/withdraw", {"user": "nobody"} | bad) == (400, "bad_command"), bad
    member = Backend(hub, token())
    for path in ("/api/v1/withdraw", "/api/v1/reauthenticate"):
        assert member.refused("POST", path, {"user": "a", "permissions": ["a:b"]}) == (403, "forbidden")


@pytest.mark.parametrize("live", [True, False], ids=["taken over", "away"])
async def test_a_resumed_session_goes_without_until_a_newer_token_comes(hub, backend, live):
    room = f"project:w-3-{live}"
    old = token("w-3", READER)
    async with joined(hub, old, query=f"client_id=w-3-{live}") as peer:
        await peer.subscribe(room)
        backend.done("POST", "/api/v1/withdraw", {"client": f"w-3-{live}", "permissions": [f"{room}:read"]})
        await peer.next("unsubscribed")
        greeting = peer.data
        hub.publish(room, "secret", {})
        if not live:
            await peer.close()
        async with joined(hub, old) as again:
            # Before it takes the session up, its token is all that counts.
            results = await resumed(again, greeting, [room])
            assert results[room]["error"]["code"] == "forbidden", results
            assert (await again.refused("subscribe", {"room": room}))["code"] == "forbidden"
            await again.refused("auth.refresh", {"token": token("somebody else", READER)})
            await again.done("auth.refresh", {"token": old})
            assert (await again.refused("subscribe", {"room": room}))["code"] == "forbidden", "the token it had"
            await again.done("auth.refresh", {"token": token("w-3", READER, jti="new")})
            await again.subscribe(room)
            await again.done("auth.refresh", {"token": token("w-3", READER, iat=int(time.time()) - 60)})
            assert (await again.next("unsubscribed"))["data"]["room"] == room, "an older one"


async def test_an_absent_session_comes_back_without_what_was_withdrawn(hub, backend):
    room, old = "project:w-4", token("w-4", READER)
    for target in ("session", "user"):
        async with joined(hub, old) as peer:
            await peer.subscribe(room)
            greeting = peer.data
        async with asyncio.timeout(5):
            while backend.done("GET", f"/api/v1/sessions/{greeting['session_id']}")["connected"]:
                await asyncio.sleep(0.01)
        who = {"session": greeting["session_id"]} if target == "session" else {"user": "w-4"}
        answer = backend.done("POST", "/api/v1/withdraw", who | {"permissions": ["project:w-4:read"]})
        assert answer["connections"] == 0 and answer["sessions"] >= 1
        async with joined(hub, old) as again:
            results = await resumed(again, greeting, [])
            assert results[room]["error"]["code"] == "forbidden"
        async with joined(hub, old, query=f"session_id={greeting['session_id']}") as named:
            assert (await named.refused("subscribe", {"room": room}))["code"] == "forbidden", "taken up by its name"
        newer = token("w-4", READER, jti=target)
        async with joined(hub, newer, query=f"session_id={greeting['session_id']}") as named:
            await named.subscribe(room)


async def test_a_session_that_may_not_connect_lets_nobody_in_with_an_old_token(hub, backend):
    old = token("w-5")
    async with joined(hub, old) as peer:
        session = peer.data["session_id"]
        backend.done("POST", "/api/v1/withdraw", {"session": session, "permissions": ["websocket:connect"]})
        assert (await peer.closed())[0] == 4403
    with pytest.raises(InvalidStatus) as refused:
        async with joined(hub, old, query=f"session_id={session}"):
            pass
    assert refused.value.response.status_code == 403
    async with joined(hub, old) as other:
        await other.send("resume", {"session_id": session, "token": peer.data["resume"]["token"], "cursors": {}}, id=1)
        assert (await other.closed())[0] == 4403
    async with joined(hub, token("w-5", jti="new"), query=f"session_id={session}"):
        pass
