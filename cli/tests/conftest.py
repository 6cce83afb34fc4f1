"""Fake services in place of the real ones, for the commands that start them."""

import contextlib
import os
import select
import sys
import textwrap

import pytest
from krabby_cli import plan as plan_module

FAKE = """
    import json, math, os, signal, sys, time

    name, journal, behaviour, *overrides = sys.argv[1:]
    class Stop:
        # Not an Event: a handler that sets one can deadlock with the thread that waits for it.
        asked = False
        def wait(self, seconds=math.inf):
            end = time.monotonic() + seconds
            while not self.asked and time.monotonic() < end:
                time.sleep(min(seconds, 0.02))
            return self.asked
    stop = Stop()
    signal.signal(signal.SIGINT, lambda *_: setattr(stop, "asked", True))

    def say(event, level="info", **facts):
        print(json.dumps({"level": level, "service": name, "event": event, **facts}), flush=True)

    if behaviour == "never-ready":
        stop.wait()
    if behaviour == "die-at-start":
        sys.stderr.write(name + ": port 1 is taken; set metrics_port\\n")
        sys.exit(2)
    say("running")
    running = "running-" + os.environ["KRABBY_RUN_ID"]
    with open(running, "a") as file:
        file.write(name + "\\n")

    def all_run():
        with open(running) as file:
            return len(file.read().split()) == 3

    if behaviour == "warn":
        for _ in range(3):
            say("behind", level="warning", slots=2)
    if behaviour == "interrupt":
        os.kill(os.getppid(), signal.SIGINT)
    if behaviour != "end":
        stop.wait()
    while behaviour == "end" and not all_run() and not stop.wait(0.01):
        pass
    with open(journal, "a") as file:
        file.write(name + "\\n")
    figures = {"sim-hal": {"distance_m": 5.5, "falls": 0}, "gameloop": {"loop_hz": 100.0}}
    if os.path.exists("figures.json"):
        with open("figures.json") as file:
            figures = json.load(file)
    say("summary", **figures.get(name, {}))
    sys.exit(4 if behaviour == "fail-at-end" else 0)
"""


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """Puts fake services in place of the real ones; values of the dictionary are behaviours."""
    script = tmp_path / "fake.py"
    script.write_text(textwrap.dedent(FAKE))
    behaviours = {"sim-hal": "", "camera": "", "gameloop": ""}

    def command(name):
        return (sys.executable, str(script), name, str(tmp_path / "journal"), behaviours[name])

    monkeypatch.setattr(plan_module, "service_command", command)
    monkeypatch.chdir(tmp_path)
    return behaviours


@pytest.fixture
def fill_terminal():
    """Writes to a pseudo-terminal that is not read until it takes nothing more."""

    def fill(fd):
        other = os.open(os.ttyname(fd), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        # The kernel moves what was written to the other end a little later, which makes room again.
        while select.select([], [other], [], 0.1)[1]:
            with contextlib.suppress(BlockingIOError):
                os.write(other, b"." * 1024)
        os.close(other)

    return fill
