"""From the configuration to a network that runs: found, built, tested, or left to the processor.

    engine in the cache? -> load -> test -> run
      no: build it in a child process       (NotBuilt while walking)
      damaged, other tensors: delete, build once more
      wrong or too slow: an older good engine of the same network
      none of it: ONNX Runtime, if allow_fallback, else the reason ends the service

An engine of *another* network is never rolled back to: the manifest that says what its numbers mean
goes with the network. Which policy walks is the game loop's choice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import structlog

from krabby.policy.network import Backend, Network, NetworkSpec
from krabby.policy.onnx_runtime import OnnxRuntime
from krabby.policy.tensorrt import metrics
from krabby.policy.tensorrt.cache import EngineCache, EngineRecord, Recipe
from krabby.policy.tensorrt.device import DEVICE_APIS, Device, DeviceApi, resolve
from krabby.policy.tensorrt.engine import BuildOptions, Toolkit
from krabby.policy.tensorrt.errors import (
    BuildFailed,
    CacheError,
    DeviceError,
    EngineRefused,
    InferenceError,
    Interrupted,
    NoDevice,
    NotBuilt,
)
from krabby.policy.tensorrt.network import EngineNetwork
from krabby.policy.tensorrt.selftest import Verdict, run_selftest
from krabby.policy.tensorrt.subprocesses import Platform, Watch, build_in_child, probe
from krabby.policy.tensorrt.toolkit import TENSORRT

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from krabby.policy.tensorrt.config import InferenceCfg

__all__ = ["EngineBackend", "Movable", "engine_platform", "move", "name_of", "open_backend"]

log = structlog.get_logger(__name__)

_LOG_SHARE = 0.1
"""Progress is logged at every such share of the work."""


def open_backend(cfg: InferenceCfg, watch: Watch, *, platform: Platform | None = None) -> Backend:
    """What `cfg` asks for.

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
        """Go over to another backend."""
        ...


def move(networks: Iterable[Movable], cfg: InferenceCfg, watch: Watch) -> Backend:
    """Puts networks where `cfg` wants them, which may take minutes; returns their backend."""
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


def name_of(source: str) -> str:
    """A network's short name, "gait/policy", of the path of its file."""
    path = Path(source)
    return f"{path.parent.name}/{path.stem}" if path.parent.name else path.stem


