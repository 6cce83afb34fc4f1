"""Exposition: names, children, quantiles, the HTTP thread and its busy port."""

import math
import socket
import urllib.error
import urllib.request

import numpy as np
import pytest
from krabby.runtime import metrics
from krabby.runtime.metrics import (
    MetricsPortInUse,
    MetricsServer,
    Quantiles,
    Totals,
    children,
    render,
)
from krabby.runtime.testing import free_port
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics import MetricWrapperBase


def get(port, path="/metrics"):
    return urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60)


def test_every_shared_metric_has_the_prefix_and_a_base_unit():
    units = ("_seconds", "_total", "_info", "_enabled", "_requested")
    shared = [each for each in vars(metrics).values() if isinstance(each, MetricWrapperBase)]
    assert len(shared) >= 15
    for family in (family for each in shared for family in each.describe()):
        name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
        assert name.startswith("krabby_")
        assert name.endswith(units)


def test_period_buckets_lie_around_ten_milliseconds():
    assert metrics.PERIOD_BUCKETS[4] == pytest.approx(0.010)
    assert list(metrics.PERIOD_BUCKETS) == sorted(metrics.PERIOD_BUCKETS)


def test_children_are_exposed_before_their_first_use():
    registry = CollectorRegistry()
    counter = Counter("krabby_test_rejected_total", "x", ["reason"], registry=registry)
    made = children(counter, ("stale", "order"))
    made["stale"].inc()
    text = generate_latest(registry).decode()
    assert 'krabby_test_rejected_total{reason="stale"} 1.0' in text
    assert 'krabby_test_rejected_total{reason="order"} 0.0' in text


def test_the_exposition_answers_over_http():
    registry = CollectorRegistry()
    Gauge("krabby_test_answer", "x", registry=registry).set(42)
    with MetricsServer(0, registry=registry) as server, get(server.port) as answer:
        assert b"krabby_test_answer 42.0" in answer.read()
        assert answer.headers["Content-Type"].startswith("text/plain")


def test_the_page_is_the_librarys_whatever_the_scraper_would_accept():
    registry = CollectorRegistry()
    Counter("krabby_test_sent", "x", registry=registry).inc(3)
    Histogram("krabby_test_age_seconds", "x", ["stream"], registry=registry).labels("a").observe(1)
    assert render(registry) == generate_latest(registry)
    assert b"_created" not in render(registry)
    with MetricsServer(0, registry=registry) as server:
        wish = {"Accept": "application/openmetrics-text;version=1.0.0"}
        url = f"http://127.0.0.1:{server.port}/metrics"
        with urllib.request.urlopen(urllib.request.Request(url, headers=wish)) as answer:
            assert answer.read() == generate_latest(registry)
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")


def test_rendering_pauses_so_that_the_loop_gets_the_interpreter(monkeypatch):
    clock, pauses = [0.0], []
    registry = CollectorRegistry()

    def value():
        clock[0] += 60e-6  # what a metric costs
        return 0.0

    for number in range(10):
        Gauge(f"krabby_test_{number}", "x", registry=registry).set_function(value)
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(metrics.time, "sleep", pauses.append)
    render(registry)
    assert pauses == [1e-3] * 5  # after every second one


def test_a_counter_catches_up_with_a_total():
    counter = Counter("krabby_test_total", "x", registry=CollectorRegistry())
    other = Counter("krabby_test_other_total", "x", registry=CollectorRegistry())
    totals = Totals()
    for total in (3, 3, 5):
        totals.show(counter, total)
        totals.show(other, 1)
    assert counter.collect()[0].samples[0].value == 5
    assert other.collect()[0].samples[0].value == 1


def test_healthz_tells_whether_the_loop_turns():
    alive = [True]
    with MetricsServer(0, healthy=lambda: alive[0]) as server:
        with get(server.port, "/healthz") as answer:
            assert answer.read() == b"ok\n"
        alive[0] = False
        with pytest.raises(urllib.error.HTTPError, match="503") as caught:
            get(server.port, "/healthz")
        caught.value.close()


@pytest.mark.parametrize("path", ["/nothing", "/healthz"])
def test_other_paths_are_not_found(path):
    with MetricsServer(0) as server:
        with pytest.raises(urllib.error.HTTPError, match="404") as caught:
            get(server.port, path)
        caught.value.close()


def test_a_scraper_that_hangs_up_does_not_hurt_the_next():
    with MetricsServer(0) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(b"GET /metrics HT")
        with get(server.port) as answer:
            assert answer.status == 200


def test_a_busy_port_is_named_with_the_way_out():
    with MetricsServer(0) as first:
        with pytest.raises(MetricsPortInUse, match=rf"127\.0\.0\.1:{first.port} .*metrics_port"):
            MetricsServer(first.port)
        with get(first.port) as answer:  # the one who was first is unharmed
            assert answer.status == 200


def test_a_closed_server_frees_its_port():
    port = free_port()
    MetricsServer(port).close()
    MetricsServer(port).close()


def test_closing_does_not_wait_for_the_next_look(monkeypatch):
    """A process that sat down first has 0.5 s left to end in."""
    monkeypatch.setattr(metrics._Server, "timeout", 60.0)
    server = MetricsServer(0)
    server.close()
    assert not server._thread.is_alive()


def test_a_scraper_that_hangs_is_not_waited_for():
    server = MetricsServer(0)
    with socket.create_connection(("127.0.0.1", server.port)):
        server.close()
    with MetricsServer(server.port):
        pass


def test_quantiles_agree_with_numpy_to_one_per_cent():
    values = np.random.default_rng(0).lognormal(mean=-5, sigma=1.2, size=50_000)
    sketch = Quantiles()
    for value in values:
        sketch.add(float(value))
    for q in (0.01, 0.5, 0.9, 0.99, 0.999):
        assert sketch.quantile(q) == pytest.approx(np.quantile(values, q), rel=0.01)
    assert sketch.count == 50_000
    assert sketch.maximum == values.max()
    assert sketch.minimum == values.min()
    assert sketch.mean == pytest.approx(values.mean())


def test_quantiles_of_two_values():
    sketch = Quantiles()
    sketch.add(0.002)
    sketch.add(0.004)
    assert sketch.quantile(0.5) == pytest.approx(0.002, rel=0.005)
    assert sketch.quantile(1.0) == pytest.approx(0.004, rel=0.005)


def test_quantiles_before_the_first_value():
    assert math.isnan(Quantiles().quantile(0.5))
    assert math.isnan(Quantiles().mean)
    assert Quantiles().summary_ms("age") == {}


def test_quantiles_take_what_lies_outside_their_range():
    sketch = Quantiles()
    for value in (-1.0, 0.0, 1e-9, 1e9, math.inf, math.nan):
        sketch.add(value)
    assert sketch.count == 5  # NaN is no value
    assert sketch.minimum == -1.0
    assert sketch.maximum == math.inf
    edge = Quantiles()
    for value in (1e-6, 1.0000001e-6, 999.9999, 1e3):
        edge.add(value)
    assert edge.count == 4


def test_summary_is_in_milliseconds():
    sketch = Quantiles()
    for _ in range(100):
        sketch.add(0.0035)
    assert sketch.summary_ms("obs_age") == {
        "obs_age_p50_ms": 3.5,
        "obs_age_p99_ms": 3.5,
        "obs_age_max_ms": 3.5,
    }
    assert set(sketch.summary_ms()) == {"p50_ms", "p99_ms", "max_ms"}


def test_histogram_children_are_histograms():
    made = children(metrics.LOOP_WORK, ("receive",))
    assert isinstance(made["receive"], Histogram)
