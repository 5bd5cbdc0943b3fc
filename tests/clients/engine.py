"""A client of Engine.IO 4 that says exactly what a test wants, on polls and on a WebSocket, over bare sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass

from hub import Hub
from peer import BINARY, CLOSE, TEXT, WAIT_S, Answer, Bare, request, upgrade_request

SEPARATOR = "\x1e"


def place(path: str, transport: str | None, sid: str | None = None, version: str | None = "4", more: str = "") -> str:
    parts = [f"EIO={version}"] if version is not None else []
    parts += [f"transport={transport}"] if transport is not None else []
    parts += [f"sid={sid}"] if sid is not None else []
    return f"{path}?{'&'.join(parts)}{more}"


def http(method: str, target: str, body: bytes | None = None) -> bytes:
    head = [f"{method} {target} HTTP/1.1", "Host: hub.example", "Connection: close"]
    if body is not None:
        head += ["Content-Type: text/plain;charset=UTF-8", f"Content-Length: {len(body)}"]
    return "\r\n".join([*head, "", ""]).encode() + (body or b"")


def opened(packet: str, upgrades: list[str]) -> dict:
    """What the first packet of a session says."""
    assert packet[0] == "0", packet
    terms = json.loads(packet[1:])
    assert terms.keys() == {"sid", "upgrades", "pingInterval", "pingTimeout", "maxPayload"}, terms
    assert isinstance(terms["sid"], str) and terms["sid"] and terms["upgrades"] == upgrades, terms
    return terms


@dataclass
class Polling:
    """A session over HTTP. Each request has a connection of its own."""

    hub: Hub
    path: str
    terms: dict

    @classmethod
    async def open(cls, hub: Hub, path: str) -> Polling:
        answer = await request(hub, http("GET", place(path, "polling")))
        assert answer.status == 200, answer
        assert answer.headers["content-type"].lower() == "text/plain; charset=utf-8"
        return cls(hub, path, opened(answer.body.decode(), ["websocket"]))

    @property
    def sid(self) -> str:
        return self.terms["sid"]

    @property
    def target(self) -> str:
        return place(self.path, "polling", self.sid)

    async def poll(self) -> Answer:
        return await request(self.hub, http("GET", self.target))

    async def post(self, *packets: str) -> Answer:
        return await request(self.hub, http("POST", self.target, SEPARATOR.join(packets).encode()))

    async def send(self, *packets: str) -> None:
        answer = await self.post(*packets)
        assert (answer.status, answer.body) == (200, b"ok"), (packets, answer)

    async def packets(self) -> list[str]:
        """What one poll brings, pings aside, which are answered."""
        answer = await self.poll()
        assert answer.status == 200, answer
        packets = answer.body.decode().split(SEPARATOR)
        if "2" in packets:
            await self.send("3")
        return [packet for packet in packets if packet != "2"]

    async def take(self, count: int) -> list[str]:
        """The next `count` packets, over as many polls as it takes."""
        taken = []
        # A session that lives on pings has no end of its own.
        async with asyncio.timeout(WAIT_S):
            while len(taken) < count:
                taken += await self.packets()
        assert len(taken) == count, taken
        return taken

    async def check_gone(self) -> None:
        """The session is closed: told once at most, behind what came before, and unknown from then on."""
        answer = await self.poll()
        if answer.status == 200:
            assert answer.body.split(SEPARATOR.encode())[-1] in (b"1", b"6"), answer
            answer = await self.poll()
        assert answer.status == 400, answer
        assert json.loads(answer.body) == {"code": 1, "message": "Session ID unknown"}
        assert (await self.post("4x")).status == 400


class Socket:
    """A WebSocket of a session, past its handshake."""

    terms: dict = {}

    def __init__(self, bare: Bare):
        self.bare = bare

    async def send(self, *packets: str | bytes) -> None:
        for packet in packets:
            if isinstance(packet, bytes):
                await self.bare.send(BINARY, packet)
            else:
                await self.bare.send(TEXT, packet.encode())

    async def next(self) -> str | bytes:
        """The next packet, a ping included."""
        frame = await self.bare.frame()
        assert frame.opcode in (TEXT, BINARY) and frame.fin, frame
        return frame.payload.decode() if frame.opcode == TEXT else frame.payload

    async def take(self, count: int = 1) -> list[str | bytes]:
        """The next packets, pings aside, which are answered."""
        taken = []
        async with asyncio.timeout(WAIT_S):
            while len(taken) < count:
                packet = await self.next()
                if packet == "2":
                    await self.send("3")
                else:
                    taken.append(packet)
        return taken

    async def one(self) -> str | bytes:
        (packet,) = await self.take()
        return packet

    async def closed(self) -> int | None:
        """Answers pings until the server closes; the code it gives."""
        async with asyncio.timeout(WAIT_S):
            while (frame := await self.bare.frame()).opcode != CLOSE:
                if frame.payload == b"2":
                    await self.send("3")
        code, _ = frame.close()
        with contextlib.suppress(OSError):
            await self.bare.send(CLOSE, frame.payload)
            await self.bare.rest()
        return code


@contextlib.asynccontextmanager
async def websocket(hub: Hub, path: str, sid: str | None = None, more: str = ""):
    """A WebSocket of a new session, opened; or of the session `sid`."""
    async with await Bare.dial(hub) as bare:
        await bare.say(upgrade_request(place(path, "websocket", sid, more=more)))
        answer = await bare.head()
        assert answer.status == 101, (answer, await bare.rest())
        socket = Socket(bare)
        if sid is None:
            socket.terms = opened(await socket.next(), [])
        yield socket


async def probe(socket: Socket) -> None:
    """Tries the WebSocket of a session that polls."""
    await socket.send("2probe")
    assert await socket.next() == "3probe"
