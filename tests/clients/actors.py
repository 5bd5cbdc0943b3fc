"""Publishers, readers and takers of locks of a cluster that go on whatever happens to it, and note all that they are told in a history."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import time
from collections.abc import Awaitable, Callable, Iterator

import aiohttp
import socketio
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidHandshake, WebSocketException

from cluster import Cluster
from events import reading
from history import ACKNOWLEDGED, IN_DOUBT, REFUSED, Began, Delivery, Gap, History, Lock, Publish
from hub import Hub, admin

# A node that is frozen or dead is given up after this.
ANSWER_S = 4
# What a publisher is told when it is not known whether its event is published.
DOUBTS = ("may still be published", "stopped before it answered")
# All that a connection may die of.
BROKEN = (OSError, WebSocketException, InvalidHandshake, TimeoutError, EOFError, aiohttp.ClientError, socketio.exceptions.SocketIOError)
PAUSE_S = 0.1


class Away(Exception):
    """A node says that it can't serve right now: the connection is left."""


class Actors:
    """All who use a cluster in a run."""

    def __init__(self, cluster: Cluster, rooms: list[str], history: History, seed: int):
        self.cluster = cluster
        self.rooms = rooms
        self.history = history
        self.seed = seed
        self.started_s = time.monotonic()
        self.values = itertools.count(1)
        self.publishing: list[asyncio.Task] = []
        self.reading: list[asyncio.Task] = []
        self.readers: list[Reader] = []
        self.is_over = asyncio.Event()

    def now(self) -> float:
        return time.monotonic() - self.started_s

    def publish(self, kind: Callable[[Publisher], Awaitable[None]], name: str, node: int | None = None) -> None:
        """Has one more publish, at one node or at any."""
        publisher = Publisher(self, name, node)
        self.publishing.append(asyncio.create_task(kind(publisher), name=name))

    def lock(self, name: str) -> None:
        """Has one more take locks."""
        self.publishing.append(asyncio.create_task(Locker(self, name).run(), name=name))

    def read(self, kind: type[Reader], name: str, node: int | None = None) -> None:
        """Has one more read, at one node or at one after the other."""
        self.readers.append(kind(self, name, node))
        self.reading.append(asyncio.create_task(self.readers[-1].run(), name=name))

    def check(self) -> None:
        """An actor that failed by itself fails the run."""
        for task in [*self.publishing, *self.reading]:
            if task.done() and not task.cancelled() and (error := task.exception()):
                raise error

    async def end_publishing(self) -> None:
        self.is_over.set()
        await asyncio.gather(*self.publishing)

    async def end_reading(self, ends: dict[str, tuple[str, int]], within_s: float) -> None:
        """Waits until all readers are where the logs end, or for so long: who is not is found by the checker."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline and not all(reader.is_at(ends) for reader in self.readers):
            self.check()
            await asyncio.sleep(0.05)
        self.check()
        for task in self.reading:
            task.cancel()
        await asyncio.gather(*self.reading, return_exceptions=True)


class Publisher:
    """Publishes one event after the other and notes what it is told of each."""

    def __init__(self, actors: Actors, name: str, node: int | None):
        self.actors, self.name, self.node = actors, name, node
        self.random = random.Random(f"{actors.seed} {name}")

    def hub(self) -> Hub:
        cluster = self.actors.cluster
        return cluster[self.random.randrange(len(cluster)) if self.node is None else self.node]

    def begin(self, hub: Hub) -> Publish:
        """Notes a publish that is about to be made."""
        publish = Publish(next(self.actors.values), self.random.choice(self.actors.rooms), self.name, hub.settings["node.name"], self.actors.now())
        self.actors.history.publishes.append(publish)
        return publish

    def event(self, publish: Publish, **more) -> dict:
        return {"room": publish.room, "type": "n", "data": {"value": publish.value}, **more}

    def acknowledge(self, publish: Publish, answer: dict) -> None:
        publish.outcome, publish.answered_s = ACKNOWLEDGED, self.actors.now()
        publish.id, publish.seq, publish.epoch = answer["id"], answer["seq"], answer["epoch"]

    def refuse(self, publish: Publish, error: dict) -> None:
        assert error["code"] == "unavailable", error
        publish.answered_s, publish.error = self.actors.now(), error["message"]
        publish.outcome = IN_DOUBT if any(doubt in error["message"] for doubt in DOUBTS) else REFUSED

    async def rest(self) -> None:
        await asyncio.sleep(self.random.uniform(0, 0.04))

    def goes_on(self) -> bool:
        return not self.actors.is_over.is_set()

    # The kinds of publishers.

    async def by_socket(self) -> None:
        """Over one connection for as long as it lasts; what is not answered by its end is in doubt."""
        while self.goes_on():
            hub = self.hub()
            with contextlib.suppress(*BROKEN, Away):
                async with native(hub) as connection:
                    for ref in itertools.count(1):
                        if not self.goes_on():
                            return
                        publish = self.begin(hub)
                        await connection.send(json.dumps({"type": "publish", "id": ref, "data": self.event(publish)}))
                        async with asyncio.timeout(ANSWER_S):
                            while (answer := json.loads(await connection.recv())).get("ref") != ref:
                                pass
                        if answer["type"] == "published":
                            self.acknowledge(publish, answer["data"])
                        else:
                            self.refuse(publish, answer["data"])
                        await self.rest()
            await asyncio.sleep(PAUSE_S)

    async def by_http(self) -> None:
        """At any node, over HTTP."""
        async with aiohttp.ClientSession() as session:
            while self.goes_on():
                hub = self.hub()
                publish = self.begin(hub)
                await self._attempt(session, hub, publish, self.event(publish))
                await self.rest()

    async def with_keys(self) -> None:
        """At any node, over HTTP; what is not acknowledged is tried again under its key, at another node perhaps, until it is."""
        async with aiohttp.ClientSession() as session:
            while self.goes_on():
                publish = self.begin(self.hub())
                event = self.event(publish, key=f"{self.name}-{publish.value}")
                was_in_doubt = False
                while publish.outcome != ACKNOWLEDGED:
                    publish.outcome = IN_DOUBT
                    await self._attempt(session, self.hub(), publish, event)
                    was_in_doubt |= publish.outcome == IN_DOUBT
                    if publish.outcome != ACKNOWLEDGED:
                        if not self.goes_on():
                            break
                        await asyncio.sleep(PAUSE_S)
                if publish.outcome == REFUSED and was_in_doubt:
                    # The last attempt was refused; a former one may yet succeed.
                    publish.outcome = IN_DOUBT
                await self.rest()

    async def _attempt(self, session: aiohttp.ClientSession, hub: Hub, publish: Publish, event: dict) -> None:
        headers = {"Authorization": f"Bearer {admin()}"}
        try:
            async with session.post(f"{hub.http_url}/api/v1/publish", json=event, headers=headers, timeout=aiohttp.ClientTimeout(total=ANSWER_S)) as answer:
                body = await answer.json()
        except aiohttp.ClientConnectorError as error:
            # It was never sent.
            publish.outcome, publish.answered_s, publish.error = REFUSED, self.actors.now(), str(error)
        except BROKEN as error:
            publish.error = repr(error)
        else:
            self.acknowledge(publish, body) if answer.status == 200 else self.refuse(publish, body["error"])


class Locker:
    """Takes one of a few locks again and again, at any node; lets it go after a moment, or loses it with its connection."""

    ROOM = "project:locks"
    FIELDS = ["title", "body"]
    TTL_S = 2

    def __init__(self, actors: Actors, name: str):
        self.actors, self.name = actors, name
        self.random = random.Random(f"{actors.seed} {name}")

    async def run(self) -> None:
        while not self.actors.is_over.is_set():
            hub = self.random.choice(self.actors.cluster.nodes)
            with contextlib.suppress(*BROKEN, Away):
                async with native(hub) as connection:
                    for _ in range(self.random.randint(1, 10)):
                        await self._take_one(connection)
            await asyncio.sleep(self.random.uniform(0, PAUSE_S))

    async def _take_one(self, connection) -> None:
        place = {"room": self.ROOM, "field": self.random.choice(self.FIELDS)}
        invoked_s = self.actors.now()
        answer = await self._ask(connection, "lock.acquire", place | {"ttl_s": self.TTL_S})
        if answer["type"] == "error":
            assert answer["data"]["code"] in ("lock_held", "unavailable"), answer
        else:
            token = answer["data"]["token"]
            self.actors.history.locks.append(Lock(self.name, self.ROOM, place["field"], token, invoked_s, self.actors.now()))
            await asyncio.sleep(self.random.uniform(0, 0.1))
            if self.random.random() < 0.9:
                # It may be lost by now.
                await self._ask(connection, "lock.release", place | {"token": token})
        await asyncio.sleep(self.random.uniform(0, PAUSE_S))

    async def _ask(self, connection, kind: str, data: dict) -> dict:
        ref = f"{self.random.randrange(1 << 40)}"
        await connection.send(json.dumps({"type": kind, "id": ref, "data": data}))
        async with asyncio.timeout(ANSWER_S):
            while (answer := json.loads(await connection.recv())).get("ref") != ref:
                pass
        return answer


class Reader:
    """Reads all rooms of the run, and comes back with its places when its connection ends: to its node, or to any."""

    def __init__(self, actors: Actors, name: str, node: int | None):
        self.actors, self.name, self.node = actors, name, node
        self.random = random.Random(f"{actors.seed} {name}")
        self.places: dict[str, tuple[str, int]] = {}
        self.at = ""

    async def run(self) -> None:
        while True:
            cluster = self.actors.cluster
            hub = cluster[self.random.randrange(len(cluster)) if self.node is None else self.node]
            self.at = hub.settings["node.name"]
            with contextlib.suppress(*BROKEN, Away):
                async with asyncio.timeout(self._stay_s()):
                    await self.connected(hub)
            await asyncio.sleep(self.random.uniform(0, 2 * PAUSE_S))

    def _stay_s(self) -> float | None:
        """Who may be anywhere moves on by itself now and then."""
        return None if self.node is not None or self.actors.is_over.is_set() else self.random.uniform(0.5, 5)

    async def connected(self, hub: Hub) -> None:
        """One connection, until it ends."""
        raise NotImplementedError

    def is_at(self, ends: dict[str, tuple[str, int]]) -> bool:
        return self.places == ends

    def since(self, room: str) -> dict:
        """What a subscription asks for."""
        place = self.places.get(room)
        return {"since": {"epoch": place[0], "seq": place[1]}} if place else {}

    # What it is told.

    def began(self, room: str, epoch: str, seq: int, recovered: bool) -> None:
        self.actors.history.tell(Began(self.name, room, self.at, epoch, seq, recovered, after=self.places.get(room)))
        self.places[room] = (epoch, seq)

    def answered(self, room: str, answer: dict) -> None:
        """Of a subscription."""
        self.began(room, answer["epoch"], answer["seq"] - answer["replayed"], answer["recovered"])

    def event(self, message: dict) -> None:
        room, seq, data = message["room"], message["seq"], message["data"]
        if room in self.actors.rooms:
            self.actors.history.tell(Delivery(self.name, room, self.at, seq, message["id"], data["value"]))
            if room in self.places:
                self.places[room] = (self.places[room][0], seq)

    def gap(self, data: dict) -> None:
        room, epoch = data["room"], data.get("epoch")
        if room in self.places:
            self.actors.history.tell(Gap(self.name, room, self.at, data["from_seq"], data["to_seq"], data["reason"], epoch))
            self.places[room] = (epoch or self.places[room][0], data["to_seq"])

    def message(self, message: dict) -> None:
        """Whatever comes that is no answer."""
        if message["type"] == "gap":
            self.gap(message["data"])
        elif "seq" in message:
            self.event(message)
        elif message["type"] == "error":
            raise Away(message["data"]["message"])


class Native(Reader):
    """Subscribes with `since`."""

    async def connected(self, hub: Hub) -> None:
        async with native(hub) as connection:
            await self.subscribed(connection)
            while True:
                self.message(json.loads(await connection.recv()))

    async def subscribed(self, connection) -> None:
        for ref, room in enumerate(self.actors.rooms):
            await connection.send(json.dumps({"type": "subscribe", "id": ref, "data": {"room": room} | self.since(room)}))
            async with asyncio.timeout(ANSWER_S):
                while (message := json.loads(await connection.recv())).get("ref") != ref:
                    self.message(message)
            if message["type"] == "error":
                raise Away(message["data"]["message"])
            self.answered(room, message["data"])


class Resuming(Native):
    """Resumes its session where there still is one, with its places."""

    session: dict | None = None

    async def connected(self, hub: Hub) -> None:
        async with native(hub) as connection:
            former, self.session = self.session, connection.greeting["data"]
            if not (former and await self.resumed(connection, former)):
                await self.subscribed(connection)
            while True:
                self.message(json.loads(await connection.recv()))

    async def resumed(self, connection, former: dict) -> bool:
        cursors = {room: {"epoch": epoch, "seq": seq} for room, (epoch, seq) in self.places.items()}
        if set(cursors) != set(self.actors.rooms):
            return False
        ask = {"session_id": former["session_id"], "token": former["resume"]["token"], "cursors": cursors}
        await connection.send(json.dumps({"type": "resume", "id": "resume", "data": ask}))
        early = []
        async with asyncio.timeout(ANSWER_S):
            while (message := json.loads(await connection.recv())).get("ref") != "resume":
                early.append(message)
        if message["type"] == "error":
            return False
        self.session = {"session_id": message["data"]["session_id"], "resume": message["data"]["resume"]}
        results = {result["room"]: result for result in message["data"]["results"]}
        for room in self.actors.rooms:
            if "error" in results.get(room, {"error": "not resumed"}):
                raise Away(f"{room} is not resumed: {results.get(room)}")
            self.answered(room, results[room])
        # Rooms that have nothing to replay need not wait for those that do.
        for message in early:
            self.message(message)
        return True


class Stream(Reader):
    """A stream of server-sent events, which comes back with its last id."""

    last = ""

    async def connected(self, hub: Hub) -> None:
        headers = {"Last-Event-ID": self.last} if self.last else None
        async with asyncio.timeout(ANSWER_S) as opening:
            try:
                opened = reading(hub, *self.actors.rooms, jwt=admin(), headers=headers)
                reader = await opened.__aenter__()
            except AssertionError as error:
                # It is refused for now.
                assert "unavailable" in str(error) or not str(error), error
                raise Away(str(error)) from None
            opening.reschedule(None)
        try:
            # What was missed since the last id was told by now; where it goes on, the id says.
            missed = {event.json()["data"]["room"] for event in reader.events if event.name == "gap"}
            assert len(missed) == len(reader.events), reader.events
            for room, place in zip(self.actors.rooms, marks(reader.last_event_id)):
                self.began(room, *place, recovered=room not in missed)
            self.last = reader.last_event_id
            while event := await reader.next(within_s=3600):
                if event.data is not None and event.name in ("", "gap"):
                    self.message(event.json())
                if event.id is not None:
                    self.last = event.id
                    places = dict(zip(self.actors.rooms, marks(self.last)))
                    assert places == self.places, f"{self.name}: the id {self.last} says {places}, the events {self.places}"
        finally:
            await opened.__aexit__(None, None, None)


def marks(cursor: str) -> Iterator[tuple[str, int]]:
    """The places in an id of a stream, as epochs and numbers."""
    digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_"

    def number(text: str) -> int:
        value = 0
        for digit in text:
            value = value * 64 + digits.index(digit)
        return value

    for mark in cursor.split("."):
        epoch, seq = mark.split("~")
        yield f"{number(epoch):016x}", number(seq)


class Emitter(Reader):
    """A client of Socket.IO."""

    async def connected(self, hub: Hub) -> None:
        async with aiohttp.ClientSession() as session:
            client = socketio.AsyncClient(http_session=session, reconnection=False)
            arrived: asyncio.Queue = asyncio.Queue()

            async def keep(_, message: dict) -> None:
                await arrived.put(message)

            client.on("*", keep)
            client.on("disconnect", lambda *_: arrived.put_nowait(None))
            try:
                async with asyncio.timeout(ANSWER_S):
                    await client.connect(hub.http_url, auth={"token": admin()}, transports=["websocket"], wait_timeout=ANSWER_S)
                for room in self.actors.rooms:
                    answer = await client.call("subscribe", {"room": room} | self.since(room), timeout=ANSWER_S)
                    if answer["type"] == "error":
                        raise Away(answer["data"]["message"])
                    self.answered(room, answer["data"])
                    while not arrived.empty():
                        self._take(arrived.get_nowait())
                while True:
                    self._take(await arrived.get())
            finally:
                with contextlib.suppress(*BROKEN):
                    async with asyncio.timeout(1):
                        await client.disconnect()
                with contextlib.suppress(*BROKEN):
                    async with asyncio.timeout(1):
                        await client.shutdown()

    def _take(self, message: dict | None) -> None:
        if message is None:
            raise Away("disconnected")
        self.message(message)


@contextlib.asynccontextmanager
async def native(hub: Hub):
    """A greeted connection; its greeting is kept with it."""
    headers = {"Authorization": f"Bearer {admin()}"}
    options = {"additional_headers": headers, "compression": None, "proxy": None, "max_size": None, "max_queue": None, "ping_interval": None}
    async with connect(f"{hub.url}/ws", open_timeout=ANSWER_S, close_timeout=0.2, **options) as connection:
        async with asyncio.timeout(ANSWER_S):
            connection.greeting = json.loads(await connection.recv())
        yield connection
