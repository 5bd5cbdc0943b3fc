"""Server-sent events: `GET /events?room=R&room=R2` (PROTOCOL §1)."""

import asyncio
import http.client
import json
import random
import signal
import socket
import threading

import httpx
import httpx_sse
import pytest
import sseclient

from events import reading
from hub import admin, free_port, token
from peer import eventually, joined


def bearer(jwt: str | None = None) -> dict:
    return {"Authorization": f"Bearer {jwt or token()}"}


def counted(hub) -> int:
    """How many connections there are, streams among them."""
    status, _, body = hub.get("/api/v1/connections", bearer(admin()))
    assert status == 200, body
    return json.loads(body)["total"]


def refused(hub, path: str, headers: dict | None = None, **more) -> tuple[int, str, dict]:
    status, answered, body = hub.get(path, bearer() if headers is None else headers, **more)
    return status, json.loads(body)["error"]["code"], answered


async def test_a_stream_gets_the_native_frames_with_a_cursor_over_all_of_its_rooms(hub, room):
    other = f"{room}-2"
    async with joined(hub) as alice, reading(hub, room, other) as reader:
        head = reader.answer.headers
        assert head["Content-Type"] == "text/event-stream" and "no-store" in head["Cache-Control"]
        # nginx takes this one for itself.
        assert hub.tls or head["X-Accel-Buffering"] == "no"
        assert reader.retry_ms and "Content-Length" not in head
        first_id = reader.last_event_id
        await alice.subscribe(room)
        await alice.done("publish", {"room": room, "type": "note.added", "data": {"text": "ünï"}})
        event = await reader.next()
        await alice.events(room, 1)
        assert event.name == "" and event.data in alice.frames
        assert (event.json()["room"], event.json()["seq"]) == (room, 1)
        await alice.done("publish", {"room": other, "type": "note.added", "data": 2})
        second = await reader.next()
        assert second.json()["room"] == other
        assert len({first_id, event.id, second.id}) == 3
        # Each id changes in its own room's part only.
        (a1, b1), (a2, b2), (a3, b3) = (id.split(".") for id in (first_id, event.id, second.id))
        assert a1 != a2 == a3 and b1 == b2 != b3


async def test_line_ends_between_the_tokens_of_published_json_are_no_line_ends_of_the_stream(hub, room):
    async with reading(hub, room) as reader:
        for number, end in enumerate(["\n", "\r\n", "\r", "\n\n", "\r\r\n"]):
            body = f'{{"room":"{room}","type":"a","data":{{{end}"n":{end}{number}, "text":"\\n\\r"{end}}}}}'
            status, _, _ = await asyncio.to_thread(hub.get, "/api/v1/publish", bearer(admin()), method="POST", body=body.encode())
            assert status == 200
            assert (await reader.named(""))["data"] == {"n": number, "text": "\n\r"}


@pytest.mark.parametrize("way", ["header", "last_event_id", "lastEventId"])
async def test_a_stream_goes_on_after_its_last_event(hub, room, way):
    async with joined(hub) as alice:
        async with reading(hub, room, "global") as reader:
            await alice.done("publish", {"room": room, "type": "n", "data": 1})
            assert (await reader.named(""))["data"] == 1
            last = reader.last_event_id
        for number in (2, 3):
            await alice.done("publish", {"room": room, "type": "n", "data": number})
        how = {"headers": {"Last-Event-ID": last}} if way == "header" else {way: last}
        async with reading(hub, room, "global", **how) as reader:
            await alice.done("publish", {"room": room, "type": "n", "data": 4})
            assert [event["data"] for event in await reader.rooms_events(3)] == [2, 3, 4]
            assert all(event.name == "" for event in reader.events)


async def test_a_stream_that_never_had_an_event_loses_none_either(hub, room):
    async with joined(hub) as alice:
        async with reading(hub, room) as reader:
            last = reader.last_event_id
        # Nobody else is in the room, which had no event: it is kept all the same.
        await alice.done("publish", {"room": room, "type": "n", "data": 1})
        async with reading(hub, room, headers={"Last-Event-ID": last}) as reader:
            assert (await reader.named(""))["seq"] == 1
            assert len(reader.events) == 1, "nothing was missed, and nothing is said of it"


