"""Which policy walks, and on what: hand-overs are blended, old features become a token.

A policy that sees acts on features up to the age that its manifest declares. Beyond it the blind
policy takes over, unless the manifest declares `memory_s`: then the policy walks on the no-picture
token, features of zero at the oldest age, and beyond `memory_s` it is commanded to stand on it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import structlog
from krabby_proto import FLAG_LATENT, MAX_AHEAD_NS, Message, clocks_differ
from numpy.typing import NDArray

from krabby.control.config import ControlCfg
from krabby.policy.bundle import (
    MANIFEST_FILE,
    Abilities,
    OnnxPolicy,
    PolicyBundle,
    PolicyOutputError,
    bundle_dir,
)
from krabby.policy.network import Backend, Network
from krabby.policy.observation import ObservationBuilder, ObservationInputs
from krabby.robot.description import RobotDescription
from krabby.robot.errors import BundleError
from krabby.runtime.throttle import log_every

__all__ = ["SIGHTS", "Blend", "PolicyManager", "PolicyRunner", "check_measurable", "load_runner"]

Sight = Literal["none", "fresh", "memory", "lost"]
SIGHTS: Final[tuple[Sight, ...]] = ("none", "fresh", "memory", "lost")
"""What the chosen policy acts on. none: it reads no features. fresh: features young enough. memory:
the no-picture token, for at most its `memory_s`. lost: neither."""

log = structlog.get_logger(__name__)

_SAME_MASS = 0.05
"""Share by which the robot's mass may differ from the one a policy was made for."""

_WARM_UP_STEPS = 20
_REST_BELOW, _WALK_ABOVE = 0.05, 0.1
"""Largest number of a walking command, m/s or rad/s, that means standing; and smallest that ends
it."""


class PolicyRunner:
    """One loaded policy with its observation history."""

    def __init__(
        self, bundle: PolicyBundle, desc: RobotDescription, backend: Backend | None = None
    ) -> None:
        self.bundle = bundle
        self.policy = OnnxPolicy(bundle, backend)
        self._desc = desc
        self._builder = ObservationBuilder(bundle.observation, desc)
        self.began_s = 0.0
        """When the last observation began, CLOCK_MONOTONIC [s]."""
        self.observe_s = 0.0
        """Time the last observation took [s]."""
        self.infer_s = 0.0
        """Time the last inference took [s]; 0 before the first step and once it was counted."""
        self._warm_up()

    @property
    def network(self) -> Network:
        """What runs the policy now."""
        return self.policy.network

    def use(self, backend: Backend) -> None:
        """Let another backend run the policy, from a fresh memory on."""
        self.policy.use(backend)
        self._warm_up()

    @property
    def needs_features(self) -> bool:
        """Whether it sees."""
        return self.bundle.needs_features != "none"

    @property
    def features_size(self) -> int:
        """Floats of its features term; 0 when it has none."""
        term = self.bundle.observation.term("features")
        return term.size if term is not None else 0

    @property
    def history(self) -> NDArray[np.float32] | None:
        """The last observation, a copy, shape (1, size); None before the first step."""
        return self._builder.history

    @history.setter
    def history(self, observation: NDArray[np.float32]) -> None:
        self._builder.history = observation

    @property
    def identity(self) -> dict[str, Any]:
        """Which bundle it runs: `name`, `path`, `hashes` by file, `backend`."""
        bundle = self.bundle
        return {
            "name": bundle.name,
            "path": str(bundle.path),
            "hashes": {**bundle.hashes, MANIFEST_FILE: bundle.manifest_hash},
            "backend": self.network.backend,
        }

    def reset(self) -> None:
        """Forget history and recurrent state."""
        self.policy.reset()
        self._builder.reset()

    def step(self, inputs: ObservationInputs) -> NDArray[np.float64]:
        """Joint position targets [rad], shape (18,); raises `PolicyOutputError`."""
        started = time.perf_counter()
        inputs.last_action = self.policy.last_action
        obs = self._builder.build(inputs)
        observed = time.perf_counter()
        try:
            return self.policy.step(obs)
        finally:
            self.began_s = started
            self.observe_s = observed - started
            self.infer_s = time.perf_counter() - observed

    def _warm_up(self) -> None:
        """Let the first, slow steps happen before the loop does."""
        desc = self._desc
        nothing = np.zeros(3)
        inputs = ObservationInputs(
            base_quat_w=np.array([0.0, 0.0, 0.0, 1.0]),
            base_ang_vel_b=nothing,
            base_lin_acc_b=nothing,
            joint_pos=desc.default_joint_pos,
            joint_vel=np.zeros_like(desc.default_joint_pos),
            foot_contact=np.ones(len(desc.leg_names)),
            nav_command=nothing,
            last_action=self.policy.last_action,
            features=np.zeros(self.features_size) if self.needs_features else None,
            features_age=np.zeros(1) if self.needs_features else None,
        )
        for _ in range(_WARM_UP_STEPS):
            self.step(inputs)
        self.reset()
        self.observe_s = self.infer_s = 0.0


