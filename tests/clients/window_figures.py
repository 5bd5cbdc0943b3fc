"""What a window kept from event to event would save: the same events compressed one by one, as the hub does it, and with
what went before.

    python3 tests/clients/window_figures.py [--events 4000] [--level 3]

With a window that is kept, whoever misses an event can't read the next: it could be shared only by members that are sent
everything that any of them is. Sizes are of the events as frames have them; times are of zlib, once per event.
"""

from __future__ import annotations

import argparse
import json
import random
import time
import zlib
from collections.abc import Iterator

BEGUN_MS = 1_767_225_600_000


def quotes(draw: random.Random) -> Iterator[dict]:
    """A dozen of 216 symbols, whose prices walk."""
    prices = {a + b + c: draw.uniform(10, 500) for a in "ABCDEF" for b in "UVWXYZ" for c in "KLMNOP"}
    while True:
        items = []
        for symbol in draw.sample(sorted(prices), 12):
            prices[symbol] *= 1 + draw.gauss(0, 0.001)
            bid = round(prices[symbol], 2)
            items.append({"symbol": symbol, "bid": bid, "ask": round(bid + 0.02, 2), "size": draw.randint(1, 900)})
        yield {"items": items}


def steps(draw: random.Random) -> Iterator[dict]:
    """Steps of a workflow, with text of some 110 words out of 4000."""
    words = ["".join(draw.choices("etaoinshrdlucm", k=draw.randint(2, 9))) for _ in range(4000)]
    while True:
        step, status = draw.choice(["fetch", "plan", "call-tool", "review"]), draw.choice(["ok", "ok", "ok", "failed"])
        text = " ".join(draw.choices(words, k=110))
        yield {"run": f"{draw.getrandbits(64):016x}", "step": step, "status": status, "took_ms": draw.randint(3, 9000), "output": text}


def cursors(draw: random.Random) -> Iterator[dict]:
    """Where somebody points to."""
    while True:
        yield {"user": draw.choice(["anna", "bela", "carl", "dora"]), "x": draw.randint(0, 1900), "y": draw.randint(0, 1000)}


def frame(seq: int, kind: str, data: dict, draw: random.Random) -> bytes:
    event = {"type": kind, "room": "project:42", "seq": seq, "id": f"{draw.getrandbits(128):032x}", "time": BEGUN_MS + 37 * seq, "data": data}
    return json.dumps(event, separators=(",", ":")).encode()


def compressed(frames: list[bytes], level: int, keeps: bool) -> tuple[float, float]:
    """Bytes and microseconds per event."""
    begun, size, window = time.process_time(), 0, None
    for each in frames:
        if window is None or not keeps:
            window = zlib.compressobj(level, zlib.DEFLATED, -15)
        # The empty block at the end is not sent.
        size += len(window.compress(each) + window.flush(zlib.Z_SYNC_FLUSH)) - 4
    return size / len(frames), (time.process_time() - begun) * 1e6 / len(frames)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=4000)
    parser.add_argument("--level", type=int, default=3)
    args = parser.parse_args()
    print(f"{'events':10} {'bytes':>7} {'one by one':>20} {'window kept':>20} {'of it':>6}")
    for make in (quotes, steps, cursors):
        draw = random.Random(7)
        data = make(draw)
        frames = [frame(seq, make.__name__, next(data), draw) for seq in range(1, args.events + 1)]
        plain = sum(map(len, frames)) / len(frames)
        (alone, alone_us), (kept, kept_us) = (compressed(frames, args.level, keeps) for keeps in (False, True))
        print(f"{make.__name__:10} {plain:7.0f} {alone:8.0f} B {alone_us:6.1f} µs {kept:8.0f} B {kept_us:6.1f} µs {kept / alone:6.2f}")


if __name__ == "__main__":
    main()
