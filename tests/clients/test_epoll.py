"""The hub where io_uring is forbidden: a seccomp filter as a container's runtime puts it on, and the hub on epoll within it.

What else must hold on epoll is what holds on io_uring: RINGHUB_SHARDS_DRIVER=epoll runs any of these suites on it.
"""

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hub import DRIVER, admin, binary, clean_environment, free_port, token
from peer import eventually, joined

# Answers the system calls in argv[2] with the errno in argv[1]; their numbers are the same on all machines.
FORBID = """
import ctypes, os, struct, sys
LOAD_NUMBER, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06
ERRNO, ALLOW = 0x00050000, 0x7FFF0000
SET_NO_NEW_PRIVS, SET_SECCOMP, FILTER = 38, 22, 2
instruction = struct.Struct("HBBI").pack
calls = [int(number) for number in sys.argv[2].split(",")]
program = instruction(LOAD_NUMBER, 0, 0, 0)
for number in calls:
    program += instruction(JUMP_EQUAL, 0, 1, number) + instruction(RETURN, 0, 0, ERRNO | int(sys.argv[1]))
program += instruction(RETURN, 0, 0, ALLOW)
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
prctl = ctypes.CDLL(None, use_errno=True).prctl
prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
filter = Program(len(program) // 8, program)
for call in [(SET_NO_NEW_PRIVS, 1, 0, 0, 0), (SET_SECCOMP, FILTER, ctypes.addressof(filter), 0, 0)]:
    if prctl(*call):
        sys.exit(os.strerror(ctypes.get_errno()))
os.execv(sys.argv[3], sys.argv[3:])
"""
SETUP, ENTER, REGISTER, PWAIT2 = 425, 426, 427, 441
EPERM, ENOMEM, EACCES, ENOSYS = 1, 12, 13, 38


@pytest.fixture
def forbidding(tmp_path, monkeypatch):
    """Puts the hub behind a filter, and leaves the choice of the driver to it."""
    monkeypatch.delenv(DRIVER, raising=False)
    program = str(binary())

    def forbid(errno: int, *calls: int) -> Path:
        script = tmp_path / "forbidding"
        (tmp_path / "forbid.py").write_text(FORBID)
        numbers = ",".join(map(str, calls))
        script.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path}/forbid.py {errno} {numbers} {program} "$@"\n')
        script.chmod(0o755)
        monkeypatch.setenv("HUB_BIN", str(script))
        return script

    return forbid


def told(hub) -> list[str]:
    """What the hub tells of its driver, in each of the places."""
    _, _, stats = hub.get("/api/v1/websocket/stats", {"Authorization": f"Bearer {admin()}"})
    pages = [json.loads(hub.get(page)[2])["driver"] for page in ("/ready", "/live", "/ws/health")]
    metric = next(line for line in hub.get("/metrics")[2].decode().splitlines() if line.startswith("ringhub_driver_info"))
    return [*pages, json.loads(stats)["driver"], metric.split('driver="')[1].split('"')[0]]


@pytest.mark.parametrize(
    ("errno", "calls"),
    [(EPERM, (SETUP, ENTER, REGISTER)), (ENOSYS, (SETUP, ENTER, REGISTER, PWAIT2)), (EACCES, (SETUP,)), (EPERM, (REGISTER,)), (EPERM, (ENTER,))],
    ids=["as Docker's profile", "as an old profile", "as a security module", "registering only", "entering only"],
)
async def test_the_hub_runs_on_epoll_where_io_uring_is_forbidden_and_says_so(start, forbidding, room, errno, calls):
    forbidding(errno, *calls)
    hub = start()
    assert told(hub) == ["epoll"] * 5
    assert any("WARN" in line and "io_uring is forbidden" in line and "epoll" in line for line in hub.log().splitlines())
    async with joined(hub, token("alice")) as alice, joined(hub, token("bob")) as bob:
        await alice.subscribe(room)
        for number in range(100):
            await bob.done("publish", {"room": room, "type": "n", "data": number})
        assert [event["data"] for event in await alice.events(room, 100)] == list(range(100))
        assert (await alice.done("ping", "x" * 500_000)) == "x" * 500_000
        assert hub.publish(room, "n", {})[0] == 200
        hub.signal(signal.SIGTERM)
        assert (await alice.closed())[0] == 1001
    assert await asyncio.to_thread(hub.wait) == 0


