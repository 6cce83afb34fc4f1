"""Fuzz the parsers: `python -m krabby_fuzz [--inputs N] [--minutes M] [--guided] [TARGET ...]`.

The inputs are shared out over the targets. Without `--guided` they are mutations for a fixed seed;
with it, atheris looks for inputs that reach new code (x86-64 only). A finding is printed with its
input in hex, is kept in `--findings`, and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import re
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from types import FrameType

from krabby_fuzz.mutate import mutated
from krabby_fuzz.targets import TARGETS, Target

_MEMORY_BYTES = 1 << 30
"""Private memory that an input may make a parser take, the fuzzer's own 0.2 GB included."""
_SLOW_S = 5
"""Longest processor time for 256 inputs; guided, the longest time for one."""


class TooSlow(Exception):  # noqa: N818 - named for what happened
    """An input takes too long."""


def main(argv: list[str] | None = None) -> int:
    """Fuzz; returns the exit status."""
    parser = argparse.ArgumentParser(prog="krabby_fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--inputs", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--minutes", type=float, default=0.0, help="end after so long; 0: no limit")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--guided", action="store_true", help="look for new code, with atheris")
    parser.add_argument("--findings", type=Path, default=Path("build/fuzz"), metavar="DIR")
    args = parser.parse_args(argv)
    if unknown := set(args.targets) - set(TARGETS):
        parser.error(f"unknown target {', '.join(unknown)}; there is: {', '.join(TARGETS)}")
    chosen = [TARGETS[name] for name in args.targets or TARGETS]
    whole = sum(target.share for target in chosen)
    args.findings.mkdir(parents=True, exist_ok=True)
    failed = False
    for target in chosen:
        count = max(round(args.inputs * target.share / whole), 1)
        limit_s = 60.0 * args.minutes * target.share / whole
        run = _guided if args.guided else fuzz
        failed |= not run(target, count, args.seed, limit_s, args.findings)
    return int(failed)


def fuzz(target: Target, count: int, seed: int, limit_s: float, findings: Path) -> bool:
    """Try `count` mutations; prints what became of them, returns whether there was no finding."""
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_BYTES, resource.RLIM_INFINITY))
    before = signal.signal(signal.SIGVTALRM, _too_slow)
    rng, seeds = random.Random(f"{target.name} {seed}"), target.seeds()
    outcomes: Counter[str] = Counter()
    found: dict[str, bytes] = {}
    began_s = time.monotonic()
    for number in range(count):
        if number % 256 == 0:
            signal.setitimer(signal.ITIMER_VIRTUAL, _SLOW_S)
            if limit_s and time.monotonic() - began_s > limit_s:
                break
        data = seeds[number] if number < len(seeds) else mutated(rng, seeds)
        try:
            target.parse(data)
        except target.refuses as error:
            outcomes[type(error).__name__] += 1
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            kind = f"{type(error).__name__} at {where.filename}:{where.lineno}"
            outcomes[kind] += 1
            if kind not in found:
                found[kind] = data
                _keep(target, kind, data, findings)
        else:
            outcomes["read"] += 1
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, before)
    per_s = sum(outcomes.values()) / (time.monotonic() - began_s)
    said = ", ".join(f"{name} {number}" for name, number in outcomes.most_common())
    sys.stdout.write(
        f"{target.name}: {sum(outcomes.values())} inputs, {per_s:.0f} a second: {said}\n"
    )
    sys.stdout.flush()
    return not found


def _too_slow(number: int, frame: FrameType | None) -> None:
    raise TooSlow(f"256 inputs took over {_SLOW_S} s of the processor")


def _keep(target: Target, kind: str, data: bytes, findings: Path) -> None:
    path = findings / f"{target.name}-{abs(hash(kind)) % 10**8:08d}"
    path.write_bytes(data)
    sys.stdout.write(f"{target.name}: {kind}\n  {path}: {data[:200].hex()}\n")
    traceback.print_exc(limit=-4, file=sys.stdout)


# --- with atheris -----------------------------------------------------------------------------


def _guided(target: Target, count: int, seed: int, limit_s: float, findings: Path) -> bool:
    """Let atheris try `count` inputs in another process: its library does not return."""
    if importlib.util.find_spec("atheris") is None:
        sys.exit("krabby_fuzz: --guided needs atheris (x86-64); run: make fuzz")
    corpus = findings / "corpus" / target.name
    corpus.mkdir(parents=True, exist_ok=True)
    seeds = target.seeds()
    for number, data in enumerate(seeds):
        (corpus / f"seed{number}").write_bytes(data)
    longest = max(256, 2 * max(map(len, seeds)))
    arguments = [
        *(f"-runs={count}", f"-seed={seed}", f"-max_total_time={round(limit_s)}"),
        *(f"-max_len={longest}", f"-timeout={_SLOW_S}", "-rss_limit_mb=1024"),
        f"-artifact_prefix={findings}/{target.name}-",
    ]
    code = f"from krabby_fuzz.guided import run; run({target.name!r})"
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments, str(corpus)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    lines = ended.stdout.splitlines()
    done = [line for line in lines if re.match(r"#\d", line)][-1:] or lines[-1:]
    if ended.returncode != 0:
        sys.stdout.write("\n".join(lines[-40:]) + "\n")
    sys.stdout.write(f"{target.name}, guided: {' '.join(done)}\n")
    sys.stdout.flush()
    return ended.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
