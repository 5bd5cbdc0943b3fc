"""Real Redis servers for tests, on free ports and in folders of their own: one, a primary and a replica under sentinels, a Cluster.

They can be killed, frozen, thawed and started again, with their data or without. All are ended by their process ids.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from hub import POLL_S, START_S, free_port
from proxies import certificates, tls

HOST = "127.0.0.1"
# What a failover may take: sentinels and nodes of a Cluster are told to notice a death soon.
DOWN_AFTER_MS = 1000
FAILOVER_S = 30
SLOTS = 16_384
# How the sentinels know the primary.
MASTER = "tests"


class RedisError(Exception):
    """What a server answers in place of a result."""


class RedisFailed(AssertionError):
    """A server did not start, or did not come to the state that a test waits for; carries its log."""


class Commands:
    """One connection to a server, for what a test asks of it."""

    def __init__(self, host: str, port: int, *, context: ssl.SSLContext | None = None, timeout_s: float = 5):
        self.socket = socket.create_connection((host, port), timeout_s)
        if context:
            self.socket = context.wrap_socket(self.socket, server_hostname=host)
        self.reader = self.socket.makefile("rb")

    def call(self, *words: object) -> object:
        """A command and its answer: bytes, numbers, lists of them, none."""
        encoded = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        self.socket.sendall(b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded))
        return self.answer()

    def answer(self) -> object:
        line = self.reader.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the server ended the connection")
        kind, rest = line[:1], line[1:-2]
        match kind:
            case b"+":
                return rest
            case b"-":
                raise RedisError(rest.decode())
            case b":":
                return int(rest)
            case b"$":
                return self.reader.read(int(rest) + 2)[:-2] if int(rest) >= 0 else None
            case b"*":
                return [self.answer() for _ in range(int(rest))] if int(rest) >= 0 else None
        raise RedisFailed(f"no answer of Redis: {line!r}")

    def close(self) -> None:
        self.reader.close()
        self.socket.close()


class Redis:
    """A server. With `durable`, what it has acknowledged survives `kill`."""

    def __init__(
        self,
        *options: str,
        host: str = HOST,
        port: int | None = None,
        encrypted: bool = False,
        user: tuple[str, str] | None = None,
        durable: bool = True,
        sentinel: str | None = None,
        prefix: tuple[str, ...] = (),
    ):
        self.host = host
        self.port = port or free_port()
        self.encrypted = encrypted
        self.user = user
        self.sentinel = sentinel
        self.prefix = prefix
        self.folder = Path(tempfile.mkdtemp(prefix="ringhub-test-redis-"))
        self.options = [*self._own_options(durable), *options]
        self.process: subprocess.Popen | None = None
        atexit.register(self.discard)
        self.start()

    def _own_options(self, durable: bool) -> list[str]:
        own = ["--bind", self.host, "--dir", str(self.folder), "--save", "", "--logfile", str(self.folder / "log"), "--daemonize", "no"]
        # A frozen or slow server is what some tests are about; a save in the background is not.
        if not self.sentinel:
            own += ["--appendonly", "yes" if durable else "no", "--appendfsync", "always", "--enable-debug-command", "local"]
        if self.host != HOST:
            own += ["--protected-mode", "no"]
        if self.encrypted:
            folder = certificates()
            own += ["--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "no", "--tls-replication", "yes"]
            own += ["--tls-cert-file", str(folder / "hub.pem"), "--tls-key-file", str(folder / "hub.key"), "--tls-ca-cert-file", str(folder / "ca.pem")]
        else:
            own += ["--port", str(self.port)]
        if self.user:
            name, rules = self.user
            own += ["--user", "default", "off", "--user", name, *rules.split(), "--user", "tests", "on", f">{TESTS_PASSWORD}", "~*", "&*", "+@all"]
        return own

    # What hubs and tests ask of it.

    @property
    def url(self) -> str:
        return f"{'rediss' if self.encrypted else 'redis'}://{'localhost' if self.encrypted else self.host}:{self.port}"

    @property
    def settings(self) -> dict:
        """What a hub has to be told of it."""
        return {"broker.kind": "redis", "broker.redis.url": self.url} | ({"broker.redis.ca_file": str(certificates() / "ca.pem")} if self.encrypted else {})

    @contextlib.contextmanager
    def commands(self, timeout_s: float = 5) -> Iterator[Commands]:
        """A connection that may do everything."""
        connection = Commands(self.host, self.port, context=tls() if self.encrypted else None, timeout_s=timeout_s)
        try:
            if self.user:
                connection.call("AUTH", "tests", TESTS_PASSWORD)
            yield connection
        finally:
            connection.close()

    def call(self, *words: object, timeout_s: float = 5) -> object:
        """One command on a connection of its own."""
        with self.commands(timeout_s) as connection:
            return connection.call(*words)

    def info(self, section: str) -> dict[str, str]:
        lines = self.call("INFO", section).decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def set(self, option: str, value: object) -> None:
        """Changes an option while it runs."""
        self.call("CONFIG", "SET", option, value)

    def answers(self) -> bool:
        with contextlib.suppress(OSError, RedisError, ConnectionError):
            return self.call("PING", timeout_s=1) == b"PONG"
        return False

    def log(self) -> str:
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    # Its life.

    def start(self, *, wiped: bool = False) -> None:
        """Starts it (again) at its port, with the data it had unless that is wiped; returns when it answers."""
        assert not self.running(), "it runs already"
        if wiped:
            self.wipe()
        first = ["--sentinel"] if self.sentinel else []
        if self.sentinel:
            # It writes down there what it learns; its own words of a former life must not count.
            configuration = self.folder / "sentinel.conf"
            if not configuration.exists():
                configuration.write_text(self.sentinel)
            first.insert(0, str(configuration))
        self.process = subprocess.Popen(
            [*self.prefix, "redis-server", *first, *self.options], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until(lambda: self.answers() or not self.running(), START_S, "Redis answers", self.log)
        if not self.running():
            raise RedisFailed(f"redis-server ended at start with status {self.process.returncode}\n{self.log()}")

    def wipe(self) -> None:
        """Takes its data away, while it does not run."""
        for name in ("appendonlydir", "dump.rdb"):
            path = self.folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def freeze(self) -> None:
        """It keeps its connections, and does nothing."""
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """Ends it without a warning. One that is frozen ends too."""
        if self.running():
            self.process.kill()
            self.process.wait()

    def stop(self) -> None:
        """Ends it as an operator would."""
        if self.running():
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()

    def restart(self, *, wiped: bool = False) -> None:
        """Killed, and started again."""
        self.kill()
        self.start(wiped=wiped)

    def discard(self) -> None:
        """Takes the process and its folder away, whatever their state."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
        atexit.unregister(self.discard)

    def __enter__(self) -> Redis:
        return self

    def __exit__(self, *_) -> None:
        self.discard()


