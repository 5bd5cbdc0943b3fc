"""A bad network for the tests: what is sent from one place comes late, twice, out of order, or not at all.

The kernel's netem does that where there is one. Elsewhere a thread of the test does: what comes from the place's link into the
bridge is turned aside to a device of its own (TAP), held back there, and put into the bridge by the same device.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import itertools
import os
import random
import select
import struct
import subprocess
import threading
import time
from dataclasses import dataclass

TUNSETIFF = 0x400454CA
IFF_TAP_WITHOUT_HEADER = 0x0002 | 0x1000
FRAME_MAX = 65_536
# Frames that are held back; what comes beyond is lost, as in any queue of a network.
HELD_MAX = 10_000


@dataclass(frozen=True)
class Disturbance:
    """How bad it is: times in milliseconds, the others as shares of what is sent."""

    delay_ms: float = 0
    jitter_ms: float = 0
    loss: float = 0
    duplicate: float = 0
    # Sent at once, before what is held back.
    reorder: float = 0

    def netem(self) -> list[str]:
        """As `tc netem` is told of it."""
        words = []
        if self.delay_ms:
            words += ["delay", f"{self.delay_ms}ms", f"{self.jitter_ms}ms"]
        for name, share in (("loss", self.loss), ("duplicate", self.duplicate), ("reorder", self.reorder)):
            words += [name, f"{share * 100}%"] if share else []
        return words


def run(*words: str) -> None:
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise OSError(f"{' '.join(words)}: {ended.stderr.strip()}")


class Detour:
    """Disturbs what comes from a link of a bridge, from now until it is ended."""

    def __init__(self, link: str, bridge: str, name: str, how: Disturbance):
        self.link, self.how = link, how
        self.random = random.Random(name)
        self.counter = itertools.count()
        self.passed = self.lost = self.doubled = 0
        self._held: list[tuple[float, int, bytes]] = []
        self._is_ending = False
        self.device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        try:
            fcntl.ioctl(self.device, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TAP_WITHOUT_HEADER))
            run("ip", "link", "set", name, "master", bridge, "up")
            # What is for the place goes to its link all the same: nothing is learnt from what comes out here, and nothing
            # that is for nobody known is sent here.
            for setting in ("learning", "flood", "mcast_flood", "bcast_flood"):
                run("ip", "link", "set", name, "type", "bridge_slave", setting, "off")
            run("tc", "qdisc", "add", "dev", link, "ingress")
            everything = ("protocol", "all", "u32", "match", "u32", "0", "0")
            run("tc", "filter", "add", "dev", link, "parent", "ffff:", *everything, "action", "mirred", "egress", "redirect", "dev", name)
        except BaseException:
            self._take_away()
            raise
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def end(self) -> None:
        """From here on nothing is disturbed; what is held back comes now."""
        self._turn_back()
        self._is_ending = True
        self.thread.join()
        os.close(self.device)

    def _turn_back(self) -> None:
        """It may have gone with its link."""
        with contextlib.suppress(OSError):
            run("tc", "qdisc", "delete", "dev", self.link, "ingress")

    def _take_away(self) -> None:
        self._turn_back()
        # The device goes with the last that has it open.
        os.close(self.device)

    def _run(self) -> None:
        while not self._is_ending:
            wait = self._held[0][0] - time.monotonic() if self._held else 0.1
            readable, _, _ = select.select([self.device], [], [], min(max(wait, 0), 0.1))
            if readable:
                self._take()
            self._pass_on(time.monotonic())
        self._take()
        self._pass_on(float("inf"))

    def _take(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                frame = os.read(self.device, FRAME_MAX)
                how, now = self.how, time.monotonic()
                if self.random.random() < how.loss or len(self._held) >= HELD_MAX:
                    self.lost += 1
                    continue
                copies = 2 if self.random.random() < how.duplicate else 1
                self.doubled += copies - 1
                for _ in range(copies):
                    is_late = self.random.random() >= how.reorder
                    late_ms = max(0, how.delay_ms + self.random.uniform(-how.jitter_ms, how.jitter_ms)) if is_late else 0
                    heapq.heappush(self._held, (now + late_ms / 1000, next(self.counter), frame))

    def _pass_on(self, now: float) -> None:
        while self._held and self._held[0][0] <= now:
            _, _, frame = heapq.heappop(self._held)
            # A device that is full has lost it, as any would.
            with contextlib.suppress(BlockingIOError):
                os.write(self.device, frame)
                self.passed += 1
