"""OpenTelemetry: metrics and traces at a small collector, and what a dead one changes: nothing."""

from __future__ import annotations

import json
import os
import time

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from websockets.exceptions import InvalidStatus

from backend import HookServer
from hub import Hub, token
from peer import joined
from test_operations import labelled, undisturbed, until

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


class Collector(HookServer):
    """Takes OTLP over HTTP."""

    def spans(self) -> list:
        requests = [ExportTraceServiceRequest.FromString(call.body) for call in list(self.calls) if call.path == "/v1/traces"]
        return [span for request in requests for resource in request.resource_spans for scope in resource.scope_spans for span in scope.spans]

    def metrics(self) -> list[dict]:
        """The metrics of each call, by name."""
        requests = [ExportMetricsServiceRequest.FromString(call.body) for call in list(self.calls) if call.path == "/v1/metrics"]
        return [{metric.name: metric for resource in request.resource_metrics for scope in resource.scope_metrics for metric in scope.metrics} for request in requests]


@pytest.fixture
def collector():
    made = Collector()
    yield made
    made.stop()


def said(span) -> dict:
    return {one.key: one.value.string_value or one.value.int_value for one in span.attributes}


def telemetry_of(hub: Hub) -> dict:
    return json.loads(hub.get("/ready")[2])["telemetry"]


async def named(collector: Collector, name: str, count: int = 1) -> list:
    return await until(lambda: len(found := [span for span in collector.spans() if span.name == name]) >= count and found, f"{count} spans {name}")


async def test_calls_and_admissions_are_traced_and_belong_to_their_callers_traces(start, collector, room):
    hub = start({"telemetry.otlp_url": collector.url, "telemetry.traces_per_1000": 0})
    jwt = token()
    header = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    began_ns = time.time_ns()
    hub.get("/live", header)
    hub.get("/api/v1/rooms/project%3Asecret-name?x=1", header | {"Authorization": f"Bearer {jwt}"})
    hub.get("/nowhere", {"traceparent": f"00-{TRACE}-{PARENT}-00"})
    hub.get("/nowhere")
    hub.get("/nowhere", {"traceparent": "garbage"})
    async with joined(hub, jwt, query="client_id=c-secret", headers=header) as peer:
        await peer.subscribe(room)
    with pytest.raises(InvalidStatus):
        async with joined(hub, "x.y.z", headers=header):
            pass
    [live] = await named(collector, "GET /live")
    assert live.trace_id.hex() == TRACE and live.parent_span_id.hex() == PARENT and any(live.span_id)
    assert began_ns <= live.start_time_unix_nano <= live.end_time_unix_nano <= time.time_ns()
    assert said(live) == {"http.request.method": "GET", "http.route": "/live", "http.response.status_code": 200}
    [absent] = await named(collector, "GET /api/v1/rooms/{room}")
    assert said(absent)["http.response.status_code"] == 404
    opened, unauthorized = await named(collector, "websocket connect", 2)
    assert (said(opened)["ringhub.outcome"], said(unauthorized)["ringhub.outcome"]) == ("open", "unauthorized")
    assert opened.trace_id.hex() == TRACE and said(unauthorized)["http.response.status_code"] == 401
    assert len(collector.spans()) == 4, "nothing that nobody traces"
    # No token, no target and no name of anybody.
    for call in collector.calls:
        assert call.headers["content-type"] == "application/x-protobuf"
        for secret in (jwt, "eyJ", "c-secret", "secret-name", "alice"):
            assert secret.encode() not in call.body, secret


async def test_the_metrics_are_those_that_a_scrape_sees(start, collector, room):
    hub = start({"telemetry.otlp_url": collector.url + "/", "telemetry.metrics_interval_s": 1, "node.name": "node-7"})
    async with joined(hub) as peer:
        await peer.subscribe(room)
        for number in range(5):
            await peer.done("publish", {"room": room, "type": "n", "data": number})
        await until(lambda: (told := collector.metrics()) and sum(point.as_int for point in told[-1]["ringhub_publishes"].sum.data_points) == 5, "the publishes")
        told, scraped = collector.metrics()[-1], hub.get("/metrics")[2].decode()
        families = {line.split()[2].removesuffix("_total").removesuffix("_info") for line in scraped.splitlines() if line.startswith("# TYPE")}
        assert families == set(told), families ^ set(told)
        publishes = told["ringhub_publishes"]
        assert publishes.sum.is_monotonic and publishes.sum.aggregation_temporality == 2
        assert {one.key for one in publishes.sum.data_points[0].attributes} == {"shard"} and len(publishes.sum.data_points) == 2
        assert sum(point.as_int for point in told["ringhub_connections"].gauge.data_points) == 1
        turn = told["ringhub_turn_seconds"]
        assert turn.unit == "s"
        for point in turn.histogram.data_points:
            assert point.count == sum(point.bucket_counts) > 0 and len(point.bucket_counts) == len(point.explicit_bounds) + 1
    request = ExportMetricsServiceRequest.FromString(next(call.body for call in collector.calls if call.path == "/v1/metrics"))
    resource = {one.key: one.value.string_value for one in request.resource_metrics[0].resource.attributes}
    assert resource["service.name"] == "ringhub" and resource["service.instance.id"] == "node-7" and resource["service.version"]


