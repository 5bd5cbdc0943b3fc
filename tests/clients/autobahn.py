"""Runs Autobahn's case files (driven by PyPI's kosoku) against `/echo` of `ringhub conformance`.

Groups 1–7 are framing, pings, reserved bits, opcodes, fragmentation, UTF-8 and closing; 9 is limits and performance (messages
up to 16 MiB), 10 one large message in many pieces, 12 and 13 compression: of five kinds of data, and agreed on in seven ways.
"""

import argparse
import asyncio
import sys
from collections import Counter

from kosoku import FailureError, run_fuzzingclient
from kosoku._caseindex import initialize_shims

from hub import Hub

GROUPS = ["1", "2", "3", "4", "5", "6", "7", "9", "10", "12", "13"]
CASES = 517
# Each case of compression sends a thousand messages of up to 128 KiB. Most of that time is the client's own, so that of large ones
# it sends so many bytes and no more.
COMPRESSION_BYTES = 1 << 20
COMPRESSION_MESSAGES_MIN = 20


def as_kosoku_runs_them(case) -> None:
    """Makes a case of compression one that ends in time, and takes what kosoku hands over of messages that came uncompressed: a str,
    of binary ones with a character for each byte."""
    given = case.onMessage
    case.COUNT = min(case.COUNT, max(COMPRESSION_MESSAGES_MIN, COMPRESSION_BYTES // case.LEN))

    def on_message(self, message, binary):
        if isinstance(message, str):
            message = message.encode("latin-1" if binary else "utf-8")
        given(self, message, binary)

    case.onMessage = on_message


async def run(url: str, groups: list[str]):
    initialize_shims()
    from case12_x_x import Case12_X_X, Case13_X_X

    for case in [*Case12_X_X, *Case13_X_X]:
        as_kosoku_runs_them(case)
    try:
        return await run_fuzzingclient(url, [f"{group}.*" for group in groups], None, 2)
    except FailureError as failure:
        return failure.results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("group", nargs="*", default=GROUPS)
    parser.add_argument("--url", help="a server that runs already, instead of `ringhub conformance`")
    options = parser.parse_args()
    hub = None if options.url else Hub(command="conformance")
    try:
        results = asyncio.run(run(options.url or f"{hub.url}/echo", options.group))
        if hub:
            hub.stop()
    finally:
        if hub:
            hub.discard()
    failed = [result for result in results if not result.passed]
    for result in failed:
        print(f"{result.case_id}: {result.behavior.value}, close {result.behavior_close.value}: {result.result} {result.result_close}")
    counts = ", ".join(f"{count} {verdict}" for verdict, count in Counter(result.behavior.value for result in results).most_common())
    print(f"{len(results)} cases: {counts}; {len(failed)} failed")
    if options.group == GROUPS and len(results) < CASES and not failed:
        print(f"only {len(results)} of {CASES} cases ran")
        return 1
    return 1 if failed or not results else 0


if __name__ == "__main__":
    sys.exit(main())
