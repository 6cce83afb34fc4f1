"""The process beside the loop that draws colour images: started, watched, ended.

Drawing takes 80 ms of a core, which has no place in a loop of 5 ms. When the process ends it is
started again, and the loop does not notice.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import Final

import msgspec
import structlog

from krabby_sim_hal.config import SimHalCfg

__all__ = ["ColourProcess"]

log = structlog.get_logger(__name__)

_MODULE: Final = "krabby_sim_hal.colour_process"
_BACKOFF_S: Final = (1.0, 30.0)
_TAIL: Final = 400
"""Characters of its last words that are logged."""


class ColourProcess:
    """A child that publishes `colour`, kept alive until `close`."""

    def __init__(self, cfg: SimHalCfg) -> None:
        self._job = msgspec.json.encode(cfg).decode()
        self._stopping = threading.Event()
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        # The child ends with the thread that started it.
        self._thread = threading.Thread(target=self._keep, name="colour", daemon=True)

    def start(self) -> None:
        """Start it; returns at once."""
        self._thread.start()

    def close(self) -> None:
        """End it; safe in any state."""
        self._stopping.set()
        with self._lock:
            child = self._child
        if child is not None:
            child.kill()
        if self._thread.is_alive():
            self._thread.join()

    def _keep(self) -> None:
        wait_s = _BACKOFF_S[0]
        while not self._stopping.is_set():
            reason = self._run()
            if self._stopping.is_set():
                return
            log.error("no colour images", reason=reason, next_try_s=wait_s)
            self._stopping.wait(wait_s)
            wait_s = min(2.0 * wait_s, _BACKOFF_S[1])

    def _run(self) -> str:
        """One life of the child; why it ended."""
        with os.fdopen(os.memfd_create("stderr"), "r+b") as words:
            try:
                with self._lock:
                    if self._stopping.is_set():
                        return "stopped"
                    self._child = subprocess.Popen(
                        [sys.executable, "-P", "-m", _MODULE, self._job, str(os.getpid())],
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=words,
                        start_new_session=True,  # Ctrl-C is for the parent to handle
                    )
            except OSError as error:
                return f"the process cannot be started: {error.strerror}"
            status = self._child.wait()
            words.seek(0)
            tail = " ".join(words.read().decode(errors="replace").split())[-_TAIL:]
        return tail or f"the process ended with status {status}"
