"""Hubs behind nginx, HAProxy and Caddy as tuning/ sets them up: what clients notice of that, and what doctor says of it.

The ordinary tests of the clients go through each as well: `tests/run proxies`.
"""

import asyncio
import contextlib
import json
import re
import signal
import subprocess
import time

import pytest

from events import reading
from hub import SECRET, admin, binary, clean_environment, free_port, token
from peer import BINARY, TEXT, Bare, eventually, joined, request, upgrade_request
from proxies import CLIENT, Behind, Proxy, certificates

PROXIES = ["nginx", "haproxy", "caddy"]
# The timeouts of each file, with which a silence can be too long for a test.
TIMEOUT_S = 2
SHORT = {
    "nginx": {"proxy_read_timeout 90s;": f"proxy_read_timeout {TIMEOUT_S}s;", "proxy_send_timeout 90s;": f"proxy_send_timeout {TIMEOUT_S}s;"},
    "haproxy": {"timeout tunnel 90s": f"timeout tunnel {TIMEOUT_S}s"},
}


@pytest.fixture(scope="session", params=PROXIES)
def _behind(request):
    hub = Behind(request.param, {"endpoints.echo": True, "limits.connections_per_address_max": 100_000})
    yield hub
    hub.stop()


@pytest.fixture
def hub(_behind):
    """A hub behind each proxy in turn, which counts its clients' addresses."""
    yield _behind
    assert _behind.running(), f"the hub ended in this test\n{_behind.log()}"


@pytest.fixture
def start(start):
    """Hubs behind a proxy that end with the test."""
    hubs = []

    def start_behind(proxy, settings=None, **named):
        hubs.append(Behind(proxy, settings, **named))
        return hubs[-1]

    yield start_behind
    for hub in hubs:
        try:
            hub.stop() if hub.running() else hub.check_log()
        finally:
            hub.discard()


def bearer(jwt: str | None = None) -> dict:
    return {"Authorization": f"Bearer {jwt or token()}"}


def view(hub, client_id: str) -> dict:
    """How the hub's API sees a connection."""
    status, _, body = hub.get(f"/api/v1/connections/{client_id}", bearer(admin()))
    assert status == 200, body
    return json.loads(body)


# What clients notice.


async def test_a_client_is_greeted_over_tls_with_its_subprotocol(hub):
    async with joined(hub, subprotocols=["ringhub.v1.json", "bearer.x"]) as alice:
        assert alice.connection.subprotocol == "ringhub.v1.json"
        await alice.done("ping")


async def test_messages_up_to_the_largest_come_back_whole(hub):
    async with await Bare.upgraded(hub, path="/echo") as bare:
        for length in (0, 125, 4096, 16_384, 65_536, 1 << 20):
            data = bytes(index % 251 for index in range(length))
            await bare.send(BINARY, data)
            echo = await bare.next(BINARY)
            while not echo.fin:
                more = await bare.frame()
                echo.payload, echo.fin = echo.payload + more.payload, more.fin
            assert echo.payload == data, length


async def test_the_hub_knows_each_clients_own_address_whatever_the_client_says_of_it(hub):
    for number, claims in enumerate(({}, {"X-Forwarded-For": "192.0.2.1"}, {"Forwarded": "for=192.0.2.1"}, {"X-Forwarded-For": "192.0.2.1", "Forwarded": "for=192.0.2.2"})):
        client_id = f"real-{number}"
        async with await Bare.dial(hub, source=CLIENT) as bare:
            await bare.say(upgrade_request(f"/ws?client_id={client_id}", bearer() | claims))
            assert (await bare.head()).status == 101
            await bare.next(TEXT)
            assert (await asyncio.to_thread(view, hub, client_id))["address"] == CLIENT, claims


async def test_limits_count_each_client_for_itself_and_their_answers_pass(start, _behind):
    hub = start(_behind.proxy.name, {"limits.connections_per_address_max": 2}, shards=1)
    async with contextlib.AsyncExitStack() as stack:

        async def knock(source):
            bare = await stack.enter_async_context(await Bare.dial(hub, source=source))
            await bare.say(upgrade_request(headers=bearer()))
            return await bare.head(), bare

        assert [(await knock(CLIENT))[0].status for _ in range(2)] == [101, 101]
        answer, bare = await knock(CLIENT)
        assert answer.status == 429 and int(answer.headers["retry-after"]) >= 1
        answer.body = await bare.reader.readexactly(int(answer.headers["content-length"]))
        assert answer.error()["code"] == "rate_limited"
        assert (await knock("127.45.0.10"))[0].status == 101, "another client has limits of its own"


async def test_a_full_hubs_503_passes_with_its_hint(start, _behind):
    hub = start(_behind.proxy.name, {"limits.connections_max": 1}, shards=1)
    async with await Bare.upgraded(hub):
        answer = await request(hub, upgrade_request(headers=bearer()))
        assert answer.status == 503 and int(answer.headers["retry-after"]) >= 1
        assert answer.error()["code"] == "unavailable"


