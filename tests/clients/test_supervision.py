"""The hub under a service manager: what it says over $NOTIFY_SOCKET (sd_notify), and within what tuning/ fences it in."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hub import SECRET, binary, free_port, token
from peer import Bare, eventually, joined
from proxies import TUNING

WAIT_S = 15


class Manager:
    """The end of the socket that the service manager holds."""

    def __init__(self, name: str):
        self.name = name
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(name.replace("@", "\0", 1))
        self.socket.settimeout(WAIT_S)

    def next(self) -> dict[str, str]:
        """The next datagram, its lines by name."""
        return dict(line.split("=", 1) for line in self.socket.recv(4096).decode().splitlines())

    def next_but_beats(self) -> dict[str, str]:
        while (told := self.next()) == {"WATCHDOG": "1"}:
            pass
        return told

    def silent_for(self, seconds: float) -> bool:
        self.socket.settimeout(seconds)
        try:
            self.socket.recv(4096)
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(WAIT_S)
        return False


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    manager = Manager(str(tmp_path / "notify") if request.param == "path" else f"@ringhub-test-{os.getpid()}-{free_port()}")
    yield manager
    manager.socket.close()


def now_us() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


async def test_each_step_of_the_hubs_life_is_told(start, manager, tmp_path):
    config = tmp_path / "ringhub.toml"
    config.write_text(f'[auth]\nsecret = "{SECRET}"\n[drain]\nseconds = 7\n')
    hub = start({"drain.seconds": 7}, secret=None, arguments=("--config", str(config)), environment={"NOTIFY_SOCKET": manager.name})
    ready = manager.next()
    assert ready["READY"] == "1" and str(hub.port) in ready["STATUS"]

    before = now_us()
    hub.signal(signal.SIGHUP)
    reloading = manager.next()
    assert reloading["RELOADING"] == "1" and before <= int(reloading["MONOTONIC_USEC"]) <= now_us()
    assert manager.next()["READY"] == "1"

    # A file with errors: still ready, with the configuration as it was.
    config.write_text("[limits]\nrooms_maxx = 3\n")
    hub.signal(signal.SIGHUP)
    assert manager.next()["RELOADING"] == "1"
    ready = manager.next()
    assert ready["READY"] == "1" and "errors" in ready["STATUS"]

    async with await Bare.upgraded(hub):
        hub.signal(signal.SIGTERM)
        stopping = manager.next()
        assert stopping["STOPPING"] == "1" and int(stopping["EXTEND_TIMEOUT_USEC"]) > 7_000_000
    assert await asyncio.to_thread(hub.wait) == 0


async def test_the_watchdog_hears_a_hub_that_lives_up_to_its_end_and_none_that_hangs(start, tmp_path):
    manager = Manager(str(tmp_path / "notify"))
    watchdog = {"NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "1000000"}
    hub = start({"drain.seconds": 3}, environment=watchdog)
    assert manager.next_but_beats()["READY"] == "1"
    for _ in range(6):
        started = time.monotonic()
        assert manager.next() == {"WATCHDOG": "1"}
        assert time.monotonic() - started < 1, "a beat in each interval"
    # One shard that does not run, as if it hung: no sign of life any more.
    shard = next(task for task in Path(f"/proc/{hub.process.pid}/task").iterdir() if (task / "comm").read_text().strip() == "shard-1")
    with stopped(int(shard.name)):
        await eventually(lambda: manager.silent_for(1), "a hub with a deaf shard is silent")
    assert manager.next() == {"WATCHDOG": "1"}, "it lives again"
    # While it drains it lives.
    async with await Bare.upgraded(hub):
        hub.signal(signal.SIGTERM)
        assert manager.next_but_beats()["STOPPING"] == "1"
        assert manager.next() == {"WATCHDOG": "1"}
    assert await asyncio.to_thread(hub.wait) == 0


@contextlib.contextmanager
def stopped(thread: int):
    """Stops one thread of another process, as a debugger does."""
    helper = subprocess.Popen([sys.executable, "-c", STOP, str(thread)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    said = helper.stdout.readline().strip()
    if said != "stopped":
        helper.kill()
        helper.wait()
        pytest.skip(f"this machine lets nobody trace: {said}")
    try:
        yield
    finally:
        # The kernel lets the thread go on when its tracer ends.
        helper.communicate("", timeout=WAIT_S)


STOP = """
import ctypes, os, sys
SEIZE, INTERRUPT, ALL_THREADS = 0x4206, 0x4207, 0x40000000
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
thread = int(sys.argv[1])
if libc.ptrace(SEIZE, thread, None, None) or libc.ptrace(INTERRUPT, thread, None, None):
    print(os.strerror(ctypes.get_errno()), flush=True)
