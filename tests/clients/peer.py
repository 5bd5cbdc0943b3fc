"""The two kinds of client that the tests use: one that behaves (PyPI's websockets) and one that need not (bare frames)."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import re
import socket
import struct
import uuid
from dataclasses import dataclass, field

import msgpack
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from hub import Hub, token

WAIT_S = 10
TIMESTAMP = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")


def check_envelope(message: dict) -> None:
    """What every message of the hub carries: type, unique id (UUIDv7), timestamp (RFC 3339, UTC, milliseconds)."""
    assert isinstance(message["type"], str) and message["type"], message
    assert uuid.UUID(message["id"]).version == 7, message
    assert TIMESTAMP.match(message["timestamp"]), message


class Peer:
    """A native client: sends commands, finds their answers, keeps what else arrived in order."""

    def __init__(self, connection: ClientConnection):
        self.connection = connection
        self.inbox: list[dict] = []
        self.frames: list[str] = []
        self.greeting: dict = {}
        self._ids = itertools.count(1)

    async def greeted(self) -> Peer:
        self.greeting = await self.next("connection_established")
        return self

    @property
    def speaks_msgpack(self) -> bool:
        return "msgpack" in (self.connection.subprotocol or "")

    @property
    def data(self) -> dict:
        """The greeting's data."""
        return self.greeting["data"]

    async def send(self, kind: str, data: object = None, **more) -> None:
        message = {"type": kind, **({} if data is None else {"data": data}), **more}
        await self.connection.send(msgpack.packb(message) if self.speaks_msgpack else json.dumps(message))

    async def ask(self, kind: str, data: object = None) -> dict:
        """Sends a command and waits for its answer, an `error` included."""
        ref = f"c{next(self._ids)}"
        await self.send(kind, data, id=ref)
        return await self._find(lambda message: message.get("ref") == ref)

    async def done(self, kind: str, data: object = None) -> dict:
        """Sends a command that must succeed; its answer's data."""
        answer = await self.ask(kind, data)
        assert answer["type"] != "error", answer
        return answer["data"]

    async def refused(self, kind: str, data: object = None) -> dict:
        """Sends a command that must fail; the error's data."""
        answer = await self.ask(kind, data)
        assert answer["type"] == "error", answer
        assert answer["data"]["message"], answer
        return answer["data"]

    async def subscribe(self, room: str, **options) -> dict:
        return await self.done("subscribe", {"room": room, **options})

    async def next(self, kind: str) -> dict:
        """The next message of this type; others stay in the inbox."""
        return await self._find(lambda message: message["type"] == kind)

    async def any_of(self, *kinds: str) -> dict:
        """The next message of one of these types."""
        return await self._find(lambda message: message["type"] in kinds)

    async def events(self, room: str, count: int) -> list[dict]:
        """The next `count` events of a room."""
        return [await self._find(lambda message: message.get("room") == room and "seq" in message) for _ in range(count)]

    async def settled(self) -> list[dict]:
        """Everything that came up to the answer of a ping sent now."""
        await self.done("ping", {})
        taken, self.inbox = self.inbox, []
        return taken

    async def closed(self) -> tuple[int, str]:
        """Reads on until the hub closes; its code and reason."""
        async with asyncio.timeout(WAIT_S):
            with contextlib.suppress(ConnectionClosed):
                while True:
                    self._keep(await self.connection.recv())
        return self.connection.close_code, self.connection.close_reason

    async def close(self) -> None:
        await self.connection.close()

    async def _find(self, wanted) -> dict:
        seen = 0
        async with asyncio.timeout(WAIT_S):
            while True:
                for index, message in enumerate(self.inbox[seen:], seen):
                    if wanted(message):
                        return self.inbox.pop(index)
                seen = len(self.inbox)
                self._keep(await self.connection.recv())

    def _keep(self, frame: str | bytes) -> None:
        assert isinstance(frame, bytes if self.speaks_msgpack else str), f"a frame of the other kind: {frame!r}"
        read = msgpack.unpackb(frame) if self.speaks_msgpack else json.loads(frame)
        if isinstance(read, list):
            assert (self.connection.subprotocol or "").endswith(".batch"), "nobody else gets an array"
            assert len(read) > 1 and all("seq" in event for event in read), read
        messages = read if isinstance(read, list) else [read]
        for message in messages:
            check_envelope(message)
        self.frames.append(frame)
        self.inbox += messages


@contextlib.asynccontextmanager
async def joined(hub: Hub, jwt: str | None = None, *, path: str = "/ws", query: str = "", unix: str | None = None, **options):
    """A greeted client, closed at the end of the block. With no token given it is alice, an ordinary user."""
    headers = {"Authorization": f"Bearer {jwt or token()}"} | options.pop("headers", {})
    url = f"{hub.url}{path}{'?' + query if query else ''}"
    sock = None
    if unix:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(unix)
        sock.setblocking(False)
    if hub.tls:
        options.setdefault("ssl", hub.tls)
    async with connect(url, additional_headers=headers, compression=None, proxy=None, max_size=None, max_queue=None, sock=sock, **options) as connection:
        yield await Peer(connection).greeted()


@dataclass
class Frame:
    opcode: int
    payload: bytes
    fin: bool = True
    rsv: int = 0

    def close(self) -> tuple[int | None, str]:
        """Code and reason of a close frame."""
        if not self.payload:
            return None, ""
        return struct.unpack("!H", self.payload[:2])[0], self.payload[2:].decode()


@dataclass
class Answer:
    """The head and the body of an HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes = b""

    def error(self) -> dict:
        """The refusal's body, checked for its shape."""
        assert self.headers["content-type"].startswith("application/json"), self.headers
        error = json.loads(self.body)["error"]
        assert isinstance(error["code"], str) and error["code"] and error["message"], error
        return error


