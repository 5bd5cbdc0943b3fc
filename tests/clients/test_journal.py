"""Durable rooms: what was acknowledged outlives `kill -9`, a full disk and a journal that has lost its end.

RINGHUB_KILLS=50 kills the hub as many times.
"""

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed, InvalidMessage

from hub import HubFailed, admin
from peer import Peer, joined

KILLS = int(os.environ.get("RINGHUB_KILLS", "8"))
ROOMS = ["project:1", "project:2", "workflow:1"]
KEEP_ALL = {"history.events_max": 1_000_000, "history.bytes_max": 1 << 30}
# A hub that is killed during a handshake has said nothing, which is no valid answer.
GONE = (ConnectionClosed, InvalidMessage, ConnectionError, OSError, EOFError, TimeoutError)


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(prefix="ringhub-test-journal-") as path:
        yield Path(path)


def durable(path: Path, **more) -> dict:
    return {"journal.path": str(path), "rooms.project.durable": True, "rooms.workflow.durable": True} | more


async def history(peer: Peer, room: str) -> dict:
    """All of a room: its events in order, its epoch and last number."""
    events, seq = [], 0
    while True:
        page = await peer.done("history", {"room": room, "since": {"seq": seq}, "limit": 1000})
        events += page["events"]
        if not page["more"]:
            return {"events": events, "epoch": page["epoch"], "seq": page["seq"]}
        seq = events[-1]["seq"]


def journal(hub) -> dict:
    """What `/ready` says of the journal."""
    return json.loads(hub.get("/ready")[2])["journal"]


async def until(condition, timeout_s: float = 10):
    """Awaits a condition and gives back what it gave."""
    async with asyncio.timeout(timeout_s):
        while not (found := condition()):
            await asyncio.sleep(0.02)
        return found


class Load:
    """Publishers and a reader who go on from one life of the hub to the next."""

    def __init__(self):
        self.acknowledged: dict[tuple[str, int], tuple[str, str]] = {}
        self.epochs: dict[str, str] = {}
        self.number = 0
        self.open: dict[int, tuple[str, str]] = {}
        self.cursor = 0
        self.read: list[str] = []

    async def publish(self, hub, writer: int):
        """Publishes until the hub is gone. What was not answered then is published again in the next life, by its key."""
        async with joined(hub, admin(f"writer-{writer}")) as peer:
            while True:
                if writer not in self.open:
                    self.number += 1
                    self.open[writer] = (random.choice(ROOMS), f"event {self.number}")
                room, key = self.open[writer]
                data = {"key": key, "filling": "x" * random.choice([10, 300, 5000])}
                answer = await peer.done("publish", {"room": room, "type": "n", "data": data, "key": key})
                assert self.epochs.setdefault(room, answer["epoch"]) == answer["epoch"]
                former = self.acknowledged.setdefault((room, answer["seq"]), (key, answer["id"]))
                assert former == (key, answer["id"])
                del self.open[writer]

    async def follow(self, hub):
        room = ROOMS[0]
        async with joined(hub, admin("reader")) as peer:
            since = {"seq": self.cursor} | ({"epoch": self.epochs[room]} if self.cursor else {})
            answer = await peer.done("subscribe", {"room": room, "since": since})
            assert answer["recovered"] is True, answer
            while True:
                event, = await peer.events(room, 1)
                assert event["seq"] == self.cursor + 1
                self.cursor = event["seq"]
                self.read.append(event["data"]["key"])

    async def check(self, hub):
        async with joined(hub, admin("checker")) as peer:
            for room in ROOMS:
                told = await history(peer, room)
                assert told["epoch"] == self.epochs.get(room, told["epoch"])
                seqs = [event["seq"] for event in told["events"]]
                assert seqs == list(range(1, told["seq"] + 1)), "no number is missing, none is there twice"
                keys = [event["data"]["key"] for event in told["events"]]
                assert len(set(keys)) == len(keys), "no event is there twice"
                for (of, seq), (key, id) in self.acknowledged.items():
                    if of == room:
                        assert (told["events"][seq - 1]["data"]["key"], told["events"][seq - 1]["id"]) == (key, id)
                if room == ROOMS[0]:
                    assert keys[: len(self.read)] == self.read, "what a reader was given is there"


