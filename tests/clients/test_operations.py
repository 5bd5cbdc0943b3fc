"""What an operator has of a hub: stored history, alerts, signs of life and the stream of snapshots."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import http.client
import json
import os
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest

from hub import Hub, HubFailed, admin, token
from peer import joined
from test_api import Backend

WAIT_S = 40


async def until(condition, what: str, wait_s: float = WAIT_S):
    """Waits until a condition holds, and gives what it gave."""
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        await asyncio.sleep(0.05)
    raise AssertionError(f"{what} did not come about within {wait_s} s")


def rows(path: Path, sql: str, *values) -> list[tuple]:
    with contextlib.closing(sqlite3.connect(path, timeout=5)) as database:
        return database.execute(sql, values).fetchall()


def store_of(hub: Hub) -> dict:
    status, _, body = hub.get("/ready")
    assert status == 200, body
    return json.loads(body)["store"]


def labelled(hub: Hub, series: str) -> float:
    _, _, body = hub.get("/metrics")
    found = [line for line in body.decode().splitlines() if line.startswith(series)]
    assert found, series
    return sum(float(line.rsplit(" ", 1)[1]) for line in found)


async def churn(hub: Hub, count: int, name: str = "churn") -> None:
    """Clients that come, say something and go: two reports each."""

    async def one(number: int) -> None:
        async with joined(hub, token(f"{name}{number}"), query=f"client_id={name}-{number}") as peer:
            await peer.done("ping", {})

    for first in range(0, count, 20):
        await asyncio.gather(*(one(number) for number in range(first, min(first + 20, count))))


async def undisturbed(hub: Hub, room: str, seconds: float) -> float:
    """Two clients go on talking; the longest round trip in seconds. Nothing may be lost."""
    slowest = 0.0
    async with joined(hub) as publisher, joined(hub, token("bob")) as subscriber:
        await subscriber.subscribe(room)
        number, until_s = 0, time.monotonic() + seconds
        while time.monotonic() < until_s:
            number += 1
            began = time.monotonic()
            await publisher.done("publish", {"room": room, "type": "tick", "data": {"n": number}})
            [event] = await subscriber.events(room, 1)
            slowest = max(slowest, time.monotonic() - began)
            assert event["data"]["n"] == number and event["seq"] == number
            await asyncio.sleep(0.01)
    return slowest


async def test_connections_and_performance_are_stored_and_shown(start, tmp_path):
    path = tmp_path / "history.db"
    hub = start({"store.path": str(path)})
    backend = Backend(hub)
    async with joined(hub, token("alice"), query="client_id=a1&session_id=s1") as alice:
        await alice.done("ping", {})
        await until(lambda: rows(path, "select 1 from connections where client_id = 'a1' and closed_ms is null"), "the row")
        await alice.connection.close(3001, "done for today")
    async with joined(hub, token("bob"), query="client_id=b1") as bob:
        backend.done("DELETE", "/api/v1/connections/b1?code=4123&reason=no")
        assert (await bob.closed())[0] == 4123
    async with joined(hub, token("carol"), query="client_id=c1") as carol:
        carol.connection.transport.abort()
    columns = "closed_by, close_code, close_reason, user_id, session_id, messages_received"
    ended = f"select {columns} from connections where client_id = ? and closed_ms >= opened_ms"
    [row] = await until(lambda: rows(path, ended, "a1"), "alice's end")
    assert row == ("client", 3001, "done for today", "alice", "s1", 1)
    [row] = await until(lambda: rows(path, ended, "b1"), "bob's end")
    assert row[:4] == ("hub", 4123, "no", "bob")
    [row] = await until(lambda: rows(path, ended, "c1"), "carol's end")
    assert row[:4] == ("nobody", None, "", "carol")

    page = await until(lambda: (page := backend.done("GET", "/api/v1/performance"))["points"] and page, "a point")
    assert page["step_s"] == 10
    point = page["points"][-1]
    assert point["samples"] == 1 and point["connections_opened"] >= 0 and point["resident_bytes"] > 1e6
    assert sum(point["connections_opened"] for point in page["points"]) <= 3
    since = page["points"][0]["at"]
    assert backend.done("GET", f"/api/v1/performance?since={since}&step=10")["points"][0]["at"] == since
    assert backend.done("GET", "/api/v1/performance?since=0")["points"], "a step is chosen"
    assert backend.refused("GET", "/api/v1/performance?since=0&step=10")[0] == 400
    assert backend.refused("GET", "/api/v1/performance?since=yesterday")[0] == 400
    assert backend.refused("GET", "/api/v1/performance?step=0")[0] == 400
    assert Backend(hub, token()).refused("GET", "/api/v1/performance")[0] == 403
    status = store_of(hub)
    assert status["breaker"] == "closed" and status["trouble"] is None and status["lost"] == 0
    assert status["written"] == hub.metrics()["ringhub_store_written_total"] >= 6


async def test_a_hub_without_a_store_says_so_and_pays_nothing_for_it(hub):
    assert Backend(hub).refused("GET", "/api/v1/performance") == (404, "not_found")
    status, _, body = hub.get("/ready")
    assert status == 200 and "store" not in json.loads(body)
    assert "ringhub_store_lost_total" not in hub.metrics()
    threads = {Path(f"/proc/{hub.process.pid}/task/{task}/comm").read_text().strip() for task in os.listdir(f"/proc/{hub.process.pid}/task")}
    assert "store" not in threads


async def test_a_locked_database_disturbs_nobody_and_what_is_lost_is_counted(start, tmp_path, room):
    path = tmp_path / "history.db"
    hub = start({"store.path": str(path), "store.queue_max": 64, "alerts.raise_after_s": 0, "alerts.clear_after_s": 1})
    async with joined(hub, admin()) as watcher:
        await watcher.subscribe("admin:alerts")
        lock = sqlite3.connect(path, isolation_level=None)
        lock.execute("BEGIN EXCLUSIVE")
        await churn(hub, 100)
        await until(lambda: store_of(hub)["breaker"] == "open", "the breaker opens")
        slowest = await undisturbed(hub, room, 3)
        assert slowest < 0.5, f"a round trip took {slowest} s beside a locked database"
        status = store_of(hub)
        assert status["trouble"] == "locked" and status["lost"] > 0 and status["failures"] >= 3
        assert hub.metrics()["ringhub_store_breaker"] in (1, 2)
        raised = await watcher.next("system_alert")
        assert raised["room"] == "admin:alerts"
        assert (raised["data"]["alert"], raised["data"]["state"], raised["data"]["severity"]) == ("store_down", "raised", "warning")
        active = Backend(hub).done("GET", "/api/v1/alerts")["active"]
        assert [alert["alert"] for alert in active] == ["store_down"]
        lock.execute("ROLLBACK")
        lock.close()
        await until(lambda: (now := store_of(hub))["breaker"] == "closed" and now["queued"] == 0, "the store works again")
        cleared = await watcher.next("system_alert")
        assert (cleared["data"]["alert"], cleared["data"]["state"]) == ("store_down", "cleared")
    # The watcher, 100 of the churn and the two that talked: each came and went.
    reports = 2 * 103
    await until(lambda: labelled(hub, 'ringhub_store_written_total{table="connections"}') + labelled(hub, 'ringhub_store_lost_total{table="connections"}') == reports, "every report is written or lost")
    lost = labelled(hub, 'ringhub_store_lost_total{table="connections"}')
    assert lost > 0
    began = rows(path, "select count(*) from connections")[0][0]
    assert began >= 103 - lost
    stored = await until(lambda: Backend(hub).done("GET", "/api/v1/alerts?since=0")["alerts"], "the alerts are stored")
    assert [(alert["alert"], alert["state"]) for alert in stored] == [("store_down", "cleared"), ("store_down", "raised")]
    assert rows(path, "select count(*) from alerts") == [(2,)]


async def test_a_database_that_is_taken_away_is_made_anew(start, tmp_path, room):
    path = tmp_path / "history.db"
    hub = start({"store.path": str(path)})
    await churn(hub, 3, "before")
    await until(lambda: store_of(hub)["written"] >= 6, "the first rows")
    for file in tmp_path.iterdir():
        file.unlink()
    talking = asyncio.create_task(undisturbed(hub, room, 3))
    await churn(hub, 30, "after")
    assert await talking < 0.5
    await until(lambda: path.exists() and len(rows(path, "select 1 from connections where client_id like 'after-%' and closed_by = 'client'")) == 30, "the rows are in a new file")
    status = store_of(hub)
    assert status["lost"] == 0 and status["failures"] >= 1 and status["breaker"] == "closed"


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of a megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "ringhub", str(disk)], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


async def test_a_full_disk_disturbs_nobody_and_is_left_behind_when_there_is_room(start, tiny_disk, room):
    path = tiny_disk / "history.db"
    hub = start({"store.path": str(path), "store.queue_max": 64})
    filler = tiny_disk / "filler"
    with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    talking = asyncio.create_task(undisturbed(hub, room, 5))
    await churn(hub, 300)
    assert await talking < 0.5
    status = await until(lambda: (now := store_of(hub))["breaker"] != "closed" and now, "the breaker opens")
    assert status["trouble"] in ("full", "io") and status["lost"] > 0
    filler.unlink()
    await until(lambda: (now := store_of(hub))["breaker"] == "closed" and now["queued"] == 0, "the store works again")
    reports = 2 * 302
    written = labelled(hub, 'ringhub_store_written_total{table="connections"}')
    assert written + labelled(hub, 'ringhub_store_lost_total{table="connections"}') == reports
    await churn(hub, 5, "later")
    await until(lambda: len(rows(path, "select 1 from connections where client_id like 'later-%' and closed_ms is not null")) == 5, "what comes later is stored")


def test_a_file_that_is_none_of_ours_ends_the_start(tmp_path):
    path = tmp_path / "history.db"
    path.write_text("this is no database " * 100)
    with pytest.raises(HubFailed, match="no sound SQLite database"):
        Hub({"store.path": str(path)})
    with pytest.raises(HubFailed, match="its folder has to exist"):
        Hub({"store.path": str(tmp_path / "missing" / "history.db")})
    foreign = tmp_path / "foreign.db"
    with contextlib.closing(sqlite3.connect(foreign)) as database:
        database.execute("create table songs (name text)")
    with pytest.raises(HubFailed, match="another program"):
        Hub({"store.path": str(foreign)})


async def test_the_last_reports_are_written_before_the_end(start, tmp_path):
    path = tmp_path / "history.db"
    hub = start({"store.path": str(path)})
    async with contextlib.AsyncExitStack() as stack:
        for number in range(20):
            await stack.enter_async_context(joined(hub, query=f"client_id=e{number}"))
        hub.signal(signal.SIGTERM)
        assert await asyncio.to_thread(hub.wait) == 0
    assert rows(path, "select count(*) from connections where close_code = 1001 and closed_by = 'hub'") == [(20,)]


# ---- alerts and signs of life ----

PTRACE_DETACH, PTRACE_SEIZE, PTRACE_INTERRUPT, WALL = 17, 0x4206, 0x4207, 0x40000000


@contextlib.contextmanager
def stopped(hub: Hub, name: str):
    """Holds one thread of the hub, as a debugger would."""
    tasks = Path(f"/proc/{hub.process.pid}/task")
    [task] = [int(task.name) for task in tasks.iterdir() if (task / "comm").read_text().strip() == name]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    if libc.ptrace(PTRACE_SEIZE, task, None, None) != 0:
        pytest.skip(f"threads can't be held here: {os.strerror(ctypes.get_errno())}")
    assert libc.ptrace(PTRACE_INTERRUPT, task, None, None) == 0
    os.waitpid(task, WALL)
    try:
        yield
    finally:
        assert libc.ptrace(PTRACE_DETACH, task, None, None) == 0


async def test_a_shard_that_hangs_turns_ready_red_and_raises_an_alert(start):
    hub = start({"alerts.clear_after_s": 1}, shards=3)
    alerts = lambda: [(alert["alert"], alert["state"]) for alert in of_hub(hub, "/api/v1/alerts")["alerts"]]
    with stopped(hub, "shard-1"):
        await until(lambda: ready(hub)[0] == 503, "/ready turns red")
        status, page = ready(hub)
        assert (page["status"], page["shards_answering"]) == ("shards do not answer", 2)
        await until(lambda: ("shard_silent", "raised") in alerts(), "the alert")
        await asyncio.sleep(8)
        status, page = ready(hub)
        assert page["shards_deaf"] == 0, "those that call it are not to blame"
    await until(lambda: ready(hub)[0] == 200, "/ready turns green")
    await until(lambda: ("shard_silent", "cleared") in alerts(), "the alert is cleared")
    assert labelled(hub, 'ringhub_alerts_raised_total{alert="shard_silent"}') == 1
    assert labelled(hub, 'ringhub_alert_active') == 0
    assert "a shard took" in hub.log()


def any_shard(hub: Hub, path: str) -> tuple[int, bytes]:
    """Asks until it is a living shard that takes the connection."""
    for _ in range(200):
        with contextlib.suppress(OSError):
            status, _, body = short_get(hub, path)
            return status, body
    raise AssertionError("no shard answers")


def short_get(hub: Hub, path: str):
    connection = http.client.HTTPConnection(hub.host, hub.port, timeout=0.3)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {admin()}"})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def ready(hub: Hub) -> tuple[int, dict]:
    status, body = any_shard(hub, "/ready")
    return status, json.loads(body)


def of_hub(hub: Hub, path: str) -> dict:
    status, body = any_shard(hub, path)
    assert status == 200, body
    return json.loads(body)


async def test_thresholds_raise_and_clear_alerts(start):
    hub = start({"alerts.raise_after_s": 1, "alerts.clear_after_s": 1, "limits.connections_max": 10, "alerts.connections_percent": 50})
    backend = Backend(hub)
    async with joined(hub, admin()) as watcher:
        await watcher.subscribe("admin:alerts")
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(5):
                await stack.enter_async_context(joined(hub))
            raised = (await watcher.next("system_alert"))["data"]
            assert (raised["alert"], raised["state"], raised["value"], raised["threshold"]) == ("connections", "raised", 60.0, 50.0)
            assert "60 %" in raised["message"] and raised["severity"] == "warning"
            [active] = backend.done("GET", "/api/v1/alerts")["active"]
            assert active["alert"] == "connections" and active["value"] == 60.0
            assert hub.metrics()["ringhub_alert_active"] == 1
        cleared = (await watcher.next("system_alert"))["data"]
        assert (cleared["alert"], cleared["state"]) == ("connections", "cleared")
    page = backend.done("GET", "/api/v1/alerts")
    assert page["active"] == [] and [alert["state"] for alert in page["alerts"]] == ["cleared", "raised"]
    assert len(backend.done("GET", "/api/v1/alerts?limit=1")["alerts"]) == 1
    assert backend.done("GET", f"/api/v1/alerts?since={time.time() + 60}")["alerts"] == []
    assert backend.refused("GET", "/api/v1/alerts?limit=0")[0] == 400
    assert Backend(hub, token()).refused("GET", "/api/v1/alerts")[0] == 403


# ---- snapshots ----


async def test_snapshots_are_published_while_somebody_listens_and_only_then(start, room):
    hub = start()
    published = lambda: hub.metrics()["ringhub_publishes_total"]
    await asyncio.sleep(2.5)
    assert published() == 0
    async with joined(hub, token("eve", ["websocket:connect", "websocket:subscribe", "analytics:hub:read"])) as listener, joined(hub) as publisher:
        await listener.subscribe("analytics:hub")
        await listener.next("analytics.snapshot")
        for number in range(50):
            await publisher.done("publish", {"room": room, "type": "tick", "data": {"n": number}})
        snapshots = [(await listener.next("analytics.snapshot"))["data"] for _ in range(3)]
        last = snapshots[-1]
        assert last["connections"] == 2 and last["rooms"] >= 3 and last["resident_bytes"] > 1e6
        assert len(last["shards"]) == 2 and sum(shard["connections"] for shard in last["shards"]) == 2
        assert last["alerts"] == [] and last["cpu_percent"] >= 0
        assert 40 <= sum(snapshot["publishes_per_s"] for snapshot in snapshots) <= 70
        for name in ("messages_received_per_s", "deliveries_per_s", "bytes_sent_per_s", "errors_per_s", "connects_per_s"):
            assert last[name] >= 0
    await asyncio.sleep(2.5)
    before = published()
    await asyncio.sleep(2.5)
    assert published() == before, "nobody listens any more"
