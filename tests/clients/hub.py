"""Starts hubs for tests: a free port, the options wanted, the whole log kept, taken down by process id.

Also a program, for the suites that are not Python:

    hub.py [--set KEY=VALUE]… -- COMMAND…    runs COMMAND beside a hub that HUB_URL and the tokens beside it lead to
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jwt

ROOT = Path(__file__).resolve().parents[2]
SECRET = "a secret that only the tests use, long enough for every algorithm: HS512 too"
START_S = 15
STOP_S = 15
POLL_S = 0.01

# One machine and one user carry every test, so the limits per address, user and second are off unless a test wants them.
UNLIMITED = {
    "limits.connects_per_s": 0,
    "limits.messages_per_s": 0,
    "limits.connections_per_user_max": 0,
    "limits.connections_per_address_max": 0,
}

# From 20 000 on.
PORTS = 10_000


class HubFailed(AssertionError):
    """The hub did not start, did not stop, or ended by itself; carries its log."""


def binary() -> Path:
    """The program under test: HUB_BIN, or the newest of what cargo built."""
    if named := os.environ.get("HUB_BIN"):
        return Path(named)
    built = [path for profile in ("release", "debug") if (path := ROOT / "target" / profile / "ringhub").exists()]
    if not built:
        raise HubFailed("no ringhub in target/: run `cargo build --release` first, or set HUB_BIN")
    return max(built, key=lambda path: path.stat().st_mtime)


def free_port() -> int:
    """A port nobody listens on, below the range that the kernel draws outgoing ports from. Of several processes of tests, each
    has a part: a server that is started again would find its port taken."""
    part = PORTS // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    first = 20_000 + part * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for _ in range(200):
        port = random.randrange(first, first + part)
        with contextlib.closing(socket.socket()) as probe:
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise HubFailed("no free port between 20000 and 30000")


def token(
    sub: str = "alice",
    permissions: list[str] | None = None,
    *,
    secret: str = SECRET,
    ttl_s: float = 600,
    algorithm: str = "HS256",
    headers: dict | None = None,
    **claims,
) -> str:
    """A JWT as a deployment's login service would mint it. A claim given as None is left out."""
    now = int(time.time())
    granted = MEMBER if permissions is None else permissions
    body = {"sub": sub, "iat": now, "exp": now + int(ttl_s), "permissions": granted} | claims
    return jwt.encode({name: value for name, value in body.items() if value is not None}, secret, algorithm=algorithm, headers=headers)


# What the tests' ordinary user may do; `admin()` may do all.
MEMBER = [
    "websocket:connect",
    "websocket:subscribe",
    "websocket:publish",
    "project:*:read",
    "project:*:write",
    "agent:*:monitor",
    "agent:*:write",
    "quote:*:read",
    "quote:*:write",
]


def admin(sub: str = "root", **claims) -> str:
    """A token that may do everything."""
    return token(sub, ["websocket:admin"], **claims)


# The one option that a whole suite may be run with: what must hold on one driver must hold on the other.
DRIVER = "RINGHUB_SHARDS_DRIVER"


def clean_environment() -> dict[str, str]:
    """This process's environment without options for the hub but its driver: a test says itself what else it wants."""
    return {name: value for name, value in os.environ.items() if name == DRIVER or not name.startswith("RINGHUB_")}