async def test_what_a_stream_missed_for_good_is_told(start, room):
    hub = start({"history.events_max": 5})
    async with joined(hub) as alice:
        async with reading(hub, room) as reader:
            await alice.done("publish", {"room": room, "type": "n", "data": 1})
            await reader.named("")
            last = reader.last_event_id
        for number in range(2, 12):
            await alice.done("publish", {"room": room, "type": "n", "data": number})
        async with reading(hub, room, headers={"Last-Event-ID": last}) as reader:
            gap = (await reader.named("gap"))["data"]
            assert gap == {"room": room, "from_seq": 2, "to_seq": 6, "reason": "history"}
            assert [event["seq"] for event in await reader.rooms_events(5)] == [7, 8, 9, 10, 11]
            assert reader.events[0].id, "who is cut off behind a gap is not told of it again"


@pytest.mark.parametrize("last, reason", [("1~1", "epoch"), ("17", "cursor"), ("1~1.1~1", "cursor"), ("../..", "cursor"), ("x" * 5000, "cursor")])
async def test_a_foreign_cursor_is_a_gap_and_no_refusal(hub, room, last, reason):
    async with joined(hub) as alice:
        await alice.done("publish", {"room": room, "type": "n", "data": 1})
        async with reading(hub, room, headers={"Last-Event-ID": last}) as reader:
            (gap,) = [event.json()["data"] for event in reader.events]
            assert (gap["room"], gap["from_seq"], gap["reason"]) == (room, None, reason)
            await alice.done("publish", {"room": room, "type": "n", "data": 2})
            # What there is of another life of the log is all new.
            expected = [1, 2] if reason == "epoch" else [2]
            assert [event["seq"] for event in await reader.rooms_events(len(expected))] == expected


async def test_a_first_stream_may_begin_in_the_past(hub, room):
    async with joined(hub) as alice:
        for number in range(1, 6):
            await alice.done("publish", {"room": room, "type": "n", "data": number})
        for since, expected in (("last:2", [4, 5]), ("seconds:100", [1, 2, 3, 4, 5])):
            async with reading(hub, room, since=since) as reader:
                assert [event["seq"] for event in await reader.rooms_events(len(expected))] == expected


async def test_credentials_are_taken_from_header_query_and_cookie(start):
    hub = start({"auth.cookie": "hub_token"})
    jwt = token("carol")
    # Nobody looks at the header that the helper sends where it is no bearer token.
    for headers, query in (({}, {}), ({"Authorization": ""}, {"token": jwt}), ({"Authorization": "", "Cookie": f"hub_token={jwt}"}, {})):
        async with reading(hub, "user:carol", jwt=jwt, headers=headers, **query) as reader:
            status, _ = await asyncio.to_thread(hub.publish, "user:carol", "hello", {})
            assert status == 200
            assert (await reader.named(""))["type"] == "hello"


@pytest.mark.parametrize(
    "query, jwt, status, code",
    [
        ("room=project:1", "", 401, "unauthorized"),
        ("room=project:1", "x.y.z", 401, "unauthorized"),
        ("room=project:1", token(ttl_s=-100), 401, "unauthorized"),
        ("room=global", token(permissions=["websocket:subscribe"]), 403, "forbidden"),
        ("room=global", token(permissions=["websocket:connect"]), 403, "forbidden"),
        ("room=project:1", token(permissions=["websocket:connect", "websocket:subscribe"]), 403, "forbidden"),
        ("room=global&room=user:somebody", token(), 403, "forbidden"),
        ("room=session:", token(), 400, "bad_room"),
        ("", token(), 400, "bad_request"),
        ("room=nokind:1", token(), 400, "bad_room"),
        ("room=project:1&since=yesterday", token(), 400, "bad_request"),
        ("&".join(f"room=project:{n}" for n in range(101)), token(), 400, "room_limit"),
    ],
)
def test_refusals_are_answers_with_a_code(hub, query, jwt, status, code):
    found = refused(hub, f"/events?{query}", {"Authorization": f"Bearer {jwt}"} if jwt else {})
    assert found[:2] == (status, code)
    assert status != 401 or found[2]["www-authenticate"] == "Bearer"


