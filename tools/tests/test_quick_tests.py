import os
import subprocess
import sys
from pathlib import Path

TOOLS = Path(__file__).parents[1]
TESTS = """\
import time

def test_slow():
    time.sleep(0.3)

def test_quick():
    pass
"""


def run(folder, *options):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "quick_tests", *options]
    env = {**os.environ, "PYTHONPATH": str(TOOLS)}
    done = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


def test_a_test_that_took_long_is_left_out_and_counted(tmp_path):
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_some.py").write_text(TESTS)
    assert "2 passed" in run(tmp_path, "--quick")  # nothing is known yet
    again = run(tmp_path, "--quick")
    assert "1 passed, 1 deselected" in again
    assert "left out: 1 over 0.25 s, 0 after 45 s; make test runs all" in again
    (tmp_path / "test_some.py").write_text(TESTS + "\ndef test_new():\n    pass\n")
    assert "2 passed, 1 deselected" in run(tmp_path, "--quick")
    assert "3 passed" in run(tmp_path)
