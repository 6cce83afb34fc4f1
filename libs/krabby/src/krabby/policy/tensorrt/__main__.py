"""Build engines ahead of the first start, look at the cache, tidy it up.

    python -m krabby.policy.tensorrt probe
    python -m krabby.policy.tensorrt build gait my-student
    python -m krabby.policy.tensorrt list
    python -m krabby.policy.tensorrt prune

Keys of the table `inference` go before the command: `... cache_dir=/engines list`. Give the
service's own: an engine is found by the options it was built with. Run it where TensorRT is,
`docker compose run --rm --entrypoint python camera -m krabby.policy.tensorrt ...`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import signal
import sys
import time
from collections.abc import Callable, Generator, Sequence
from types import FrameType

from krabby.config import ConfigError, describe, load
from krabby.course.timing import CONTROL_HZ
from krabby.policy.bundle import PolicyBundle, bundle_dir, encoder_network, policy_network
from krabby.policy.network import NetworkSpec
from krabby.policy.tensorrt.backend import EngineBackend, engine_platform
from krabby.policy.tensorrt.cache import EngineCache, EngineRecord
from krabby.policy.tensorrt.config import InferenceCfg
from krabby.policy.tensorrt.engines import name_of
from krabby.policy.tensorrt.errors import InferenceError, Interrupted
from krabby.policy.tensorrt.subprocesses import Platform, probe
from krabby.robot.description import RobotDescription
from krabby.robot.errors import RobotError
from krabby.runtime.logging import configure_logging

__all__ = ["main"]

_PROGRAM = "python -m krabby.policy.tensorrt"


def main(argv: Sequence[str] | None = None, *, platform: Platform | None = None) -> int:
    """The command; returns the exit status: 0, 1 for a failure, 2 for what cannot be done."""
    options, overrides = _split(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(options)
    configure_logging("engines", "", level="warning", fmt="console")
    try:
        cfg = load(InferenceCfg, None, overrides)
        with _interruptible() as watch:
            return args.handler(args, cfg, platform or engine_platform(cfg), watch)
    except (ConfigError, RobotError) as error:
        sys.stderr.write(f"{_PROGRAM}: {error}\n")
        return 1 if isinstance(error, InferenceError) else 2


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Options and command; `key=value`."""
    overrides = [each for each in argv if "=" in each and not each.startswith("-")]
    return [each for each in argv if each not in overrides], overrides


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_PROGRAM,
        usage=f"{_PROGRAM} [key=value ...] COMMAND [ARGUMENT ...]",
        description="TensorRT engines: build them ahead of the first start, look, tidy up.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="keys:\n" + describe(InferenceCfg).replace("%", "%%"),
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    ask = commands.add_parser("probe", help="say which GPU and TensorRT there are")
    ask.set_defaults(handler=_probe)
    build = commands.add_parser("build", help="build and test the engines of policies")
    build.add_argument("policies", nargs="+", metavar="POLICY", help="bundle: a name or a folder")
    build.add_argument("--rate-hz", type=float, default=CONTROL_HZ, help="default %(default)s")
    build.set_defaults(handler=_build)
    show = commands.add_parser("list", help="show what is in the cache")
    show.set_defaults(handler=_list)
    prune = commands.add_parser(
        "prune", help="delete engines that this machine cannot use any more, or has not for long"
    )
    prune.add_argument("--all", action="store_true", help="delete every engine")
    prune.set_defaults(handler=_prune)
    return parser


def _probe(args: argparse.Namespace, cfg: InferenceCfg, platform: Platform, watch: _Watch) -> int:
    device, version = probe(platform, watch)
    shared = " shared with the processor" if device.integrated else ""
    _say(f"{device.name}, compute capability {device.compute_capability}")
    _say(f"{device.memory_bytes / 2**30:.1f} GiB of memory{shared}")
    _say(f"CUDA {device.driver_version} (driver), {device.runtime_version} (runtime)")
    _say(f"TensorRT {version}")
    return 0


def _build(args: argparse.Namespace, cfg: InferenceCfg, platform: Platform, watch: _Watch) -> int:
    backend = EngineBackend(cfg, watch, platform)
    desc = RobotDescription.load()
    failed = False
    for policy in args.policies:
        bundle = PolicyBundle.load(bundle_dir(policy), desc, control_rate_hz=args.rate_hz)
        for spec in _networks(bundle):
            began_s = time.monotonic()
            verdict = backend.test(spec)
            failed |= bool(verdict.problem)
            watch.doing("")
            _say(f"{name_of(spec.source)}: {verdict.text} ({time.monotonic() - began_s:.1f} s)")
    return int(failed)


def _networks(bundle: PolicyBundle) -> list[NetworkSpec]:
    encoder = [] if bundle.encoder is None else [encoder_network(bundle)]
    return [policy_network(bundle), *encoder]


def _list(args: argparse.Namespace, cfg: InferenceCfg, platform: Platform, watch: _Watch) -> int:
    cache = EngineCache(cfg.cache_path)
    records = cache.records()
    for record in records:
        recipe = record.recipe
        where = f"{recipe.device}, TensorRT {recipe.toolkit_version}, {_options(record)}"
        _say(f"{record.key[:12]}  {record.source}  {record.plan_bytes / 1e6:.1f} MB  {where}")
        _say(f"              {record.verdict or 'not tested'}")
        unused = f"unused for {record.unseen_starts} starts"
        _say(f"              built in {record.build_s:.1f} s, {unused}")
    total = sum(record.plan_bytes for record in records) / 1e6
    _say(f"{len(records)} engines, {total:.1f} MB in {cache.folder}")
    return 0


def _options(record: EngineRecord) -> str:
    options = record.recipe.options
    tf32 = ", TF32" if options.tf32 else ""
    return f"level {options.optimization_level}, {options.workspace_mib} MiB{tf32}"


def _prune(args: argparse.Namespace, cfg: InferenceCfg, platform: Platform, watch: _Watch) -> int:
    cache = EngineCache(cfg.cache_path)
    engines, freed = cache.prune(_stale(args.all, cfg, platform, watch))
    _say(f"{engines} engines deleted, {freed / 1e6:.1f} MB freed in {cache.folder}")
    return 0


def _stale(
    everything: bool, cfg: InferenceCfg, platform: Platform, watch: _Watch
) -> Callable[[EngineRecord], bool]:
    if everything:
        return lambda record: True
    device, version = probe(platform, watch)
    return lambda record: (
        record.unseen_starts > cfg.keep_starts
        or record.recipe.device != device.name
        or record.recipe.toolkit_version != version
    )


@dataclasses.dataclass
class _Watch:
    """Progress on stderr, where a person is; Ctrl-C stops."""

    stopping: bool = False

    def beat(self) -> None:
        """Nothing: no health check watches a command."""

    def doing(self, what: str) -> None:
        """One line, overwritten by the next."""
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\033[K{what}")
            sys.stderr.flush()


@contextlib.contextmanager
def _interruptible() -> Generator[_Watch]:
    watch = _Watch()

    def stop(number: int, frame: FrameType | None) -> None:
        watch.stopping = True

    before = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield watch
    except Interrupted:
        raise InferenceError("interrupted; nothing was left half-built") from None
    finally:
        watch.doing("")
        for each, handler in before.items():
            signal.signal(each, handler)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