@pytest.mark.parametrize("ack", ["synced", "written"])
async def test_what_was_acknowledged_outlives_kills_at_any_moment(start, folder, ack):
    load = Load()
    settings = durable(folder, **KEEP_ALL) | {
        "rooms.project.durable_ack": ack,
        "journal.segment_bytes": 1 << 20,
        "journal.bytes_max": 1 << 30,
    }
    for life in range(KILLS + 1 if ack == "synced" else 3):
        hub = start(settings, shards=random.choice([1, 2, 3]))
        await load.check(hub)
        async with asyncio.TaskGroup() as group:
            async def until_gone(task):
                with contextlib.suppress(*GONE):
                    await task

            for writer in range(12):
                group.create_task(until_gone(load.publish(hub, writer)))
            group.create_task(until_gone(load.follow(hub)))
            await asyncio.sleep(random.uniform(0.05, 0.6))
            hub.kill()
        log = hub.log()
        assert "ERROR" not in log, log
    assert len(load.acknowledged) > 50 and load.cursor > 10
    hub = start(settings)
    await load.check(hub)


async def test_a_hub_that_was_drained_comes_back_with_everything(start, folder):
    settings = durable(folder)
    hub = start(settings)
    async with joined(hub, admin()) as peer:
        first = await peer.done("publish", {"room": "project:1", "type": "n", "data": {"n": 1}, "key": "order 7"})
    hub.signal(signal.SIGTERM)
    assert hub.wait() == 0
    hub = start(settings, shards=3)
    async with joined(hub, admin()) as peer:
        again = await peer.done("publish", {"room": "project:1", "type": "n", "data": {"n": 1}, "key": "order 7"})
        assert (again["duplicate"], again["id"], again["epoch"]) == (True, first["id"], first["epoch"])
        answer = await peer.done("subscribe", {"room": "project:1", "since": {"seq": 0, "epoch": first["epoch"]}})
        assert (answer["seq"], answer["recovered"], answer["replayed"]) == (1, True, 1)


async def test_a_journal_is_used_by_one_hub_at_a_time(start, folder):
    start(durable(folder))
    with pytest.raises(HubFailed, match="another hub uses the journal"):
        start(durable(folder))


async def test_a_torn_end_is_cut_and_told(start, folder):
    hub = start(durable(folder))
    for n in range(3):
        assert hub.publish("project:1", "n", {"n": n})[0] == 200
    hub.kill()
    newest = max(folder.glob("*.journal"))
    whole = newest.stat().st_size
    with newest.open("ab") as file:
        file.write(newest.read_bytes()[16:100])
    hub = start(durable(folder))
    assert "the journal ends with a record that ends too early" in hub.log()
    assert f"at={whole} bytes=84" in hub.log()
    assert journal(hub)["cut_bytes"] == 84 and newest.stat().st_size == whole
    async with joined(hub, admin()) as peer:
        assert [event["data"]["n"] for event in (await history(peer, "project:1"))["events"]] == [0, 1, 2]


async def test_files_go_when_no_log_needs_them(start, folder):
    more = {"journal.segment_bytes": 65536, "journal.bytes_max": 1 << 20, "rooms.project.history_events_max": 10}
    hub = start(durable(folder, **more))
    async with joined(hub, admin()) as peer:
        quiet = await peer.done("publish", {"room": "workflow:quiet", "type": "n", "data": {}})
        for n in range(400):
            await peer.done("publish", {"room": "project:busy", "type": "n", "data": {"n": n, "filling": "x" * 5000}})
    figures = journal(hub)
    assert figures["bytes"] < 1 << 20 and figures["files"] <= 10, figures
    assert figures["written_bytes"] > 2 << 20 and figures["moved_bytes"] > 0, figures
    hub.kill()
    hub = start(durable(folder, **more))
    async with joined(hub, admin()) as peer:
        busy = await history(peer, "project:busy")
        assert [event["data"]["n"] for event in busy["events"]] == list(range(390, 400)) and busy["seq"] == 400
        told = await history(peer, "workflow:quiet")
        assert (told["seq"], told["epoch"], len(told["events"])) == (1, quiet["epoch"], 1)


async def test_a_room_with_members_keeps_its_number_when_its_events_are_too_old(start, folder):
    more = {"journal.segment_bytes": 65536, "journal.bytes_max": 1 << 20, "history.age_s": 1, "rooms.project.history_events_max": 10}
    hub = start(durable(folder, **more))
    async with joined(hub, admin()) as peer:
        room = "workflow:silent"
        await peer.subscribe(room)
        last = [await peer.done("publish", {"room": room, "type": "n", "data": {}}) for _ in range(3)][-1]
        async with asyncio.timeout(10):
            while (await history(peer, room))["events"]:
                await asyncio.sleep(0.1)
        async with asyncio.timeout(20):
            while journal(hub)["moved_bytes"] == 0:
                await peer.done("publish", {"room": "project:busy", "type": "n", "data": {"filling": "x" * 5000}})
        hub.kill()
    hub = start(durable(folder, **more))
    async with joined(hub, admin()) as peer:
        told = await history(peer, room)
        assert (told["seq"], told["epoch"], told["events"]) == (3, last["epoch"], [])


