import argparse
import json

import pytest
from krabby.runtime.testing import free_ports
from krabby_cli.__main__ import main
from krabby_cli.check_hal import parse_place
from krabby_proto import conformance, default_endpoints
from krabby_proto.testing import FakeHal


def places(hal):
    return [f"{name}={hal.endpoints[name]}" for name in ("state", "command", "safety")]


def test_a_hal_that_keeps_the_contract_passes(capsys):
    with FakeHal(rate_hz=200.0) as hal:
        for _ in range(10):  # on a busy machine the fake is late
            status = main(["check-hal", *places(hal)])
            out = capsys.readouterr().out
            failed = [line for line in out.splitlines() if "FAIL" in line]
            if status == 0 or not all("state rate" in f or "state age" in f for f in failed):
                break
    assert status == 0
    assert "FAIL" not in out
    *_, last = out.splitlines()
    passed, of, total, *_ = last.split()
    assert (passed, of) == (total, "of")
    assert out.count("tried: ") == out.count("found: ") == int(total)


def test_beside_a_running_loop_it_says_what_it_skips_and_fails_nothing(capsys, monkeypatch):
    # A busy host may run the fake late; here only what becomes of the rest counts.
    monkeypatch.setattr(
        conformance,
        "_CHECKS",
        tuple(
            (name, tried, (lambda _: "") if name in ("state rate", "state age") else check)
            for name, tried, check in conformance._CHECKS
        ),
    )
    with FakeHal(rate_hz=200.0, armed=True) as hal:
        assert main(["check-hal", *places(hal)]) == 3
        assert hal.operators == []
    out = capsys.readouterr().out
    assert "FAIL" not in out
    assert out.count("skip") == 1
    assert "the HAL is 'active'" in out
    assert "stop its game loop" in out
    *_, last = out.splitlines()
    passed, _, total, *_ = last.split()
    skipped = int(last.split(", ")[1].split()[0])
    assert int(passed) + skipped == int(total)
    assert last.endswith("not run")


def test_a_hal_that_is_not_there_fails_and_says_so(capsys):
    state, command, safety = (f"tcp://127.0.0.1:{port}" for port in free_ports(3))
    argv = ["check-hal", "--json", f"state={state}", f"command={command}", f"safety={safety}"]
    assert main(argv) == 1
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert not results[0]["passed"]
    assert set(results[0]) == {"name", "passed", "detail", "tried", "skipped"}


def test_a_base_names_all_endpoints():
    assert parse_place("tcp://10.0.0.5") == default_endpoints("tcp://10.0.0.5")
    assert parse_place("ipc:///tmp/hal")["state"] == "ipc:///tmp/hal/state"
    assert parse_place("tcp://[::1]") == default_endpoints("tcp://[::1]")
    assert parse_place("state=tcp://h:1") == {"state": "tcp://h:1"}


@pytest.mark.parametrize("text", ["tcp://10.0.0.5:6001", "10.0.0.5", "state=6001", "tcp://"])
def test_an_endpoint_without_its_stream_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"STREAM=ENDPOINT"):
        parse_place(text)
