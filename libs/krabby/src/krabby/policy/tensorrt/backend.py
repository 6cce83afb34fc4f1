"""Back ends of networks as configured: engines, and ONNX Runtime for what they cannot do.

Where a network has no engine to run, ONNX Runtime runs it if `allow_fallback`, else the reason ends
the service.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Protocol

import structlog

from krabby.policy.network import Backend, Network, NetworkSpec
from krabby.policy.onnx_runtime import OnnxRuntime
from krabby.policy.tensorrt import metrics
from krabby.policy.tensorrt.config import InferenceCfg
from krabby.policy.tensorrt.device import DEVICE_APIS
from krabby.policy.tensorrt.engines import Engines, name_of
from krabby.policy.tensorrt.errors import (
    BuildFailed,
    CacheError,
    DeviceError,
    InferenceError,
    Interrupted,
    NoDevice,
)
from krabby.policy.tensorrt.selftest import Verdict
from krabby.policy.tensorrt.subprocesses import Platform, Watch
from krabby.policy.tensorrt.toolkit import TENSORRT

__all__ = ["EngineBackend", "Quiet", "engine_platform", "move", "open_backend"]

log = structlog.get_logger(__name__)


def open_backend(cfg: InferenceCfg, watch: Watch, *, platform: Platform | None = None) -> Backend:
    """The configured back end.

    Args:
        cfg: The table `inference`.
        watch: Told of what takes long: `krabby.runtime.app.Runtime`.
        platform: In place of TensorRT and the configured way to CUDA, for tests.
    """
    if cfg.backend == "onnxruntime":
        return OnnxRuntime()
    return EngineBackend(cfg, watch, platform or engine_platform(cfg))


class Movable(Protocol):
    """An `OnnxPolicy`, an `OnnxEncoder`, or what holds one: runs on ONNX Runtime until moved."""

    @property
    def network(self) -> Network:
        """What runs it now."""
        ...

    def use(self, backend: Backend) -> None:
        """Change to another back end."""


def move(networks: Iterable[Movable], cfg: InferenceCfg, watch: Watch) -> Backend:
    """Move networks to the configured back end, which may take minutes; returns the back end."""
    backend = open_backend(cfg, watch)
    for each in networks:
        if isinstance(backend, EngineBackend):
            each.use(backend)
        else:  # they are there
            _expose(each.network.spec, each.network.backend)
    return backend


def engine_platform(cfg: InferenceCfg) -> Platform:
    """TensorRT, and the configured way to CUDA."""
    return Platform(toolkit=TENSORRT, device_api=DEVICE_APIS[cfg.device_api])


class EngineBackend:
    """`krabby.policy.network.Backend`: engines, and ONNX Runtime for what they cannot do."""

    def __init__(
        self,
        cfg: InferenceCfg,
        watch: Watch,
        platform: Platform,
        *,
        build: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """The GPU is not used before the first `open`; arguments as `Engines`'."""
        self._cfg = cfg
        self._watch = watch
        self._platform = platform
        self._clock = clock
        self._engines = Engines(
            cfg, watch, platform, build=build, clock=clock, on_failure=self._failed
        )
        self._said_why = False

    def without_building(self) -> EngineBackend:
        """The same, for a robot that walks: nothing that takes minutes and the whole GPU."""
        other = EngineBackend(self._cfg, Quiet(), self._platform, build=False, clock=self._clock)
        other._engines.tools, other._said_why = self._engines.tools, self._said_why
        return other

    def open(self, spec: NetworkSpec) -> Network:
        """The network on the GPU, or on the CPU with the reason logged.

        Raises:
            InferenceError: It cannot run on the GPU, and must not run elsewhere.
        """
        try:
            network: Network = self._engines.open(spec)
        except Interrupted:
            network = OnnxRuntime().open(spec)  # the process ends: it will not walk any more
        except InferenceError as error:
            network = self._fall_back(spec, error)
        finally:
            self._watch.doing("")
        _expose(spec, network.backend)
        return network

    def test(self, spec: NetworkSpec) -> Verdict:
        """Build the engine if need be and test it, for the command line.

        Raises:
            InferenceError: There is none to test.
        """
        network, verdict = self._engines.tested(spec)
        network.close()
        return verdict

    def _fall_back(self, spec: NetworkSpec, error: InferenceError) -> Network:
        expected = isinstance(error, NoDevice) and self._cfg.backend == "auto"
        if not self._cfg.allow_fallback and not expected:
            raise error
        if not expected:
            log.warning("running on onnxruntime", network=name_of(spec.source), reason=str(error))
        elif not self._said_why:
            log.info("running on onnxruntime", reason=str(error))
            self._said_why = True
        reasons = (reason for kind, reason in _REASONS.items() if isinstance(error, kind))
        metrics.FALLBACKS[next(reasons, "engine")].inc()
        return OnnxRuntime().open(spec)

    def _failed(self, spec: NetworkSpec) -> None:
        metrics.FALLBACKS["device"].inc()
        _expose(spec, "onnxruntime" if self._cfg.allow_fallback else "")


_REASONS = {NoDevice: "no_device", CacheError: "cache", BuildFailed: "build", DeviceError: "device"}
"""Label of a fallback by the error that caused it; "engine" for any other."""


class Quiet:
    """A `Watch` for what takes no time."""

    stopping = False

    def beat(self) -> None:
        """Nothing."""

    def doing(self, what: str) -> None:
        """Nothing."""


def _expose(spec: NetworkSpec, backend: str) -> None:
    for each in metrics.BACKENDS:
        metrics.BACKEND.labels(name_of(spec.source), each).set(each == backend)