async def fails_and_recovers(hub, fill, free):
    """Publishes to a durable room until the disk won't take more, then again when it does."""
    async with joined(hub, admin()) as peer:
        published = 0
        fill()
        for _ in range(2000):
            answer = await peer.ask("publish", {"room": "project:1", "type": "n", "data": {"n": published, "filling": "x" * 4000}})
            if answer["type"] == "error":
                break
            published += 1
        assert answer["type"] == "error" and answer["data"]["code"] == "unavailable", answer
        # Everything else goes on.
        for _ in range(3):
            await peer.done("publish", {"room": "quote:1", "type": "n", "data": {}})
        status, _, body = hub.get("/ready")
        assert status == 200 and b'"journal":{"up":0' in body
        assert hub.publish("project:1", "n", {})[0] == 503
        assert hub.metrics()["ringhub_journal_up"] == 0
        told = await history(peer, "project:1")
        assert [event["data"]["n"] for event in told["events"]] == list(range(published))

        free()
        await until(lambda: journal(hub)["up"] == 1)
        after = await peer.done("publish", {"room": "project:1", "type": "n", "data": {"n": published}})
        assert after["seq"] == published + 1, "no number is missing"
    return published + 1


async def test_a_full_disk_refuses_durable_publishes_until_there_is_room(start, folder):
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], check=False).returncode:
        pytest.skip("a small file system can't be mounted here")
    try:
        filling = folder / "filling"
        settings = durable(folder / "journal", **KEEP_ALL) | {"journal.segment_bytes": 1 << 20, "journal.bytes_max": 1 << 30}
        hub = start(settings)
        published = await fails_and_recovers(hub, lambda: filling.write_bytes(b"x" * (1 << 20)), filling.unlink)
        hub.kill()
        hub = start(settings)
        async with joined(hub, admin()) as peer:
            told = await history(peer, "project:1")
            assert [event["data"]["n"] for event in told["events"]] == list(range(published))
        hub.signal(signal.SIGTERM)
        assert hub.wait() == 0
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_a_folder_that_is_gone_for_a_while_refuses_durable_publishes_until_it_is_back(start, folder):
    path, away = folder / "journal", folder / "away"
    settings = durable(path, **KEEP_ALL) | {"journal.segment_bytes": 65536, "journal.bytes_max": 1 << 30}
    hub = start(settings)
    published = await fails_and_recovers(hub, lambda: path.rename(away), lambda: away.rename(path))
    hub.kill()
    hub = start(settings)
    async with joined(hub, admin()) as peer:
        told = await history(peer, "project:1")
        assert [event["data"]["n"] for event in told["events"]] == list(range(published))


def test_a_durable_kind_without_a_journal_is_no_configuration(start):
    with pytest.raises(HubFailed, match="rooms.project.durable.*needs journal.path"):
        start({"rooms.project.durable": True})


@pytest.mark.parametrize("member", [True, False], ids=["with a member", "nobody there"])
async def test_a_history_that_was_emptied_stays_empty_after_a_kill(start, folder, member):
    """The answer to the DELETE is the promise: nothing is waited for behind it."""
    settings = durable(folder, **{"journal.segment_bytes": 1 << 20})
    room, path = "project:1", "/api/v1/rooms/project:1/history"
    backend = {"Authorization": f"Bearer {admin()}"}
    expected = []
    for life in range(4):
        hub = start(settings, shards=random.choice([1, 2, 3]))
        async with contextlib.AsyncExitStack() as stack:
            peer = await stack.enter_async_context(joined(hub, admin()))
            told = await history(peer, room)
            assert [event["data"]["n"] for event in told["events"]] == expected, f"life {life}"
            if member:
                await peer.subscribe(room)
            before = told["seq"]
            for number in range(20):
                answer = await peer.done("publish", {"room": room, "type": "n", "data": {"n": number}})
            assert not member or answer["seq"] == before + 20, "numbers go on"
            status, _, body = hub.get(path, backend, method="DELETE")
            assert (status, json.loads(body)) == (200, {"room": room, "deleted": 20 + len(expected)})
            expected = []
            if life % 2 == 0:
                await peer.done("publish", {"room": room, "type": "n", "data": {"n": 99}})
                expected = [99]
            hub.kill()
    hub = start(settings)
    async with joined(hub, admin()) as peer:
        assert [event["data"]["n"] for event in (await history(peer, room))["events"]] == expected