async def test_hook_calls_are_traced_and_tell_the_backend(start, collector):
    backend = HookServer(lambda call: (204, b"", {}))
    try:
        hub = start({"telemetry.otlp_url": collector.url, "telemetry.traces_per_1000": 1000, "hooks.url": backend.url + "/events", "hooks.connect_url": backend.url + "/connect"})
        async with joined(hub, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"}):
            [asked] = await named(collector, "hook connect")
            [opened] = await named(collector, "websocket connect")
            [told, *_] = await named(collector, "hook events")
        assert asked.trace_id.hex() == opened.trace_id.hex() == TRACE and asked.parent_span_id == opened.span_id
        assert opened.start_time_unix_nano <= asked.start_time_unix_nano <= asked.end_time_unix_nano <= opened.end_time_unix_nano
        assert asked.kind == 3 and opened.kind == 2 and said(asked)["http.response.status_code"] == 204
        calls = {call.path: call.headers["traceparent"] for call in reversed(backend.calls)}
        assert calls["/connect"] == f"00-{TRACE}-{asked.span_id.hex()}-01"
        assert calls["/events"] == f"00-{told.trace_id.hex()}-{told.span_id.hex()}-01"
        backend.stop()
        with pytest.raises(InvalidStatus):
            async with joined(hub):
                pass
        failed = (await named(collector, "hook connect", 2))[-1]
        assert failed.status.code == 2 and failed.status.message == "connection"
        refused = (await named(collector, "websocket connect", 2))[-1]
        assert said(refused)["ringhub.outcome"] == "hook_failed" and refused.status.code == 2
    finally:
        backend.start()
        backend.stop()


async def test_a_share_of_the_calls_is_traced(start, collector):
    hub = start({"telemetry.otlp_url": collector.url, "telemetry.traces_per_1000": 200, "telemetry.metrics_interval_s": 0})
    connection = hub.connection()
    for _ in range(1000):
        connection.request("GET", "/live")
        connection.getresponse().read()
    connection.close()
    hub.get("/live", {"traceparent": f"00-{TRACE}-{PARENT}-01"})
    await until(lambda: any(span.trace_id.hex() == TRACE for span in collector.spans()), "the last one")
    count = len(collector.spans())
    assert 120 < count < 290 and len({span.trace_id for span in collector.spans()}) == count
    assert not collector.metrics()


@pytest.mark.parametrize("trouble", ["dead", "hanging", "garbage"])
async def test_a_collector_in_trouble_changes_nothing(start, collector, room, trouble):
    hub = start({"telemetry.otlp_url": collector.url, "telemetry.traces_per_1000": 1000, "telemetry.metrics_interval_s": 1, "telemetry.timeout_ms": 1000, "telemetry.queue_max": 64})
    calm = await undisturbed(hub, room, 1)
    if trouble == "dead":
        collector.stop()
    elif trouble == "hanging":
        collector.answer = lambda call: time.sleep(3) or (200, b"", {})
    else:
        collector.raw = b"\x00\x01 nothing of HTTP\r\n\r\n"
    slowest = await undisturbed(hub, f"{room}-2", 3)
    assert slowest < max(0.5, calm * 5)
    connection = hub.connection()
    for _ in range(300):
        connection.request("GET", "/live")
        assert connection.getresponse().read()
    connection.close()
    status = await until(lambda: (now := telemetry_of(hub))["breaker"] != "closed" and now, "the breaker opens")
    assert status["trouble"] == {"dead": "connection", "hanging": "timeout", "garbage": "garbage"}[trouble]
    assert status["queued"] <= 64 and telemetry_of(hub)["lost"] > 0
    assert labelled(hub, 'ringhub_telemetry_spans_total{outcome="lost"}') > 0
    if trouble == "dead":
        collector.start()
    collector.raw, collector.answer = None, lambda call: (200, b"", {})
    await until(lambda: telemetry_of(hub)["breaker"] == "closed", "the collector is told again")


async def test_without_a_collector_there_is_no_telemetry(hub):
    assert "telemetry" not in json.loads(hub.get("/ready")[2])
    assert not any(name.startswith("ringhub_telemetry") for name in hub.metrics())
    threads = {open(f"/proc/{hub.process.pid}/task/{task}/comm").read().strip() for task in os.listdir(f"/proc/{hub.process.pid}/task")}
    assert "telemetry" not in threads
