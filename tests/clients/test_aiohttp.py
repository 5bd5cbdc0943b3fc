"""The same hub through aiohttp: a client library with its own idea of the handshake, of pings and of closing."""

import asyncio
import json

import aiohttp
import pytest

from hub import admin, token
from peer import check_envelope


@pytest.fixture
async def client(hub):
    async with aiohttp.ClientSession(base_url=hub.http_url, headers={"Authorization": f"Bearer {token('ada')}"}, connector=aiohttp.TCPConnector(ssl=hub.tls or True)) as session:
        yield session


async def receive(ws, kind):
    """The next message of this type."""
    async with asyncio.timeout(10):
        while True:
            message = json.loads(await ws.receive_str())
            check_envelope(message)
            if message["type"] == kind:
                return message


async def test_greeting_subscribe_publish_and_close(client, room):
    async with client.ws_connect("/ws", protocols=["ringhub.v1.json"]) as ws:
        assert ws.protocol == "ringhub.v1.json"
        assert (await receive(ws, "connection_established"))["data"]["user_id"] == "ada"
        await ws.send_json({"type": "subscribe", "id": "s", "data": {"room": room}})
        assert (await receive(ws, "subscribed"))["ref"] == "s"
        await ws.send_json({"type": "publish", "id": 7, "data": {"room": room, "type": "note.added", "data": {"n": 1}}})
        event = await receive(ws, "note.added")
        assert event["room"] == room and event["seq"] == 1
        await ws.close(code=aiohttp.WSCloseCode.GOING_AWAY, message=b"bye")
    assert ws.close_code == 1001


async def test_a_client_that_offers_compression_is_served(client):
    async with client.ws_connect("/ws", compress=15) as ws:
        await ws.send_json({"type": "ping", "id": 1, "data": "x" * 10_000})
        assert (await receive(ws, "pong"))["data"] == "x" * 10_000


async def test_its_heartbeat_is_answered(client):
    async with client.ws_connect("/ws", heartbeat=0.2) as ws:
        await receive(ws, "connection_established")
        # Without a pong aiohttp closes after half a heartbeat; five of them pass while nothing is said. (Its own timeout
        # begins anew with every pong.)
        with pytest.raises(asyncio.TimeoutError):
            async with asyncio.timeout(1):
                await ws.receive()
        assert not ws.closed


async def test_binary_messages_close_with_1003(client):
    async with client.ws_connect("/ws") as ws:
        await receive(ws, "connection_established")
        await ws.send_bytes(b"\x00\x01")
        async with asyncio.timeout(10):
            assert (await ws.receive()).type == aiohttp.WSMsgType.CLOSE
    assert ws.close_code == 1003


@pytest.mark.parametrize("payload", ["text", b"bytes", "", b"", "ü" * 40_000, bytes(range(256)) * 300], ids=lambda value: f"{type(value).__name__}-{len(value)}")
async def test_echo_sends_back_what_came(client, payload):
    async with client.ws_connect("/echo", max_msg_size=0) as ws:
        if isinstance(payload, str):
            await ws.send_str(payload)
            assert await ws.receive_str(timeout=10) == payload
        else:
            await ws.send_bytes(payload)
            assert await ws.receive_bytes(timeout=10) == payload


async def test_a_refusal_is_an_http_error(hub):
    async with aiohttp.ClientSession(base_url=hub.http_url, connector=aiohttp.TCPConnector(ssl=hub.tls or True)) as session:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect("/ws")
        assert refused.value.status == 401


async def test_http_and_websocket_share_a_session(client, room):
    async with client.ws_connect("/ws") as ws:
        await receive(ws, "connection_established")
        await ws.send_json({"type": "subscribe", "id": 1, "data": {"room": room}})
        await receive(ws, "subscribed")
        headers = {"Authorization": f"Bearer {admin()}"}
        for number in range(1, 11):
            async with client.post("/api/v1/publish", json={"room": room, "type": "n", "data": number}, headers=headers) as answer:
                assert answer.status == 200
                assert (await answer.json())["seq"] == number
            assert (await receive(ws, "n"))["data"] == number


async def test_many_clients_at_once(client, room):
    async def one(number):
        async with client.ws_connect("/ws") as ws:
            await ws.send_json({"type": "subscribe", "id": 1, "data": {"room": f"{room}-{number % 5}"}})
            await receive(ws, "subscribed")
            await ws.send_json({"type": "publish", "data": {"room": f"{room}-{number % 5}", "type": f"n{number}", "data": number}})
            assert (await receive(ws, f"n{number}"))["data"] == number

    await asyncio.gather(*[one(number) for number in range(100)])