async def test_close_codes_and_reasons_pass_in_both_directions(hub):
    async with joined(hub, query="client_id=to-be-closed") as alice:
        status, _, body = await asyncio.to_thread(hub.get, "/api/v1/connections/to-be-closed?code=4321&reason=maintenance", bearer(admin()), method="DELETE")
        assert status == 200, body
        assert await alice.closed() == (4321, "maintenance")
    async with joined(hub) as bob:
        await bob.connection.close(3001, "bye")
        assert bob.connection.close_code == 3001, "the hub answers in kind"
    async with await Bare.upgraded(hub) as bare:
        await bare.send(BINARY, b"x")
        assert (await bare.closed())[0] == 1003


async def test_a_draining_hubs_hint_reaches_the_client(start, _behind):
    hub = start(_behind.proxy.name)
    async with joined(hub) as alice:
        hub.signal(signal.SIGTERM)
        assert (await alice.next("draining"))["data"]["reconnect_after_ms"] >= 0
        code, reason = await alice.closed()
        assert code == 1001 and re.fullmatch(r"\d+", reason)
    assert await asyncio.to_thread(hub.wait) == 0


@pytest.mark.parametrize("proxy", SHORT)
async def test_a_quiet_client_stays_as_long_as_the_heartbeat_is_faster_than_the_proxy(start, proxy):
    hub = start(proxy, {"heartbeat.interval_s": 1}, changes=SHORT[proxy])
    async with joined(hub) as alice:
        await asyncio.sleep(TIMEOUT_S * 2.5)
        await alice.done("ping")
    # Without the heartbeat the proxy cuts the connection.
    hub = start(proxy, {"heartbeat.interval_s": 60}, changes=SHORT[proxy])
    async with joined(hub) as alice:
        started = time.monotonic()
        code, _ = await alice.closed()
        assert code == 1006 and time.monotonic() - started < TIMEOUT_S * 2.5


async def test_a_quiet_client_behind_caddy_stays(start):
    hub = start("caddy", {"heartbeat.interval_s": 60}, changes={"response_header_timeout 90s": f"response_header_timeout {TIMEOUT_S}s", "dial_timeout 5s": "dial_timeout 1s"})
    async with joined(hub) as alice:
        await asyncio.sleep(TIMEOUT_S * 2.5)
        await alice.done("ping")


async def test_events_come_at_once_and_in_order(hub, room):
    async with joined(hub) as alice:
        await alice.subscribe(room)
        for number in range(50):
            assert (await asyncio.to_thread(hub.publish, room, "n", number))[0] == 200
        assert [event["data"] for event in await alice.events(room, 50)] == list(range(50))


async def test_events_of_a_stream_come_at_once(hub, room):
    async with reading(hub, room) as reader:
        for number in range(1, 20):
            status, _ = await asyncio.to_thread(hub.publish, room, "n", number)
            assert status == 200
            assert (await reader.named("", within_s=3))["data"] == number


async def test_events_of_a_stream_come_at_once_through_an_nginx_that_buffers_as_it_does_by_itself(start, room):
    # Nothing in its file says how it is to treat answers: the hub's own word has to do.
    by_itself = {"proxy_buffering off;": "", "proxy_http_version 1.1;": "", "proxy_set_header Connection $connection_upgrade;": ""}
    hub = start("nginx", {"heartbeat.interval_s": 1}, changes=by_itself)
    async with reading(hub, room) as reader:
        assert (await asyncio.to_thread(hub.publish, room, "n", 1))[0] == 200
        assert (await reader.named("", within_s=3))["seq"] == 1
        with pytest.raises(TimeoutError):
            await reader.next(within_s=2.5)
        assert reader.comments >= 2

    def total() -> int:
        return json.loads(hub.get("/api/v1/connections", bearer(admin()))[2])["total"]

    await eventually(lambda: total() == 0, "nginx tells that its client is gone")


@pytest.mark.parametrize("proxy", ["nginx", "haproxy"])
async def test_a_silent_stream_stays_as_long_as_the_heartbeat_is_faster_than_the_proxy(start, proxy):
    short = {"haproxy": {"timeout server 90s": f"timeout server {TIMEOUT_S}s"}}.get(proxy) or SHORT.get(proxy)
    hub = start(proxy, {"heartbeat.interval_s": 1}, changes=short)
    async with reading(hub, "global") as reader:
        with pytest.raises(TimeoutError):
            await reader.next(within_s=2 * TIMEOUT_S + 1)
        assert reader.comments >= TIMEOUT_S