def test_other_methods_are_refused(hub):
    for method in ("POST", "PUT", "DELETE"):
        status, code, headers = refused(hub, "/events?room=global", method=method)
        assert (status, code, headers["allow"]) == (405, "bad_method", "GET")
    status, headers, body = hub.get("/events?room=global", bearer(), method="HEAD")
    assert (status, headers["allow"], body) == (405, "GET", b"")


async def test_streams_count_against_the_limits_of_users_and_node(start):
    # HAProxy notices that a client has gone when something is to be written to it.
    hub = start({"limits.connections_per_user_max": 2, "limits.connections_max": 3, "heartbeat.interval_s": 1})
    async with joined(hub), reading(hub, "global"):
        status, code, headers = await asyncio.to_thread(refused, hub, "/events?room=global")
        assert (status, code) == (429, "rate_limited") and int(headers["retry-after"]) > 0
        async with reading(hub, "global", jwt=token("bob")):
            status, code, headers = await asyncio.to_thread(refused, hub, "/events?room=global", bearer(token("carol")))
            assert (status, code) == (503, "unavailable") and int(headers["retry-after"]) > 0
    # Their places are free again.
    await eventually(lambda: counted(hub) == 0, "the streams are gone")
    async with reading(hub, "global"), reading(hub, "global"):
        pass


async def test_streams_count_against_the_limit_of_their_address(start):
    hub = start({"limits.connections_per_address_max": 2})
    async with reading(hub, "global"), reading(hub, "global"):
        assert (await asyncio.to_thread(refused, hub, "/events?room=global"))[:2] == (429, "rate_limited")


async def test_an_operator_sees_streams_and_ends_them(hub, room):
    jwt = token("reader-7")

    def listed() -> list[dict]:
        status, _, body = hub.get("/api/v1/connections?user=reader-7", bearer(admin()))
        assert status == 200
        return json.loads(body)["connections"]

    async with reading(hub, room, "global", jwt=jwt) as reader:
        (view,) = await asyncio.to_thread(listed)
        assert view["protocol"] == "sse" and sorted(view["rooms"]) == ["global", room]
        status, _, _ = await asyncio.to_thread(
            hub.get, f"/api/v1/connections/{view['client_id']}?code=4500&reason=enough", bearer(admin()), method="DELETE"
        )
        assert status < 300
        assert await reader.named("close") == {"code": 4500, "reason": "enough"}
        assert await reader.next() is None
    await eventually(lambda: not listed(), "its place is free")


async def test_readers_are_among_those_present(start, room):
    # A proxy may find out only with the next comment that the reader is gone.
    hub = start({"rooms.project.presence_events": True, "heartbeat.interval_s": 1})
    async with joined(hub) as alice:
        await alice.subscribe(room)
        assert (await alice.next("presence.joined"))["data"]["user_id"] == "alice"
        async with reading(hub, room, jwt=token("bob")) as reader:
            assert (await alice.next("presence.joined"))["data"]["user_id"] == "bob"
            assert (await alice.done("presence", {"room": room}))["count"] == 2
            await alice.done("publish", {"room": room, "type": "n", "data": 1})
            assert (await reader.named(""))["type"] in ("n", "presence.joined")
        assert (await alice.next("presence.left"))["data"]["user_id"] == "bob"


async def test_the_end_of_a_token_is_told_and_ends_the_stream(start):
    hub = start({"auth.leeway_s": 0})
    async with reading(hub, "global", jwt=token(ttl_s=3)) as reader:
        assert (await reader.named("auth.expiring"))["data"]["expires_at"].endswith("Z")
        assert (await reader.named("close"))["code"] == 4401
        assert await reader.next() is None


async def test_a_silent_stream_gets_comments(start):
    hub = start({"heartbeat.interval_s": 1})
    async with reading(hub, "global") as reader:
        with pytest.raises(TimeoutError):
            await reader.next(within_s=3.5)
        assert reader.comments >= 3