def load_runner(
    name: str, desc: RobotDescription, control_rate_hz: float, backend: Backend | None = None
) -> PolicyRunner:
    """Load and warm up a bundle; raises `BundleError` when it does not fit."""
    bundle = PolicyBundle.load(bundle_dir(name), desc, control_rate_hz=control_rate_hz)
    robot_kg = desc.masses.total
    if bundle.mass_kg is not None and abs(bundle.mass_kg / robot_kg - 1.0) > _SAME_MASS:
        log.warning(
            "the policy was made for a robot of another mass",
            policy=bundle.name,
            robot=bundle.robot,
            mass_kg=bundle.mass_kg,
            this_robot_kg=round(robot_kg, 3),
        )
    check_measurable(bundle)
    return PolicyRunner(bundle, desc, backend)


def check_measurable(bundle: PolicyBundle) -> None:
    """Raise `BundleError` for a teacher: a policy that reads what no robot measures."""
    unknown = [term.name for term in bundle.observation.terms if not term.measurable]
    if unknown:
        raise BundleError(
            f"policy {bundle.name!r} is a teacher: it reads ground truth that no robot has "
            f"({', '.join(unknown)}); evaluate it with `python -m krabby_trainer eval`, or "
            "name a policy that walks on what the robot measures"
        )


class Blend(NamedTuple):
    """A hand-over under way."""

    origin: NDArray[np.float64]
    """Targets it began from [rad], shape (18,)."""
    started_ns: int


