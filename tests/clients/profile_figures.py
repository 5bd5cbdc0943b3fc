"""The profiles of `tuning/` against `default` on the same work: what each wins, and what it pays.

    HUB_BIN=target/release/ringhub tests/.venv/bin/python tests/clients/profile_figures.py [--rounds 5] [latency throughput density]

Hubs have one shard on the last processor, the load is on the others. Every round measures every profile, each with a hub of
its own, so that a machine that gets busy disturbs all of them alike; figures are medians of the rounds, with the factor to
`default` behind them. CPU is that of the hub's process; where a profile looks for completions before it sleeps, the looking is
in it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess

from hub import Hub, binary, clean_environment

PROFILES = ["latency", "throughput", "density"]

# What is measured: the name, the arguments of `ringhub bench`, and where in its report the figure is.
WORK = [
    ("CPU per delivery, 1 in flight to 1000, µs", ["--window", "1"], ("server", "cpu_us_per_delivery")),
    ("CPU per delivery, 16 in flight, µs", ["--window", "16"], ("server", "cpu_us_per_delivery")),
    ("CPU per delivery, 20 publishers at 4000/s, µs", ["--rate", "4000", "--conns", "100", "--publishers", "20"], ("server", "cpu_us_per_delivery")),
    ("delivery at 50/s to 1000, p50, µs", ["--rate", "50"], ("latency_us", "p50")),
    ("delivery at 50/s to 1000, p99, µs", ["--rate", "50"], ("latency_us", "p99")),
    ("echo of 20 clients at 2000/s, p50, µs", ["--mode", "echo", "--conns", "20", "--rate", "2000"], ("latency_us", "p50")),
    ("echo of 20 clients at 2000/s, p99, µs", ["--mode", "echo", "--conns", "20", "--rate", "2000"], ("latency_us", "p99")),
    ("echoes per second, 100 clients", ["--mode", "echo", "--conns", "100", "--window", "1"], ("traffic", "delivered_per_s")),
    ("echo beside a broadcast at 20/s to 5000, p99, µs", ["--conns", "5000", "--rate", "20", "--probe", "20"], ("probe", "latency_us", "p99")),
    ("CPU of 5000 idle connections, %", ["--mode", "idle", "--conns", "5000"], ("server", "cpu_percent")),
    ("memory before the first connection, MB", ["--mode", "idle", "--conns", "5000"], ("server", "rss_before_bytes")),
    ("memory per idle connection, B", ["--mode", "idle", "--conns", "5000"], ("server", "memory_per_connection_bytes")),
]


def placed(processors: list[int]) -> tuple[str, ...]:
    return ("taskset", "-c", ",".join(map(str, processors)))


def report(profile: str, arguments: list[str], seconds: float, hub_on: list[int], load_on: list[int]) -> dict:
    """One run against a fresh hub."""
    hub = Hub(
        shards=1, arguments=("--profile", profile, "--no-auth", "--echo", "--quiet"), settings={"limits.connections_per_shard_max": 20_000},
        prefix=placed(hub_on),
    )
    with contextlib.ExitStack() as stack:
        stack.callback(hub.discard)
        url = f"{hub.url}/ws"
        line = [*placed(load_on), str(binary()), "bench", "--url", url, "--pid", str(hub.process.pid), "--secs", str(seconds), "--json", *arguments]
        done = subprocess.run(line, env=clean_environment(), capture_output=True, text=True, timeout=120, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{profile}: {' '.join(line)}\n{done.stderr}{done.stdout}")
        return json.loads(done.stdout)


def figure(found: dict, path: tuple[str, ...]) -> float | None:
    for name in path:
        if (found := found.get(name)) is None:
            return None
    return found / 1e6 if path[-1] == "rss_before_bytes" else found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profiles", nargs="*", default=PROFILES, help="those to measure beside default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="measured time of each run")
    options = parser.parse_args()
    profiles = ["default", *options.profiles]
    if unknown := set(profiles) - {"default", *PROFILES}:
        parser.error(f"no profile {', '.join(sorted(unknown))}")
    processors = sorted(os.sched_getaffinity(0))
    hub_on, load_on = processors[-1:], processors[:-1] or processors

    runs = list(dict.fromkeys(tuple(arguments) for _, arguments, _ in WORK))
    found: dict[tuple[str, tuple[str, ...]], list[dict]] = {}
    for _ in range(options.rounds):
        for arguments in runs:
            for profile in profiles:
                found.setdefault((profile, arguments), []).append(report(profile, list(arguments), options.seconds, hub_on, load_on))

    print(f"{'':50}" + "".join(f"{profile:>20}" for profile in profiles))
    for name, arguments, path in WORK:
        line, usual = f"{name:50}", None
        for profile in profiles:
            figures = [value for one in found[profile, tuple(arguments)] if (value := figure(one, path)) is not None]
            if not figures:
                line += f"{'none':>20}"
                continue
            median = statistics.median(figures)
            usual = median if usual is None else usual
            line += f"{median:12.3f} × {median / usual if usual else 1:4.2f} "
        print(line)


if __name__ == "__main__":
    main()