def test_the_http_api_serves_batches_and_refusals(hub, room):
    events = [{"room": room, "type": "n", "data": "x" * 3000} for _ in range(1000)]
    status, _, body = hub.get("/api/v1/publish", bearer(admin()), method="POST", body=events)
    assert status == 200 and len(body) > 1000 * 50
    status, _, body = hub.get("/api/v1/publish", method="POST", body=events[0])
    assert status == 401 and json.loads(body)["error"]["code"] == "unauthorized"
    assert hub.get("/openapi.json")[0] == 200
    assert hub.get("/nothing/here")[0] == 404


async def test_a_backend_may_wait_for_a_message(hub):
    session = f"wait-{free_port()}"
    async with joined(hub, query=f"session_id={session}") as alice:
        waiting = asyncio.create_task(asyncio.to_thread(hub.get, f"/api/v1/sessions/{session}/messages?timeout_s=8", bearer(admin())))
        await asyncio.sleep(1)
        await alice.done("message", {"n": 1})
        status, _, body = await waiting
        assert status == 200 and b'"n"' in body, body


async def test_a_kept_alive_connection_takes_requests_and_then_an_upgrade(hub):
    async with await Bare.dial(hub) as bare:
        for _ in range(3):
            await bare.say(b"GET /live HTTP/1.1\r\nHost: h\r\n\r\n")
            answer = await bare.head()
            assert answer.status == 200
            await read_body(bare, answer)
        await bare.say(upgrade_request(headers=bearer()))
        assert (await bare.head()).status == 101
        assert json.loads((await bare.next(TEXT)).payload)["type"] == "connection_established"
        await bare.command("ping", "upgraded", id=1)
        assert json.loads((await bare.next(TEXT)).payload)["data"] == "upgraded"


async def read_body(bare: Bare, answer) -> bytes:
    """A body with a length, or in chunks, as proxies make them."""
    if "content-length" in answer.headers:
        return await bare.reader.readexactly(int(answer.headers["content-length"]))
    body = b""
    while size := int(await bare.reader.readline(), 16):
        body += await bare.reader.readexactly(size)
        await bare.reader.readline()
    await bare.reader.readline()
    return body


@pytest.mark.parametrize("path", ["/metrics", "/metrics?x=1", "//metrics", "/%6detrics", "/./metrics", "/x/../metrics", "/metrics/", "/METRICS"])
async def test_figures_are_not_to_be_had_from_outside(hub, path):
    answer = await request(hub, f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
    assert answer.status in (308, 400, 404), answer


async def test_tokens_stand_in_no_log(hub):
    secret = token("logged")
    async with await Bare.dial(hub) as bare:
        await bare.say(upgrade_request(f"/ws?token={secret}"))
        assert (await bare.head()).status == 101
    hub.get(f"/api/v1/rooms?token={secret}")
    if hub.proxy.name != "caddy":
        await eventually(lambda: "/api/v1/rooms" in hub.proxy.log(), "the request is logged")
    assert secret not in hub.proxy.log() + hub.log()


@pytest.mark.parametrize("proxy", PROXIES)
async def test_a_hub_that_is_gone_is_a_502_or_503_and_its_errors_name_no_token(start, proxy):
    hub = start(proxy)
    hub.signal(signal.SIGTERM)
    hub.wait()
    secrets = [token(f"lost-{number}") for number in range(3)]
    headers = {"Authorization": f"Bearer {secrets[1]}", "Sec-WebSocket-Protocol": f"ringhub.v1.json, bearer.{secrets[2]}"}
    assert (await request(hub, upgrade_request(f"/ws?token={secrets[0]}&x=1", headers))).status in (502, 503)
    assert not [secret for secret in secrets if secret in hub.proxy.log()]


# What doctor says of it.


def doctor(url: str, *arguments: str, secret: str = SECRET) -> tuple[int, dict[str, dict]]:
    """`ringhub doctor --through`: its exit status, and its findings by what they are about."""
    command = [binary(), "doctor", "--json", "--through", url, *arguments]
    environment = clean_environment() | ({"RINGHUB_AUTH_SECRET": secret} if secret else {})
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90, check=False)
    assert ended.stdout.startswith("["), ended.stderr
    return ended.returncode, {finding["check"]: finding for finding in json.loads(ended.stdout)}


def trusted() -> list[str]:
    return ["--ca", str(certificates() / "ca.pem")]


@pytest.mark.parametrize("proxy", PROXIES)
def test_doctor_finds_nothing_wrong_with_the_files_of_tuning(start, proxy):
    hub = start(proxy, {"heartbeat.interval_s": 2, "limits.connections_per_address_max": 1024})
    status, found = doctor(hub.url, *trusted())
    assert status == 0, found
    levels = {check: finding["level"] for check, finding in found.items()}
    assert levels == {
        "TLS": "ok",
        "ready": "ok",
        "metrics": "ok",
        "upgrade": "ok",
        "first message": "ok",
        "large messages": "ok",
        "client address": "ok",
        "idle timeout": "ok",
        "close codes": "ok",
        "streamed answers": levels["streamed answers"],
        "HTTP/2": "ok",
    }
    assert levels["streamed answers"] in ("ok", "skip")
    assert CLIENT in found["client address"]["what"]
    assert ("they open" in found["HTTP/2"]["what"]) == (proxy == "haproxy"), "HAProxy alone takes WebSockets over HTTP/2"