class PolicyManager:
    """Steps the policy that walks now and hands over from one to another.

    A policy takes over with a fresh memory, and its targets are blended in over `blend_s` from the
    last target that was sent, so a swap moves no joint faster than walking does.
    """

    def __init__(
        self,
        cfg: ControlCfg,
        desc: RobotDescription,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        load: Callable[[str, RobotDescription, float], PolicyRunner] = load_runner,
    ) -> None:
        self._cfg = cfg
        self._desc = desc
        self._load = load
        self.chosen = load(cfg.policy, desc, cfg.rate_hz)
        self._blind = self._load_blind()
        self.active = self.chosen
        """The runner that gave the last target."""
        self._blend: Blend | None = None
        self._blend_ns = round(cfg.blend_s * 1e9)
        self._recover_ns = round(cfg.freshness.features_recover_s * 1e9)
        self._fresh_since_ns: int | None = None
        self._bad_outputs = 0
        self._given_up: PolicyRunner | None = None
        self._warn = log_every(log, clock=clock)
        self._standing = False
        self._resting = False
        self.sight: Sight = "none"
        """What the chosen policy had in the last step; one of `SIGHTS`."""
        self.memory_ticks = 0
        """Steps that the chosen policy walked or stood on the no-picture token."""
        self.blind_switches = 0
        """Times the blind policy took over, or the robot stood still for want of one."""
        self.ticks = 0
        """Steps of walking, by any policy."""
        self.blind_ticks = 0
        """Those in which the chosen policy did not."""
        self.bad_outputs = 0
        """Outputs that were not finite."""

    @property
    def runners(self) -> list[PolicyRunner]:
        """All that may walk."""
        return [self.chosen] if self._blind is None else [self.chosen, self._blind]

    @property
    def blind_runner(self) -> PolicyRunner | None:
        """What walks in the chosen policy's place; None: nothing does."""
        return self._blind

    @property
    def blind(self) -> bool:
        """Whether the chosen policy cannot walk: another one does, or none."""
        return self._standing or (self.active is not self.chosen and not self._resting)

    @property
    def halts(self) -> bool:
        """Whether the policy is to stand because its last picture is too long ago."""
        return self.sight == "lost" and self.active is self.chosen and not self.blind

    @property
    def command_range(self) -> NDArray[np.float64] | None:
        """Commands that are followed now, shape (2, 3); None: any."""
        return self._answerable.bundle.command_range

    @property
    def abilities(self) -> Abilities:
        """What can be asked for now."""
        return self._answerable.bundle.abilities

    @property
    def _answerable(self) -> PolicyRunner:
        """Follows the next command: not the one that stands in for a policy that creeps."""
        return self.active if self.blind else self.chosen

    @property
    def needs_features(self) -> bool:
        """Whether the chosen policy sees."""
        return self.chosen.needs_features

    def start(self, target: NDArray[np.float64], now_ns: int) -> None:
        """Walking begins from `target` [rad], shape (18,)."""
        self._bad_outputs = 0
        self._fresh_since_ns = None
        # Whether there is something to see shows in the first step; until then nothing is switched.
        self._hand_over(self.chosen, target, now_ns)

    def choose(self, runner: PolicyRunner, last_target: NDArray[np.float64], now_ns: int) -> None:
        """Walk with another policy from now on."""
        log.info("policy swapped", policy=runner.bundle.name, before=self.chosen.bundle.name)
        self.chosen = runner
        self._given_up = None
        self._fresh_since_ns = None
        self._hand_over(runner, last_target, now_ns)

    def step(
        self,
        inputs: ObservationInputs,
        features: Message | None,
        last_target: NDArray[np.float64],
        now_ns: int,
    ) -> NDArray[np.float64]:
        """Targets of this tick [rad], shape (18,); the last ones when there is nothing better."""
        was_blind = self.blind
        usable = self._usable(features, now_ns)
        self._judge_sight(usable, now_ns)
        runner = self._choose(now_ns)
        if self._rests(inputs.nav_command, runner):
            runner = self._blind
        if runner is not self.active or self._standing:
            self._switch(runner, last_target, now_ns, was_blind=was_blind)
        self.ticks += 1
        self.blind_ticks += self.blind
        if runner is None:
            return last_target
        inputs.features = inputs.features_age = None
        if runner.needs_features and self.sight == "fresh" and usable is not None:
            inputs.features = usable.payload
            inputs.features_age = np.array([usable.age_s(now_ns)])
        elif runner.needs_features:
            self.memory_ticks += 1
            inputs.features = np.zeros(runner.features_size)
            inputs.features_age = np.array([runner.bundle.features_age_s])
        try:
            target = runner.step(inputs)
        except PolicyOutputError as error:
            self._count_bad(error, runner)
            return last_target
        self._bad_outputs = 0
        return self._blended(target, now_ns)

    def wait(self, elapsed_ns: int) -> None:
        """No step was made for so long: a hand-over under way is not further than it was."""
        if self._blend is not None:
            self._blend = self._blend._replace(started_ns=self._blend.started_ns + elapsed_ns)

    def _usable(self, features: Message | None, now_ns: int) -> Message | None:
        """The features, however old, if they are what the chosen policy reads."""
        if features is None or not self.chosen.needs_features:
            return None
        is_latent = bool(features.flags & FLAG_LATENT)
        wants_latent = self.chosen.bundle.needs_features == "latent"
        if is_latent != wants_latent or features.payload.size != self.chosen.features_size:
            self._warn.warning(
                "features are not what the policy reads; set the camera service's `bundle` to it",
                policy=self.chosen.bundle.name,
                wants=f"{self.chosen.features_size} floats, latent={wants_latent}",
                got=f"{features.payload.size} floats, latent={is_latent}",
            )
            return None
        age_s = features.age_s(now_ns)
        if age_s < -MAX_AHEAD_NS * 1e-9:
            self._warn.warning(f"features not used: {clocks_differ(age_s) or 'from the future'}")
            return None
        if not np.isfinite(features.payload).all():
            # The camera's fault, not the policy's: fed to the policy, it would count against it.
            self._warn.warning("features are not finite, not used")
            return None
        return features

    def _judge_sight(self, features: Message | None, now_ns: int) -> None:
        bundle, before = self.chosen.bundle, self.sight
        age_s = math.inf if features is None else features.age_s(now_ns)
        if not self.chosen.needs_features:
            self.sight = "none"
        elif age_s <= bundle.features_age_s:
            self.sight = "fresh"
        else:
            self.sight = "memory" if age_s <= (bundle.memory_s or 0.0) else "lost"
        if bundle.memory_s is None or self.sight == before:
            return
        if self.sight == "lost":
            self._warn.warning(
                "no picture for longer than the policy remembers",
                policy=bundle.name,
                memory_s=bundle.memory_s,
                remedy="see to the camera service; `krabby policy gait` walks without pictures",
            )
        else:
            log.debug("sight", now=self.sight, before=before)

    @property
    def _able(self) -> bool:
        """Whether the chosen policy can walk, or at least stand, on what it has."""
        bundle = self.chosen.bundle
        stands = bundle.memory_s is not None and bundle.abilities.stands
        return self.sight != "lost" or stands

    def _choose(self, now_ns: int) -> PolicyRunner | None:
        """Which policy walks this tick; None for none."""
        able = self._able
        if not able:
            self._fresh_since_ns = None
        elif self._fresh_since_ns is None:
            self._fresh_since_ns = now_ns
        if self.chosen is self._given_up:
            return self._blind
        if not self.chosen.needs_features:
            return self.chosen
        if not able:
            return self._blind
        assert self._fresh_since_ns is not None
        if not self.blind or now_ns - self._fresh_since_ns >= self._recover_ns:
            return self.chosen
        return self._blind

    def _rests(self, command: NDArray[np.floating], runner: PolicyRunner | None) -> bool:
        """Whether the blind policy stands because the chosen one would walk on; nothing is wrong.

        Where there is no blind policy the chosen one is left to do what it does.
        """
        largest = float(np.abs(command).max())
        still = largest < (_WALK_ABOVE if self._resting else _REST_BELOW)
        restless = runner is self.chosen and not self.chosen.bundle.abilities.stands
        self._resting = still and restless and self._blind is not None
        return self._resting

    def _switch(
        self,
        runner: PolicyRunner | None,
        origin: NDArray[np.float64],
        now_ns: int,
        *,
        was_blind: bool,
    ) -> None:
        """Let another policy walk than in the last step, or none, and log it."""
        if runner is None:
            self._standing = True
        else:
            self._hand_over(runner, origin, now_ns)
        if self.blind and not was_blind:
            self.blind_switches += 1
            if runner is None:
                log.warning("standing still", reason="cannot see and blind_policy is empty")
            else:
                log.warning("walking blind", policy=runner.bundle.name)
        elif was_blind and not self.blind:
            log.info("seeing again", policy=self.active.bundle.name)

    def _hand_over(self, runner: PolicyRunner, origin: NDArray[np.float64], now_ns: int) -> None:
        """Let a policy walk, with a fresh memory and from the last target on."""
        runner.reset()
        self.active = runner
        self._standing = False
        self._blend = Blend(np.array(origin, dtype=np.float64), now_ns)

    def _blended(self, target: NDArray[np.float64], now_ns: int) -> NDArray[np.float64]:
        if self._blend is None:
            return target
        elapsed_ns = now_ns - self._blend.started_ns
        if elapsed_ns >= self._blend_ns:
            self._blend = None
            return target
        share = elapsed_ns / self._blend_ns
        smooth = share * share * (3.0 - 2.0 * share)
        return self._blend.origin + smooth * (target - self._blend.origin)

    def _count_bad(self, error: PolicyOutputError, runner: PolicyRunner) -> None:
        self.bad_outputs += 1
        self._warn.warning("policy output refused, holding", reason=str(error))
        self._bad_outputs += 1
        if self._bad_outputs >= self._cfg.max_bad_outputs and self._blind not in (None, runner):
            self._given_up = runner
            log.error("policy given up for the blind one", policy=runner.bundle.name)

    def _load_blind(self) -> PolicyRunner | None:
        if not self._cfg.blind_policy:
            return None
        blind = self._load(self._cfg.blind_policy, self._desc, self._cfg.rate_hz)
        if blind.needs_features:
            raise BundleError(
                f"blind_policy {blind.bundle.name!r} needs features "
                f"{blind.bundle.needs_features!r}; name a policy that walks without seeing"
            )
        return blind
