"""Hubs behind nginx, HAProxy and Caddy, with the very files of tuning/: only addresses and folders are other ones.

Every test of these clients can go through one of them: `pytest --through nginx`. TLS ends at the proxy, with certificates
made for the run.

Also a program: `proxies.py nginx -- COMMAND…` runs COMMAND beside a proxy that PROXY_URL leads to, with a hub expected at
PROXIED_PORT, and with the certificates in the folder CERTIFICATES.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import functools
import http.client
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hub import ROOT, START_S, Hub, HubFailed, free_port

TUNING = ROOT / "tuning"
# Where a client comes from that has to be told from the proxy, which is 127.0.0.1 to the hub.
CLIENT = "127.45.0.9"
PEM = "/etc/ssl/hub.example.com.pem"
KEY = "/etc/ssl/hub.example.com.key"

# What the head of each file asks of the hub.
TRUSTED = {"listen.trusted_proxies": ["127.0.0.1"]}

# Tests that say nothing about a proxy, or whose point it takes away, by the start of their names: which proxies, and why.
ALL = ("nginx", "haproxy", "caddy")
NOT_THROUGH = {
    "test_a_bad_upgrade_is_400": (ALL, "what is no HTTP the proxy refuses by itself, in its own words"),
    "test_a_header_block_over_the_limit_is_431": (ALL, "the proxy's own limit comes first"),
    "test_a_slow_handshake_is_ended": (ALL, "the hub sees no handshake before the proxy has all of it"),
    "test_a_half_open_peer_is_let_go": (ALL, "the hub's peer is the proxy, which closes"),
    "test_its_heartbeat_is_answered": (ALL, "a tenth of a second for a pong is too short with a proxy on a busy machine"),
    "test_a_slow_reader_is_told_exactly": (ALL, "the proxy's buffers, and the kernel's on both sides of it, read ahead of the client"),
    "test_alerts_overtake_the_telemetry": (ALL, "likewise, and it connects to the hub by itself"),
    "test_a_hundred_readers_that_do_not_read": (ALL, "likewise: what waits would wait in the proxy"),
    "test_events_are_streamed_a_line_each": (ALL, "a proxy may gather a request before it passes it on; and the test speaks no TLS"),
    "test_a_line_without_an_end_is_refused": (ALL, "the proxy's own limit on bodies comes first"),
    "test_a_slow_reader_of_a_stream": (ALL, "likewise, and it connects to the hub by itself"),
    "test_streams_are_a_figure": (ALL, "figures are not to be had from outside"),
    "test_streams_stay_on_the_public_listener": (ALL, "it is about two listeners of the hub"),
    "test_a_request_of_http_1_0": (ALL, "it speaks no TLS; how a proxy speaks to the hub is its own affair"),
    "test_a_client_of_asyncio_comes_back_to_a_hub": (ALL, "the hub that is started anew would be behind another proxy"),
    "test_frames_sent_along_with_the_upgrade": (("caddy",), "Caddy loses what comes ahead of the 101; no client may send it (RFC 6455, 4.1)"),
}


@functools.cache
def certificates() -> Path:
    """A folder with an authority, and a certificate of it for localhost."""
    folder = Path(tempfile.mkdtemp(prefix="ringhub-test-tls-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    (folder / "names").write_text("subjectAltName = DNS:localhost, IP:127.0.0.1\n")
    for command in (
        ["req", "-x509", *key, "-days", "2", "-subj", "/CN=tests", "-keyout", "ca.key", "-out", "ca.pem"],
        ["req", *key, "-subj", "/CN=localhost", "-keyout", "hub.key", "-out", "hub.csr"],
        ["x509", "-req", "-in", "hub.csr", "-days", "2", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names", "-out", "hub.pem"],
    ):
        subprocess.run(["openssl", *command], cwd=folder, capture_output=True, check=True)
    (folder / "combined.pem").write_text((folder / "hub.pem").read_text() + (folder / "hub.key").read_text())
    return folder


def tls() -> ssl.SSLContext:
    """What a client needs to trust these certificates. It speaks HTTP/1.1."""
    context = ssl.create_default_context(cafile=certificates() / "ca.pem")
    context.set_alpn_protocols(["http/1.1"])
    return context


class Proxy:
    """A proxy in front of the ports `hubs`. `changes` are made to its file before it starts, each in one place."""

    def __init__(self, name: str, *hubs: int, changes: dict[str, str] | None = None):
        self.name = name
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix=f"ringhub-test-{name}-"))
        file, moved, command = getattr(self, f"_{name.replace('-', '_')}")(*hubs)
        text = (TUNING / file).read_text()
        # The tests' own changes first: they name what stands in the file of tuning/.
        for old, new in (changes or {}).items():
            assert text.count(old) == 1, f"tuning/{file} has {old!r} {text.count(old)} times"
            text = text.replace(old, new)
        for old, new in moved.items():
            assert old in text, f"tuning/{file} has no {old!r}"
            text = text.replace(old, new)
        self.file = self.folder / file
        self.file.write_text(text)
        self.output = (self.folder / "output").open("w")
        home = {"HOME": str(self.folder), "XDG_DATA_HOME": str(self.folder), "XDG_CONFIG_HOME": str(self.folder)}
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.output, stderr=subprocess.STDOUT, env=os.environ | home)
        self._wait_until_it_listens()

    def _nginx(self, hub: int, file: str = "nginx.conf"):
        temporary = "".join(f"    {kind}_temp_path {self.folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        moved = {
            "listen 443 ssl http2;": f"listen 127.0.0.1:{self.port} ssl http2;",
            "server 127.0.0.1:8000;": f"server 127.0.0.1:{hub};",
            PEM: str(certificates() / "hub.pem"),
            KEY: str(certificates() / "hub.key"),
            "/var/log/nginx/ringhub.log": str(self.folder / "access.log"),
            "\nhttp {\n": f"\nhttp {{\n{temporary}",
        }
        user = "user root; " if os.geteuid() == 0 else ""
        command = ["nginx", "-p", str(self.folder), "-c", str(self.folder / file), "-g", f"{user}daemon off; pid {self.folder}/pid;"]
        return file, moved, command

    def _nginx_cluster(self, *nodes: int):
        file, moved, command = self._nginx(0, "nginx-cluster.conf")
        del moved["server 127.0.0.1:8000;"]
        return file, moved | _moved_nodes(nodes), command

    def _haproxy(self, hub: int):
        moved = {
            "bind :443 ": f"bind 127.0.0.1:{self.port} ",
            # HAProxy does not start where it may not have as many descriptors.
            "maxconn 60000": "maxconn 4000",
            "/etc/ssl/hub.example.com.combined.pem": str(certificates() / "combined.pem"),
            "server hub 127.0.0.1:8000": f"server hub 127.0.0.1:{hub}",
        }
        return "haproxy.cfg", moved, ["haproxy", "-db", "-f", str(self.folder / "haproxy.cfg")]

    def _haproxy_cluster(self, *nodes: int):
        _, moved, _ = self._haproxy(0)
        del moved["server hub 127.0.0.1:8000"]
        return "haproxy-cluster.cfg", moved | _moved_nodes(nodes), ["haproxy", "-db", "-f", str(self.folder / "haproxy-cluster.cfg")]

    def _caddy(self, hub: int):
        of_the_machine = "\n{\n\tadmin off\n\tdefault_bind 127.0.0.1\n\tauto_https disable_redirects\n"
        moved = {
            "\nhub.example.com {": f"\nhttps://:{self.port} {{",
            "reverse_proxy 127.0.0.1:8000 ": f"reverse_proxy 127.0.0.1:{hub} ",
            PEM: str(certificates() / "hub.pem"),
            KEY: str(certificates() / "hub.key"),
            "\n{\n": of_the_machine,
        }
        command = ["caddy", "run", "--config", str(self.folder / "Caddyfile"), "--adapter", "caddyfile"]
        return "Caddyfile", moved, command

    def log(self) -> str:
        """All that it has written anywhere."""
        return "".join(path.read_text(errors="replace") for path in (self.folder / "output", self.folder / "access.log") if path.exists())

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.output.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _wait_until_it_listens(self) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.02)
        log = self.log()
        self.stop()
        raise HubFailed(f"{self.name} did not start\n{log}")


def _moved_nodes(nodes: tuple[int, ...]) -> dict[str, str]:
    """What the files of clusters call their nodes, and where those are."""
    return {f"127.0.0.1:{8001 + number} ": f"127.0.0.1:{node} " for number, node in enumerate(nodes)}


class Behind(Hub):
    """A hub that is reached through a proxy: `host`, `port`, `url` and `get` are the proxy's."""

    def __init__(self, proxy: str, settings: dict | None = None, *, changes: dict[str, str] | None = None, wait: bool = True, **named):
        self.proxy = None
        of_the_file = TRUSTED | ({"listen.proxy_protocol": True} if proxy == "haproxy" else {})
        super().__init__(of_the_file | (settings or {}), **named)
        try:
            self.proxy = Proxy(proxy, self.port, changes=changes)
        except BaseException:
            self.discard()
            raise
        self.port, self.tls = self.proxy.port, tls()
        # The proxy needs no connection to listen; the first one may find a hub behind it.
        if wait:
            self._wait_until_ready()

    @property
    def url(self) -> str:
        return f"wss://{self.host}:{self.port}" if self.proxy else super().url

    @property
    def http_url(self) -> str:
        return f"https://{self.host}:{self.port}" if self.proxy else super().http_url

    def connection(self, port: int | None = None, *, source: str = "127.0.0.1") -> http.client.HTTPConnection:
        if not self.proxy:
            return super().connection(port)
        return http.client.HTTPSConnection(self.host, self.port, timeout=10, context=self.tls, source_address=(source, 0))

    def _answers(self) -> bool:
        return self.get("/ready")[0] == 200 if self.proxy else super()._answers()

    def discard(self) -> None:
        super().discard()
        if self.proxy:
            self.proxy.stop()


def main() -> int:
    """Runs a command beside a proxy, for the tests that are not Python and start their hubs themselves."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("proxy", choices=ALL)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    hub = free_port()
    proxy = Proxy(options.proxy, hub)
    environment = os.environ | {"PROXY_URL": f"https://127.0.0.1:{proxy.port}", "PROXIED_PORT": str(hub), "CERTIFICATES": str(certificates())}
    try:
        return subprocess.run(options.command, env=environment, check=False).returncode
    finally:
        proxy.stop()


if __name__ == "__main__":
    sys.exit(main())