@dataclasses.dataclass(frozen=True)
class _Tools:
    """A platform that was found to work."""

    device: Device
    version: str
    api: DeviceApi
    toolkit: Toolkit


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
        """Nothing is asked of the GPU before the first `open`.

        Args:
            cfg: The table `inference`.
            watch: Told of what takes long.
            platform: What to build and run with.
            build: Whether engines may be built; otherwise only those in the cache are used.
            clock: Seconds, for the self-test.
        """
        self._cfg = cfg
        self._watch = watch
        self._platform = platform
        self._build_allowed = build
        self._clock = clock
        self._tools: _Tools | NoDevice | None = None
        self._said_why = False

    def without_building(self) -> EngineBackend:
        """The same, for while the robot walks: nothing that takes minutes and the whole GPU."""
        other = EngineBackend(self._cfg, _Quiet(), self._platform, build=False, clock=self._clock)
        other._tools, other._said_why = self._tools, self._said_why
        return other

    def open(self, spec: NetworkSpec) -> Network:
        """The network on the GPU, or on the processor with the reason logged.

        Raises:
            InferenceError: It cannot run on the GPU, and must not run elsewhere.
        """
        try:
            network = self._open_engine(spec)
        except Interrupted:
            network = OnnxRuntime().open(spec)  # whatever: it will not walk any more
        except InferenceError as error:
            network = self._fall_back(spec, error)
        finally:
            self._watch.doing("")
        _expose(spec, network.backend)
        return network

    def test(self, spec: NetworkSpec) -> Verdict:
        """Builds the engine if need be and tests it, for the command line.

        Raises:
            InferenceError: There is none to test.
        """
        network, verdict = self._tested(spec, self._recipe(spec))
        network.close()
        return verdict

    # --- engines -----------------------------------------------------------------------------

    def _open_engine(self, spec: NetworkSpec) -> Network:
        recipe = self._recipe(spec)
        cache = EngineCache(self._cfg.cache_path)
        try:
            network, verdict = self._tested(spec, recipe)
            if verdict.problem:
                network.close()
                raise EngineRefused(verdict.problem)
        except EngineRefused as refusal:
            network = self._roll_back(spec, recipe, cache, refusal)
        with _unless_full():
            cache.used(recipe.key, name_of(spec.source), self._cfg.keep_starts)
        return network

    def _tested(self, spec: NetworkSpec, recipe: Recipe) -> tuple[EngineNetwork, Verdict]:
        """The engine for `recipe`, from the cache or newly built, and how its self-test went."""
        cache = EngineCache(self._cfg.cache_path)
        try:
            network = self._load(spec, recipe, cache, self._plan(spec, recipe, cache))
        except EngineRefused as refusal:
            log.warning("engine refused, building it again", reason=str(refusal))
            cache.discard(recipe.key)
            network = self._load(spec, recipe, cache, self._plan(spec, recipe, cache))
        return network, self._judge(spec, network, recipe, cache)

    def _judge(
        self, spec: NetworkSpec, network: Network, recipe: Recipe, cache: EngineCache
    ) -> Verdict:
        self._watch.doing(f"testing: {name_of(spec.source)}")
        self._watch.beat()
        verdict = run_selftest(
            network,
            OnnxRuntime().open,
            tolerance=self._cfg.tolerance,
            budget_s=self._cfg.budget_s,
            clock=self._clock,
        )
        if network.backend == "onnxruntime":  # the GPU gave up in the middle of it
            verdict = Verdict(problem="the GPU failed during the self-test")
        with _unless_full():
            cache.judge(recipe.key, good=not verdict.problem, verdict=verdict.text)
        name = name_of(spec.source)
        metrics.ERROR.labels(name).set(verdict.error)
        for quantile, value in zip(
            metrics.QUANTILES, (verdict.p50_s, verdict.p99_s, verdict.max_s), strict=True
        ):
            metrics.STEP.labels(name, quantile).set(value)
        say = log.warning if verdict.problem else log.info
        say("engine tested", network=name, engine=recipe.key[:12], verdict=verdict.text)
        return verdict

    def _roll_back(
        self, spec: NetworkSpec, recipe: Recipe, cache: EngineCache, refusal: EngineRefused
    ) -> Network:
        """An older engine of the same network on the same platform, built with other options."""
        for record in cache.records():
            if not self._is_older_good(record, recipe):
                continue
            try:
                plan = cache.plan(record.key)
                if plan is None:
                    continue
                network = self._load(spec, record.recipe, cache, plan)
            except EngineRefused:
                cache.discard(record.key)
                continue
            if not self._judge(spec, network, record.recipe, cache).problem:
                log.warning(
                    "rolled back to the last good engine",
                    network=name_of(spec.source),
                    engine=record.key[:12],
                    reason=str(refusal),
                )
                return network
            network.close()
        raise refusal

    def _is_older_good(self, record: EngineRecord, recipe: Recipe) -> bool:
        return (
            record.good
            and record.key != recipe.key
            and record.recipe.model_sha256 == recipe.model_sha256
            and record.recipe.shapes == recipe.shapes
            and record.recipe.same_platform(recipe)
        )

    def _plan(self, spec: NetworkSpec, recipe: Recipe, cache: EngineCache) -> bytes:
        try:
            plan = cache.plan(recipe.key)
        except EngineRefused as damaged:
            log.warning("engine in the cache refused", reason=str(damaged))
            plan = None
        if plan is not None:
            return plan
        if not self._build_allowed:
            raise NotBuilt(
                f"there is no engine for {spec.source} yet, and building one takes minutes; build "
                f"it with: python -m krabby.policy.tensorrt build {Path(spec.source).parent.name}"
            )
        metrics.BUILDING.set(1)
        try:
            with cache.building(lambda: self._wait_for_other(spec)):
                # The other one may have built the very engine.
                return cache.plan(recipe.key) or self._build(spec, recipe, cache)
        finally:
            metrics.BUILDING.set(0)

    def _wait_for_other(self, spec: NetworkSpec) -> None:
        self._watch.doing(f"building: {name_of(spec.source)} waits for another build")
        self._watch.beat()
        if self._watch.stopping:
            raise Interrupted("told to stop while waiting for another build")

    def _build(self, spec: NetworkSpec, recipe: Recipe, cache: EngineCache) -> bytes:
        name = name_of(spec.source)
        log.info("building an engine", network=name, engine=recipe.key[:12], device=recipe.device)
        progress = _Progress(name, self._watch)
        try:
            built = build_in_child(
                self._platform,
                spec.content,
                recipe.options,
                recipe.shapes,
                timings=cache.timings(recipe),
                timeout_s=self._cfg.build_timeout_s,
                watch=self._watch,
                report=progress,
            )
        except BuildFailed:
            metrics.BUILDS["failed"].inc()
            raise
        metrics.BUILDS["built"].inc()
        metrics.BUILD_SECONDS.labels(name).set(built.seconds)
        log.info(
            "engine built", network=name, seconds=round(built.seconds, 1), bytes=len(built.plan)
        )
        with _unless_full():
            cache.store_timings(recipe, built.timings)
            cache.store(recipe, name, built.plan, built.seconds)
        return built.plan

    def _load(
        self, spec: NetworkSpec, recipe: Recipe, cache: EngineCache, plan: bytes
    ) -> EngineNetwork:
        tools = self._found()
        self._watch.doing(f"loading: {name_of(spec.source)}")
        self._watch.beat()
        buffers = tools.api.open()
        try:
            with cache.loading(recipe.key):
                return EngineNetwork(
                    spec,
                    tools.toolkit.load(plan),
                    buffers,
                    graphs=self._cfg.cuda_graph,
                    standby=OnnxRuntime().open(spec) if self._cfg.allow_fallback else None,
                    on_failure=lambda _: self._failed(spec),
                )
        except BaseException:
            buffers.close()
            raise

    # --- platform ----------------------------------------------------------------------------

    def _recipe(self, spec: NetworkSpec) -> Recipe:
        cfg, tools = self._cfg, self._found()
        options = BuildOptions(
            workspace_mib=cfg.workspace_mib,
            optimization_level=cfg.optimization_level,
            tf32=cfg.tf32,
        )
        toolkit = (self._platform.toolkit, tools.version)
        return Recipe.of(spec.content, spec.input_shapes, options, tools.device, toolkit)

    def _found(self) -> _Tools:
        """Asks for the platform, once."""
        if self._tools is None:
            self._watch.doing("asking for a GPU")
            try:
                device, version = probe(self._platform, self._watch)
                # The child went through both and lived; now we may.
                api, toolkit = resolve(self._platform.device_api), resolve(self._platform.toolkit)
                self._tools = _Tools(device, version, api(), toolkit())  # type: ignore[arg-type]
                log.info("GPU found", device=device.name, tensorrt=version)
            except NoDevice as error:
                self._tools = error
        if isinstance(self._tools, NoDevice):
            raise self._tools
        return self._tools

    # --- without the GPU ---------------------------------------------------------------------

    def _fall_back(self, spec: NetworkSpec, error: InferenceError) -> Network:
        expected = isinstance(error, NoDevice) and self._cfg.backend == "auto"
        if not self._cfg.allow_fallback and not expected:
            raise error
        if not expected:
            log.warning("running on onnxruntime", network=name_of(spec.source), reason=str(error))
        elif not self._said_why:
            log.info("running on onnxruntime", reason=str(error))
            self._said_why = True
        metrics.FALLBACKS[_reason(error)].inc()
        return OnnxRuntime().open(spec)

    def _failed(self, spec: NetworkSpec) -> None:
        metrics.FALLBACKS["device"].inc()
        _expose(spec, "onnxruntime" if self._cfg.allow_fallback else "")


