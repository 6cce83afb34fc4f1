"""The short form of `make fuzz`: mutations for a fixed seed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from krabby_fuzz.__main__ import main
from krabby_fuzz.targets import TARGETS, Target, frames_of, joined
from krabby_proto import FrameError

ROOT = Path(__file__).parents[2]


def run(*arguments, findings):
    return subprocess.run(
        [sys.executable, "-m", "krabby_fuzz", "--findings", str(findings), *arguments],
        cwd=ROOT,
        env={"PYTHONPATH": "tools", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_half_a_million_inputs_raise_nothing_but_what_each_parser_promises(tmp_path, capsys):
    ended = run("--inputs", "500000", "--seed", "2026", findings=tmp_path)
    with capsys.disabled():
        sys.stdout.write(f"\n{ended.stdout}")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    counts = dict(re.findall(r"^([\w-]+): (\d+) inputs", ended.stdout, re.MULTILINE))
    assert set(counts) == set(TARGETS)
    assert sum(map(int, counts.values())) >= 499_990
    # Every kind of fault was met: the mutations are not so crude that only the first check works.
    outcomes = re.search(r"^messages: .* a second: (.*)$", ended.stdout, re.MULTILINE)[1]
    met = dict(re.findall(r"(\w+) (\d+)", outcomes))
    assert set(met) == {error.__name__ for error in FrameError.__subclasses__()} | {"read"}
    assert min(map(int, met.values())) > 20
    assert list(tmp_path.iterdir()) == []


def test_every_parser_is_tried(tmp_path):
    ended = run("--inputs", "3000", findings=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_a_finding_is_kept_and_fails(tmp_path, capsys, monkeypatch):
    def parse(data):
        assert b"\x00" not in data, "a planted bug"

    planted = Target("planted", 1.0, lambda: [b"abc"], parse, (KeyError,))
    monkeypatch.setitem(TARGETS, "planted", planted)
    monkeypatch.setattr("krabby_fuzz.__main__.resource.setrlimit", lambda *_: None)
    assert main(["planted", "--inputs", "2000", "--findings", str(tmp_path)]) == 1
    (kept,) = tmp_path.iterdir()
    assert b"\x00" in kept.read_bytes()
    assert "a planted bug" in capsys.readouterr().out


def test_frames_survive_being_joined():
    frames = [b"state", bytes(48), b"", b"x" * 70_000]
    assert frames_of(joined(frames)) == frames
    assert frames_of(b"\xff\xff\xffab") == [b"ab"]
    assert frames_of(b"\x01") == [b""]