def toml(value) -> str:
    """A value as `--set` and the configuration file take it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    return json.dumps(value)


class Hub:
    """A running hub. `settings` are options by key; `arguments` go to `ringhub serve` as they are.

    It is waited for until `ready` is answered with 200. `prefix` are the words of a command that runs it.
    """

    # How clients trust whoever ends TLS in front of it; the hub itself speaks none.
    tls: ssl.SSLContext | None = None
    # The address that clients come from, where that matters.
    source: str | None = None

    def __init__(
        self,
        settings: dict | None = None,
        *,
        shards: int = 2,
        arguments: tuple[str, ...] = (),
        command: str = "serve",
        host: str = "127.0.0.1",
        port: int | None = None,
        environment: dict | None = None,
        secret: str | None = SECRET,
        ready: str = "/ready",
        prefix: tuple[str, ...] = (),
    ):
        self.port = port or free_port()
        self.host = host
        self.command = command
        self.settings = dict(settings or {})
        self.ready = ready
        self.arguments = [*prefix, str(binary()), command, "--listen", f"{host}:{self.port}", *arguments]
        if command == "serve":
            self.arguments += ["--shards", str(shards)]
            self.settings = UNLIMITED | {"drain.seconds": 2, "drain.spread_ms": 200} | self.settings
            if secret is not None and "--no-auth" not in arguments:
                self.settings.setdefault("auth.secret", secret)
        for key, value in self.settings.items():
            self.arguments += ["--set", f"{key}={value if isinstance(value, str) else toml(value)}"]
        self.log_file = tempfile.NamedTemporaryFile(prefix="ringhub-test-", suffix=".log", delete=False)
        self.process = subprocess.Popen(
            self.arguments,
            stdin=subprocess.DEVNULL,
            stdout=self.log_file,
            stderr=subprocess.STDOUT,
            env=clean_environment() | (environment or {}),
        )
        self._wait_until_ready()

    # What tests ask of it.

    @property
    def url(self) -> str:
        return f"ws://{self.host}:{self.port}"

    @property
    def http_url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def connection(self, port: int | None = None) -> http.client.HTTPConnection:
        """A connection for requests."""
        return http.client.HTTPConnection(self.host, port or self.port, timeout=5)

    def get(self, path: str, headers: dict | None = None, *, method: str = "GET", body: object = None, port: int | None = None) -> tuple[int, dict, bytes]:
        """One HTTP request on a connection of its own: status, headers (lower case), body."""
        connection = self.connection(port)
        headers = dict(headers or {})
        data = None
        if body is not None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            headers.setdefault("Content-Type", "application/json")
        try:
            connection.request(method, path, body=data, headers=headers)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def publish(self, room: str, kind: str, data: object, *, as_token: str | None = None, **more) -> tuple[int, dict]:
        """Publishes over HTTP; status and the decoded body."""
        event = {"room": room, "type": kind, "data": data, **more}
        credentials = {"Authorization": f"Bearer {as_token or admin()}"}
        status, _, body = self.get("/api/v1/publish", credentials, method="POST", body=event)
        return status, json.loads(body)

    def metrics(self) -> dict[str, float]:
        """All samples of `/metrics`, summed over their labels."""
        status, _, body = self.get("/metrics")
        assert status == 200, body
        sums: dict[str, float] = {}
        for line in body.decode().splitlines():
            if line and not line.startswith("#"):
                series, value = line.rsplit(" ", 1)
                name = series.split("{", 1)[0]
                sums[name] = sums.get(name, 0.0) + float(value)
        return sums

    def resident_kb(self) -> int:
        """The hub's memory as the kernel counts it."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        raise HubFailed("no VmRSS of the hub")

    def descriptors(self) -> int:
        """How many descriptors the hub holds: one per connection, beside a constant."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def log(self) -> str:
        return Path(self.log_file.name).read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def running(self) -> bool:
        return self.process.poll() is None

    # Its end.

    def wait(self, timeout_s: float = STOP_S) -> int:
        """Waits until the hub ended by itself; its exit status."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise HubFailed(f"the hub still runs {timeout_s} s after it was told to end\n{self.log()}") from None

    def kill(self) -> None:
        if self.running():
            self.process.kill()
            self.process.wait()

    def stop(self) -> None:
        """Ends the hub as an operator would. A hub that has ended already, panicked or won't end fails the test."""
        ended = self.process.poll()
        try:
            if ended is not None:
                raise HubFailed(f"the hub ended by itself with status {ended}\n{self.log()}")
            self.signal(signal.SIGTERM)
            status = self.wait()
            if status != 0:
                raise HubFailed(f"the hub ended with status {status} on SIGTERM\n{self.log()}")
            self.check_log()
        finally:
            self.discard()

    def check_log(self) -> None:
        if "panicked at" in self.log():
            raise HubFailed(f"the hub panicked\n{self.log()}")

    def discard(self) -> None:
        """Takes the process and its log away, whatever their state."""
        self.kill()
        self.log_file.close()
        Path(self.log_file.name).unlink(missing_ok=True)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if not self.running():
                status, log = self.process.returncode, self.log()
                self.discard()
                raise HubFailed(f"the hub ended at start with status {status}: {' '.join(self.arguments)}\n{log}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self._answers():
                    return
            time.sleep(POLL_S)
        log = self.log()
        self.discard()
        raise HubFailed(f"the hub was not ready after {START_S} s\n{log}")

    def _answers(self) -> bool:
        # A PROXY protocol listener refuses plain HTTP and `conformance` need not have `/ready`: a connection taken must do.
        if self.settings.get("listen.proxy_protocol") or self.command == "conformance":
            with socket.create_connection((self.host, self.port), 1):
                return True
        port = int(internal.rsplit(":", 1)[1]) if (internal := self.settings.get("listen.internal")) else None
        return self.get(self.ready, port=port)[0] == 200


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--conformance", action="store_true", help="run `ringhub conformance` instead of `ringhub serve`")
    parser.add_argument("--listen", action="append", default=[], help="one more address to listen on")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    extra = tuple(part for address in options.listen for part in ("--listen", address))
    settings = dict(assignment.split("=", 1) for assignment in options.set)
    hub = Hub(settings, arguments=extra, command="conformance" if options.conformance else "serve")
    tokens = {"HUB_TOKEN": token(), "HUB_ADMIN_TOKEN": admin(), "HUB_EXPIRED_TOKEN": token(ttl_s=-3600)}
    environment = os.environ | {"HUB_URL": hub.url, "HUB_HTTP_URL": hub.http_url, "HUB_PID": str(hub.process.pid)} | tokens
    try:
        status = subprocess.run(options.command, env=environment, check=False).returncode
        if status != 0:
            sys.stderr.write(f"the hub's log:\n{hub.log()}")
    except BaseException:
        hub.discard()
        raise
    hub.stop()
    return status


if __name__ == "__main__":
    sys.exit(main())