else:
    os.waitpid(thread, ALL_THREADS)
    print("stopped", flush=True)
    sys.stdin.read()
"""


def test_a_watchdog_for_another_process_is_not_answered(start, tmp_path):
    manager = Manager(str(tmp_path / "notify"))
    start(shards=1, environment={"NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "100000", "WATCHDOG_PID": "1"})
    assert manager.next()["READY"] == "1"
    assert manager.silent_for(0.5)


def test_a_service_manager_that_cannot_be_told_is_an_error_at_start():
    environment = {"PATH": os.environ["PATH"], "NOTIFY_SOCKET": "vsock:2:1234"}
    ended = subprocess.run([binary(), "serve", "--listen", f"127.0.0.1:{free_port()}"], env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode != 0 and "NOTIFY_SOCKET" in ended.stderr


# What tuning/ has for the machine.


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not there")
    unit = (TUNING / "ringhub.service").read_text()
    program = "/usr/local/bin/ringhub"
    assert unit.count(program) == 1
    file = tmp_path / "ringhub.service"
    file.write_text(unit.replace(program, str(binary())))
    verified = subprocess.run(["systemd-analyze", "verify", "--man=no", file], capture_output=True, text=True, timeout=60, check=False)
    assert verified.returncode == 0 and str(file.name) not in verified.stderr, verified.stderr


def test_the_unit_grants_what_the_default_configuration_needs():
    unit = dict(line.split("=", 1) for line in (TUNING / "ringhub.service").read_text().splitlines() if "=" in line and not line.startswith("#"))
    # All shards of a machine with eight cores, and the rest.
    assert int(unit["LimitNOFILE"]) >= 8 * 15_000 + 512
    assert unit["Type"] == "notify" and unit["WatchdogSec"]


def test_the_kernel_knows_every_setting_of_the_sysctl_file():
    settings = [line for line in (TUNING / "sysctl.conf").read_text().splitlines() if line and not line.startswith("#")]
    assert settings
    for line in settings:
        key, value = (part.strip() for part in line.split("=", 1))
        assert value
        optional, name = key.startswith("-"), key.lstrip("-")
        path = Path("/proc/sys") / name.replace(".", "/")
        assert optional or path.exists(), name
        if path.exists():
            assert len(path.read_text().split()) == len(value.split()), f"{name} has so many numbers"


# The seccomp profile, put on by the C library that container runtimes use, without a container.

CONFINE = """
import ctypes, errno, json, os, platform, sys
profile = json.load(open(sys.argv[1]))
actions = {"SCMP_ACT_ERRNO": 0x00050000, "SCMP_ACT_ALLOW": 0x7FFF0000}
compare = {"SCMP_CMP_NE": 1, "SCMP_CMP_LT": 2, "SCMP_CMP_LE": 3, "SCMP_CMP_EQ": 4, "SCMP_CMP_GE": 5, "SCMP_CMP_GT": 6, "SCMP_CMP_MASKED_EQ": 7}
class Condition(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]
lib = ctypes.CDLL("libseccomp.so.2")
lib.seccomp_init.restype = ctypes.c_void_p
lib.seccomp_rule_add_array.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(Condition)]
lib.seccomp_load.argtypes = [ctypes.c_void_p]
assert f"SCMP_ARCH_{platform.machine().upper()}" in profile["architectures"]
code = lambda rule, action: actions[rule[action]] | (rule.get("errnoRet", rule.get("defaultErrnoRet", errno.EPERM)) if "ERRNO" in rule[action] else 0)
default = code(profile, "defaultAction")
context = lib.seccomp_init(default)
for rule in profile["syscalls"]:
    conditions = [Condition(one["index"], compare[one["op"]], one["value"], one.get("valueTwo", 0)) for one in rule.get("args", [])]
    for name in rule["names"]:
        number = lib.seccomp_syscall_resolve_name(name.encode())
        assert number != -1, f"no system call {name}"
        if code(rule, "action") != default:
            status = lib.seccomp_rule_add_array(context, code(rule, "action"), number, len(conditions), (Condition * len(conditions))(*conditions))
            assert status == 0, f"{name}: {os.strerror(-status)}"
