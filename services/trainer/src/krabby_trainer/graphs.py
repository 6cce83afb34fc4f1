"""Kernels recorded once and replayed.

A step of the environment is hundreds of small kernels, and starting one costs more than running it.
CUDA can record them as a graph and start that instead. What is recorded reads and writes the same
memory every time, so a function given here keeps its state in tensors that it writes in place.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch

__all__ = ["Replayed"]

log = logging.getLogger(__name__)

_WARM_UP: Final = 3
"""Plain calls before recording: libraries allocate their workspaces in them."""


class Replayed:
    """`function` without arguments or result; recorded on CUDA, called as it is elsewhere.

    It may draw random numbers and launch Warp kernels. It must neither wait for the device nor
    branch on its values.

    Args:
        function: What is recorded.
        device: Where its kernels run.
        enabled: False calls it plainly everywhere.
        pool: `torch.cuda.graph_pool_handle()` of memory that several recordings share; none of
            them may leave a tensor there that is read after another one has run.
    """

    def __init__(
        self,
        function: Callable[[], None],
        device: str | torch.device,
        *,
        enabled: bool = True,
        pool: Any = None,
    ) -> None:
        self._function = function
        self._pool = pool
        self._enabled = enabled and torch.device(device).type == "cuda"
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        if self._graph is not None:
            self._graph.replay()
        elif self._enabled and self._calls >= _WARM_UP:
            self._record()
        else:
            self._calls += 1
            self._function()

    def _record(self) -> None:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        try:
            # Other threads of libraries may use the device meanwhile.
            mode = "thread_local"
            recording = torch.cuda.graph(graph, pool=self._pool, capture_error_mode=mode)
            with _paused_gc(), recording, _warp_too():
                self._function()
        except RuntimeError as error:
            # Slower, but right: nothing that was recorded has run.
            log.warning("cannot record %s, going on without: %s", self._function, error)
            self._enabled = False
            # A recording that breaks off leaves the generator refusing to draw outside of one.
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            generator.graphsafe_set_state(generator.clone_state())
            self._function()
            return
        self._graph = graph
        graph.replay()


@contextlib.contextmanager
def _warp_too() -> Iterator[None]:
    """Record Warp's kernels too: they go to the stream that torch records."""
    warp = sys.modules.get("warp")
    if warp is None:
        yield
        return
    stream = warp.stream_from_torch(torch.cuda.current_stream())
    with warp.ScopedStream(stream, sync_enter=False):
        warp.capture_begin(stream=stream, external=True)
        try:
            yield
        finally:
            warp.capture_end(stream=stream)


@contextlib.contextmanager
def _paused_gc() -> Iterator[None]:
    """Memory that is freed while kernels are recorded breaks the recording."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
