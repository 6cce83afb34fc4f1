"""All that a controller remembers from one tick to the next, as a value.

A replay that begins in the middle of a run restores it; records of the stream `ticks` carry it.
The fields have the names of the attributes that they are read from and written back to: this module
knows the private ones of its package.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
import numpy as np
from krabby_proto import SafetyState
from numpy.typing import NDArray

from krabby.control.config import control_keys
from krabby.control.errors import TapeError
from krabby.control.modes import Mode
from krabby.control.nav import NavFilter, WalkingCommand
from krabby.control.policy_manager import Blend, PolicyManager, PolicyRunner
from krabby.robot.errors import ObservationError

if TYPE_CHECKING:
    from krabby.control.controller import LocomotionController

__all__ = [
    "ControllerState",
    "PolicyIdentity",
    "Snapshot",
    "capture",
    "pack",
    "restore",
    "this_machine",
    "unpack",
]

Walker = Literal["chosen", "blind"]


class Array(msgspec.Struct, array_like=True):
    """An array by dtype, shape and bytes."""

    dtype: Literal["<f4", "<f8"]
    shape: tuple[int, ...]
    content: bytes

    @classmethod
    def of(cls, array: NDArray[Any]) -> Array:
        """Copies an array of float32 or float64."""
        dtype: Literal["<f4", "<f8"] = "<f4" if array.dtype == np.float32 else "<f8"
        return cls(dtype, array.shape, array.astype(dtype, copy=False).tobytes())

    def get(self) -> NDArray[Any]:
        """The array, writable."""
        try:
            return np.frombuffer(self.content, self.dtype).reshape(self.shape).copy()
        except ValueError as error:
            raise TapeError(f"an array in a snapshot is damaged: {error}") from error


class Permit(msgspec.Struct):
    """`Permission`."""

    safety: SafetyState
    stand_requested: bool
    has_lease: bool
    lease_losses: int
    sent_ns: int
    unapplied: bool
    _stands_by_itself: bool
    _leaving: bool
    _number: int
    _was_live: bool
    _followed: bool
    _taken_ns: int | None
    _heard_ns: int | None
    _arm_count: int = 0


class Command(msgspec.Struct):
    """The newest walking command of a person or a mission."""

    values: Array
    stamp_ns: int


class Nav(msgspec.Struct):
    """`NavFilter`."""

    source: Literal["operator", "mission", "none"]
    _operator_until_ns: int | None
    _stepped_ns: int | None
    command: Array
    operator: Command | None
    mission: Command | None
    forgotten_ns: tuple[int, int] | None
    """By the operator's and by the mission's clock."""


class Memory(msgspec.Struct):
    """What a policy remembers."""

    last_action: Array
    history: Array | None
    """The observation with its history; None before the first step."""
    state: dict[str, Array]
    """Recurrent state of the network, by input."""


class Policies(msgspec.Struct):
    """`PolicyManager`."""

    active: Walker
    memory: Memory
    """Of the active policy: any other one is reset when it takes over."""
    sight: Literal["none", "fresh", "memory", "lost"]
    _fresh_since_ns: int | None
    _bad_outputs: int
    _standing: bool
    _resting: bool
    given_up: Walker | None
    blend: tuple[Array, int] | None
    """Target it began from, and since when [ns]."""


class ControllerState(msgspec.Struct):
    """`LocomotionController` and its parts."""

    mode: Mode
    hal_checked: bool
    _instance: int | None
    _reset_sequence: int
    _was_reset: bool
    _trajectory_ns: int
    _forget_nav: bool
    last_target: Array | None
    trajectory: tuple[Array, bool] | None
    """Pose that the stand-up or sit-down under way began from, and whether the robot walked."""
    permit: Permit
    nav: Nav
    policies: Policies


class PolicyIdentity(msgspec.Struct):
    """Which bundle, by content."""

    name: str
    path: str
    hashes: dict[str, str]
    """SHA-256 by file name, hex."""
    backend: str = ""
    """What ran it: "onnxruntime" or "tensorrt"."""


class Snapshot(msgspec.Struct):
    """A controller that can be made again: configuration, robot, policies and memory."""

    config: dict[str, Any]
    """Keys of `ControlCfg`."""
    robot: dict[str, Any]
    """`RobotDescription.identity`."""
    chosen: PolicyIdentity
    blind: PolicyIdentity | None
    machine: dict[str, str]
    """What decides whether arithmetic repeats bit for bit: `this_machine`."""
    state: ControllerState


_SCALARS: Final[dict[type[msgspec.Struct], tuple[str, ...]]] = {
    Permit: Permit.__struct_fields__,
    Nav: ("source", "_operator_until_ns", "_stepped_ns"),
    Policies: ("sight", "_fresh_since_ns", "_bad_outputs", "_standing", "_resting"),
    ControllerState: (
        *("mode", "hal_checked", "_instance", "_reset_sequence", "_was_reset"),
        *("_trajectory_ns", "_forget_nav"),
    ),
}
"""Fields that are the attributes of the same name as they are."""
_DECODER: Final = msgspec.msgpack.Decoder(Snapshot)


def pack(controller: LocomotionController) -> bytes:
    """`Snapshot` of a controller between two ticks, as MessagePack; 3 to 8 kB."""
    policies = controller.policies
    blind = policies.blind_runner
    return msgspec.msgpack.encode(
        Snapshot(
            config=control_keys(controller.cfg),
            robot=dict(controller.desc.identity),
            chosen=PolicyIdentity(**policies.chosen.identity),
            blind=None if blind is None else PolicyIdentity(**blind.identity),
            machine=this_machine(),
            state=capture(controller),
        )
    )


def unpack(data: bytes) -> Snapshot:
    """The snapshot of `pack`.

    Raises:
        TapeError: It is damaged.
    """
    try:
        return _DECODER.decode(data)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise TapeError(
            f"a snapshot of the controller cannot be read ({error}); it is damaged or of another "
            "release"
        ) from error


def capture(controller: LocomotionController) -> ControllerState:
    """What the controller remembers, between two ticks."""
    target, origin = controller._last_target, controller._trajectory_origin
    return ControllerState(
        **_read(ControllerState, controller),
        last_target=None if target is None else Array.of(target),
        trajectory=None if origin is None else (Array.of(origin[0]), origin[1]),
        permit=Permit(**_read(Permit, controller.permission)),
        nav=_capture_nav(controller.nav),
        policies=_capture_policies(controller.policies),
    )


def restore(
    controller: LocomotionController, state: ControllerState, *, memory: bool = True
) -> None:
    """Let a controller of the same configuration and policies remember `state`.

    Args:
        controller: As `pack` was given one.
        state: What it is to remember.
        memory: Whether its policy is the one of `state`; another one begins with a fresh memory.

    Raises:
        TapeError: It is of another policy.
    """
    _write(state, controller)
    controller._last_target = None if state.last_target is None else state.last_target.get()
    controller._trajectory = None
    if state.trajectory is not None:
        start, walking = state.trajectory
        controller._begin_trajectory(state.mode, start.get(), walking=walking)
    _write(state.permit, controller.permission)
    controller.permission._pending = None
    _restore_nav(controller.nav, state.nav)
    _restore_policies(controller.policies, state.policies, memory=memory)


def _capture_nav(nav: NavFilter) -> Nav:
    forgotten = nav._forgotten_ns
    return Nav(
        **_read(Nav, nav),
        command=Array.of(nav.command),
        operator=_command(nav._operator),
        mission=_command(nav._mission),
        forgotten_ns=(forgotten[True], forgotten[False]) if forgotten else None,
    )


def _restore_nav(nav: NavFilter, state: Nav) -> None:
    _write(state, nav)
    nav.command = state.command.get()
    nav._operator, nav._mission = (
        None if each is None else WalkingCommand(each.values.get(), each.stamp_ns)
        for each in (state.operator, state.mission)
    )
    forgotten = state.forgotten_ns
    nav._forgotten_ns = {} if forgotten is None else {True: forgotten[0], False: forgotten[1]}


def _command(command: WalkingCommand | None) -> Command | None:
    return None if command is None else Command(Array.of(command.values), command.stamp_ns)


def _capture_policies(policies: PolicyManager) -> Policies:
    given_up, blend = policies._given_up, policies._blend
    return Policies(
        **_read(Policies, policies),
        active=_walker(policies, policies.active),
        memory=_remembered(policies.active),
        given_up=None if given_up is None else _walker(policies, given_up),
        blend=None if blend is None else (Array.of(blend.origin), blend.started_ns),
    )


def _restore_policies(policies: PolicyManager, state: Policies, *, memory: bool) -> None:
    _write(state, policies)
    policies.active = _runner(policies, state.active)
    policies._given_up = None if state.given_up is None else _runner(policies, state.given_up)
    blend = state.blend
    policies._blend = None if blend is None else Blend(blend[0].get(), blend[1])
    if memory or policies.active is not policies.chosen:
        _remember(policies.active, state.memory)
    else:
        policies.active.reset()


def _walker(policies: PolicyManager, runner: PolicyRunner) -> Walker:
    return "chosen" if runner is policies.chosen else "blind"


def _runner(policies: PolicyManager, walker: Walker) -> PolicyRunner:
    runner = policies.chosen if walker == "chosen" else policies._blind
    if runner is None:
        raise TapeError("the run had a blind policy and this controller has none; name it")
    return runner


def _remembered(runner: PolicyRunner) -> Memory:
    network = runner.network
    history = runner.history
    return Memory(
        last_action=Array.of(runner.policy.last_action),
        history=None if history is None else Array.of(history),
        state={each.input: Array.of(network.state(each.input)) for each in network.spec.state},
    )


def _remember(runner: PolicyRunner, memory: Memory) -> None:
    runner.reset()
    network = runner.network
    names = {each.input for each in network.spec.state}
    if names != memory.state.keys():
        raise TapeError(
            f"policy {runner.bundle.name!r} remembers {', '.join(sorted(names)) or 'nothing'}, the "
            f"run's had {', '.join(sorted(memory.state)) or 'nothing'}; name the policy of the run"
        )
    try:
        for name, array in memory.state.items():
            network.set_input(name, array.get())
        runner.policy.last_action = memory.last_action.get()
        if memory.history is not None:
            runner.history = memory.history.get()
    except (ObservationError, ValueError) as error:
        raise TapeError(
            f"policy {runner.bundle.name!r} is not the one of the run: {error}"
        ) from error


def _read(cls: type[msgspec.Struct], owner: object) -> dict[str, Any]:
    return {name: getattr(owner, name) for name in _SCALARS[cls]}


def _write(state: msgspec.Struct, owner: object) -> None:
    for name in _SCALARS[type(state)]:
        setattr(owner, name, getattr(state, name))


@functools.cache
def this_machine() -> dict[str, str]:
    """What decides whether arithmetic repeats bit for bit: processor and versions."""
    try:
        onnxruntime = importlib.metadata.version("onnxruntime")
    except importlib.metadata.PackageNotFoundError:  # as on a Jetson, from the base image
        onnxruntime = "unknown"
    return {
        "machine": platform.machine(),
        "cpu": _cpu_model(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": onnxruntime,
    }


def _cpu_model() -> str:
    """As the kernel names it; empty where it does not."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "CPU part"):
                return value.strip()
    return ""
