"""PROTOCOL §5's close codes, heartbeats, and readers that are too slow."""

import asyncio
import json
import struct

import pytest
from websockets.exceptions import ConnectionClosed

from hub import admin, token
from peer import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Bare, encode, eventually, idle_descriptors, joined


@pytest.mark.parametrize(
    "frames, code",
    [
        ([encode(TEXT, b"{}", masked=False)], 1002),
        ([encode(TEXT, b"{}", rsv=4)], 1002),
        ([encode(TEXT, b"{}", rsv=1)], 1002),
        ([encode(3, b"")], 1002),
        ([encode(11, b"")], 1002),
        ([encode(PING, b"x" * 126)], 1002),
        ([encode(PING, b"", fin=False)], 1002),
        ([encode(CONTINUATION, b"x")], 1002),
        ([encode(TEXT, b"{", fin=False), encode(TEXT, b"}")], 1002),
        ([encode(CLOSE, b"\x03")], 1002),
        ([encode(CLOSE, struct.pack("!H", 1005))], 1002),
        ([encode(CLOSE, struct.pack("!H", 999))], 1002),
        ([encode(BINARY, b"\x00\x01")], 1003),
        ([encode(TEXT, b'{"type":"\xff"}')], 1007),
        ([encode(TEXT, b"\xc3", fin=False), encode(CONTINUATION, b"(")], 1007),
        ([encode(TEXT, b"\xed\xa0\x80")], 1007),
        ([encode(CLOSE, struct.pack("!H", 1000) + b"\xff")], 1007),
        ([encode(TEXT, b"", length=(1 << 20) + 1)], 1009),
        ([encode(TEXT, b"", length=1 << 62)], 1009),
        ([encode(TEXT, b"x" * 600_000, fin=False), encode(CONTINUATION, b"x" * 600_000)], 1009),
    ],
    ids=[
        "unmasked", "rsv1", "rsv3", "opcode-3", "opcode-11", "long-ping", "fragmented-ping", "lone-continuation", "text-in-text", "close-of-one-byte",
        "close-1005", "close-999", "binary", "invalid-utf8", "invalid-utf8-over-fragments", "surrogate", "close-reason", "one-byte-too-long", "absurd-length",
        "fragments-too-long",
    ],
)  # fmt: skip
async def test_what_breaks_the_protocol_is_closed_with_its_code(hub, frames, code):
    async with await Bare.upgraded(hub) as bare:
        try:
            await bare.say(b"".join(frames))
        except ConnectionError:
            pass  # The hub closed before it had taken all of it; its close frame is there to be read.
        assert (await bare.closed())[0] == code


async def test_the_largest_message_is_taken(start, room):
    hub = start({"limits.message_bytes_max": 4096}, shards=1)
    async with joined(hub) as alice:
        assert alice.data["limits"]["message_bytes_max"] == 4096
        await alice.subscribe(room)
        frame = {"type": "publish", "id": 1, "data": {"room": room, "type": "a", "data": ""}}
        frame["data"]["data"] = "x" * (4096 - len(json.dumps(frame)))
        assert len(json.dumps(frame)) == 4096
        await alice.connection.send(json.dumps(frame))
        assert (await alice.events(room, 1))[0]["data"] == frame["data"]["data"]
        frame["data"]["data"] += "x"
        await alice.connection.send(json.dumps(frame))
        assert (await alice.closed())[0] == 1009


async def test_a_fragmented_command_with_control_frames_inside_works(hub):
    async with await Bare.upgraded(hub) as bare:
        await bare.next(TEXT)
        command = json.dumps({"type": "ping", "id": "f", "data": "ünï"}, ensure_ascii=False).encode()
        await bare.send(TEXT, command[:5], fin=False)
        await bare.send(PING, b"inside")
        for byte in command[5:-1]:
            await bare.send(CONTINUATION, bytes([byte]), fin=False)
        await bare.send(CONTINUATION, command[-1:])
        assert (await bare.next(PONG)).payload == b"inside"
        assert json.loads((await bare.next(TEXT)).payload)["ref"] == "f"


