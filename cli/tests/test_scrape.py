import math

import pytest
from krabby.runtime.metrics import MetricsServer
from krabby_cli.scrape import Scrape, compare, fetch, parse
from prometheus_client import CollectorRegistry, Counter, Histogram

TEXT = """\
# TYPE krabby_loop_period_seconds histogram
krabby_loop_period_seconds_bucket{le="0.01"} 40
krabby_loop_period_seconds_bucket{le="+Inf"} 100
krabby_loop_period_seconds_count 100
krabby_loop_period_seconds_sum 1.0
# TYPE krabby_loop_deadline_misses_total counter
krabby_loop_deadline_misses_total 2
# TYPE krabby_message_age_seconds histogram
krabby_message_age_seconds_bucket{le="0.002",stream="state"} 90
krabby_message_age_seconds_bucket{le="0.005",stream="state"} 100
krabby_message_age_seconds_bucket{le="+Inf",stream="state"} 100
krabby_message_age_seconds_count{stream="state"} 100
krabby_message_age_seconds_sum{stream="state"} 0.2
"""


def test_rates_and_ages_are_those_between_two_looks():
    before = parse(TEXT, 10.0)
    later = (
        TEXT.replace("count 100", "count 250")
        .replace('le="0.002",stream="state"} 90', 'le="0.002",stream="state"} 240')
        .replace('le="0.005",stream="state"} 100', 'le="0.005",stream="state"} 250')
        .replace('le="+Inf",stream="state"} 100', 'le="+Inf",stream="state"} 250')
    )
    figures = compare(before, parse(later, 11.5))

    assert figures.loop_hz == pytest.approx(100.0)
    assert figures.deadline_misses == 2
    # All 150 new ones were below 2 ms.
    assert figures.age_p99_ms == {"state": 2.0}


def test_the_99th_percentile_is_the_bound_of_its_bucket():
    # 90 % below 2 ms, all below 5 ms.
    assert compare(Scrape(0.0), parse(TEXT, 1.0)).age_p99_ms == {"state": 5.0}


def test_without_time_or_messages_there_are_no_figures():
    scrape = parse(TEXT, 1.0)
    figures = compare(scrape, scrape)
    assert math.isnan(figures.loop_hz)
    assert figures.age_p99_ms == {}


def test_a_running_service_is_scraped_and_a_silent_port_is_none():
    registry = CollectorRegistry()
    Counter("krabby_loop_deadline_misses", "x", registry=registry).inc(7)
    Histogram("krabby_loop_period_seconds", "x", registry=registry).observe(0.01)
    with MetricsServer(0, registry=registry) as server:
        scrape = fetch(server.port, 3.0)
        port = server.port
    assert scrape == Scrape(3.0, loops=1.0, deadline_misses=7.0)
    assert fetch(port, 3.0) is None
