#!/usr/bin/env python3
"""A backend that publishes, in Python with nothing but the standard library.

    echo '{"name":"hello"}' | RINGHUB_TOKEN=… python3 publisher.py project:1 project.updated

Each line of the input is the data of one event. An event has an idempotency key of its own, so that it may be sent again
where no answer came: the hub publishes it once.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
import urllib.error
import urllib.request
import uuid

ATTEMPTS_MAX = 10
PAUSE_MAX_S = 10.0
TIMEOUT_S = 10.0
# What passes by itself. Anything else the hub says is said for good.
PASSING = {408, 429, 500, 502, 503, 504}


class Publisher:
    """Publishes to the hub at `url`, with a token that grants `websocket:publish` and `{kind}:{name}:write`."""

    def __init__(self, url: str, token: str):
        self.url = url.rstrip("/") + "/api/v1/publish"
        self.token = token

    def publish(self, room: str, kind: str, data: object, key: str | None = None) -> dict:
        """Publishes one event: `room`, `id`, `seq`, `duplicate`. Give a key that follows from your data where one does, as
        in `order-7-paid`: then it is published once even if this process dies and another one tries again."""
        event = {"room": room, "type": kind, "data": data, "key": key or str(uuid.uuid4())}
        body = json.dumps(event).encode()
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        for attempt in range(ATTEMPTS_MAX):
            pause_s = random.uniform(0, min(PAUSE_MAX_S, 0.1 * 2**attempt))
            try:
                with urllib.request.urlopen(urllib.request.Request(self.url, body, headers), timeout=TIMEOUT_S) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                if error.code not in PASSING:
                    raise RuntimeError(f"{room}: {error.code} {error.read().decode()}") from error
                pause_s += float(error.headers.get("Retry-After", 0))
                problem: Exception = error
            except (OSError, ValueError) as error:
                # No connection, no answer, or half of one: it may have been published. The key sees to it.
                problem = error
            time.sleep(pause_s)
        raise RuntimeError(f"{room}: not published after {ATTEMPTS_MAX} attempts") from problem


def main() -> None:
    room, kind = sys.argv[1:3]
    publisher = Publisher(os.environ.get("RINGHUB_URL", "http://127.0.0.1:8000"), os.environ["RINGHUB_TOKEN"])
    for line in sys.stdin:
        print(json.dumps(publisher.publish(room, kind, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
