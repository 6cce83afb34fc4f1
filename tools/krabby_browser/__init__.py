"""The cockpit in Chromium, for tests and for the pictures of its page."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from krabby.runtime.testing import until

__all__ = ["PATIENCE_S", "SECRET", "Page", "View", "chromium"]

SECRET = "abcdefghijklmnopqrstuvwxyz"
PATIENCE_S = 60.0
_WRAPPER = """#!/bin/sh
# As root Chromium raises its own priority, unless it may not.
ulimit -e 0
[ "$(id -u)" = 0 ] && kept="setpriv --bounding-set=-sys_nice --inh-caps=-sys_nice"
# A priority counts within a session only where the kernel groups by session, and this is its own.
[ "$(cut -d ' ' -f 6 /proc/$$/stat)" = $$ ] && echo 10 2>/dev/null >/proc/$$/autogroup
exec $kept nice -n 10 {} "$@"
"""


class View:
    """`krabby view` as a process."""

    def __init__(self, folder: Path, *argv: str) -> None:
        self._log = folder / "view.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "krabby_cli", "view", "--port", "0", *argv],
                stdout=log,
                stderr=log,
                env={**os.environ, "KRABBY_VIEW_TOKEN": SECRET},
            )
        try:
            until(lambda: self._port() or self.process.poll() is not None, 2 * PATIENCE_S)
            assert self._port(), self._log.read_text()
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        self.address = f"http://127.0.0.1:{self._port()}/#{SECRET}"

    def _port(self) -> int:
        found = re.search(r'"port": ?(\d+)\D', self._log.read_text())
        return int(found[1]) if found else 0

    def close(self) -> None:
        """End it, and check that it ended well."""
        self.process.terminate()
        try:
            status = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        assert status == 0, self._log.read_text()


class Page:
    """The cockpit in a tab. A request to another host than this one is a failure."""

    def __init__(
        self, browser: Any, address: str, *, width: int = 760, height: int = 560, **options: Any
    ) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": height}, **options)
        self.errors: list[str] = []
        self.tab = self.context.new_page()
        self.tab.set_default_timeout(PATIENCE_S * 1e3)
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.on("console", self._note)
        self.tab.on("request", self._check)
        self.tab.goto(address)

    def _note(self, message: Any) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def _check(self, request: Any) -> None:
        if not request.url.startswith(("http://127.0.0.1:", "blob:", "data:")):
            self.errors.append(f"asked {request.url}")

    def facts(self) -> dict[str, Any]:
        """What the page was told of gate, loop and driver."""
        return self.tab.evaluate("cockpit.facts")

    def state(self) -> dict[str, Any]:
        """The newest state that it drew."""
        return self.tab.evaluate("cockpit.state")

    def until(
        self, wanted: Callable[[dict[str, Any]], object], what: str, timeout_s: float = PATIENCE_S
    ) -> None:
        """Look ten times a second until the facts pass a test."""
        end = time.monotonic() + timeout_s
        while not wanted(self.facts()):
            assert time.monotonic() < end, f"{what} did not come about: {self.facts()}"
            time.sleep(0.1)

    def press(self, *keys: str) -> None:
        """Press keys as a keyboard does, whose held keys repeat."""
        for key in keys:
            self.tab.keyboard.down(key)

    def make_walk(self) -> None:
        """As a person does: reset, arm, stand, by the page's buttons, until the policy walks."""
        end = time.monotonic() + 2 * PATIENCE_S
        while time.monotonic() < end:
            facts = self.facts()
            gate, mode = facts.get("gate"), facts.get("loop", {}).get("mode")
            if gate == "active" and mode == "policy":
                return
            if gate == "estop":
                self._click("reset")
            elif gate in ("disarmed", "damp"):
                self._click("arm")
            elif gate == "active" and mode == "passive":
                self._click("stand")
            time.sleep(0.7)
        raise AssertionError(f"the robot does not stand: {self.facts()}")

    def _click(self, op: str) -> None:
        """Click a button, unless it is gone by then: the gate may have changed meanwhile."""
        from playwright.sync_api import TimeoutError  # pyright: ignore[reportMissingImports]

        with contextlib.suppress(TimeoutError):
            self.tab.click(f"[data-op={op}]", timeout=5000)

    def close(self) -> None:
        """Close it, and check that it met no error."""
        self.context.close()
        assert self.errors == [], self.errors


@contextlib.contextmanager
def chromium(folder: Path) -> Generator[Any, None, None]:
    """Chromium without a display, below the robot's loops in priority.

    Args:
        folder: For a script.

    Raises:
        RuntimeError: There is none and none can be installed.
    """
    from playwright.sync_api import sync_playwright  # pyright: ignore[reportMissingImports]

    tool = Path(__file__).parents[1] / "browser"
    found = subprocess.run([tool], stdout=subprocess.PIPE, text=True, check=False)
    if found.returncode:
        raise RuntimeError("there is no browser; the line above says what to do")
    wrapper = folder / "chromium"
    wrapper.write_text(_WRAPPER.format(found.stdout.strip()))
    wrapper.chmod(0o755)
    flags = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--mute-audio"]
    if os.geteuid() == 0:
        flags.append("--no-sandbox")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=wrapper, args=flags, timeout=120_000)
        yield browser
        browser.close()
