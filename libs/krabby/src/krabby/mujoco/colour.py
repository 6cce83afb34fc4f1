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

from krabby.config import Config
from krabby.mujoco.config import ColourCfg, CourseCfg, DegradeCfg, StageCfg

__all__ = ["ColourJob", "ColourProcess"]

log = structlog.get_logger(__name__)

_MODULE: Final = "krabby.mujoco.colour_process"
_BACKOFF_S: Final = (1.0, 30.0)
_TAIL: Final = 400
"""Characters of its last words that are logged."""


class ColourJob(Config, frozen=True, kw_only=True):
    """What the process is told."""

    robot: str
    course: CourseCfg
    degrade: DegradeCfg
    colour: ColourCfg
    truth: str
    state: str
    place: str
    lockstep: bool


class ColourProcess:
    """A child that publishes `colour`, kept alive until `close`.

    Args:
        stage: Robot, course and where its camera really is.
        colour: Rate and size.
        truth: Endpoint that gives the pose of the base.
        state: Endpoint that gives the joint angles, as measured.
        place: Endpoint that the child binds.
        lockstep: Whether images are stamped with simulated time.
    """

    def __init__(
        self,
        stage: StageCfg,
        colour: ColourCfg,
        *,
        truth: str,
        state: str,
        place: str,
        lockstep: bool = False,
    ) -> None:
        job = ColourJob(
            robot=stage.robot,
            course=stage.course,
            degrade=stage.degrade,
            colour=colour,
            truth=truth,
            state=state,
            place=place,
            lockstep=lockstep,
        )
        self._job = msgspec.json.encode(job).decode()
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
