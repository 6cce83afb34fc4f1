"""A service in a thread of this process, without what belongs to a process.

No command line, signals, logging set-up, exposition or real-time features: those are `app.main`'s.
"""

from __future__ import annotations

import threading

from krabby.runtime.app import Preparing, Runtime, Service

__all__ = ["ServiceThread"]


class ServiceThread:
    """Prepares, starts, runs and shuts down one service in a thread of its name."""

    def __init__(self, service: Service, name: str, run_id: str = "") -> None:
        """Nothing runs before `start`."""
        self.service = service
        self.runtime = Runtime(name, run_id)
        self.failure: BaseException | None = None
        """What the service raised."""
        self.started = threading.Event()
        """Set when its startup is over, also when that failed."""
        self._thread = threading.Thread(target=self._work, name=name)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def join(self, timeout_s: float) -> None:
        """Wait for the end; what `shutdown` returned is then in `runtime.summary`.

        Raises:
            TimeoutError: It did not come in time.
        """
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise TimeoutError(
                f"{self.runtime.service} did not stop within {timeout_s:g} s of being asked to"
            )

    def _work(self) -> None:
        service, runtime = self.service, self.runtime
        try:
            try:
                if isinstance(service, Preparing):
                    service.prepare(runtime)
                service.startup()
                self.started.set()
                service.run(runtime)
            finally:
                runtime.summary = dict(service.shutdown())
        except BaseException as error:
            self.failure = error
        finally:
            self.started.set()