assert lib.seccomp_load(context) == 0
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.fixture
def confined(tmp_path) -> Path:
    """A program that runs the hub within tuning/seccomp.json."""
    script = tmp_path / "confined"
    (tmp_path / "confine.py").write_text(CONFINE)
    script.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path}/confine.py {TUNING}/seccomp.json {binary()} "$@"\n')
    script.chmod(0o755)
    return script


async def test_all_of_a_hubs_life_fits_the_seccomp_profile(start, confined, monkeypatch, tmp_path, room):
    # A path of its own for the whole of it: TCP and unix sockets, HTTP, reload, drain.
    path = str(tmp_path / "hub.sock")
    monkeypatch.setenv("HUB_BIN", str(confined))
    hub = start({"endpoints.echo": True, "log.level": "debug"}, arguments=("--listen", f"unix:{path}"))
    status = Path(f"/proc/{hub.process.pid}/status").read_text()
    assert "Seccomp:\t2" in status, "it is fenced in"
    async with joined(hub) as alice, joined(hub, token("bob"), unix=path) as bob:
        await alice.subscribe(room)
        for number in range(100):
            await bob.done("publish", {"room": room, "type": "n", "data": number})
        assert [event["data"] for event in await alice.events(room, 100)] == list(range(100))
        assert (await alice.done("ping", "x" * 100_000)) == "x" * 100_000
        assert hub.publish(room, "n", {})[0] == 200
        for page in ("/ready", "/metrics", "/ws/health"):
            assert hub.get(page)[0] == 200
        hub.signal(signal.SIGHUP)
        await eventually(lambda: "configuration read again" in hub.log(), "the configuration is read again")
        hub.signal(signal.SIGTERM)
        assert (await alice.closed())[0] == 1001
    assert await asyncio.to_thread(hub.wait) == 0
    refused = [line for line in hub.log().splitlines() if "not permitted" in line.lower()]
    assert not refused, refused


def test_doctor_finds_nothing_missing_within_the_seccomp_profile(confined):
    wanted = ("--set", "shards.driver=auto", "--set", f"listen.public=127.0.0.1:{free_port()}")
    ended = subprocess.run([confined, "doctor", "--json", *wanted], capture_output=True, text=True, timeout=60, check=False)
    findings = {finding["check"]: finding["level"] for finding in json.loads(ended.stdout)}
    assert findings["io_uring"] == "ok", ended.stdout


def test_what_a_hub_has_no_business_with_stays_forbidden():
    profile = json.loads((TUNING / "seccomp.json").read_text())
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    allowed = {name for rule in profile["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}
    assert {"io_uring_setup", "io_uring_enter", "io_uring_register"} <= allowed
    never = {"ptrace", "bpf", "mount", "umount2", "unshare", "setns", "keyctl", "add_key", "perf_event_open", "userfaultfd", "init_module", "kexec_load", "process_vm_writev", "open_by_handle_at", "reboot", "swapon", "pivot_root", "fork", "vfork"}
    assert not allowed & never
    # No way around the filter of clone's flags.
    assert "clone3" not in allowed
    assert next(rule for rule in profile["syscalls"] if rule["names"] == ["clone"])["args"]


