"""The table of faults: one entry each. A new fault is a new entry."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

import numpy as np
from krabby_proto import HalClient

from krabby_faults.attacks import ATTACKS, UNBOUNDED, plain_tcp, unlisted_key
from krabby_faults.stack import ROBOTS, Robot, Stack

__all__ = ["FAULTS", "Fault"]

Becomes = Literal["limp", "holds", "walks", "sits", "any"]
Act = Callable[[Stack], object]


class Fault(NamedTuple):
    """Something that breaks, and what has to come of it."""

    name: str
    inject: Act
    becomes: Becomes
    """The robot is damped; it holds its last target and continues by itself; it keeps walking; it
    is lowered or damped before the process ends; any of these, as chance has it."""
    mend: Act = lambda stack: None
    lasts_s: float = 1.0
    """Between `inject` and `mend`."""
    robots: tuple[Robot, ...] = ROBOTS
    needs_camera: bool = False
    far: bool = False
    """Whether the game loop is on another host."""
    needs_root: bool = False
    grows: bool = False
    """Whether libzmq keeps the memory that it takes."""
    short: bool = False
    """Whether it belongs to the short form."""


def _kill(name: str) -> Act:
    return lambda stack: stack.kill(_of(stack, name))


def _send(name: str, number: signal.Signals) -> Act:
    return lambda stack: stack.signal(_of(stack, name), number)


def _of(stack: Stack, name: str) -> str:
    return stack.hal_name if name == "hal" else name


def _revive(stack: Stack) -> None:
    stack.revive()


def _renew(name: str) -> Act:
    """Start a service again, which its watchdog or the kernel has ended by now, or has not."""

    def renew(stack: Stack) -> None:
        stack.kill(_of(stack, name))
        stack.revive()

    return renew


def _late_pictures(stack: Stack) -> None:
    """The camera service stands for 0.2 s, five times."""
    for _ in range(5):
        stack.signal("camera", signal.SIGSTOP)
        time.sleep(0.2)
        stack.signal("camera", signal.SIGCONT)
        time.sleep(0.1)


def _frozen(name: str, lasts_s: float, becomes: Becomes, **more) -> Fault:  # noqa: ANN003
    return Fault(
        f"{name} frozen for {lasts_s:g} s", _send(name, signal.SIGSTOP), becomes,
        _send(name, signal.SIGCONT), lasts_s, **more,
    )  # fmt: skip


def _started_again(name: str) -> Act:
    """Start a service again once it has ended."""

    def start(stack: Stack) -> None:
        stack.processes[_of(stack, name)].wait(20)
        stack.revive()

    return start


def _break(kind: str, **where: str) -> Act:
    """A fault of the simulated camera, or of the emulated drives."""

    def inject(stack: Stack) -> None:
        answer = stack.simulator.request("fault", timeout_s=5.0, kind=kind, **where)
        assert answer["ok"], answer

    return inject


def _clear(stack: Stack) -> None:
    stack.simulator.request("clear", timeout_s=5.0)


def _second_writer(stack: Stack) -> None:
    """Another writer commands while the loop is frozen, and has the lease when it is back."""
    with HalClient({"command": stack.endpoints["command"]}) as other:
        stack.signal("gameloop", signal.SIGSTOP)
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            now_ns = time.monotonic_ns()
            other.send_command(np.zeros(18, np.float32), capture_ns=now_ns, deadline_s=0.05)
            if end - time.monotonic() < 0.7:
                stack.signal("gameloop", signal.SIGCONT)
            time.sleep(0.01)


def _operate(op: str) -> Act:
    return lambda stack: stack.safety(op)


_PROCESSES: Final = (
    Fault("gameloop killed", _kill("gameloop"), "limp", _revive, short=True),
    Fault("gameloop ended and started", _send("gameloop", signal.SIGTERM), "sits",
          _started_again("gameloop"), 3.0),
    _frozen("gameloop", 0.1, "holds"),
    _frozen("gameloop", 1.0, "limp", short=True),
    _frozen("gameloop", 5.0, "limp"),
    Fault("gameloop stuck in a loop", _send("gameloop", signal.SIGUSR1), "limp",
          _renew("gameloop")),
    Fault("gameloop takes all memory", _send("gameloop", signal.SIGUSR2), "limp",
          _renew("gameloop")),
    Fault("hal killed", _kill("hal"), "limp", _revive, short=True),
    Fault("hal ended and started", _send("hal", signal.SIGTERM), "sits", _started_again("hal")),
    Fault("hal stuck in a loop", _send("hal", signal.SIGUSR1), "limp", _renew("hal")),
    Fault("hal takes all memory", _send("hal", signal.SIGUSR2), "limp", _renew("hal")),
    _frozen("hal", 0.1, "holds", robots=("simulated",)),
    _frozen("hal", 0.1, "limp", robots=("emulated",)),
    _frozen("hal", 1.0, "limp", short=True),
    _frozen("hal", 5.0, "limp"),
    _frozen("robot-emulator", 0.1, "limp", robots=("emulated",)),
    _frozen("robot-emulator", 1.0, "limp", robots=("emulated",)),
    Fault("camera killed", _kill("camera"), "walks", _revive, needs_camera=True),
    _frozen("camera", 1.0, "walks", needs_camera=True),
    Fault("camera late, by up to 0.2 s", _late_pictures, "walks", needs_camera=True),
    Fault("emergency stop", _operate("estop"), "limp", short=True),
    Fault("disarmed by an operator", _operate("disarm"), "limp"),
    Fault("another writer takes the lease", _second_writer, "limp"),
)  # fmt: skip

_HOST: Final = (
    Fault("wall clock an hour ahead", lambda stack: stack.wall.step(3600), "walks",
          lambda stack: stack.wall.step(0)),
    Fault("wall clock a day back", lambda stack: stack.wall.step(-86400), "walks",
          lambda stack: stack.wall.step(0)),
    Fault("disk with the logs full", lambda stack: stack.fill_logs(full=True), "walks",
          lambda stack: stack.fill_logs(full=False), 3.0, needs_root=True),
)  # fmt: skip

_CAMERA: Final = tuple(
    Fault(text, _break(kind), "walks", _clear, 2.0, ("simulated",), needs_camera=True)
    for kind, text in (
        ("camera-frozen", "camera shows one picture again and again"),
        ("camera-black", "camera is black"),
        ("camera-nan", "camera gives NaN"),
        ("camera-stop", "camera gives no pictures"),
    )
)

_DRIVES: Final = tuple(
    Fault(text, _break(kind, **where), "limp", _clear, robots=("emulated",))
    for kind, where, text in (
        ("lost-replies", {"joint": "lf_knee"}, "one drive's replies are lost"),
        ("bus-off", {"bus": "middle"}, "a bus goes off"),
        ("imu-silence", {}, "the IMU falls silent"),
    )
)
"""One of each kind of wire; the others are in the second table, in simulated time."""

_ATTACKS: Final = tuple(
    Fault(
        f"attack: {run.__doc__.rstrip('.')}",
        run,
        "any" if run in UNBOUNDED else "walks",
        _revive,
        lasts_s=0.5,
        grows=run in UNBOUNDED,
    )
    for run in ATTACKS
    if run.__doc__
)
"""From a process of the same user: a Unix socket lets no other peer in. A service that its memory
limit ends is started again, as its supervisor does."""


def _over_link(**settings: float) -> Act:
    def inject(stack: Stack) -> None:
        assert stack.link is not None
        stack.link.set(**settings)

    return inject


def _link(name: str, becomes: Becomes, lasts_s: float,
          **settings: float) -> Fault:  # fmt: skip
    return Fault(name, _over_link(**settings), becomes, _over_link(), lasts_s,
                 ("simulated",), far=True, needs_root=True)  # fmt: skip


_LINKS: Final = (
    _link("link: nothing", "walks", 5.0),
    _link("link: 5 ms delay each way", "walks", 10.0, delay_s=0.005),
    _link("link: 5 ms delay, 1 % loss", "any", 20.0, delay_s=0.005, loss=0.01),
    _link("link: 5 % loss", "any", 10.0, loss=0.05),
    _link("link: 40 ms delay each way", "limp", 2.0, delay_s=0.04),
    _link("link: down for 1 s", "limp", 1.0, there=0, back=0),
    _link("link: down for 5 s", "limp", 5.0, there=0, back=0),
    _link("link: states arrive, commands do not", "limp", 1.0, there=0),
    _link("link: commands arrive, states do not", "limp", 1.0, back=0),
    Fault("link: relay killed", _kill("relay"), "limp", _revive, robots=("simulated",), far=True,
          needs_root=True),
    Fault("attack on the relay: plain TCP peers without a key", plain_tcp, "walks",
          robots=("simulated",), far=True, needs_root=True),
    Fault("attack on the relay: a key that is not authorised", unlisted_key, "walks",
          robots=("simulated",), far=True, needs_root=True),
)  # fmt: skip
"""The game loop on another host with another clock."""

FAULTS: Final[tuple[Fault, ...]] = (
    Fault("nothing", lambda stack: None, "walks", lasts_s=5.0, short=True),
    *_PROCESSES, *_HOST, *_CAMERA, *_DRIVES, *_ATTACKS, *_LINKS,
)  # fmt: skip
"""The first is the floor: what this machine does to a stack that nothing breaks."""