WRONG = {
    "no-upgrade": ("nginx", {"proxy_set_header Upgrade $http_upgrade;": ""}, "upgrade", "fail", "proxy_set_header Upgrade"),
    "http-1.0": ("nginx", {"proxy_http_version 1.1;": "proxy_http_version 1.0;"}, "upgrade", "fail", "proxy_http_version 1.1"),
    "no-address": ("nginx", {"proxy_set_header X-Forwarded-For $remote_addr;": 'proxy_set_header X-Forwarded-For "";'}, "client address", "fail", "X-Forwarded-For $remote_addr"),
    "spoofed": ("nginx", {"proxy_set_header X-Forwarded-For $remote_addr;": "proxy_set_header X-Forwarded-For $http_x_forwarded_for;"}, "client address", "fail", "X-Forwarded-For $remote_addr"),
    "no-subprotocol": ("nginx", {"proxy_buffering off;": "proxy_buffering off; proxy_hide_header Sec-WebSocket-Protocol;"}, "subprotocol", "fail", "proxy_hide_header"),
    "open-metrics": ("nginx", {"location = /metrics { return 404; }": ""}, "metrics", "warn", "location = /metrics"),
    "impatient": ("nginx", SHORT["nginx"], "idle timeout", "fail", "proxy_read_timeout"),
    "other-path": ("nginx", {"proxy_pass http://ringhub;": "proxy_pass http://ringhub/hub/;"}, "upgrade", "fail", "without a path"),
    "impatient-haproxy": ("haproxy", SHORT["haproxy"], "idle timeout", "fail", "timeout tunnel"),
    "no-proxy-protocol": ("haproxy", {" send-proxy-v2": ""}, "ready", "fail", "send-proxy-v2"),
    "open-metrics-caddy": ("caddy", {"respond /metrics 404": ""}, "metrics", "warn", "respond /metrics 404"),
    "no-upgrade-caddy": ("caddy", {"header_up -Forwarded": "header_up -Upgrade\n\t\theader_up -Connection"}, "upgrade", "fail", "header_up"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_doctor_finds_what_is_wrong_and_names_the_line(start, wrong):
    proxy, changes, check, level, line = WRONG[wrong]
    # A hub that never breaks a silence by itself in this time, so that only the proxy can end it.
    hub = start(proxy, {"limits.connections_per_address_max": 1024}, changes=changes, wait=False)
    status, found = doctor(hub.url, *trusted(), "--silence-s", "5" if "impatient" in wrong else "0")
    assert found[check]["level"] == level, found
    assert line in found[check]["fix"], found[check]
    assert (status != 0) == (level == "fail")


def test_doctor_says_what_it_lacks(hub):
    # No token: it learns that the upgrade passes, and says what would tell it more.
    status, found = doctor(hub.url, *trusted(), "--silence-s", "0", secret="")
    assert status == 0, found
    assert found["upgrade"]["level"] == "warn" and "--token" in found["upgrade"]["fix"]
    # A token that may connect, but not look.
    status, found = doctor(hub.url, *trusted(), "--silence-s", "1", "--token", token())
    assert status == 0, found
    assert found["client address"]["level"] == "skip" and "administrator" in found["client address"]["what"]
    assert found["idle timeout"]["level"] == "warn" and "--silence-s 35" in found["idle timeout"]["fix"]
    # A token of another hub.
    status, found = doctor(hub.url, *trusted(), "--token", token(secret="the secret of another hub, long enough"))
    assert status != 0 and "token" in found["upgrade"]["why"]


def test_doctor_tells_a_certificate_that_nobody_trusts_and_an_address_where_nobody_is(hub):
    status, found = doctor(hub.url)
    assert status != 0 and found["TLS"]["level"] == "fail" and "--ca" in found["TLS"]["fix"]
    status, found = doctor(f"ws://127.0.0.1:{free_port()}/ws")
    assert status != 0 and found["connection"]["level"] == "fail"


def test_doctor_tells_a_proxy_without_a_hub(tmp_path):
    proxy = Proxy("nginx", free_port())
    try:
        status, found = doctor(f"https://127.0.0.1:{proxy.port}", *trusted())
        assert status != 0 and "does not reach the hub" in found["ready"]["why"] and "proxy_pass" in found["ready"]["fix"]
    finally:
        proxy.stop()
