"""An evaluation with the real processes."""

import json

import pytest
from krabby_cli.__main__ import main

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.mark.parametrize("pace", [(), ("--lockstep",)], ids=["real-time", "lock-step"])
def test_the_gait_completes_flat_ground_and_the_report_says_so(tmp_path, capsys, pace):
    out = tmp_path / "out"
    argv = [
        "evaluate", "--processes", "--policy", "gait", "--courses", "flat", "--difficulties", "0.5",
        "--seeds", "3", "--walk-speed", "0.6", "--slack", "3", "--out", str(out), *pace,
    ]  # fmt: skip
    assert main(argv) == 0

    report = json.loads((out / "report.json").read_text())
    cell = report["cells"][-1]
    assert (cell["runs"], cell["success"], cell["distance_share"]) == (1, 1.0, 1.0)
    assert cell["falls"] == 0
    if pace:  # on a busy machine ticks are late, and the target after a gap is cut
        assert cell["gate_clamps"] == 0
    assert cell["gate_faults"] == {}
    assert cell["blind_s"] == 0.0
    assert cell["walked_s"] > 15.0
    assert "completed: " in capsys.readouterr().err
    # The same command finds nothing to do.
    assert main(argv) == 0
    assert len((out / "runs.jsonl").read_text().splitlines()) == 1
