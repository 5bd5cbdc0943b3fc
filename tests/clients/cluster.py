"""Clusters for tests: several hubs that share their rooms through Redis."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import urllib.parse
from collections.abc import Iterator

from hub import Hub, admin, free_port

# Redis is told to be away soon, so that tests of it are short.
TIMEOUT_MS = 1000
LOG_LINE = re.compile(r"^node-\d+: (\d{4}-|thread)")
_prefixes = itertools.count(1)


def fresh_prefix() -> str:
    """Key prefixes by which clusters can share a Redis without knowing of each other."""
    return f"tests-{free_port()}-{next(_prefixes)}"


class Cluster:
    """Nodes `node-1`, `node-2`, …, each a hub. `of_redis` says where Redis is, for all or for each of them."""

    def __init__(
        self,
        of_redis: dict | list[dict],
        *,
        count: int = 3,
        shards: int = 1,
        settings: dict | None = None,
        ready: str = "/ready",
    ):
        each = of_redis if isinstance(of_redis, list) else [of_redis] * count
        self.settings = {"broker.redis.prefix": fresh_prefix(), "broker.redis.timeout_ms": TIMEOUT_MS} | (settings or {})
        self.shards = shards
        self._each = each
        self.nodes: list[Hub] = []
        # Those that were killed, for their logs.
        self.former: list[Hub] = []
        try:
            for number in range(len(each)):
                self.nodes.append(self._node(number, ready=ready))
        except BaseException:
            self.discard()
            raise

    def _node(self, number: int, *, port: int | None = None, ready: str = "/ready") -> Hub:
        settings = self._each[number] | self.settings | {"node.name": f"node-{number + 1}"}
        return Hub(settings, shards=self.shards, port=port, ready=ready)

    def __getitem__(self, number: int) -> Hub:
        return self.nodes[number]

    def __iter__(self):
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)

    def restart(self, number: int, *, ready: str = "/ready") -> Hub:
        """Starts a node that was killed anew, at its port."""
        hub = self.nodes[number]
        assert not hub.running(), f"node-{number + 1} runs"
        self.former.append(hub)
        self.nodes[number] = self._node(number, port=hub.port, ready=ready)
        return self.nodes[number]

    def stop(self) -> None:
        """Ends all nodes as an operator would; one that panicked or won't end fails the test."""
        failures = []
        for hub in [*self.nodes, *self.former]:
            try:
                hub.stop() if hub.running() else hub.check_log()
            except AssertionError as failure:
                failures.append(str(failure))
        self.discard()
        assert not failures, "\n".join(failures)

    def discard(self) -> None:
        for hub in [*self.nodes, *self.former]:
            hub.discard()

    def logs(self) -> str:
        """What the nodes had to say, without their greetings."""
        lines = [f"{hub.settings['node.name']}: {line}\n" for hub in [*self.former, *self.nodes] for line in hub.log().splitlines()]
        return "".join(line for line in lines if LOG_LINE.match(line))


@contextlib.contextmanager
def stopping() -> Iterator[list[Cluster]]:
    """Ends the clusters that are put into the list, all of them whatever becomes of one."""
    clusters: list[Cluster] = []
    yield clusters
    failures = []
    for cluster in clusters:
        try:
            cluster.stop()
        except AssertionError as failure:
            failures.append(str(failure))
    assert not failures, "\n".join(failures)


def readiness(hub: Hub) -> tuple[int, dict]:
    """What `/ready` says."""
    status, _, body = hub.get("/ready")
    return status, json.loads(body)


def history(hub: Hub, room: str, **options: object) -> dict:
    """A room's log as a node tells it over HTTP, all of its pages."""
    events, more = [], True
    page: dict = {}
    while more:
        query = urllib.parse.urlencode({"limit": 1000} | ({"since": events[-1]["seq"]} if events else {}) | options)
        status, _, body = hub.get(f"/api/v1/rooms/{room}/history?{query}", {"Authorization": f"Bearer {admin()}"})
        assert status == 200, (status, body)
        page = json.loads(body)
        events += page["events"]
        more = page["more"] and bool(page["events"])
    return page | {"events": events}
