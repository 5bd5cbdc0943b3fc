"""A link between a hub and a Redis server that a test can cut at any byte, hold, slow down and lead elsewhere.

It runs on a thread with a loop of its own, so that it carries on whatever the test does.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Coroutine

from hub import free_port

HOST = "127.0.0.1"
CHUNK = 16_384


class Link:
    """Listens at `port` and carries every connection to `target`, a port of this machine."""

    def __init__(self, target: int, *, seed: int = 0):
        self.port = free_port()
        self.target = target
        self.random = random.Random(seed)
        # Cuts so far.
        self.cuts = 0
        self._delay_s = 0.0
        self._refuses = False
        # Connections are cut after so many bytes each, drawn from this range, in either direction.
        self._cut_after: tuple[int, int] | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._flows = self._do(self._new_event())
        self._server = self._do(asyncio.start_server(self._carry, HOST, self.port, backlog=256))

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _do(self, work: Coroutine):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _new_event(self) -> asyncio.Event:
        event = asyncio.Event()
        event.set()
        return event

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}"

    # What a test does to it.

    def cut(self) -> None:
        """Ends all connections at once, with a reset. New ones are carried."""
        self._do(self._cut_all())

    def cut_after(self, low: int, high: int) -> None:
        """Every connection, new or there already, is cut when it has carried so many more bytes, drawn from this range."""
        self._cut_after = (low, high)

    def hold(self) -> None:
        """Carries nothing, and lets nobody know."""
        self._loop.call_soon_threadsafe(self._flows.clear)

    def delay(self, seconds: float) -> None:
        """Everything takes so long, in each direction."""
        self._delay_s = seconds

    def refuse(self) -> None:
        """Ends all connections, and lets no new ones through."""
        self._refuses = True
        self.cut()

    def lead(self, target: int) -> None:
        """New connections go there."""
        self.target = target

    def mend(self) -> None:
        """All is as at the beginning."""
        self._cut_after, self._delay_s, self._refuses = None, 0.0, False
        self._loop.call_soon_threadsafe(self._flows.set)

    def stop(self) -> None:
        self.refuse()
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        carrying = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in carrying:
            task.cancel()
        await asyncio.gather(*carrying, return_exceptions=True)

    # What it does with connections.

    async def _cut_all(self) -> None:
        self.cuts += bool(self._writers)
        for writer in list(self._writers):
            self._reset(writer)

    def _reset(self, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        self._writers.discard(writer)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A server's task that ends by being cancelled is told as an error by asyncio.
        with contextlib.suppress(asyncio.CancelledError):
            await self._carry_between(reader, writer)

    async def _carry_between(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            if self._refuses:
                return self._reset(writer)
            try:
                there, to_there = await asyncio.open_connection(HOST, self.target)
            except OSError:
                return self._reset(writer)
            self._writers.add(to_there)
            try:
                pumps = {asyncio.create_task(self._pump(reader, to_there)), asyncio.create_task(self._pump(there, writer))}
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
            finally:
                self._reset(to_there)
        finally:
            self._reset(writer)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left, drawn_from = 0, None
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                await self._flows.wait()
                if self._delay_s:
                    await asyncio.sleep(self._delay_s)
                if self._cut_after is not drawn_from:
                    drawn_from = self._cut_after
                    left = self.random.randint(*drawn_from) if drawn_from else 0
                if drawn_from and len(data) >= left:
                    self.cuts += 1
                    writer.write(data[:left])
                    # What is written so far is to arrive: a reset takes back what waits.
                    await writer.drain()
                    await asyncio.sleep(0.001)
                    return
                left -= len(data)
                writer.write(data)
                await writer.drain()
