"""A reader of server-sent events that goes by the standard (WHATWG HTML, section 9.2), over aiohttp, and keeps what it sees."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass
from urllib.parse import urlencode

import aiohttp

from hub import Hub, token
from peer import WAIT_S


@dataclass
class Event:
    name: str = ""
    data: str | None = None
    id: str | None = None
    retry: int | None = None

    def json(self) -> dict:
        return json.loads(self.data)


class Reader:
    """One stream. Events without data set the last id, and are seen as `opened` only."""

    def __init__(self, answer: aiohttp.ClientResponse):
        self.answer = answer
        self.last_event_id = ""
        self.retry_ms: int | None = None
        self.comments = 0
        self.events: list[Event] = []
        self._bytes = b""

    async def _line(self) -> str | None:
        """The next line; none at the end."""
        while b"\n" not in self._bytes:
            more = await self.answer.content.readany()
            if not more:
                return None
            self._bytes += more
        line, _, self._bytes = self._bytes.partition(b"\n")
        assert b"\r" not in line, line
        return line.decode()

    async def next(self, *, within_s: float = WAIT_S) -> Event | None:
        """The next event, one without data included; none where the stream has ended."""
        event = Event()
        async with asyncio.timeout(within_s):
            while (line := await self._line()) is not None:
                if not line:
                    if event.id is not None:
                        self.last_event_id = event.id
                    if event.data is not None:
                        self.events.append(event)
                    return event
                name, _, value = line.partition(":")
                value = value.removeprefix(" ")
                match name:
                    case "":
                        self.comments += 1
                    case "data":
                        event.data = value if event.data is None else f"{event.data}\n{value}"
                    case "event":
                        event.name = value
                    case "id":
                        event.id = value
                    case "retry":
                        event.retry = self.retry_ms = int(value)
                    case _:
                        raise AssertionError(line)
        return None

    async def named(self, name: str, *, within_s: float = WAIT_S) -> dict:
        """The data of the next event of that name; of a room's next event where it is empty."""
        while event := await self.next(within_s=within_s):
            if event.name == name and event.data is not None:
                return event.json()
        raise AssertionError(f"the stream ended before {name!r}")

    async def rooms_events(self, count: int) -> list[dict]:
        return [await self.named("") for _ in range(count)]

    async def ended(self) -> None:
        while await self.next() is not None:
            pass


@contextlib.asynccontextmanager
async def reading(hub: Hub, *rooms: str, jwt: str | None = None, headers: dict | None = None, port: int | None = None, **parameters):
    """A stream that has told its place, closed at the end of the block."""
    query = urlencode([("room", room) for room in rooms] + list(parameters.items()))
    headers = {"Authorization": f"Bearer {jwt or token()}"} | (headers or {})
    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(ssl=hub.tls or True)
    url = hub.http_url.replace(f":{hub.port}", f":{port or hub.port}")
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session, session.get(f"{url}/events?{query}", headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        reader = Reader(answer)
        while not reader.last_event_id:
            assert await reader.next() is not None
        yield reader