async def test_durable_rooms_outlive_a_kill_without_io_uring(start, forbidding, room, tmp_path):
    forbidding(EPERM, SETUP, ENTER, REGISTER)
    settings = {"journal.path": str(tmp_path / "journal"), "rooms.project.durable": True}
    first = start(settings)
    for number in range(50):
        assert first.publish(room, "n", number)[0] == 200
    first.kill()
    second = start(settings)
    assert told(second) == ["epoll"] * 5
    async with joined(second, token("alice")) as alice:
        page = await alice.done("history", {"room": room, "since": {"seq": 0}, "limit": 100})
    assert [event["data"] for event in page["events"]] == list(range(50))


async def test_the_internal_listener_and_unix_sockets_are_served_without_io_uring(start, forbidding, room, tmp_path):
    forbidding(EPERM, SETUP, ENTER, REGISTER)
    path, internal = str(tmp_path / "hub.sock"), free_port()
    hub = start({"listen.internal": f"127.0.0.1:{internal}"}, arguments=("--listen", f"unix:{path}"))
    assert hub.get("/ready", port=internal)[0] == 200
    assert hub.get("/ready")[0] == 404, "the API is on the internal listener only"
    async with joined(hub, token("alice"), unix=path) as alice:
        await alice.subscribe(room)
        status, _, _ = hub.get("/api/v1/publish", {"Authorization": f"Bearer {admin()}"}, method="POST", body={"room": room, "type": "n", "data": 1}, port=internal)
        assert status == 200
        assert [event["data"] for event in await alice.events(room, 1)] == [1]


def run(script: Path, *arguments: str) -> subprocess.CompletedProcess:
    listen = ("--set", f"listen.public=127.0.0.1:{free_port()}")
    return subprocess.run([script, *arguments, *listen], env=clean_environment(), capture_output=True, text=True, timeout=60, check=False)


def test_doctor_warns_of_what_epoll_costs_and_fails_where_io_uring_is_asked_for(forbidding):
    script = forbidding(EPERM, SETUP, ENTER, REGISTER)
    ended = run(script, "doctor", "--json")
    finding = next(finding for finding in json.loads(ended.stdout) if finding["check"] == "io_uring")
    assert finding["level"] == "warn" and "epoll" in finding["what"] and "processor time" in finding["why"] and finding["fix"]
    assert ended.returncode == 0, ended.stdout
    for command in ("doctor", "serve"):
        ended = run(script, command, "--set", "shards.driver=uring")
        assert ended.returncode != 0 and "io_uring" in ended.stdout + ended.stderr


def test_a_ring_that_fails_for_want_of_memory_is_an_error_and_no_reason_for_epoll(forbidding):
    ended = run(forbidding(ENOMEM, SETUP), "serve")
    assert ended.returncode != 0 and "LimitMEMLOCK" in ended.stderr


async def test_the_driver_is_chosen_by_its_option(start, monkeypatch, room):
    monkeypatch.delenv(DRIVER, raising=False)
    for driver in ("uring", "epoll"):
        hub = start({"shards.driver": driver})
        assert told(hub) == [driver] * 5
        async with joined(hub, token("alice")) as alice:
            await alice.subscribe(room)
            assert hub.publish(room, "n", driver)[0] == 200
            assert [event["data"] for event in await alice.events(room, 1)] == [driver]
            await eventually(lambda: hub.metrics()["ringhub_connections"] == 1, "the connection is counted")
