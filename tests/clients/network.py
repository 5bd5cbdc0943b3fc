"""Networks of a test's own: namespaces for Redis and for nodes, joined by a bridge, whose links can be cut and disturbed.

Needs the right to make them (CAP_NET_ADMIN and CAP_SYS_ADMIN) and the program `ip`; disturbing needs `tc` as well.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil

import pytest

from disturbance import Detour, Disturbance, run

# Of the networks for documentation (RFC 5737): nobody's real one.
NETWORK = "198.51.100"
_networks = itertools.count()


class Network:
    """So many places, each with an address; the test itself is at `.1`."""

    def __init__(self, places: int):
        # A name is free again only some time after what had it was taken away.
        self.name = f"rh{os.getpid() % 10_000}x{next(_networks)}"
        self.places = places
        self.bridge = f"{self.name}br"
        self.detours: dict[int, Detour] = {}
        try:
            run("ip", "link", "add", self.bridge, "type", "bridge")
            run("ip", "address", "add", f"{NETWORK}.1/24", "dev", self.bridge)
            run("ip", "link", "set", self.bridge, "up")
            for place in range(places):
                self._join(place)
        except BaseException:
            self.discard()
            raise

    def _join(self, place: int) -> None:
        namespace, link = self.namespace(place), self.link(place)
        run("ip", "netns", "add", namespace)
        run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        run("ip", "link", "set", link, "master", self.bridge, "up")
        self.inside(place, "ip", "address", "add", f"{self.address(place)}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            self.inside(place, "ip", "link", "set", device, "up")

    def namespace(self, place: int) -> str:
        return f"{self.name}n{place}"

    def link(self, place: int) -> str:
        """The bridge's end of its link."""
        return f"{self.name}v{place}"

    def address(self, place: int) -> str:
        return f"{NETWORK}.{10 + place}"

    def prefix(self, place: int) -> tuple[str, ...]:
        """The words that run a program there."""
        return ("ip", "netns", "exec", self.namespace(place))

    def inside(self, place: int, *words: str) -> None:
        run(*self.prefix(place), *words)

    # What is done to it.

    def cut(self, place: int) -> None:
        """Nothing comes from there or gets there, and nobody is told."""
        self.inside(place, "ip", "link", "set", "eth0", "down")

    def join(self, place: int) -> None:
        self.inside(place, "ip", "link", "set", "eth0", "up")

    def part(self, place: int, other: int) -> None:
        """What one sends to the other is lost."""
        self.inside(place, "ip", "route", "add", "blackhole", f"{self.address(other)}/32")

    def unite(self, place: int, other: int) -> None:
        self.inside(place, "ip", "route", "delete", "blackhole", f"{self.address(other)}/32")

    def disturb(self, place: int, how: Disturbance) -> None:
        """What is sent from there comes as `how` says."""
        try:
            self.inside(place, "tc", "qdisc", "replace", "dev", "eth0", "root", "netem", *how.netem())
        except OSError as error:
            # A kernel without netem.
            if "qdisc kind is unknown" not in str(error):
                raise
            self.detours[place] = Detour(self.link(place), self.bridge, f"{self.name}t{place}", how)

    def calm(self, place: int) -> None:
        detour = self.detours.pop(place, None)
        if detour is None:
            self.inside(place, "tc", "qdisc", "delete", "dev", "eth0", "root")
        else:
            detour.end()

    def discard(self) -> None:
        for place in list(self.detours):
            with contextlib.suppress(OSError):
                self.calm(place)
        for place in range(self.places):
            with contextlib.suppress(OSError):
                run("ip", "netns", "delete", self.namespace(place))
        with contextlib.suppress(OSError):
            run("ip", "link", "delete", self.bridge)


@contextlib.contextmanager
def network(places: int):
    """A network; a test that may not have one is skipped."""
    if not shutil.which("ip"):
        pytest.skip("networks of one's own need the program ip (Debian's package iproute2)")
    try:
        made = Network(places)
    except OSError as error:
        pytest.skip(f"this user may make no network namespaces: {error}")
    try:
        yield made
    finally:
        made.discard()
