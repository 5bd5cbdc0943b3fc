"""Hooks: what a backend is told, whether it is asked who may connect, and that a backend in any state changes nothing for the
sockets."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import time

import pytest
from websockets.exceptions import InvalidStatus

from backend import HookServer, is_signed
from hub import Hub, HubFailed, admin, token
from peer import TIMESTAMP, joined
from test_operations import labelled, undisturbed, until

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
EVENTS = ["connect", "disconnect", "message", "occupied", "vacated"]
FAST = {"hooks.secret": SECRET, "hooks.batch_wait_ms": 20, "hooks.debounce_ms": 100}


@pytest.fixture
def server():
    servers = []

    def make(*positional, **named) -> HookServer:
        servers.append(HookServer(*positional, **named))
        return servers[-1]

    yield make
    for one in servers:
        one.stop()


def hooks_of(hub: Hub) -> dict:
    status, _, body = hub.get("/ready")
    assert status == 200, body
    return json.loads(body)["hooks"]


async def echo_beside(hub: Hub, until_done) -> float:
    """The longest round trip of a client that goes on talking meanwhile, in seconds."""
    slowest = 0.0
    async with joined(hub) as peer:
        work = asyncio.ensure_future(until_done)
        while not work.done():
            began = time.monotonic()
            await peer.done("ping", {})
            slowest = max(slowest, time.monotonic() - began)
            await asyncio.sleep(0.005)
        await work
    return slowest


# ---- events ----


async def test_the_backend_is_told_who_came_what_they_said_and_which_rooms_they_were_in(start, server, room):
    backend = server()
    hub = start(FAST | {"hooks.url": backend.url + "/hooks?tenant=1", "hooks.events": EVENTS})
    async with joined(hub, token("alice", name="Alice", roles=["operator"]), query="client_id=c1&session_id=s1") as alice:
        await alice.subscribe(room)
        await alice.done("message", {"n": 1.50, "text": "é\""})
        async with joined(hub, token("bob")) as bob:
            await bob.subscribe(room)
        await until(lambda: backend.events("occupied") and len(backend.events("disconnect")) == 1, "bob is gone")
        assert backend.events("vacated") == [], "alice is still there"
        await alice.connection.close(3001, "enough")
    await until(lambda: backend.events("vacated"), "the room is empty")

    events = backend.events()
    assert [event["type"] for event in events if event.get("client_id") == "c1"] == ["connect", "message", "disconnect"]
    for event in events:
        assert TIMESTAMP.match(event["timestamp"]) and event["node"] == "node-1" and event["id"].startswith("evt_"), event
    came = next(event for event in events if event["type"] == "connect" and event["client_id"] == "c1")
    assert (came["session_id"], came["user_id"], came["name"], came["roles"]) == ("s1", "alice", "Alice", ["operator"])
    [said] = backend.events("message")
    assert said["data"] == {"n": 1.5, "text": "é\""} and said["user_id"] == "alice"
    went = next(event for event in events if event["type"] == "disconnect" and event["client_id"] == "c1")
    assert (went["code"], went["reason"], went["closed_by"], went["messages_received"]) == (3001, "enough", "client", 2)
    assert [event["room"] for event in backend.events("occupied") + backend.events("vacated")] == [room, room]
    for call in backend.calls:
        assert call.path == "/hooks?tenant=1" and is_signed(call, SECRET) and call.headers["content-type"] == "application/json"
        assert "eyJ" not in call.body.decode() + str(call.headers), "no token goes out"
    # The message waits in the inbox as well, for who receives it.
    status = hooks_of(hub)["events"]
    assert (status["breaker"], status["lost"], status["queued"]) == ("closed", 0, 0) and status["told"] == len(events)


async def test_what_undoes_itself_is_not_told_and_calls_are_few(start, server, room):
    backend = server()
    hub = start(FAST | {"hooks.url": backend.url, "hooks.events": ["occupied", "vacated"], "hooks.debounce_ms": 400, "hooks.batch_wait_ms": 500})
    async with joined(hub) as peer:
        for number in range(10):
            await peer.subscribe(f"{room}{number}")
            await peer.done("unsubscribe", {"room": f"{room}{number}"})
        for number in range(20):
            await peer.subscribe(f"{room}-{number}")
        await until(lambda: len(backend.events()) == 20, "all are told")
        assert {event["room"] for event in backend.events()} == {f"{room}-{number}" for number in range(20)}
        assert len(backend.calls) <= 3, "events go together"
        assert hooks_of(hub)["events"]["debounced"] == 20


async def test_kinds_of_rooms_are_chosen_and_batches_bounded(start, server, room):
    backend = server()
    hub = start(FAST | {"hooks.url": backend.url, "hooks.events": ["occupied"], "hooks.room_kinds": ["agent", "user"], "hooks.batch_max": 2})
    async with joined(hub, token("carol")) as peer:
        await peer.subscribe(room)
        for number in range(5):
            await peer.subscribe(f"agent:{number}")
        await until(lambda: len(backend.events()) == 6, "all are told")
        assert {event["room"] for event in backend.events()} == {"user:carol"} | {f"agent:{number}" for number in range(5)}
        assert all(len(call.json) <= 2 for call in backend.calls)


async def test_a_secret_is_changed_while_the_hub_runs(start, server, tmp_path):
    backend = server()
    file = tmp_path / "hub.toml"
    write = lambda secrets: file.write_text(f'hooks.url = "{backend.url}"\nhooks.secret = {json.dumps(secrets)}\nhooks.batch_wait_ms = 0\n')  # noqa: E731
    write(["the old one"])
    hub = start(arguments=("--config", str(file)))
    async with joined(hub, query="client_id=first"):
        await until(lambda: backend.calls, "the first")
    assert is_signed(backend.calls[0], "the old one")
    write(["the new one", "the old one"])
    hub.signal(signal.SIGHUP)
    await until(lambda: "configuration read again" in hub.log(), "it is read again")
    count = len(backend.calls)
    async with joined(hub):
        await until(lambda: len(backend.calls) > count, "another")
    assert is_signed(backend.calls[-1], "the new one") and is_signed(backend.calls[-1], "the old one")
    status, _, body = hub.get("/ready")
    shown = subprocess.run([hub.arguments[0], "config", "--config", str(file)], capture_output=True, text=True).stdout
    for text in (hub.log(), body.decode(), shown):
        assert "the old one" not in text and "the new one" not in text


async def test_what_failed_is_sent_again_and_what_was_refused_is_not(start, server, room):
    answers = iter([(503, b"", {"retry-after": "1"}), (500, b"", {}), (200, b"", {}), (400, b"", {})])
    backend = server(lambda call: next(answers, (200, b"", {})))
    hub = start(FAST | {"hooks.url": backend.url, "hooks.events": ["occupied"], "hooks.debounce_ms": 0})
    async with joined(hub) as peer:
        await peer.subscribe(room)
        await until(lambda: len(backend.calls) == 3, "three attempts")
        first, second, third = backend.calls[:3]
        assert {call.headers["webhook-id"] for call in (first, second, third)} == {first.headers["webhook-id"]}
        assert first.body == second.body == third.body and all(is_signed(call, SECRET) for call in backend.calls)
        assert second.at - first.at >= 1, "as long as the backend asked for"
        await until(lambda: hooks_of(hub)["events"]["told"] == 1, "it is told")
        await peer.subscribe(f"{room}1")
        await until(lambda: hooks_of(hub)["events"]["refused"] == 1, "it is refused")
        await peer.subscribe(f"{room}2")
        await until(lambda: hooks_of(hub)["events"]["told"] == 2, "others go on")
    assert len(backend.calls) == 5
    assert labelled(hub, 'ringhub_hook_events_total{outcome="refused"}') == 1
    assert labelled(hub, "ringhub_hook_failures_total") == 2


async def test_a_batch_is_given_up_when_its_time_is_over_and_the_next_ones_go_on(start, server):
    answers = iter([(500, b"", {})])
    backend = server(lambda call: next(answers, (200, b"", {})))
    hub = start(FAST | {"hooks.url": backend.url, "hooks.events": ["connect"], "hooks.retry_s": 0})
    async with joined(hub, query="client_id=first"):
        await until(lambda: hooks_of(hub)["events"]["lost"] == 1, "it is given up")
    async with joined(hub, query="client_id=second"):
        await until(lambda: hooks_of(hub)["events"]["told"] == 1, "the next one is told")
    assert len(backend.calls) == 2 and len({call.headers["webhook-id"] for call in backend.calls}) == 2
    assert [event["client_id"] for event in backend.events()] == ["first", "second"]


async def test_a_backend_that_hangs_does_not_hold_up_the_end(start, server):
    backend = server(lambda call: time.sleep(8) or (200, b"", {}))
    hub = start(FAST | {"hooks.url": backend.url, "hooks.timeout_ms": 60_000})
    async with joined(hub):
        await until(lambda: backend.calls, "a call that hangs")
    hub.signal(signal.SIGTERM)
    began = time.monotonic()
    assert hub.wait(10) == 0 and time.monotonic() - began < 8


@pytest.mark.parametrize("trouble", ["stopped", "hanging", "garbage", "slow"])
async def test_a_backend_in_trouble_changes_nothing_for_the_sockets(start, server, room, trouble):
    backend = server()
    hub = start(FAST | {"hooks.url": backend.url, "hooks.events": EVENTS, "hooks.timeout_ms": 1000, "hooks.queue_max": 64, "hooks.batch_max": 20,
                        "alerts.raise_after_s": 0, "alerts.clear_after_s": 1})
    calm = await undisturbed(hub, room, 1)
    await until(lambda: hooks_of(hub)["events"]["queued"] == 0, "all is told")
    before = hooks_of(hub)["events"]
    if trouble == "stopped":
        backend.stop()
    elif trouble == "hanging":
        backend.answer = lambda call: time.sleep(3) or (200, b"", {})
    elif trouble == "garbage":
        backend.raw = b"\x00\xff this is not HTTP\r\n\r\n" * 10
    else:
        backend.answer = lambda call: time.sleep(0.7) or (200, b"", {})

    async def traffic():
        async with joined(hub) as peer:
            for number in range(300):
                # Refused where neither the hook nor the session's inbox has a place.
                answer = await peer.ask("message", {"n": number})
                assert answer["type"] == "accepted" or answer["data"]["code"] == "unavailable", answer
        await asyncio.sleep(1.5)

    slowest = await echo_beside(hub, traffic())
    assert slowest < max(0.5, calm * 5), f"{slowest} s beside a backend in trouble, {calm} s before"
    status = hooks_of(hub)["events"]
    if trouble == "slow":
        assert status["breaker"] == "closed"
    else:
        await until(lambda: hooks_of(hub)["events"]["breaker"] != "closed", "the breaker opens")
        assert hooks_of(hub)["events"]["trouble"] == {"stopped": "connection", "hanging": "timeout", "garbage": "garbage"}[trouble]
        assert labelled(hub, "ringhub_hook_breaker") in (1, 2)
    status = hooks_of(hub)["events"]
    assert status["queued"] <= 64 + 2 * 20 + 1, "the bound holds: the queue, what is gathered and what is in hand"
    if trouble == "stopped":
        backend.start()
    backend.raw, backend.answer = None, lambda call: (200, b"", {})
    after = await until(lambda: (now := hooks_of(hub)["events"])["breaker"] == "closed" and now["queued"] == 0 and now, "the backend is told again")
    # 302 connects and messages, and their ends: each is told or lost.
    total = (after["told"] + after["lost"] + after["refused"]) - (before["told"] + before["lost"] + before["refused"])
    assert after["lost"] > 0 and 302 <= total <= 304, (before, after)
    assert labelled(hub, 'ringhub_hook_events_total{outcome="lost"}') == after["lost"]


async def test_an_answer_of_any_length_counts_by_its_status(start, server):
    backend = server(lambda call: (200, b"x" * 1_000_000, {}))
    hub = start(FAST | {"hooks.url": backend.url})
    async with joined(hub):
        await until(lambda: hooks_of(hub)["events"]["told"] >= 1, "it is told")
    assert hooks_of(hub)["events"]["failures"] == 0


async def test_an_alert_says_that_the_backend_does_not_answer(start, server):
    backend = server()
    backend.stop()
    hub = start(FAST | {"hooks.url": backend.url, "alerts.raise_after_s": 0, "alerts.clear_after_s": 1})
    async with joined(hub, admin()) as watcher:
        await watcher.subscribe("admin:alerts")
        raised = await watcher.next("system_alert")
        assert (raised["data"]["alert"], raised["data"]["state"]) == ("hook_down", "raised")
        backend.start()
        cleared = await watcher.next("system_alert")
        assert (cleared["data"]["alert"], cleared["data"]["state"]) == ("hook_down", "cleared")


async def test_the_last_events_are_told_at_the_end_or_counted_as_lost(start, server):
    backend = server()
    hub = start(FAST | {"hooks.url": backend.url, "hooks.batch_wait_ms": 5000})
    async with joined(hub, query="client_id=last"):
        hub.signal(signal.SIGTERM)
        assert hub.wait() == 0
    assert [event["type"] for event in backend.events() if event.get("client_id") == "last"] == ["connect", "disconnect"]
    backend.stop()
    hub = start(FAST | {"hooks.url": backend.url})
    async with joined(hub):
        began = time.monotonic()
        hub.signal(signal.SIGTERM)
        assert hub.wait() == 0 and time.monotonic() - began < 12 and "were not told to the backend" in hub.log()
    backend.start()


async def test_https_is_trusted_by_the_file_that_is_named(start, server, tmp_path):
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed; it makes the certificate")
    pem = tmp_path / "server.pem"
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE", "-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")],
        capture_output=True, text=True,
    )
    assert made.returncode == 0, made.stderr
    pem.write_text((tmp_path / "cert.pem").read_text() + (tmp_path / "key.pem").read_text())
    backend = server(certificate=pem)
    hub = start(FAST | {"hooks.url": backend.url, "hooks.ca_file": str(tmp_path / "cert.pem")})
    async with joined(hub):
        await until(lambda: backend.events("connect"), "it is told")
    strict = start(FAST | {"hooks.url": backend.url})
    async with joined(strict):
        await until(lambda: hooks_of(strict)["events"]["trouble"] == "tls", "a stranger is told nothing")


@pytest.mark.parametrize("settings, word", [
    ({"hooks.url": "ftp://host/"}, "hooks.url"),
    ({"hooks.url": "http://user:hunter2@host/"}, "hooks.url"),
    ({"hooks.events": "connect,other"}, "hooks.events"),
    ({"hooks.room_kinds": "nothing"}, "hooks.room_kinds"),
    ({"hooks.connect_headers": "Authorization"}, "hooks.connect_headers"),
    ({"hooks.url": "https://host/", "hooks.ca_file": "/nowhere.pem"}, "hooks.ca_file"),
])
def test_what_can_not_work_is_said_at_the_start(settings, word):
    with pytest.raises(HubFailed) as failure:
        Hub(settings)
    said = str(failure.value).rsplit("\nringhub:", 1)[1]
    assert word in said and "hunter2" not in said


# ---- authorisation ----


async def refused(hub: Hub, *positional, **named) -> tuple[int, dict, dict]:
    """A connection that is not let in: status, headers, error."""
    with pytest.raises(InvalidStatus) as failure:
        async with joined(hub, *positional, **named):
            pass
    response = failure.value.response
    return response.status_code, response.headers, json.loads(response.body)["error"]


async def test_the_backend_lets_in_with_rooms_permissions_and_metadata(start, server, room):
    def answer(call):
        grants = {"rooms": [room], "permissions": ["quote:*:read", "admin:ops:read"], "metadata": {"plan": "gold"}}
        return 200, {"allow": True} | (grants if call.json["user_id"] == "alice" else {}), {}

    backend = server(answer)
    hub = start({"hooks.connect_url": backend.url + "/connect", "hooks.secret": SECRET, "hooks.connect_headers": ["User-Agent", "X-Tenant"]})
    weak = token("alice", ["websocket:connect", "websocket:subscribe"], roles=["viewer"])
    async with joined(hub, weak, query="client_id=c1&session_id=s1", headers={"X-Tenant": "blue"}) as alice, joined(hub, token("bob")) as bob:
        assert alice.data["rooms"] == ["user:alice", "session:s1", "global", room]
        assert len(bob.data["rooms"]) == 3
        await bob.done("publish", {"room": room, "type": "n", "data": 1})
        assert (await alice.events(room, 1))[0]["data"] == 1
        assert await alice.done("metadata", {}) == {"plan": "gold"}
        await alice.subscribe("quote:7")
        assert (await alice.refused("subscribe", {"room": "project:other"}))["code"] == "forbidden"
        # What was granted outlives the token, and what was not stays forbidden.
        await alice.done("auth.refresh", {"token": token("alice", ["websocket:connect", "websocket:subscribe"])})
        await bob.done("publish", {"room": room, "type": "n", "data": 2})
        assert (await alice.events(room, 1))[0]["data"] == 2
        await alice.done("unsubscribe", {"room": room})
        await alice.subscribe(room)
        assert (await bob.refused("subscribe", {"room": "admin:ops"}))["code"] == "forbidden"
    asked = next(call for call in backend.calls if call.json["user_id"] == "alice")
    assert asked.path == "/connect" and is_signed(asked, SECRET)
    told = asked.json
    assert (told["type"], told["client_id"], told["session_id"], told["roles"], told["path"]) == ("connect", "c1", "s1", ["viewer"], "/ws")
    assert told["permissions"] == ["websocket:connect", "websocket:subscribe"] and told["address"] == "127.0.0.1"
    assert told["headers"]["x-tenant"] == "blue" and "user-agent" in told["headers"] and set(told["headers"]) <= {"x-tenant", "user-agent"}
    for call in backend.calls:
        assert "eyJ" not in call.body.decode() + str(call.headers), "no token goes out"
    assert hooks_of(hub)["connect"]["allowed"] == 2


async def test_the_backend_refuses_with_a_status_of_its_choice(start, server):
    answers = {
        "plain": (200, {"allow": False}, {}),
        "later": (200, {"allow": False, "status": 429, "message": "one at a time", "retry_after_s": 7}, {}),
        "short": (403, b"", {}),
        "other": (200, {"allow": False, "status": 401, "message": "who?"}, {}),
    }
    backend = server(lambda call: answers.get(call.json["user_id"], (204, b"", {})))
    hub = start({"hooks.connect_url": backend.url})
    assert (await refused(hub, token("plain")))[0] == 403
    status, headers, error = await refused(hub, token("later"))
    assert (status, headers["retry-after"], error) == (429, "7", {"code": "rate_limited", "message": "one at a time"})
    assert (await refused(hub, token("short")))[0] == 403
    assert (await refused(hub, token("other")))[2] == {"code": "unauthorized", "message": "who?"}
    async with joined(hub, token("good")) as peer:
        await peer.done("ping", {})
    status = hooks_of(hub)["connect"]
    assert (status["denied"], status["allowed"], status["pending"]) == (4, 1, 0)
    assert labelled(hub, "ringhub_connections_refused_total{") == 4
    # Who has no good token is not asked about.
    count = len(backend.calls)
    assert (await refused(hub, "x.y.z"))[0] == 401
    assert len(backend.calls) == count


@pytest.mark.parametrize("trouble", ["stopped", "hanging", "garbage", "nonsense"])
async def test_without_an_answer_clients_are_refused_or_let_in_as_configured(start, server, trouble):
    backend = server()
    if trouble == "stopped":
        backend.stop()
    elif trouble == "hanging":
        backend.answer = lambda call: time.sleep(2) or (204, b"", {})
    elif trouble == "garbage":
        backend.raw = b"\x00\x01\x02\r\n\r\n"
    else:
        backend.answer = lambda call: (200, {"allow": "perhaps"}, {})
    settings = {"hooks.connect_url": backend.url, "hooks.connect_timeout_ms": 200}
    closed, opened = start(settings), start(settings | {"hooks.connect_fail": "open"})
    for _ in range(5):
        began = time.monotonic()
        status, headers, error = await refused(closed)
        assert (status, error["code"]) == (503, "unavailable") and int(headers["retry-after"]) > 0
        async with joined(opened) as peer:
            await peer.done("ping", {})
        assert time.monotonic() - began < 2
    for hub, outcome in ((closed, "failed_closed"), (opened, "failed_open")):
        status = hooks_of(hub)["connect"]
        assert status[outcome] == 5 and status["breaker"] != "closed" and status["calls"] == 3, "it is left alone after three"
    assert labelled(closed, 'ringhub_hook_decisions_total{outcome="failed_closed"}') == 5
    if trouble == "stopped":
        backend.start()
    backend.raw, backend.answer = None, lambda call: (204, b"", {})

    async def let_in() -> bool:
        try:
            async with joined(closed):
                return True
        except InvalidStatus:
            return False

    deadline = time.monotonic() + 20
    while not await let_in():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    assert hooks_of(closed)["connect"]["breaker"] == "closed"


async def test_a_slow_backend_holds_up_nobody_who_is_in(start, server):
    backend = server(lambda call: (time.sleep(0.8) if call.json["user_id"] != "alice" else None) or (204, b"", {}))
    hub = start({"hooks.connect_url": backend.url, "hooks.connect_pending_max": 40, "hooks.connect_calls_max": 8})
    outcomes: list[int] = []

    async def come(number: int):
        try:
            async with joined(hub, token(f"slow{number}")):
                outcomes.append(101)
        except InvalidStatus as failure:
            outcomes.append(failure.response.status_code)

    async def crowd():
        await asyncio.gather(*(come(number) for number in range(60)))

    slowest = await echo_beside(hub, crowd())
    assert slowest < 0.5, f"{slowest} s beside handshakes that wait"
    # Eight at a time, most of a second each; those beyond the bound are refused.
    assert outcomes.count(101) >= 24 and set(outcomes) <= {101, 503}, outcomes
    assert labelled(hub, 'ringhub_connections_refused_total{') >= 20
    assert hooks_of(hub)["connect"]["pending"] == 0


async def test_a_connection_that_the_backend_ends_costs_no_client_its_own(start, server):
    backend = server(lambda call: (204, b"", {}))
    backend.answers_per_connection = 1
    hub = start({"hooks.connect_url": backend.url})
    for _ in range(10):
        async with joined(hub):
            pass
    status = hooks_of(hub)["connect"]
    assert (status["allowed"], status["failures"]) == (10, 0)


async def test_clients_that_do_not_wait_are_not_asked_about(start, server):
    backend = server(lambda call: time.sleep(0.3) or (204, b"", {}))
    hub = start({"hooks.connect_url": backend.url, "hooks.connect_calls_max": 1})
    connections = []
    for number in range(10):
        reader, writer = await asyncio.open_connection(hub.host, hub.port)
        writer.write((f"GET /ws?token={token()}&client_id=gone{number} HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                      "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n").encode())
        connections.append(writer)
    await until(lambda: hooks_of(hub)["connect"]["pending"] == 10, "they wait")
    for writer in connections:
        writer.close()
    await until(lambda: hooks_of(hub)["connect"]["pending"] == 0, "nobody waits")
    assert len(backend.calls) <= 3
    async with joined(hub, query="client_id=gone5") as peer:
        await peer.done("ping", {})


async def test_a_hub_without_hooks_says_so_and_pays_nothing_for_them(hub):
    status, _, body = hub.get("/ready")
    assert status == 200 and "hooks" not in json.loads(body)
    assert not any(name.startswith("ringhub_hook") for name in hub.metrics())
    threads = {open(f"/proc/{hub.process.pid}/task/{task}/comm").read().strip() for task in os.listdir(f"/proc/{hub.process.pid}/task")}
    assert not any(name.startswith("hook") for name in threads)
