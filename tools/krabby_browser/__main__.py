"""Take the pictures of docs/cockpit.md: `python -m krabby_browser`; needs `make test-browser` once.

A simulation and an emulated robot, both walking, a phone, and the recording of the simulation.
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from krabby.runtime.testing import until
from krabby_faults.stack import Stack
from krabby_proto import STREAMS
from PIL import Image

from krabby_browser import PATIENCE_S, Page, View, chromium

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
_COLOURS = 64
_REALTIME = ("sim-hal.realtime.fifo_priority=60", "gameloop.realtime.fifo_priority=55")


def main() -> None:
    """Take all of them, or those named."""
    parser = argparse.ArgumentParser(description="Take the pictures of the cockpit.")
    parser.add_argument("names", nargs="*", default=["simulation", "emulated"])
    names = parser.parse_args().names
    with tempfile.TemporaryDirectory() as name, chromium(Path(name)) as browser:
        if "simulation" in names:
            _simulation(browser, Path(name))
        if "emulated" in names:
            _emulated(browser, Path(name))


def _simulation(browser: Any, folder: Path) -> None:
    run = subprocess.Popen(
        [
            *(sys.executable, "-m", "krabby_cli", "up", "--base-port", "0", "--view-port", "0"),
            *("--course", "steps", "--difficulty", "0.2", "--duration", "300"),
            *(f"--set={setting}" for setting in _REALTIME),
            *("--set=sim-hal.mission.speed=0.2", "--record", "run.mcap"),
        ],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stderr is not None
    address = ""
    while not address:
        found = re.search(r"http://\S+", run.stderr.readline())
        address = found[0] if found else ""
    page = Page(browser, address, width=1280, height=760, color_scheme="light")
    _after(page, 2.0)
    _take(page, "cockpit-simulation")
    page.close()
    phone = Page(browser, address, width=390, height=844, color_scheme="dark")
    phone.until(lambda facts: facts.get("loop"), "the loop")
    _take(phone, "cockpit-phone")
    phone.close()
    run.terminate()
    run.wait(30)
    view = View(folder, str(folder / "run.mcap"))
    page = Page(browser, view.address, width=1280, height=760, color_scheme="dark")
    page.until(lambda facts: facts.get("play"), "a time line")
    _after(page, 1.5)
    _take(page, "cockpit-replay")
    page.close()
    view.close()


def _emulated(browser: Any, folder: Path) -> None:
    stack = Stack("emulated", "gait", camera=True)
    stack.start()
    places = [f"--endpoint={name}={stack.endpoints[name]}" for name in STREAMS]
    view = View(folder, "--course", "flat", *places)
    page = Page(browser, view.address, width=1280, height=760, color_scheme="light")
    page.until(lambda facts: facts.get("gate"), "the gate")
    stack.make_walk()
    end = time.monotonic() + 12.0
    while time.monotonic() < end:
        page.press("w")
        time.sleep(0.05)
    _take(page, "cockpit-emulated")
    page.close()
    view.close()
    stack.close()


def _after(page: Page, distance_m: float) -> None:
    """Wait until the robot has walked so far."""
    until(lambda: (page.state() or {"course": [0]})["course"][0] > distance_m, 2 * PATIENCE_S)


def _take(page: Page, name: str) -> None:
    """Write a picture with few colours: small, and sharp enough."""
    picture = Image.open(io.BytesIO(page.tab.screenshot())).convert("RGB")
    path = PICTURES / f"{name}.png"
    picture.quantize(_COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    sys.stderr.write(f"{path}: {path.stat().st_size} bytes\n")


if __name__ == "__main__":
    main()
