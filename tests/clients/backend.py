"""A backend that the hub calls: keeps what it is told, answers as a test wants it, and can hang, lie or be away."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.server
import json
import socket
import ssl
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from hub import free_port


@dataclass
class Call:
    """One call, and what is in it."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float = field(default_factory=time.monotonic)

    @property
    def json(self):
        return json.loads(self.body)


def is_signed(call: Call, secret: str) -> bool:
    """As the specification of Standard Webhooks has it, by hand."""
    key = base64.b64decode(secret.removeprefix("whsec_")) if secret.startswith("whsec_") else secret.encode()
    signed = b".".join([call.headers["webhook-id"].encode(), call.headers["webhook-timestamp"].encode(), call.body])
    expected = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    is_recent = abs(time.time() - int(call.headers["webhook-timestamp"])) < 60
    return is_recent and expected in call.headers["webhook-signature"].split(" ")


class HookServer:
    """`answer` makes of a call a status, a body and headers; it may sleep. `raw` is sent instead of an answer."""

    def __init__(self, answer=None, *, port: int | None = None, certificate: Path | None = None):
        self.answer = answer or (lambda call: (200, b"", {}))
        self.raw: bytes | None = None
        # A connection ends without an answer to the request after so many.
        self.answers_per_connection = 1_000_000
        self.open: list[socket.socket] = []
        self.calls: list[Call] = []
        self.port = port or free_port()
        self.certificate = certificate
        self.start()

    def start(self) -> None:
        ours = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                self.answered = getattr(self, "answered", 0) + 1
                if self.answered > ours.answers_per_connection:
                    self.close_connection = True
                    return
                call = Call(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
                ours.calls.append(call)
                if ours.raw is not None:
                    self.wfile.write(ours.raw)
                    self.close_connection = True
                    return
                status, answer, headers = ours.answer(call)
                answer = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if status != 204:
                    self.send_header("content-length", str(len(answer)))
                self.end_headers()
                if status != 204:
                    self.wfile.write(answer)

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True
            request_queue_size = 256

            def process_request(self, request, address):
                ours.open.append(request)
                super().process_request(request, address)

            def handle_error(self, *_):
                """Clients that go away are part of the tests."""

        self.server = Server(("127.0.0.1", self.port), Handler)
        if self.certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Nobody listens any more, and connections that are open end."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
        for connection in self.open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.open.clear()

    @property
    def url(self) -> str:
        return f"{'https' if self.certificate else 'http'}://localhost:{self.port}" if self.certificate else f"http://127.0.0.1:{self.port}"

    def events(self, kind: str | None = None) -> list[dict]:
        """Every event that came, in order; each once, however often it was sent."""
        seen: dict[str, dict] = {}
        for call in list(self.calls):
            for event in call.json if isinstance(call.json, list) else []:
                seen.setdefault(event["id"], event)
        return [event for event in seen.values() if kind in (None, event["type"])]