# The user by which tests see to a server whose default user is off.
TESTS_PASSWORD = "of-the-tests"


class Several:
    """Servers that belong together; all end with this."""

    servers: list[Redis]

    def discard(self) -> None:
        for server in self.servers:
            server.discard()

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.discard()


class SentinelPair(Several):
    """A primary and a replica of it, which three sentinels watch: when the primary is away for a second, the other takes over."""

    def __init__(self, count: int = 3):
        self.servers = []
        try:
            self.primary = self._server()
            self.replica = self._server("--replicaof", HOST, str(self.primary.port))
            self.pair = [self.primary, self.replica]
            for _ in range(count):
                self._server(sentinel=self._configuration(count), durable=False)
            self.sentinels = self.servers[2:]
            self.settle()
        except BaseException:
            self.discard()
            raise

    def _server(self, *options: str, **named) -> Redis:
        self.servers.append(Redis("--repl-diskless-sync-delay", "0", *options, **named) if "sentinel" not in named else Redis(*options, **named))
        return self.servers[-1]

    def _configuration(self, count: int) -> str:
        lines = [
            f"sentinel monitor {MASTER} {HOST} {self.primary.port} {count // 2 + 1}",
            f"sentinel down-after-milliseconds {MASTER} {DOWN_AFTER_MS}",
            f"sentinel failover-timeout {MASTER} 5000",
            f"sentinel parallel-syncs {MASTER} 1",
        ]
        return "\n".join(lines) + "\n"

    @property
    def settings(self) -> dict:
        return {
            "broker.kind": "redis",
            "broker.redis.mode": "sentinel",
            "broker.redis.url": [server.url for server in self.sentinels],
            "broker.redis.sentinel_master": MASTER,
        }

    def port_of_primary(self) -> int | None:
        """What the sentinels tell; none where they don't agree."""
        told = set()
        for sentinel in self.sentinels:
            with contextlib.suppress(OSError, RedisError):
                told.add(int(sentinel.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER, timeout_s=1)[1]))
        return told.pop() if len(told) == 1 else None

    def current(self) -> Redis:
        """The server that is the primary now."""
        port = self.port_of_primary()
        found = [server for server in self.pair if server.port == port]
        if not found:
            raise RedisFailed(f"the sentinels name {port} as the primary's port")
        return found[0]

    def other(self) -> Redis:
        current = self.current()
        return next(server for server in self.pair if server is not current)

    def settle(self) -> None:
        """Waits until one is the primary, the other its replica and up to date, and all sentinels know all of this."""
        until(self._is_settled, FAILOVER_S, "primary, replica and sentinels find each other", lambda: "\n".join(server.log() for server in self.servers))

    def _is_settled(self) -> bool:
        try:
            current, other = self.current(), self.other()
            is_linked = other.info("replication").get("master_link_status") == "up" and current.info("replication")["connected_slaves"] == "1"
            return is_linked and all(self._knows_all(sentinel) for sentinel in self.sentinels)
        except (OSError, RedisError, RedisFailed, KeyError, AttributeError):
            return False

    def _knows_all(self, sentinel: Redis) -> bool:
        flat = sentinel.call("SENTINEL", "MASTER", MASTER)
        told = dict(zip(flat[::2], flat[1::2]))
        return told[b"flags"] == b"master" and told[b"num-slaves"] == b"1" and int(told[b"num-other-sentinels"]) == len(self.sentinels) - 1

    def rejoin(self, former: Redis) -> None:
        """Starts one that was the primary as a replica of the one that is. The sentinels would see to that eight seconds later."""
        former.start()
        former.call("REPLICAOF", HOST, self.current().port)
        self.settle()

    def wait_for_failover(self, former: Redis) -> None:
        """Waits until another one than `former` is the primary, and takes writes."""

        def is_over() -> bool:
            try:
                current = self.current()
                return current is not former and current.info("replication")["role"] == "master"
            except (OSError, RedisError, RedisFailed):
                return False

        until(is_over, FAILOVER_S, "the replica takes over", lambda: "\n".join(server.log() for server in self.sentinels))


