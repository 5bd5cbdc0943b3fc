"""The program around the protocol: start, listeners, proxies, SIGTERM, SIGHUP, and the small commands."""

import asyncio
import contextlib
import json
import re
import signal
import socket
import struct
import subprocess

import jwt
import pytest

from hub import SECRET, admin, binary, clean_environment, free_port, token
from peer import TEXT, Bare, eventually, joined, request, upgrade_request


def ringhub(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs a command of the program to its end."""
    return subprocess.run([binary(), *arguments], env=clean_environment() | environment, capture_output=True, text=True, timeout=30, check=False)


# SIGTERM.


async def test_sigterm_drains_tells_clients_and_ends(start):
    hub = start({"drain.seconds": 5, "drain.spread_ms": 1000}, shards=2)
    async with contextlib.AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(joined(hub, token(f"u{index}"))) for index in range(12)]
        # One that never answers the close keeps the drain going long enough to look at it.
        stubborn = await stack.enter_async_context(await Bare.upgraded(hub))
        kept_alive = await stack.enter_async_context(await Bare.dial(hub))
        await kept_alive.say(b"GET /ready HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await kept_alive.http()).status == 200
        hub.signal(signal.SIGTERM)
        hints = []
        for peer in peers:
            told = await peer.next("draining")
            assert told["data"]["reconnect_after_ms"] >= 0
            code, reason = await peer.closed()
            assert code == 1001
            assert re.fullmatch(r"\d+", reason), reason
            hints.append(int(reason))
        assert len(set(hints)) > 1, f"the hints are not spread out: {hints}"
        await kept_alive.say(b"GET /ready HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await kept_alive.http()).status == 503
        with contextlib.suppress(ConnectionRefusedError):
            refused = await request(hub, upgrade_request(headers={"Authorization": f"Bearer {token()}"}))
            assert refused.status == 503 and int(refused.headers["retry-after"]) >= 1
        while json.loads((await stubborn.next(TEXT)).payload)["type"] != "draining":
            pass
    assert await asyncio.to_thread(hub.wait) == 0


async def test_an_idle_hub_ends_at_once_and_its_port_is_free_again(start):
    hub = start({"drain.seconds": 10}, shards=2)
    hub.signal(signal.SIGTERM)
    assert hub.wait(5) == 0
    again = start(shards=2, port=hub.port)
    assert again.get("/ready")[0] == 200


async def test_no_event_accepted_before_sigterm_is_lost(start, room):
    hub = start(shards=2)
    async with joined(hub) as alice, joined(hub, token("bob")) as bob:
        await alice.subscribe(room)
        answers = [await bob.done("publish", {"room": room, "type": "n", "data": number}) for number in range(50)]
        hub.signal(signal.SIGTERM)
        assert [event["seq"] for event in await alice.events(room, 50)] == [answer["seq"] for answer in answers]


async def test_a_hub_that_was_killed_can_be_started_again_at_once(start, tmp_path):
    path = tmp_path / "hub.sock"
    first = start(shards=2, arguments=("--listen", f"unix:{path}"))
    async with await Bare.upgraded(first):
        first.kill()
    second = start(shards=2, arguments=("--listen", f"unix:{path}"), port=first.port)
    for unix in (None, str(path)):
        for _ in range(20):
            async with joined(second, unix=unix) as alice:
                await alice.done("ping")


# SIGHUP.


def write_config(path, origins, more=""):
    path.write_text(f'[auth]\nsecret = "{SECRET}"\norigins = {json.dumps(origins)}\n{more}')


async def test_sighup_takes_up_the_changed_file(start, tmp_path):
    config = tmp_path / "ringhub.toml"
    write_config(config, ["https://one.example"])
    hub = start(secret=None, shards=2, arguments=("--config", str(config)))

    async def status(origin):
        async with await Bare.dial(hub) as bare:
            await bare.say(upgrade_request(headers={"Authorization": f"Bearer {token()}", "Origin": origin}))
            return (await bare.head()).status

    assert await status("https://one.example") == 101 and await status("https://two.example") == 403
    async with joined(hub, headers={"Origin": "https://one.example"}) as alice:
        write_config(config, ["https://two.example"], "[limits]\nrooms_max = 77\n")
        hub.signal(signal.SIGHUP)
        async with asyncio.timeout(10):
            while await status("https://two.example") != 101:
                pass
            while await status("https://one.example") != 403:
                pass
        await alice.done("ping")
    async with joined(hub, headers={"Origin": "https://two.example"}) as bob:
        assert bob.data["limits"]["rooms_max"] == 77


async def test_sighup_with_a_broken_file_changes_nothing_and_says_so(start, tmp_path):
    config = tmp_path / "ringhub.toml"
    write_config(config, [])
    hub = start(secret=None, shards=1, arguments=("--config", str(config)))
    async with joined(hub) as alice:
        config.write_text("[limits]\nrooms_maxx = 3\n")
        hub.signal(signal.SIGHUP)
        await eventually(lambda: "rooms_maxx" in hub.log(), "the log names the unknown key")
        await alice.done("ping")
    async with joined(hub) as bob:
        assert bob.data["limits"]["rooms_max"] == 1000


async def test_rotated_secrets_are_chosen_by_their_kid(start, tmp_path):
    old, new = "the old secret, long enough for any of the algorithms in use, really", SECRET
    config = tmp_path / "ringhub.toml"
    config.write_text(f'[auth]\nsecret = [{{ kid = "old", secret = "{old}" }}, {{ kid = "new", secret = "{new}" }}]\n')
    hub = start(secret=None, shards=1, arguments=("--config", str(config)))
    for secret, kid, status in [(old, "old", 101), (new, "new", 101), (old, "new", 401), (new, "other", 401)]:
        async with await Bare.dial(hub) as bare:
            credential = token(secret=secret, headers={"kid": kid})
            await bare.say(upgrade_request(headers={"Authorization": f"Bearer {credential}"}))
            assert (await bare.head()).status == status, (kid, status)


# Listeners.


async def test_a_unix_socket_listener_serves_all(start, tmp_path, room):
    path = str(tmp_path / "hub.sock")
    hub = start(shards=2, arguments=("--listen", f"unix:{path}"))
    async with joined(hub, unix=path) as local, joined(hub, token("bob")) as remote:
        await local.subscribe(room)
        await remote.done("publish", {"room": room, "type": "n", "data": 1})
        await local.events(room, 1)


async def test_the_internal_listener_keeps_the_api_off_the_public_side(start):
    internal = f"127.0.0.1:{free_port()}"
    hub = start({"listen.internal": internal}, shards=1)
    port = int(internal.rsplit(":", 1)[1])
    for path in ("/ready", "/live", "/metrics", "/ws/health"):
        assert hub.get(path, port=port)[0] == 200, path
        assert hub.get(path)[0] == 404, path
    assert hub.get("/api/v1/publish", method="POST", body={})[0] == 404
    async with joined(hub) as alice:
        await alice.done("ping")


async def test_a_kept_alive_http_connection_can_turn_into_a_websocket(hub):
    async with await Bare.dial(hub) as bare:
        for _ in range(3):
            await bare.say(b"GET /live HTTP/1.1\r\nHost: h\r\n\r\n")
            assert (await bare.http()).status == 200
        await bare.say(upgrade_request(headers={"Authorization": f"Bearer {token()}"}))
        assert (await bare.head()).status == 101
        assert json.loads((await bare.next(TEXT)).payload)["type"] == "connection_established"
        await bare.command("ping", "adopted", id=1)
        assert json.loads((await bare.next(TEXT)).payload)["data"] == "adopted"


# Behind proxies. Who a client is shows in the limit per address.


BEHIND_A_PROXY = {"listen.proxy_protocol": True, "listen.trusted_proxies": ["127.0.0.1/32"]}


def proxy_v2(address: str | None) -> bytes:
    signature = b"\r\n\r\n\x00\r\nQUIT\n"
    if address is None:
        return signature + b"\x20\x00" + struct.pack("!H", 0)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    loopback = "::1" if ":" in address else "127.0.0.1"
    body = socket.inet_pton(family, address) + socket.inet_pton(family, loopback) + struct.pack("!HH", 1111, 80)
    body += b"\x04\x00\x03abc"  # A TLV that is to be passed over.
    return signature + b"\x21" + (b"\x21" if family == socket.AF_INET6 else b"\x11") + struct.pack("!H", len(body)) + body


def proxy_v1(address: str) -> bytes:
    family = "TCP6 {} ::1" if ":" in address else "TCP4 {} 127.0.0.1"
    return f"PROXY {family.format(address)} 1111 80\r\n".encode()


async def status_of(hub, first=b"", **headers) -> int:
    """The status of an upgrade that stays connected when it is let in."""
    bare = await Bare.dial(hub)
    await bare.say(first + upgrade_request(headers={"Authorization": f"Bearer {token()}"} | headers))
    status = (await bare.head()).status
    hub.kept = getattr(hub, "kept", []) + [bare]
    return status


@pytest.mark.parametrize("header", [proxy_v1, proxy_v2], ids=["v1", "v2"])
async def test_the_proxy_protocol_tells_the_clients_address(start, header):
    hub = start(BEHIND_A_PROXY | {"limits.connections_per_address_max": 1}, shards=1)
    assert await status_of(hub, header("203.0.113.7")) == 101
    assert await status_of(hub, header("203.0.113.8")) == 101
    assert await status_of(hub, header("2001:db8::7")) == 101
    assert await status_of(hub, header("203.0.113.7")) in (429, 503)
    assert await status_of(hub, header("2001:db8::7")) in (429, 503)


async def test_a_proxys_own_health_check_is_taken(start):
    hub = start(BEHIND_A_PROXY, shards=1)
    assert (await request(hub, proxy_v2(None) + b"GET /live HTTP/1.1\r\nHost: h\r\n\r\n")).status == 200
    assert (await request(hub, b"PROXY UNKNOWN\r\nGET /live HTTP/1.1\r\nHost: h\r\n\r\n")).status == 200


@pytest.mark.parametrize("broken", [b"PROXY TCP4 nonsense\r\n", b"PROXY TCP4 " + b"1" * 200, b"\r\n\r\n\x00\r\nQUIT\n\x31\x11\x00\x0c" + bytes(12), b"GET /live HTTP/1.1\r\n\r\n"], ids=["v1", "long", "v2", "none"])
async def test_a_broken_proxy_header_ends_the_connection(start, broken):
    hub = start(BEHIND_A_PROXY, shards=1)
    async with await Bare.dial(hub) as bare:
        await bare.say(broken)
        assert not (await bare.rest()).startswith(b"HTTP/1.1 200")


async def test_forwarded_addresses_count_from_trusted_proxies(start):
    hub = start({"listen.trusted_proxies": ["127.0.0.1/32", "10.0.0.0/8"], "limits.connections_per_address_max": 1}, shards=1)
    assert await status_of(hub, **{"X-Forwarded-For": "203.0.113.7"}) == 101
    assert await status_of(hub, **{"X-Forwarded-For": "203.0.113.8, 10.1.2.3"}) == 101
    assert await status_of(hub, Forwarded='for=203.0.113.9;proto=https, for="10.0.0.1:80"') == 101
    assert await status_of(hub, Forwarded='for="[2001:db8::1]:4711"') == 101
    # What a client wrote in front of its proxy's own entry does not count.
    assert await status_of(hub, **{"X-Forwarded-For": "1.2.3.4, 203.0.113.7"}) in (429, 503)
    assert await status_of(hub, **{"X-Forwarded-For": "203.0.113.8"}) in (429, 503)


async def test_forwarded_addresses_of_others_are_ignored(start):
    hub = start({"listen.trusted_proxies": ["10.0.0.0/8"], "limits.connections_per_address_max": 1}, shards=1)
    assert await status_of(hub, **{"X-Forwarded-For": "203.0.113.7"}) == 101
    assert await status_of(hub, **{"X-Forwarded-For": "203.0.113.8"}) in (429, 503)


# Start.


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--set", "limits.mesage_bytes_max=5"], ["limits.mesage_bytes_max", "limits.message_bytes_max"]),
        (["--set", "limits.message_bytes_max=-1"], ["limits.message_bytes_max"]),
        (["--set", "limits.message_bytes_max=many"], ["limits.message_bytes_max"]),
        (["--set", "heartbeat.interval_s=999999999"], ["heartbeat.interval_s"]),
        (["--profile", "latencyy"], ["latency"]),
        (["--config", "/nonexistent/ringhub.toml"], ["/nonexistent/ringhub.toml"]),
        (["--no-auth", "--listen", "0.0.0.0:8001"], ["loopback", "0.0.0.0:8001"]),
    ],
    ids=["unknown-key", "negative", "no-number", "out-of-range", "profile", "no-file", "open-to-all"],
)
def test_a_wrong_configuration_is_refused_with_its_reason(arguments, words):
    ended = ringhub("serve", *arguments)
    assert ended.returncode != 0
    for word in words:
        assert word in ended.stderr + ended.stdout


def test_the_environment_sets_options_and_is_checked_too():
    ended = ringhub("serve", RINGHUB_LIMITS_MESSAGE_BYTES_MAX="-1")
    assert ended.returncode != 0 and "RINGHUB_LIMITS_MESSAGE_BYTES_MAX" in ended.stderr + ended.stdout


async def test_an_option_from_the_environment_is_used(start):
    hub = start(shards=1, environment={"RINGHUB_LIMITS_ROOMS_MAX": "55"})
    async with joined(hub) as alice:
        assert alice.data["limits"]["rooms_max"] == 55


def test_config_check_tells_good_from_bad(tmp_path):
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text("[limits]\nrooms_max = 5\n")
    bad.write_text("[limits]\nroms_max = 5\n[heartbeat]\ninterval_s = 0\n")
    assert ringhub("config", "--check", str(good)).returncode == 0
    ended = ringhub("config", "--check", str(bad))
    assert ended.returncode != 0
    for word in ("roms_max", "rooms_max", "interval_s"):
        assert word in ended.stderr + ended.stdout


NAMED = [
    "listen.public", "listen.internal", "listen.trusted_proxies", "auth.secret", "auth.cookie", "auth.jwks", "heartbeat.interval_s", "heartbeat.timeout_s",
    "limits.message_bytes_max", "limits.connects_per_s", "limits.messages_per_s", "limits.connections_max", "limits.connections_per_user_max",
    "limits.connections_per_address_max", "limits.outbox_bytes_max", "history.events_max", "session.resume_window_s", "endpoints.echo", "events.strict",
]  # fmt: skip


def test_config_lists_every_option_that_has_a_name_outside():
    listed = ringhub("config").stdout
    assert not [key for key in NAMED if key not in listed]


async def test_a_minted_token_is_let_in_with_what_it_was_given(hub):
    minted = ringhub("token", "--sub", "minted", "--permission", "websocket:connect", "--permission", "websocket:subscribe", "--permission", "project:*:read", "--ttl", "1h", RINGHUB_AUTH_SECRET=SECRET)
    assert minted.returncode == 0, minted.stderr
    credential = minted.stdout.strip()
    claims = jwt.decode(credential, SECRET, algorithms=["HS256"])
    assert claims["sub"] == "minted" and 3500 < claims["exp"] - claims["iat"] <= 3600
    async with joined(hub, credential) as client:
        assert client.data["user_id"] == "minted"
        await client.subscribe("project:1")


def test_doctor_tells_its_findings():
    ended = ringhub("doctor", "--set", f"listen.public=127.0.0.1:{free_port()}") if "--set" in ringhub("doctor", "--help").stdout else ringhub("doctor")
    assert "io_uring" in ended.stdout


async def test_without_configuration_a_token_is_printed_that_works(start):
    # The port is the one thing that has to be given where the default may be taken.
    hub = start(secret=None, shards=1)
    shape = re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]+")
    await eventually(lambda: shape.search(hub.log()), "a token stands on the output")
    async with joined(hub, shape.search(hub.log())[0]) as client:
        await client.subscribe("project:1")


async def test_two_hubs_do_not_share_a_port_unnoticed(hub):
    ended = await asyncio.to_thread(ringhub, "serve", "--listen", f"127.0.0.1:{hub.port}", "--no-auth")
    assert ended.returncode != 0
    assert str(hub.port) in ended.stderr + ended.stdout


async def test_publish_and_tail_work_from_the_shell(hub, room):
    url = f"{hub.url}/ws"
    async with joined(hub) as alice:
        await alice.subscribe(room)
        sent = await asyncio.to_thread(ringhub, "publish", "--url", url, "--token", token(), room, "note.added", '{"from":"the shell"}')
        assert sent.returncode == 0, sent.stderr
        assert (await alice.events(room, 1))[0]["data"] == {"from": "the shell"}
        tail = await asyncio.create_subprocess_exec(binary(), "tail", "--url", url, "--token", token(), room, stdout=subprocess.PIPE)
        try:

            async def first_line():
                line = asyncio.ensure_future(tail.stdout.readline())
                while not line.done():
                    # Until it has joined, what is published passes it by.
                    await alice.done("publish", {"room": room, "type": "note.added", "data": "tailed"})
                    await asyncio.wait([line], timeout=0.05)
                return await line

            assert b"tailed" in await asyncio.wait_for(first_line(), 10)
        finally:
            tail.kill()
            await tail.wait()


# The load generator.


@pytest.mark.parametrize("shards", [1, 2])
def test_subscribers_that_vanish_and_come_back_lose_nothing(start, shards):
    hub = start(shards=shards)
    load = "--mode reconnect --conns 60 --rooms 4 --rate 100 --reconnect-percent 50 --warmup 0.5 --secs 2 --json".split()
    ended = ringhub("bench", "--url", f"{hub.url}/ws", *load, RINGHUB_TOKEN=admin())
    assert ended.returncode == 0, ended.stdout + ended.stderr
    report = json.loads(ended.stdout)
    assert report["reconnects"]["resumed"] == report["reconnects"]["due"] >= 60
    assert report["sequence"] == {"missing": 0, "gaps": 0, "repeated": 0, "out_of_order": 0, "told": 0}
    assert report["traffic"]["delivered"] == report["traffic"]["expected"] > 0
