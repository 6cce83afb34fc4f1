"""Slots as traces, sent to a real receiver of OTLP over HTTP."""

import os
import time

import pytest
from krabby.config import ConfigError, load
from krabby.runtime import tracing
from krabby.runtime.testing import captured_logs, free_port, until
from krabby.runtime.testing_traces import TraceReceiver
from krabby.runtime.tracing import TracingCfg, make_tracer

MS = 1_000_000


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def receiver():
    with TraceReceiver() as one:
        yield one


def send(tracer, receiver):
    began_ns = time.monotonic_ns()
    stages = [
        ("read", began_ns, began_ns + 1 * MS),
        ("infer", began_ns + 1 * MS, began_ns + 4 * MS),
    ]
    tracer.trace("tick", began_ns, began_ns + 5 * MS, stages, {"krabby.mode": "policy"})
    tracer.close()
    until(lambda: receiver is None or receiver.traces("tick"))


def test_a_slot_becomes_a_trace_with_its_stages(receiver, monkeypatch):
    monkeypatch.setenv("KRABBY_RUN_ID", "r7")
    tracer = make_tracer(TracingCfg(endpoint=receiver.endpoint), "gameloop")
    before_ns = time.time_ns()
    send(tracer, receiver)
    ((root, children),) = receiver.traces("tick")
    assert root.end_time_unix_nano - root.start_time_unix_nano == 5 * MS
    assert abs(root.start_time_unix_nano - before_ns) < 60_000 * MS  # of the wall's clock
    assert [(one.key, one.value.string_value) for one in root.attributes] == [
        ("krabby.mode", "policy")
    ]
    since_ns = [
        (span.name, span.start_time_unix_nano - root.start_time_unix_nano,
         span.end_time_unix_nano - root.start_time_unix_nano)
        for span in children
    ]  # fmt: skip
    assert since_ns == [("read", 0, 1 * MS), ("infer", 1 * MS, 4 * MS)]
    assert {span.trace_id for span in children} == {root.trace_id}
    assert receiver.resource["service.name"] == "gameloop"
    assert receiver.resource["service.instance.id"] == "r7"


def test_the_standard_variables_name_receiver_and_service(receiver, monkeypatch):
    assert make_tracer(TracingCfg(), "gameloop") is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "crab-7")
    send(make_tracer(TracingCfg(), "gameloop"), receiver)
    assert len(receiver.traces("tick")) == 1
    assert receiver.resource["service.name"] == "crab-7"
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert make_tracer(TracingCfg(), "gameloop") is None


def test_one_slot_of_so_many_is_traced(receiver):
    tracer = make_tracer(TracingCfg(endpoint=receiver.endpoint, every=3), "gameloop")
    assert [tracer.due() for _ in range(7)] == [False, False, True, False, False, True, False]
    tracer.close()


def test_a_receiver_that_is_not_there_hurts_nothing():
    tracer = make_tracer(TracingCfg(endpoint=f"http://127.0.0.1:{free_port()}"), "gameloop")
    send(tracer, None)


def test_without_the_library_a_named_receiver_is_an_error_and_an_inherited_one_a_warning(
    monkeypatch,
):
    monkeypatch.setattr(tracing, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as refused:
        make_tracer(TracingCfg(endpoint="http://collector:4318"), "gameloop")
    assert str(refused.value) == (
        "tracing.endpoint is 'http://collector:4318' and OpenTelemetry is not installed; pip "
        "install 'krabby[tracing]', in a checkout make setup-tracing, or leave the key empty"
    )
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    with captured_logs() as logs:
        assert make_tracer(TracingCfg(), "gameloop") is None
    assert [(line["event"], line["named_by"]) for line in logs] == [
        ("no traces: OpenTelemetry is not installed", "OTEL_EXPORTER_OTLP_ENDPOINT")
    ]


def test_what_is_no_address_is_refused():
    with pytest.raises(ConfigError, match=r"endpoint.*'collector:4318'.*http://HOST:4318"):
        load(TracingCfg, None, ['endpoint="collector:4318"'])
