"""Decide again what records of the stream `ticks` hold: the shipped controller, given its inputs.

On the same processor, with the same ONNX Runtime and NumPy, every target is the recorded one bit
for bit. With another policy or back end the inputs stay the recorded ones: the replay shows what
that policy would have answered to them, not where it would have walked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from krabby_proto import NavTaken, ReplyTaken, StateSeen, Tick, TickInput
from krabby_proto.codec import Message
from numpy.typing import NDArray

from krabby.control import snapshot
from krabby.control.config import ControlCfg
from krabby.control.controller import LocomotionController
from krabby.control.errors import TapeError
from krabby.control.policy_manager import PolicyManager, PolicyRunner, load_runner
from krabby.control.snapshot import PolicyIdentity, Snapshot, this_machine
from krabby.robot.description import RobotDescription

__all__ = ["Replayed", "Replayer"]

Load = Callable[[str, RobotDescription, float], PolicyRunner]


class Replayed(NamedTuple):
    """A tick that was decided again."""

    tick: Tick
    """What the run was given and decided."""
    target: NDArray[np.float64] | None
    """Targets of the replay [rad], shape (18,); None when it stayed silent."""
    mode: str
    """Of the replay, one of `krabby_proto.LOOP_MODES`."""
    policy: str
    """Name of the policy that walks in the replay."""
    observation: NDArray[np.float32] | None
    """What that policy observed, history included, shape (size,); None when none was asked."""

    @property
    def differing_bytes(self) -> int:
        """Bytes of the targets that differ; all of them when only one side was silent."""
        ours, theirs = (
            b"" if each is None else each.astype("<f8").tobytes()
            for each in (self.target, self.tick.target)
        )
        if len(ours) != len(theirs):
            return max(len(ours), len(theirs))
        return sum(a != b for a, b in zip(ours, theirs, strict=True)) if ours != theirs else 0

    @property
    def difference(self) -> NDArray[np.float64] | None:
        """Replay minus run [rad], shape (18,); None when one side was silent."""
        if self.target is None or self.tick.target is None:
            return None
        return self.target - self.tick.target


class Replayer:
    """One controller, fed from records in order.

    Args:
        desc: The robot of the run.
        load: Loads a policy by name or folder.
        policy: Name or folder of a policy to walk with in place of the run's; empty for the run's.
    """

    def __init__(
        self, desc: RobotDescription, *, load: Load = load_runner, policy: str = ""
    ) -> None:
        self._desc = desc
        self._load = load
        self._policy = policy
        self._controller: LocomotionController | None = None
        self._runners: dict[str, PolicyRunner] = {}
        self._host_ns: deque[int] = deque()
        self._last_host_ns = 0
        self._instance = 0
        self._next = 0
        self._leaving = False
        self.differences: list[str] = []
        """How robot, policies and machine differ from the run's; without any, a replay is exact."""
        self.lost: list[str] = []
        """Ticks that could not be decided again, and why."""

    @property
    def controller(self) -> LocomotionController | None:
        """What decides; None before the first record with a snapshot, and behind a gap."""
        return self._controller

    def step(self, tick: Tick) -> Replayed | None:
        """Decide a tick again; None where that is not possible, `lost` tells why.

        Raises:
            TapeError: The record is damaged, or of another robot.
            BundleError: Its policy cannot be loaded.
        """
        self._look_for_gap(tick)
        controller, first = self._controller, 0
        if controller is None:
            if tick.snapshot is None:
                self._lose(tick, "no snapshot of the controller since the recording began or a gap")
                return None
            controller = self._open(snapshot.unpack(tick.snapshot))
            first = tick.snapshot_at
        unknown = tick.features is None and tick.features_header is not None
        if unknown and controller.policies.needs_features:
            self._controller = None
            self._lose(tick, "its features are missing")
            return None
        self._controller = controller
        return self._decide(controller, tick, first)

    def _look_for_gap(self, tick: Tick) -> None:
        """What a controller remembers is void when ticks are missing."""
        if self._controller is not None and tick.instance_id != self._instance:
            if tick.tick > 0:
                self.lost.append(f"the game loop restarted and {tick.tick} ticks of it are missing")
            self._controller = None
        elif self._controller is not None and tick.tick != self._next:
            missing = tick.tick - self._next
            self.lost.append(
                f"{missing} ticks missing before tick {tick.tick}"
                if missing > 0
                else f"tick {tick.tick} comes after tick {self._next - 1}"
            )
            self._controller = None
        self._instance, self._next = tick.instance_id, tick.tick + 1

    def _lose(self, tick: Tick, reason: str) -> None:
        """Count a tick that is not decided again; those of one reason make one line."""
        last = self.lost[-1] if self.lost else ""
        if last.endswith(f": {reason}") and last.startswith("ticks "):
            begin = last.removeprefix("ticks ").partition(" to ")[0]
            self.lost[-1] = f"ticks {begin} to {tick.tick}: {reason}"
        else:
            self.lost.append(f"ticks {tick.tick} to {tick.tick}: {reason}")

    def _decide(self, controller: LocomotionController, tick: Tick, first: int) -> Replayed:
        self._host_ns = deque(tick.host_ns)
        if tick.leaving and not self._leaving:
            controller.permission.sit_for_good()
            self._leaving = True
        for given in tick.inputs[first:]:
            self._give(controller, given)
        controller.hal_checked = tick.hal_checked
        if tick.policy is not None and not self._policy:
            controller.swap_policy(self._swapped(tick.policy, controller), tick.now_ns)
        if tick.request is not None:
            controller.permission.repeat_request(tick.request.op, tick.request.permission)
        policies = controller.policies
        steps = policies.ticks
        command = controller.tick(tick.state, tick.features, tick.now_ns)
        history = policies.active.history if policies.ticks > steps else None
        return Replayed(
            tick=tick,
            target=None if command is None else command.joint_pos,
            mode=controller.mode.value,
            policy=policies.active.bundle.name,
            observation=None if history is None else history[0],
        )

    def _give(self, controller: LocomotionController, given: TickInput) -> None:
        match given:
            case StateSeen(header=header):
                controller.handle_state(Message(header, _NO_PAYLOAD))
            case NavTaken(message=message, now_ns=now_ns):
                controller.nav.receive(message, now_ns)
            case ReplyTaken(reply=reply, sent_ns=sent_ns):
                controller.handle_reply(reply, sent_ns)

    def _open(self, taken: Snapshot) -> LocomotionController:
        """A controller with the run's configuration, policies and memory."""
        try:
            cfg = msgspec.convert(taken.config, ControlCfg)
        except (msgspec.ValidationError, ValueError) as error:
            raise TapeError(
                f"the run's configuration cannot be used ({error}); replay it with the release "
                "that recorded it"
            ) from error
        self._compare_robot(taken.robot)
        self._compare_machine(taken.machine)
        blind = taken.blind
        cfg = msgspec.structs.replace(
            cfg,
            policy=self._policy or _place(taken.chosen),
            blind_policy="" if blind is None else _place(blind),
        )
        policies = PolicyManager(cfg, self._desc, load=self._open_policy)
        if not self._policy:
            self._compare(taken.chosen, policies.chosen)
        if blind is not None and policies.blind_runner is not None:
            self._compare(blind, policies.blind_runner)
        controller = LocomotionController(cfg, self._desc, policies, host_clock=self._clock)
        # Another policy has no memory of the run; it begins from the last target, as in a swap.
        snapshot.restore(controller, taken.state, memory=not self._policy)
        self._leaving = taken.state.permit._leaving
        return controller

    def _open_policy(self, name: str, desc: RobotDescription, rate_hz: float) -> PolicyRunner:
        """Load a policy once; behind a gap it is taken again."""
        known = self._runners.get(name)
        if known is None:
            known = self._runners[name] = self._load(name, desc, rate_hz)
        return known

    def _swapped(self, policy: Mapping[str, Any], controller: LocomotionController) -> PolicyRunner:
        try:
            wanted = msgspec.convert(policy, PolicyIdentity)
        except msgspec.ValidationError as error:
            raise TapeError(f"a swap of policies cannot be read: {error}") from error
        runner = self._load(_place(wanted), self._desc, controller.cfg.rate_hz)
        self._compare(wanted, runner)
        return runner

    def _clock(self) -> int:
        """The run's readings of its clock; the last one again when this replay reads more."""
        if self._host_ns:
            self._last_host_ns = self._host_ns.popleft()
        return self._last_host_ns

    def _compare_robot(self, theirs: Mapping[str, Any]) -> None:
        ours = self._desc.identity
        if theirs.get("name") != ours["name"]:
            raise TapeError(
                f"the run is of robot {theirs.get('name')!r} and this one is {ours['name']!r}; "
                "name the robot of the run"
            )
        if theirs.get("hash") != ours["hash"]:
            self._note(
                f"robot.toml has hash {str(ours['hash'])[:12]}, in the run "
                f"{str(theirs.get('hash'))[:12]}"
            )

    def _compare_machine(self, theirs: Mapping[str, str]) -> None:
        ours = this_machine()
        for what in ("machine", "cpu", "numpy", "onnxruntime"):
            if theirs.get(what) != ours[what]:
                self._note(f"{what} is {ours[what]!r}, in the run {theirs.get(what)!r}")

    def _compare(self, theirs: PolicyIdentity, runner: PolicyRunner) -> None:
        ours = runner.identity
        for file, digest in sorted(theirs.hashes.items()):
            found = ours["hashes"].get(file, "nothing")
            if found != digest:
                self._note(
                    f"policy {theirs.name!r}: {file} has hash {found[:12]}, in the run "
                    f"{digest[:12]}"
                )
        if theirs.backend != ours["backend"]:
            self._note(
                f"policy {theirs.name!r} runs on {ours['backend']}, in the run on {theirs.backend}"
            )

    def _note(self, difference: str) -> None:
        if difference not in self.differences:
            self.differences.append(difference)


_NO_PAYLOAD = np.zeros(0, dtype=np.float32)


def _place(policy: PolicyIdentity) -> str:
    """Its folder where that is here too, else its name, which may be one of the shipped ones."""
    return policy.path if Path(policy.path).is_dir() else policy.name
