"""Tries a policy in another process before the loop's own process opens it.

A network may take for ever to load, take all memory, or crash the runtime; and while ONNX Runtime
opens one it holds the interpreter's lock, so the loop stands still for that long. All of this is
found out in a child process, which has neither the loop's priority nor its core and can be killed.

The child is this module run as a program (`krabby.runtime.child`): its job comes as a pickle, its
verdict as a line of JSON.
"""

from __future__ import annotations

import pickle
import resource
import sys
import time
from collections.abc import Callable
from typing import Final

import msgspec
from krabby.control.policy_manager import load_runner
from krabby.policy.bundle import POLICY_FILE
from krabby.robot.description import RobotDescription
from krabby.robot.errors import BundleError, RobotError
from krabby.runtime.child import become_child, run_child

__all__ = ["LIMIT_S", "rehearse"]

LIMIT_S: Final = 10.0
"""Longest time for a policy to be read, checked and run in; a second or two is usual."""
_OPEN_LIMIT_S: Final = 0.1
"""Longest CPU time of opening it, during which the loop stands still: the HAL's deadman damps the
robot after 0.15 s. The shipped ones take 0.02 s."""
_MEMORY_BYTES: Final = 384 << 20
"""Private memory of the child, of which its libraries take 0.1 GB. The loop's process takes as much
when it opens the policy, and has 512 MiB in all."""
_NICE: Final = 5


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of the child."""

    reason: str = ""
    """Why the policy is refused; empty if it is not."""
    digest: str = ""
    """SHA-256 of the network that was tried."""
    open_s: float = 0.0
    """Processor time of opening it [s]."""


def rehearse(
    name: str,
    desc: RobotDescription,
    control_rate_hz: float,
    *,
    stopping: Callable[[], bool] = lambda: False,
    limit_s: float | None = None,
) -> str:
    """Load a policy in a child process; returns the SHA-256 of its network.

    Args:
        name: As `load_runner` takes it.
        desc: The robot.
        control_rate_hz: Rate of the loop.
        stopping: Looked at while it lasts; the child is killed when it turns true.
        limit_s: The child is killed after this long [s]; `LIMIT_S` by default.

    Raises:
        BundleError: It is refused; says why.
    """
    limit_s = LIMIT_S if limit_s is None else limit_s
    lines: list[bytes] = []

    def watch() -> None:
        if stopping():
            raise BundleError("the game loop is about to end")

    job = pickle.dumps((name, desc, control_rate_hz))
    try:
        ended = run_child(__name__, job=job, limit_s=limit_s, watch=watch, hear=lines.append)
        verdict = msgspec.json.decode(b"".join(lines), type=Verdict)
    except TimeoutError:
        raise BundleError(
            f"not loaded within {limit_s:g} s, given up; its network may never be: run it "
            f"with `python -m krabby_gameloop --check policy={name!r}`, or export it again"
        ) from None
    except OSError as error:
        raise BundleError(f"no process to try it in ({error}); ask again") from error
    except msgspec.DecodeError as error:
        problem = f"the process that tried it {ended.how}; export the policy again"
        raise BundleError(problem) from error
    if verdict.reason:
        raise BundleError(verdict.reason)
    if verdict.open_s > _OPEN_LIMIT_S:
        raise BundleError(
            f"opening its network takes {verdict.open_s * 1e3:.0f} ms, and the loop would stand "
            f"still for that long (limit {_OPEN_LIMIT_S * 1e3:.0f} ms); start the game loop with it"
        )
    return verdict.digest


# --- in the child ------------------------------------------------------------------------------


def main() -> int:
    """The child process."""
    say = become_child(nice=_NICE)
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    say(msgspec.json.encode(_try(*pickle.load(sys.stdin.buffer))))
    return 0


def _try(name: str, desc: RobotDescription, control_rate_hz: float) -> Verdict:
    try:
        load_runner(name, desc, control_rate_hz)
        began_s = time.process_time()  # of the second time: the first one loads libraries
        runner = load_runner(name, desc, control_rate_hz)
        open_s = time.process_time() - began_s
    except RobotError as error:
        return Verdict(reason=_printable(str(error)))
    except Exception as error:
        return Verdict(reason=_printable(f"{type(error).__name__}: {error}"))
    return Verdict(digest=runner.bundle.hashes[POLICY_FILE], open_s=open_s)


def _printable(text: str) -> str:
    """In one line, without what UTF-8 cannot say."""
    return " ".join(text.encode(errors="backslashreplace").decode().split())


if __name__ == "__main__":
    sys.exit(main())