@pytest.mark.parametrize("code", [1000, 1001, 3000, 4999, None])
async def test_a_close_is_answered_in_kind(hub, code):
    async with await Bare.upgraded(hub) as bare:
        await bare.send(CLOSE, b"" if code is None else struct.pack("!H", code) + b"bye")
        answered, _ = await bare.closed()
        assert answered == code or (code is None and answered in (None, 1000))


async def test_a_client_that_says_nothing_is_pinged_and_then_closed_with_4408(start):
    hub = start({"heartbeat.interval_s": 1, "heartbeat.timeout_s": 1}, shards=1)
    async with await Bare.upgraded(hub) as silent, joined(hub) as alive:
        assert alive.data["heartbeat"] == {"interval_s": 1, "timeout_s": 1}
        await silent.next(PING)
        assert (await silent.closed())[0] == 4408
        await alive.done("ping")


async def test_pongs_keep_a_connection_alive(start):
    hub = start({"heartbeat.interval_s": 1, "heartbeat.timeout_s": 1}, shards=1)
    async with await Bare.upgraded(hub) as bare:
        for _ in range(4):
            ping = await bare.next(PING)
            await bare.send(PONG, ping.payload)
        await bare.command("ping", "still here", id=1)
        assert json.loads((await bare.next(TEXT)).payload)["data"] == "still here"


async def test_a_half_open_peer_is_let_go_although_it_never_closes(start):
    hub = start({"heartbeat.interval_s": 1, "heartbeat.timeout_s": 1, "limits.close_wait_s": 1}, shards=1)
    before = await idle_descriptors(hub)
    peers = [await Bare.upgraded(hub) for _ in range(20)]
    assert hub.descriptors() >= before + 20
    await eventually(lambda: hub.descriptors() <= before, "the half-open connections are gone")
    for peer in peers:
        peer.writer.close()


async def test_who_floods_for_too_long_is_closed_with_4429(start):
    hub = start({"limits.messages_per_s": 5, "limits.messages_burst": 5, "limits.flood_s": 1}, shards=1)
    async with joined(hub) as victim, joined(hub, token("flooder")) as flooder:

        async def flood():
            while True:
                await flooder.send("ping", "x")
                # A send that finds room in the socket gives nobody else a turn, the reader of what comes back included.
                await asyncio.sleep(0)

        with pytest.raises(ConnectionClosed):
            async with asyncio.timeout(20):
                sending = asyncio.create_task(flood())
                try:
                    while True:
                        await flooder.connection.recv()
                finally:
                    sending.cancel()
                    await asyncio.gather(sending, return_exceptions=True)
        assert flooder.connection.close_code == 4429
        await victim.done("ping")


async def test_a_reader_that_is_too_slow_is_closed_with_4508_and_delays_nobody(start, room):
    hub = start({"limits.outbox_bytes_max": 524288, "rooms.project.policy": "disconnect", "limits.close_wait_s": 10}, shards=2)
    text = "x" * 16_000
    async with joined(hub) as fast, await Bare.upgraded(hub, receive_bytes=4096) as slow, joined(hub, token("bob")) as publisher:
        await fast.subscribe(room)
        await slow.next(TEXT)
        await slow.command("subscribe", {"room": room}, id=1)
        await slow.next(TEXT)
        count = 1000
        for number in range(count):
            await publisher.send("publish", {"room": room, "type": "n", "data": {"n": number, "text": text}})
            if number % 10 == 9:
                await fast.events(room, 10)
        seqs = []
        while (frame := await slow.frame()).opcode != CLOSE:
            if frame.opcode == TEXT:
                seqs.append(json.loads(frame.payload)["seq"])
        assert frame.close()[0] == 4508
        assert seqs == list(range(1, len(seqs) + 1)), "a hole in what the slow reader got"
        assert len(seqs) < count


async def test_tokens_and_users_apart_one_close_does_not_touch_others(hub, room):
    async with joined(hub) as alice, await Bare.upgraded(hub, admin()) as other:
        await alice.subscribe(room)
        await other.send(BINARY, b"x")
        assert (await other.closed())[0] == 1003
        await alice.done("publish", {"room": room, "type": "a", "data": 1})
        await alice.events(room, 1)