TEXT, BINARY, CLOSE, PING, PONG, CONTINUATION = 1, 2, 8, 9, 10, 0


def encode(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, masked: bool = True, length: int | None = None) -> bytes:
    """A client's frame; `length` may lie."""
    announced = len(payload) if length is None else length
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    bit = 0x80 if masked else 0
    if announced < 126:
        head += bytes([bit | announced])
    elif announced < 65536:
        head += struct.pack("!BH", bit | 126, announced)
    else:
        head += struct.pack("!BQ", bit | 127, announced)
    if not masked:
        return head + payload
    mask = os.urandom(4)
    return head + mask + bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


def upgrade_request(path: str = "/ws", headers: dict | None = None, *, version: int = 13, without: tuple[str, ...] = ()) -> bytes:
    """An upgrade as a browser sends it, but for what is asked otherwise."""
    fields = {
        "Host": "hub.example",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        "Sec-WebSocket-Version": str(version),
    } | (headers or {})
    lines = [f"{name}: {value}" for name, value in fields.items() if name not in without]
    return "\r\n".join([f"GET {path} HTTP/1.1", *lines, "", ""]).encode()


@dataclass
class Bare:
    """A TCP connection that says exactly what a test wants."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    answer: Answer | None = field(default=None)

    @classmethod
    async def dial(cls, hub: Hub, *, receive_bytes: int | None = None, source: str | None = None) -> Bare:
        sock = socket.socket()
        if source := source or hub.source:
            sock.bind((source, 0))
        if receive_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (hub.host, hub.port))
        # A small limit stops the loop from reading ahead of the test: a slow reader must be slow.
        limit = 1 << 24 if receive_bytes is None else max(receive_bytes, 1024)
        encrypted = {"ssl": hub.tls, "server_hostname": hub.host} if hub.tls else {}
        return cls(*await asyncio.open_connection(sock=sock, limit=limit, **encrypted))

    @classmethod
    async def upgraded(cls, hub: Hub, jwt: str | None = None, path: str = "/ws", *, first: bytes = b"", **options) -> Bare:
        """Past the upgrade; the greeting is still to be read."""
        bare = await cls.dial(hub, **options)
        await bare.say(first + upgrade_request(path, {"Authorization": f"Bearer {jwt or token()}"}))
        answer = await bare.head()
        assert answer.status == 101, (answer, await bare.rest())
        return bare

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        async with asyncio.timeout(WAIT_S):
            await self.writer.drain()

    async def send(self, opcode: int, payload: bytes = b"", **how) -> None:
        await self.say(encode(opcode, payload, **how))

    async def command(self, kind: str, data: object, **more) -> None:
        await self.send(TEXT, json.dumps({"type": kind, "data": data, **more}).encode())

    async def head(self) -> Answer:
        """The head of an HTTP answer."""
        async with asyncio.timeout(WAIT_S):
            text = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        status, *lines = text.strip().split("\r\n")
        self.answer = Answer(int(status.split()[1]), {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)})
        return self.answer

    async def http(self) -> Answer:
        """A whole HTTP answer."""
        answer = await self.head()
        async with asyncio.timeout(WAIT_S):
            answer.body = await self.reader.readexactly(int(answer.headers.get("content-length", 0)))
        return answer

    async def frame(self) -> Frame:
        """The next frame of the hub; never masked (RFC 6455 §5.1)."""
        async with asyncio.timeout(WAIT_S):
            first, second = await self.reader.readexactly(2)
            assert not second & 0x80, "the hub masked a frame"
            length = second & 0x7F
            if length == 126:
                (length,) = struct.unpack("!H", await self.reader.readexactly(2))
            elif length == 127:
                (length,) = struct.unpack("!Q", await self.reader.readexactly(8))
            payload = await self.reader.readexactly(length)
        return Frame(first & 0x0F, payload, bool(first & 0x80), first >> 4 & 7)

    async def next(self, opcode: int) -> Frame:
        """The next frame with this opcode; others are passed over."""
        while (frame := await self.frame()).opcode != opcode:
            pass
        return frame

    async def closed(self) -> tuple[int | None, str]:
        """Reads on until the close frame, and then until the hub has let go of the connection."""
        code = (await self.next(CLOSE)).close()
        await self.rest()
        return code

    async def rest(self) -> bytes:
        """All up to the end of the stream, however it ends."""
        taken = b""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(WAIT_S):
                while more := await self.reader.read(65536):
                    taken += more
        return taken

    def vanish(self) -> None:
        """Resets the connection, as a killed machine's kernel would on the next packet."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.close()

    async def __aenter__(self) -> Bare:
        return self

    async def __aexit__(self, *_) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


async def request(hub: Hub, data: bytes) -> Answer:
    """Sends bytes on a connection of their own and takes the HTTP answer."""
    async with await Bare.dial(hub) as bare:
        await bare.say(data)
        return await bare.http()


async def idle_descriptors(hub: Hub) -> int:
    """How many descriptors the hub holds once the connections that others have just left are gone."""
    count, since = hub.descriptors(), 0
    while since < 10:
        await asyncio.sleep(0.01)
        now = hub.descriptors()
        count, since = now, since + 1 if now == count else 0
    return count


async def eventually(condition, what: str, *, within_s: float = WAIT_S) -> None:
    """Waits until a condition on the hub's outside holds (one that can only be looked at, not waited for)."""
    deadline = asyncio.get_running_loop().time() + within_s
    while not await asyncio.to_thread(condition):
        assert asyncio.get_running_loop().time() < deadline, f"not within {within_s} s: {what}"
        await asyncio.sleep(0.02)