class RedisCluster(Several):
    """A Redis Cluster of so many primaries, each with so many replicas."""

    def __init__(self, primaries: int = 3, replicas: int = 0):
        self.servers = []
        try:
            for _ in range(primaries * (1 + replicas)):
                self.servers.append(
                    Redis(
                        "--cluster-enabled",
                        "yes",
                        "--cluster-port",
                        str(free_port()),
                        "--cluster-node-timeout",
                        str(DOWN_AFTER_MS),
                        "--cluster-require-full-coverage",
                        "no",
                        "--repl-diskless-sync-delay",
                        "0",
                        # A replica that was cut off for a moment may take over too.
                        "--cluster-replica-validity-factor",
                        "0",
                    )
                )
            self.primaries, self.replicas = self.servers[:primaries], self.servers[primaries:]
            self._join()
        except BaseException:
            self.discard()
            raise

    def _join(self) -> None:
        share = -(-SLOTS // len(self.primaries))
        first, *others = self.servers
        for number, server in enumerate(self.primaries):
            server.call("CLUSTER", "ADDSLOTSRANGE", number * share, min((number + 1) * share, SLOTS) - 1)
            # Each begins with an epoch of its own: two of the same would have to agree on another first.
            server.call("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for server in others:
            bus = server.options[server.options.index("--cluster-port") + 1]
            first.call("CLUSTER", "MEET", HOST, server.port, bus)
        until(lambda: all(len(self._nodes(server)) == len(self.servers) for server in self.servers), FAILOVER_S, "all nodes know each other", first.log)
        for number, server in enumerate(self.replicas):
            of = self.primaries[number % len(self.primaries)].call("CLUSTER", "MYID")
            server.call("CLUSTER", "REPLICATE", of)
        self.settle()

    def _nodes(self, server: Redis) -> list[list[str]]:
        """The nodes that a server knows and has shaken hands with, as `CLUSTER NODES` lists them."""
        lines = [line.split() for line in server.call("CLUSTER", "NODES").decode().splitlines()]
        return [line for line in lines if "handshake" not in line[2]]

    def settle(self) -> None:
        """Waits until every slot is served, and every replica follows."""
        until(self._is_settled, FAILOVER_S, "the Cluster is complete", lambda: "\n".join(server.log() for server in self.servers))

    def _is_settled(self) -> bool:
        views = set()
        try:
            for server in self.servers:
                # Who is what, without which of them is asked.
                views.add(frozenset((line[0], line[2].removeprefix("myself,"), line[3]) for line in self._nodes(server)))
                told = dict(line.split(":", 1) for line in server.call("CLUSTER", "INFO").decode().splitlines() if ":" in line)
                if told["cluster_state"] != "ok" or told["cluster_slots_ok"] != str(SLOTS):
                    return False
                if any("fail" in line[2] for line in self._nodes(server)):
                    return False
                replication = server.info("replication")
                if replication["role"] == "slave" and replication["master_link_status"] != "up":
                    return False
        except (OSError, RedisError, KeyError):
            return False
        return len(views) == 1

    def owner(self, key: str) -> Redis:
        """The server that has a key now, as one that lives tells."""
        for server in self.servers:
            with contextlib.suppress(OSError, RedisError):
                slot = server.call("CLUSTER", "KEYSLOT", key)
                for low, high, primary, *_ in server.call("CLUSTER", "SLOTS"):
                    if low <= slot <= high:
                        return next(one for one in self.servers if one.port == primary[1])
        raise RedisFailed(f"nobody has the key {key}")

    def is_replicated(self, primary: Redis) -> bool:
        """Whether a replica has all that a primary has."""
        offset = primary.info("replication")["master_repl_offset"]
        told = [server.info("replication") for server in self.servers if server is not primary]
        return any(one["role"] == "slave" and int(one["master_port"]) == primary.port and one["slave_repl_offset"] == offset for one in told)

    def wait_for_failover(self, key: str, former: Redis) -> None:
        """Waits until another one than `former` has the key."""

        def is_over() -> bool:
            try:
                current = self.owner(key)
                return current is not former and current.info("replication")["role"] == "master"
            except (OSError, RedisError, RedisFailed):
                return False

        until(is_over, FAILOVER_S, "a replica takes over", lambda: "\n".join(server.log() for server in self.servers if server.running()))

    def move_slot(self, key: str) -> None:
        """Moves the slot of a key, with all that is in it, to another primary."""
        self.begin_to_move_slot(key)()

    def begin_to_move_slot(self, key: str) -> Callable[[], None]:
        """The same, as far as that both servers know of it. What it returns does the rest."""
        source = self.owner(key)
        target = next(server for server in self.primaries if server is not source)
        slot = source.call("CLUSTER", "KEYSLOT", key)
        ids = [server.call("CLUSTER", "MYID") for server in (source, target)]
        target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
        source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])

        def finish() -> None:
            while keys := source.call("CLUSTER", "GETKEYSINSLOT", slot, 100):
                source.call("MIGRATE", target.host, target.port, "", 0, 5000, "KEYS", *keys)
            for server in (target, source, *[server for server in self.primaries if server not in (source, target)]):
                server.call("CLUSTER", "SETSLOT", slot, "NODE", ids[1])

        return finish

    @property
    def settings(self) -> dict:
        return {"broker.kind": "redis", "broker.redis.mode": "cluster", "broker.redis.url": [server.url for server in self.primaries]}


def snapshot(redis: Redis) -> dict[str, bytes]:
    """A server's data as it is on disk now."""
    return {path.name: path.read_bytes() for path in (redis.folder / "appendonlydir").iterdir()}


def restore(redis: Redis, kept: dict[str, bytes]) -> None:
    """Puts data of a moment ago in place of what a server has that does not run: what was written last is lost."""
    redis.wipe()
    folder = redis.folder / "appendonlydir"
    folder.mkdir()
    for name, data in kept.items():
        (folder / name).write_bytes(data)


def until(condition: Callable[[], bool], within_s: float, what: str, log: Callable[[], str]) -> None:
    """Waits for what can only be looked at."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise RedisFailed(f"not within {within_s} s: {what}\n{log()}")
        time.sleep(POLL_S)


def lacking() -> str | None:
    """Why there can be no servers here; none where there can."""
    return None if shutil.which("redis-server") else "redis-server is not installed; Debian and Ubuntu have it in the package redis-server"
