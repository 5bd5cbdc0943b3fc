"""permessage-deflate (RFC 7692) with PyPI's websockets and with bare frames: what is agreed, and that messages mean the same."""

import contextlib
import json
import zlib

import pytest
from websockets.asyncio.client import connect
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

from hub import token
from peer import CONTINUATION, PING, TEXT, Bare, Peer, upgrade_request

ON = {"compression.enabled": True, "compression.threshold_bytes": 200, "endpoints.echo": True}
# Answers are shorter.
EVENTS_ONLY = ON | {"compression.threshold_bytes": 600}
KEEPS = ON | {"compression.client_window_bits": 15}
OFFER = "permessage-deflate; client_max_window_bits"
AFRESH = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
ROWS = [{"status": "running", "load": 0.5}] * 30


@contextlib.asynccontextmanager
async def peer(hub, path="/ws", user="alice", **parameters):
    """A client that offers compression with these parameters."""
    factory = ClientPerMessageDeflateFactory(**parameters)
    async with connect(f"{hub.url}{path}", compression=None, extensions=[factory], additional_headers={"Authorization": f"Bearer {token(user)}"}) as connection:
        yield connection


def agreed(connection) -> str | None:
    return connection.response.headers.get("Sec-WebSocket-Extensions")


@pytest.mark.parametrize("settings", [ON, KEEPS], ids=["client starts afresh", "client keeps its context"])
@pytest.mark.parametrize(
    "parameters",
    [{}, {"client_max_window_bits": True}, {"client_no_context_takeover": True, "server_no_context_takeover": True}, {"server_max_window_bits": 9}, {"client_max_window_bits": 9}],
    ids=str,
)
async def test_commands_and_events_mean_the_same_compressed(start, settings, parameters):
    hub = start(settings)
    async with peer(hub, **parameters) as one, connect(f"{hub.url}/ws", compression=None, additional_headers={"Authorization": f"Bearer {token('bob')}"}) as other:
        assert agreed(one).startswith("permessage-deflate; server_no_context_takeover")
        assert agreed(other) is None
        compressed, plain = await Peer(one).greeted(), await Peer(other).greeted()
        for client in (compressed, plain):
            await client.subscribe("project:compressed")
        for number in range(20):
            await compressed.done("publish", {"room": "project:compressed", "type": "x", "data": {"number": number, "rows": ROWS}})
        events = await compressed.events("project:compressed", 20)
        assert events == await plain.events("project:compressed", 20)
        assert [event["data"]["number"] for event in events] == list(range(20))
        history = await compressed.done("history", {"room": "project:compressed"})
        assert [event["seq"] for event in history["events"]] == list(range(1, 21))


@pytest.mark.parametrize("settings", [ON, KEEPS], ids=["client starts afresh", "client keeps its context"])
async def test_echoes_of_all_sizes_come_back_compressed_and_not(start, settings):
    hub = start(settings)
    async with peer(hub, "/echo") as client:
        for size in (0, 1, 100, 1000, 65_535, 65_536, 300_000):
            for message in ("é€" * (size // 5), b"ab" * (size // 2)):
                await client.send(message)
                assert await client.recv() == message
            # A message in fragments is compressed as one.
            await client.send(iter(["x" * size, "y" * 10, "z"]))
            assert await client.recv() == "x" * size + "y" * 10 + "z"


async def test_it_is_off_unless_it_is_switched_on_and_for_who_says_so(hub, start):
    async with peer(hub, client_max_window_bits=True) as client:
        assert agreed(client) is None
    on = start(ON)
    async with peer(on, "/ws?compression=off") as client:
        assert agreed(client) is None
    async with peer(on, client_max_window_bits=True) as client:
        assert agreed(client) == AFRESH


async def test_figures_tell_what_it_saves(start):
    hub = start(EVENTS_ONLY, shards=1)
    async with peer(hub) as one, peer(hub, user="bob") as other:
        for client in (await Peer(one).greeted(), await Peer(other).greeted()):
            await client.subscribe("project:figures")
        publisher = Peer(one)
        before = hub.metrics()
        await publisher.done("publish", {"room": "project:figures", "type": "x", "data": ROWS})
        await publisher.events("project:figures", 1)
        after = hub.metrics()
        grown = {name: after[name] - before[name] for name in after if "compress" in name}
        assert grown["ringhub_compressed_messages_total"] == 1, "one event for two"
        assert grown["ringhub_compression_saved_bytes_total"] > 2 * 700
        assert grown["ringhub_decompressed_messages_total"] == 1
        assert after["ringhub_compressed_connections"] == 2


def compress(message: bytes) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (compressor.compress(message) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


@pytest.mark.parametrize(
    "opcode, rsv, payload, code",
    [
        (TEXT, 4, compress(b" " * 5_000_000), 1009),
        (TEXT, 4, b"\xff\xff\xff", 1007),
        (TEXT, 4, compress("é".encode()[:1] * 100), 1007),
        (PING, 4, b"ping", 1002),
        (TEXT, 2, b"{}", 1002),
        (CONTINUATION, 4, b"{}", 1002),
    ],
    ids=["a bomb", "no deflate", "no UTF-8", "a compressed ping", "another bit", "a compressed continuation"],
)
async def test_what_must_not_come_closes_with_the_code_that_says_why(start, opcode, rsv, payload, code):
    hub = start(ON)
    bare = await Bare.dial(hub)
    await bare.say(upgrade_request("/echo", {"Authorization": f"Bearer {token()}", "Sec-WebSocket-Extensions": OFFER}))
    assert (await bare.head()).headers["sec-websocket-extensions"] == AFRESH
    await bare.send(opcode, payload, rsv=rsv)
    assert (await bare.closed())[0] == code


async def test_rooms_of_a_kind_may_be_left_uncompressed(start):
    hub = start(EVENTS_ONLY | {"rooms.quote.compress": False}, shards=1)
    async with peer(hub) as connection:
        client = await Peer(connection).greeted()
        for room in ("quote:1", "project:1"):
            await client.subscribe(room)
        before = hub.metrics()
        await client.done("publish", {"room": "quote:1", "type": "x", "data": ROWS})
        await client.events("quote:1", 1)
        name = "ringhub_compressed_messages_total"
        assert hub.metrics()[name] == before[name]
        await client.done("publish", {"room": "project:1", "type": "x", "data": ROWS})
        assert json.dumps((await client.events("project:1", 1))[0]["data"]) == json.dumps(ROWS)
        assert hub.metrics()[name] == before[name] + 1
