"""What the hub measures: percentiles and rates in `stats`, histograms in `/metrics`, and the dashboard and alert rules in
`tuning/`, which name nothing that the hub does not serve."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import time

import pytest
import yaml

from hub import ROOT, admin, token
from peer import joined

TUNING = ROOT / "tuning"
HISTOGRAMS = ["ringhub_publish_latency_seconds", "ringhub_round_trip_seconds", "ringhub_turn_seconds"]


def stats(hub) -> dict:
    status, _, body = hub.get("/api/v1/websocket/stats", {"Authorization": f"Bearer {admin()}"})
    assert status == 200, body
    return json.loads(body)


async def until(condition, timeout_s: float = 10):
    """Waits until `condition` gives something, and gives it."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come to be"
        await asyncio.sleep(0.05)
    return found


def samples(text: str) -> dict[str, float]:
    """Every series of an exposition and its value."""
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    return {series: float(value) for series, value in (line.rsplit(" ", 1) for line in lines)}


async def test_every_delivery_is_in_the_latency_while_there_are_few(start, room):
    hub = start({"heartbeat.interval_s": 1})
    async with joined(hub, token("reader")) as reader, joined(hub, token("other")) as other:
        for peer in (reader, other):
            await peer.subscribe(room)
        # As many as are followed in any ten milliseconds.
        for number in range(10):
            await other.done("publish", {"room": room, "type": "n", "data": number})
        await reader.events(room, 10)
        await other.events(room, 10)
        lately = await until(lambda: (now := stats(hub)["lately"])["total"]["latency_us"]["last_10_s"]["count"] == 20 and now)
        latency = lately["total"]["latency_us"]["last_10_s"]
        assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["p99_9"] < 5_000_000
        assert sum(shard["latency_us"]["last_60_s"]["count"] for shard in lately["shards"]) == 20
        rates = lately["total"]["rates"]
        assert rates["publishes_per_s"] > 0 and rates["deliveries_per_s"] > rates["publishes_per_s"] and rates["turns_per_s"] > 0
        assert 0 <= rates["busy"] <= 1
        # The library answers the hub's pings by itself.
        lately = await until(lambda: (now := stats(hub)["lately"])["total"]["round_trip_us"]["last_10_s"]["count"] >= 2 and now)
        assert 0 < lately["total"]["round_trip_us"]["last_10_s"]["p50"] < 5_000_000
        assert lately["total"]["turn_us"]["last_10_s"]["count"] > 20


async def test_a_publish_over_http_is_measured_as_well(start, room):
    hub = start()
    async with joined(hub) as reader:
        await reader.subscribe(room)
        for number in range(5):
            assert hub.publish(room, "n", number)[0] == 200
        await reader.events(room, 5)
        await until(lambda: stats(hub)["lately"]["total"]["latency_us"]["last_10_s"]["count"] == 5)
        assert stats(hub)["total"]["latency_lost"] == 0
        await until(lambda: stats(hub)["total"]["publishes_by_kind"].get("project") == 5)


async def test_messages_beyond_the_rate_are_counted(start):
    hub = start({"limits.messages_per_s": 1, "limits.messages_burst": 2})
    async with joined(hub) as peer:
        for _ in range(5):
            await peer.send("ping", {})
        await until(lambda: hub.metrics()["ringhub_rate_limited_total"] == 3)


@pytest.mark.parametrize("accept", ["text/plain", "application/openmetrics-text"])
async def test_histograms_are_cumulative_and_whole(hub, room, accept):
    async with joined(hub) as peer:
        await peer.subscribe(room)
        await peer.done("publish", {"room": room, "type": "n", "data": 1})
        await peer.events(room, 1)
        await until(lambda: hub.metrics()["ringhub_publish_latency_seconds_count"] > 0)
    status, headers, body = hub.get("/metrics", {"Accept": accept})
    assert status == 200 and headers["content-type"].startswith(accept)
    text = body.decode()
    found = samples(text)
    for name in HISTOGRAMS:
        assert f"# TYPE {name} histogram" in text
        for shard in "01":
            buckets = {
                match[1]: value
                for series, value in found.items()
                if series.startswith(f"{name}_bucket{{") and f'shard="{shard}"' in series and (match := re.search(r'le="([^"]+)"', series))
            }
            limits = [float(limit) for limit in buckets]
            assert limits == sorted(limits) and limits[-1] == float("inf") and len(limits) == 20
            counts = list(buckets.values())
            assert counts == sorted(counts) and counts[-1] == found[f'{name}_count{{shard="{shard}"}}']
            assert found[f'{name}_sum{{shard="{shard}"}}'] >= 0