def test_streams_are_a_figure_of_their_own(start):
    hub = start()
    answers = []
    for _ in range(3):
        connection = hub.connection()
        connection.request("GET", "/events?room=global", headers=bearer())
        answers.append(connection.getresponse())
    assert [answer.status for answer in answers] == [200] * 3
    assert (hub.metrics()["ringhub_streams"], hub.metrics()["ringhub_connections"]) == (3, 3)
    for answer in answers:
        answer.close()


async def test_a_draining_hub_tells_streams_when_to_come_back(start):
    hub = start()
    async with reading(hub, "global") as reader:
        hub.signal(signal.SIGTERM)
        assert isinstance((await reader.named("draining"))["data"]["reconnect_after_ms"], int)
        assert (await reader.named("close"))["code"] == 1001
        assert 500 <= reader.retry_ms <= 700
        assert await reader.next() is None
    assert await asyncio.to_thread(hub.wait) == 0


async def test_a_page_that_is_named_may_read(start):
    hub = start({"cors.origins": ["https://app.example.com"], "auth.origins": ["https://app.example.com", "https://other.example.com"]})
    async with reading(hub, "global", headers={"Origin": "https://app.example.com"}) as reader:
        assert reader.answer.headers["Access-Control-Allow-Origin"] == "https://app.example.com"
        assert reader.answer.headers["Access-Control-Allow-Credentials"] == "true"
        assert "origin" in reader.answer.headers["Vary"].lower()
    async with reading(hub, "global", headers={"Origin": "https://other.example.com"}) as reader:
        assert "Access-Control-Allow-Origin" not in reader.answer.headers
    status, code, _ = await asyncio.to_thread(refused, hub, "/events?room=global", bearer() | {"Origin": "https://evil.example.com"})
    assert (status, code) == (403, "forbidden")
    asks = {"Origin": "https://app.example.com", "Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization, last-event-id"}
    status, headers, _ = await asyncio.to_thread(hub.get, "/events?room=global", asks, method="OPTIONS")
    assert status == 204 and "last-event-id" in headers["access-control-allow-headers"]


def test_a_stream_may_follow_on_a_kept_alive_connection(hub, room):
    connection = hub.connection()
    for _ in range(2):
        connection.request("GET", "/live")
        assert connection.getresponse().read()
    connection.request("GET", f"/events?room={room}", headers=bearer())
    answer = connection.getresponse()
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/event-stream")
    assert hub.publish(room, "n", 1)[0] == 200
    data = next(line for line in iter(answer.readline, b"") if line.startswith(b"data: "))
    assert json.loads(data.removeprefix(b"data: "))["seq"] == 1
    connection.close()