@contextlib.contextmanager
def _unless_full() -> Generator[None]:
    """An engine that cannot be kept, or its record, runs all the same."""
    try:
        yield
    except CacheError as error:
        log.error("the engine cache could not be written", reason=str(error))


class _Progress:
    """A build's progress: always to `/healthz`, now and then to the log."""

    def __init__(self, name: str, watch: Watch) -> None:
        self._name = name
        self._watch = watch
        self._logged = 0.0

    def __call__(self, doing: str, share: float) -> None:
        self._watch.doing(f"building: {self._name} {100 * share:.0f} %")
        if share - self._logged >= _LOG_SHARE:
            self._logged = share
            log.info("building", network=self._name, percent=round(100 * share), phase=doing)


class _Quiet:
    """A `Watch` for what takes no time."""

    stopping = False

    def beat(self) -> None:
        """Nothing."""

    def doing(self, what: str) -> None:
        """Nothing."""


def _expose(spec: NetworkSpec, backend: str) -> None:
    for each in metrics.BACKENDS:
        metrics.BACKEND.labels(name_of(spec.source), each).set(each == backend)


def _reason(error: InferenceError) -> str:
    kinds = {NoDevice: "no_device", CacheError: "cache", BuildFailed: "build"}
    kinds |= {EngineRefused: "engine", DeviceError: "device"}
    return next((name for kind, name in kinds.items() if isinstance(error, kind)), "engine")
