"""The notebook runs, cell by cell, on a recording of a run, and is kept without output."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "recording.ipynb"


def cells():
    return [
        cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"
    ]


def test_the_notebook_is_kept_without_output():
    assert len(cells()) == 4
    for cell in cells():
        assert cell["outputs"] == []
        assert cell["execution_count"] is None


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_notebook_reads_a_recording_and_plots_it(tmp_path):
    recording = tmp_path / "my run.mcap"
    walk = ("sim", "--speed", "0", "--duration", "6", "--policy", "gait", "--base-port", "0")
    subprocess.run(
        [sys.executable, "-m", "krabby_cli", *walk, "--record", recording],
        check=True, capture_output=True, cwd=tmp_path,
    )  # fmt: skip
    # One process and one name space, as a kernel has; `show` writes files where there is no screen.
    saving = (
        "import matplotlib; matplotlib.use('Agg'); import matplotlib.pyplot as plt\n"
        "shown = []\n"
        "plt.show = lambda: shown.append(plt.gcf().savefig(f'{len(shown)}.png'))\n"
    )
    code = "\n".join("".join(cell["source"]) for cell in cells())
    done = subprocess.run(
        [sys.executable, "-c", saving + code],
        env={**os.environ, "RECORDING": str(recording)},
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, *_, last = done.stdout.splitlines()
    assert first.startswith("flat, difficulty 0.5, seed 0: ")
    assert last.startswith("hardest working: ")
    assert {path.name for path in tmp_path.glob("*.png")} == {"0.png", "1.png"}