def expressions() -> dict[str, list[str]]:
    """Every query of the dashboard and of the alert rules, by what it is of."""
    dashboard = json.loads((TUNING / "grafana.json").read_text())
    queries = {panel["title"]: [target["expr"] for target in panel.get("targets", [])] for panel in dashboard["panels"]}
    queries["annotations"] = [one["expr"] for one in dashboard["annotations"]["list"]]
    queries["variables"] = [one["definition"] for one in dashboard["templating"]["list"] if one["type"] == "query"]
    rules = yaml.safe_load((TUNING / "alerts.yml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in ("info", "warning", "critical") and rule["annotations"]["description"], rule
            queries[rule["alert"]] = [rule["expr"]]
    return queries


def test_the_dashboard_and_the_alerts_name_what_the_hub_serves(start):
    # With all that serves figures of its own; nobody listens at these addresses.
    nobody = "http://127.0.0.1:9/"
    hub = start({"hooks.url": nobody, "hooks.connect_url": nobody, "telemetry.otlp_url": nobody})
    hub.get("/live")
    _, _, body = hub.get("/metrics")
    series = samples(body.decode())
    served = {name.split("{", 1)[0] for name in series}
    values = {label: set(re.findall(rf'{label}="([^"]*)"', "\n".join(series))) for label in ("code", "reason")}
    named = set()
    for title, queries in expressions().items():
        for query in queries:
            names = set(re.findall(r"\b(?:ringhub|process)_[a-z_]+", query))
            assert names or query.startswith("up{"), f"{title}: {query}"
            assert names <= served, f"{title}: {names - served} is not served"
            for label, alternatives in re.findall(r'\b(code|reason)=~?"([^"$]+)"', query):
                assert set(alternatives.split("|")) <= values[label], f"{title}: {label}={alternatives}"
            named |= names
    # What nobody looks at need not be served: all but the finer parts of what is shown otherwise.
    unseen = {name for name in served if name.startswith("ringhub_")} - named
    shown_otherwise = {f"{name}_{part}" for name in HISTOGRAMS for part in ("sum", "count")}
    assert unseen <= shown_otherwise | {"ringhub_internal_refused_total", "ringhub_internal_accept_failures_total"}, unseen


def test_every_panel_takes_its_data_from_the_variable():
    dashboard = json.loads((TUNING / "grafana.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    for panel in panels:
        for source in [panel["datasource"], *[target["datasource"] for target in panel["targets"]]]:
            assert source["uid"] == "${datasource}", panel["title"]


@pytest.fixture
def promtool() -> str:
    return shutil.which("promtool") or pytest.skip("promtool is not installed; Debian and Ubuntu have it in the package prometheus")


def test_promtool_accepts_the_rules(promtool):
    subprocess.run([promtool, "check", "rules", TUNING / "alerts.yml"], check=True)


def test_promtool_accepts_the_dashboards_queries(promtool, tmp_path):
    rules = []
    for number, query in enumerate(query for queries in expressions().values() for query in queries):
        if not query.startswith("label_values("):
            plain = query.replace("$__rate_interval", "1m").replace("$instance", ".*").replace("$shard", ".*")
            rules.append({"record": f"query{number}", "expr": plain})
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    subprocess.run([promtool, "check", "rules", path], check=True)


def test_promtool_accepts_the_metrics(hub, promtool):
    _, _, body = hub.get("/metrics")
    checked = subprocess.run([promtool, "check", "metrics"], input=body, capture_output=True)
    assert checked.returncode == 0, checked.stderr.decode()