async def test_streams_stay_on_the_public_listener(start, room):
    internal = free_port()
    hub = start({"listen.internal": f"127.0.0.1:{internal}", "cors.origins": ["*"]})
    async with reading(hub, room) as reader:
        body = {"room": room, "type": "n", "data": 1}
        status, _, _ = await asyncio.to_thread(hub.get, "/api/v1/publish", bearer(admin()), method="POST", body=body, port=internal)
        assert status == 200
        assert (await reader.named(""))["seq"] == 1
    assert (await asyncio.to_thread(hub.get, f"/events?room={room}", bearer(), port=internal))[0] == 404
    asks = {"Origin": "https://app.example.com", "Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
    assert (await asyncio.to_thread(hub.get, f"/events?room={room}", asks, method="OPTIONS"))[0] == 204


def test_a_request_of_http_1_0_is_answered(hub, room):
    with socket.create_connection((hub.host, hub.port), 5) as client:
        client.sendall(f"GET /events?room={room} HTTP/1.0\r\nAuthorization: Bearer {token()}\r\n\r\n".encode())
        stream = client.makefile("rb")
        assert stream.readline().startswith(b"HTTP/1.1 200")
        assert hub.publish(room, "n", 1)[0] == 200
        assert any(line.startswith(b"data: ") for line in iter(stream.readline, b""))


async def test_a_slow_reader_of_a_stream_gets_everything_or_is_told(start, room):
    hub = start({"limits.outbox_bytes_max": 65536, "history.events_max": 50})
    small = socket.socket()
    small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    small.connect((hub.host, hub.port))
    small.sendall(f"GET /events?room={room} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {token()}\r\n\r\n".encode())
    await eventually(lambda: hub.metrics()["ringhub_streams"] == 1, "the stream is open")
    count = 2000
    async with joined(hub) as alice:
        for number in range(1, count + 1):
            await alice.done("publish", {"room": room, "type": "n", "data": "x" * 5000})
    assert hub.metrics()["ringhub_slow_readers_total"] > 0

    def read() -> tuple[int, int]:
        reached, gaps = 0, 0
        with small, small.makefile("rb") as stream:
            small.settimeout(10)
            for line in iter(stream.readline, b""):
                if not line.startswith(b"data: "):
                    continue
                event = json.loads(line.removeprefix(b"data: "))
                if event["type"] == "gap":
                    assert event["data"]["from_seq"] == reached + 1
                    reached, gaps = event["data"]["to_seq"], gaps + 1
                else:
                    assert event["seq"] == reached + 1
                    reached = event["seq"]
                if reached == count:
                    break
        return reached, gaps

    reached, gaps = await asyncio.to_thread(read)
    assert reached == count and gaps > 0


async def test_streams_and_native_clients_see_the_same_events_under_load_with_reconnects(hub, room):
    rooms, count = [f"{room}-{n}" for n in range(3)], 300

    async def native(peer) -> dict:
        seen: dict[str, list] = {name: [] for name in rooms}
        while sum(map(len, seen.values())) < count:
            event = await peer.next("n")
            seen[event["room"]].append((event["seq"], event["data"]))
        return seen

    async def stream(seed: int) -> dict:
        seen: dict[str, list] = {name: [] for name in rooms}
        draw, last = random.Random(seed), first_ids[seed]
        while sum(map(len, seen.values())) < count:
            async with reading(hub, *rooms, headers={"Last-Event-ID": last}) as reader:
                for _ in range(draw.randrange(1, 120)):
                    event = await reader.named("")
                    seen[event["room"]].append((event["seq"], event["data"]))
                    if sum(map(len, seen.values())) == count:
                        break
                last = reader.last_event_id
                assert not [event for event in reader.events if event.name], "nothing is missed"
        return seen

    async with joined(hub) as publisher, joined(hub) as peer:
        await peer.done("subscribe", {"rooms": rooms})
        first_ids = []
        for _ in range(4):
            async with reading(hub, *rooms) as reader:
                first_ids.append(reader.last_event_id)
        streams = [asyncio.create_task(stream(seed)) for seed in range(4)]
        heard = asyncio.create_task(native(peer))
        for number in range(count):
            await publisher.send("publish", {"room": rooms[number % 3], "type": "n", "data": number})
            if number % 20 == 0:
                await asyncio.sleep(0.01)
        async with asyncio.timeout(60):
            expected = await heard
            for seen in await asyncio.gather(*streams):
                assert seen == expected


async def test_httpx_sse_reads_a_stream(hub, room):
    async with httpx.AsyncClient(headers=bearer(), verify=hub.tls or True, timeout=10) as client:
        async with httpx_sse.aconnect_sse(client, "GET", f"{hub.http_url}/events", params={"room": room}) as source:
            events = source.aiter_sse()
            opened = await anext(events)
            assert opened.id and opened.retry and not opened.data
            assert (await asyncio.to_thread(hub.publish, room, "n", {"n": 1}))[0] == 200
            event = await anext(events)
            assert (event.event, event.json()["data"]) == ("message", {"n": 1})


def test_sseclient_reads_a_stream(hub, room):
    connection = hub.connection()
    connection.request("GET", f"/events?room={room}", headers=bearer() | {"Accept": "text/event-stream"})
    answer = connection.getresponse()
    assert isinstance(answer, http.client.HTTPResponse) and answer.status == 200
    publisher = threading.Timer(0.3, hub.publish, (room, "n", 5))
    publisher.start()
    event = next(sseclient.SSEClient(iter(lambda: answer.read1(4096), b"")).events())
    assert (event.event, json.loads(event.data)["data"]) == ("message", 5) and event.id
    publisher.join()
    connection.close()
