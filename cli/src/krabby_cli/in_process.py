"""The composition root: simulator, camera and game loop as threads of this process, in lock-step.

The only module that may import every service. They talk over `inproc://` as they do over TCP and
run the same code. Simulated time waits for each of them, so the trajectory equals that of the
processes, and one debugger, profiler or test sees all of it. In real time the threads would share
one interpreter's lock: `krabby up` starts processes for that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import structlog
from krabby.config import load
from krabby.runtime.thread import ServiceThread
from krabby_camera.config import CameraCfg
from krabby_camera.service import CameraService
from krabby_gameloop.config import GameloopCfg
from krabby_gameloop.service import Gameloop
from krabby_sim_hal.config import SimHalCfg
from krabby_sim_hal.service import SimHal

from krabby_cli.errors import ServiceDied

if TYPE_CHECKING:
    from krabby.runtime.app import Service
    from krabby.runtime.config import ServiceCfg

__all__ = ["run_services"]

log = structlog.get_logger(__name__)


class _Kind(NamedTuple):
    cfg: type[ServiceCfg]
    factory: Callable[[Any], Service]


_SERVICES: Final[Mapping[str, _Kind]] = {
    "sim-hal": _Kind(SimHalCfg, SimHal),
    "camera": _Kind(CameraCfg, CameraService),
    "gameloop": _Kind(GameloopCfg, Gameloop),
}
_SETTINGS: Final = {"gameloop": ("sit_on_exit_s=0",)}
"""The simulator has ended by then: no state comes, and there is no robot to sit down."""
_STOP_ORDER: Final = ("gameloop", "camera", "sim-hal")
_POLL_S: Final = 0.05
_STOP_S: Final = 10.0


def run_services(
    configuration: Mapping[str, Sequence[str]],
    *,
    run_id: str = "",
    stopping: Callable[[], bool] = lambda: False,
) -> dict[str, Mapping[str, object]]:
    """Run services until the first one ends; returns the summary of each.

    Args:
        configuration: `key=value` texts by service; a service that is not named is not started.
        run_id: Of this run.
        stopping: Looked at while they run; they are stopped when it turns true.

    Raises:
        ConfigError: or another error of a service's constructor; nothing was started.
        ServiceDied: A service failed; names it, the error is its cause.
    """
    threads: dict[str, ServiceThread] = {}
    for name, kind in _SERVICES.items():
        if name in configuration:
            texts = (*_SETTINGS.get(name, ()), *configuration[name])
            service = kind.factory(load(kind.cfg, None, texts))
            threads[name] = ServiceThread(service, name, run_id)
    for thread in threads.values():
        thread.start()
    try:
        while all(thread.alive for thread in threads.values()) and not stopping():
            time.sleep(_POLL_S)
        first = [name for name, thread in threads.items() if thread.failure is not None]
    finally:
        ordered = [threads[name] for name in _STOP_ORDER if name in threads]
        for thread in ordered:
            thread.runtime.stop("the run is over")
        for thread in ordered:
            thread.join(_STOP_S)
    for name in (*first, *threads):
        failure = threads[name].failure
        if failure is not None:
            log.error("failed", thread=name, exc_info=failure)
            raise ServiceDied(f"{name} failed: {failure}") from failure
    return {name: thread.runtime.summary for name, thread in threads.items()}
