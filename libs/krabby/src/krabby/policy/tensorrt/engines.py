"""Engines of networks: found in the cache, or built; tested; an older good one if that fails.

    engine in the cache? -> load -> test -> run
      no: build it in a child process       (NotBuilt while walking)
      damaged, other tensors: delete, build once more
      wrong or too slow: an older good engine of the same network

The manifest that says what a network's numbers mean goes with the network, so the older engine is
never one of *another* network. Which policy walks is the game loop's choice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Generator
from pathlib import Path

import structlog

from krabby.policy.network import NetworkSpec
from krabby.policy.onnx_runtime import OnnxRuntime
from krabby.policy.tensorrt import metrics
from krabby.policy.tensorrt.cache import EngineCache, EngineRecord, Recipe
from krabby.policy.tensorrt.config import InferenceCfg
from krabby.policy.tensorrt.device import Device, DeviceApi, resolve
from krabby.policy.tensorrt.engine import BuildOptions, Toolkit
from krabby.policy.tensorrt.errors import (
    BuildFailed,
    CacheError,
    EngineRefused,
    Interrupted,
    NoDevice,
    NotBuilt,
)
from krabby.policy.tensorrt.network import EngineNetwork
from krabby.policy.tensorrt.selftest import Verdict, run_selftest
from krabby.policy.tensorrt.subprocesses import Platform, Watch, build_in_child, probe

__all__ = ["Engines", "name_of"]

log = structlog.get_logger(__name__)

_LOG_SHARE = 0.1
"""Progress is logged at every such share of the work."""


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


class Engines:
    """Opens networks as engines.

    Args:
        cfg: The table `inference`.
        watch: Told of what takes long.
        platform: What to build and run with.
        build: Whether engines may be built; otherwise only those in the cache are used.
        clock: Seconds, for the self-test.
        on_failure: Called with a network whose GPU failed while it ran.
    """

    def __init__(
        self,
        cfg: InferenceCfg,
        watch: Watch,
        platform: Platform,
        *,
        build: bool,
        clock: Callable[[], float],
        on_failure: Callable[[NetworkSpec], None],
    ) -> None:
        self._cfg = cfg
        self._watch = watch
        self._platform = platform
        self._build_allowed = build
        self._clock = clock
        self._on_failure = on_failure
        self.tools: _Tools | NoDevice | None = None
        """The platform, once it was asked for."""

    @functools.cached_property
    def _cache(self) -> EngineCache:
        return EngineCache(self._cfg.cache_path)

    def open(self, spec: NetworkSpec) -> EngineNetwork:
        """The network's engine, or an older good one.

        Raises:
            InferenceError: There is none to run.
        """
        recipe = self._recipe(spec)
        try:
            network, verdict = self.tested(spec)
            if verdict.problem:
                network.close()
                raise EngineRefused(verdict.problem)
        except EngineRefused as refusal:
            network = self._roll_back(spec, recipe, refusal)
        with _unless_full():
            self._cache.used(recipe.key, name_of(spec.source), self._cfg.keep_starts)
        return network

    def tested(self, spec: NetworkSpec) -> tuple[EngineNetwork, Verdict]:
        """The network's engine, from the cache or newly built, and the result of its self-test."""
        recipe = self._recipe(spec)
        try:
            network = self._load(spec, recipe, self._plan(spec, recipe))
        except EngineRefused as refusal:
            log.warning("engine refused, building it again", reason=str(refusal))
            self._cache.discard(recipe.key)
            network = self._load(spec, recipe, self._plan(spec, recipe))
        return network, self._judge(spec, network, recipe)

    def _judge(self, spec: NetworkSpec, network: EngineNetwork, recipe: Recipe) -> Verdict:
        name = name_of(spec.source)
        self._doing(f"testing: {name}")
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
            self._cache.judge(recipe.key, good=not verdict.problem, verdict=verdict.text)
        metrics.ERROR.labels(name).set(verdict.error)
        times = (verdict.p50_s, verdict.p99_s, verdict.max_s)
        for quantile, value in zip(metrics.QUANTILES, times, strict=True):
            metrics.STEP.labels(name, quantile).set(value)
        say = log.warning if verdict.problem else log.info
        say("engine tested", network=name, engine=recipe.key[:12], verdict=verdict.text)
        return verdict

    def _roll_back(
        self, spec: NetworkSpec, recipe: Recipe, refusal: EngineRefused
    ) -> EngineNetwork:
        """An older engine of the same network on the same platform, built with other options."""
        for record in filter(lambda each: _is_older_good(each, recipe), self._cache.records()):
            try:
                plan = self._cache.plan(record.key)
                if plan is None:
                    continue
                network = self._load(spec, record.recipe, plan)
            except EngineRefused:
                self._cache.discard(record.key)
                continue
            if not self._judge(spec, network, record.recipe).problem:
                log.warning(
                    "rolled back to the last good engine",
                    network=name_of(spec.source),
                    engine=record.key[:12],
                    reason=str(refusal),
                )
                return network
            network.close()
        raise refusal

    def _plan(self, spec: NetworkSpec, recipe: Recipe) -> bytes:
        try:
            plan = self._cache.plan(recipe.key)
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
            with self._cache.building(lambda: self._wait_for_other(spec)):
                # The other one may have built the very engine.
                return self._cache.plan(recipe.key) or self._build(spec, recipe)
        finally:
            metrics.BUILDING.set(0)

    def _wait_for_other(self, spec: NetworkSpec) -> None:
        self._doing(f"building: {name_of(spec.source)} waits for another build")
        if self._watch.stopping:
            raise Interrupted("told to stop while waiting for another build")

    def _build(self, spec: NetworkSpec, recipe: Recipe) -> bytes:
        name, cache = name_of(spec.source), self._cache
        log.info("building an engine", network=name, engine=recipe.key[:12], device=recipe.device)
        try:
            built = build_in_child(
                self._platform,
                spec.content,
                recipe.options,
                recipe.shapes,
                timings=cache.timings(recipe),
                timeout_s=self._cfg.build_timeout_s,
                watch=self._watch,
                report=_progress(name, self._watch),
            )
        except BuildFailed:
            metrics.BUILDS["failed"].inc()
            raise
        metrics.BUILDS["built"].inc()
        metrics.BUILD_SECONDS.labels(name).set(built.seconds)
        seconds = round(built.seconds, 1)
        log.info("engine built", network=name, seconds=seconds, bytes=len(built.plan))
        with _unless_full():
            cache.store_timings(recipe, built.timings)
            cache.store(recipe, name, built.plan, built.seconds)
        return built.plan

    def _load(self, spec: NetworkSpec, recipe: Recipe, plan: bytes) -> EngineNetwork:
        tools = self._found()
        self._doing(f"loading: {name_of(spec.source)}")
        buffers = tools.api.open()
        try:
            with self._cache.loading(recipe.key):
                return EngineNetwork(
                    spec,
                    tools.toolkit.load(plan),
                    buffers,
                    graphs=self._cfg.cuda_graph,
                    standby=OnnxRuntime().open(spec) if self._cfg.allow_fallback else None,
                    on_failure=lambda _: self._on_failure(spec),
                )
        except BaseException:
            buffers.close()
            raise

    def _doing(self, what: str) -> None:
        self._watch.doing(what)
        self._watch.beat()

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
        """Ask for the platform, once."""
        if self.tools is None:
            self._watch.doing("asking for a GPU")
            try:
                device, version = probe(self._platform, self._watch)
                # The child went through both and lived; now this process may.
                api, toolkit = resolve(self._platform.device_api), resolve(self._platform.toolkit)
                self.tools = _Tools(device, version, api(), toolkit())  # type: ignore[arg-type]
                log.info("GPU found", device=device.name, tensorrt=version)
            except NoDevice as error:
                self.tools = error
        if isinstance(self.tools, NoDevice):
            raise self.tools
        return self.tools


def _is_older_good(record: EngineRecord, recipe: Recipe) -> bool:
    return (
        record.good
        and record.key != recipe.key
        and record.recipe.model_sha256 == recipe.model_sha256
        and record.recipe.shapes == recipe.shapes
        and record.recipe.same_platform(recipe)
    )


@contextlib.contextmanager
def _unless_full() -> Generator[None]:
    """An engine that cannot be kept, or its record, runs all the same."""
    try:
        yield
    except CacheError as error:
        log.error("the engine cache could not be written", reason=str(error))


def _progress(name: str, watch: Watch) -> Callable[[str, float], None]:
    """Reports a build's progress: always to `/healthz`, at every tenth to the log."""
    logged = 0.0

    def report(doing: str, share: float) -> None:
        nonlocal logged
        watch.doing(f"building: {name} {100 * share:.0f} %")
        if share - logged >= _LOG_SHARE:
            logged = share
            log.info("building", network=name, percent=round(100 * share), phase=doing)

    return report
