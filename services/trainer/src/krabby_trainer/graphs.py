"""Kernels recorded once and replayed.

A step of the environment is hundreds of small kernels, and starting one costs more than running it.
CUDA can record them as a graph and start that instead. What is recorded reads and writes the same
memory every time, so a function given here keeps its state in tensors that it writes in place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

import torch

__all__ = ["Replayed"]

log = logging.getLogger(__name__)

_WARM_UP: Final = 3
"""Plain calls before recording: libraries allocate their workspaces in them."""


class Replayed:
    """`function` without arguments or result; recorded on CUDA, called as it is elsewhere.

    It may draw random numbers, and must neither wait for the device nor branch on its values.

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
            with torch.cuda.graph(graph, pool=self._pool):
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
