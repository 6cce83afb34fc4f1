"""The game loop on another host: another clock, delay and loss. Needs root for the namespaces."""

import os

import pytest
from krabby_faults.measure import measure_patiently
from krabby_faults.stack import Stack
from krabby_faults.table import FAULTS
from krabby_faults.tun import Link

FAR = [fault for fault in FAULTS if fault.far]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network and time namespaces"),
]


@pytest.fixture(scope="module")
def far():
    link = Link(clock_ahead_s=5000)
    stack = Stack("simulated", "gait", link=link)
    try:
        stack.start()
        yield stack
    finally:
        stack.close()
        link.close()


def test_the_loop_knows_by_how_much_the_clocks_differ_and_walks(far):
    far.make_walk()
    (met,) = [event for event in far.events("gameloop", 0) if event["event"] == "met the HAL"]
    assert met["clocks_differ_by_s"] == pytest.approx(-5000.0, abs=1.0)
    assert met["within_ms"] < 10.0


@pytest.mark.parametrize("fault", FAR, ids=lambda fault: fault.name.replace(" ", "-"))
def test_a_link_that_delays_loses_or_is_cut_ends_in_a_hold_or_limp_never_in_an_old_command(
    far, fault, figures
):
    row = measure_patiently(far, fault)
    figures[row.fault] = (
        f"safe after {row.safe_ms} ms, limp {row.limp_ms} ms, oldest command "
        f"{row.since_publish_ms:.1f} ms published, {row.since_capture_ms:.1f} ms captured"
    )
    assert row.problems() == []
