"""How good is a checkpoint? The paper's metrics and more, in Isaac Lab and in MuJoCo.

`evaluate` runs a suite and writes its report; nothing heavy is imported before it is called.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from typing import TYPE_CHECKING, Any, Literal

from krabby_trainer.errors import EvaluationError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from krabby_trainer.learn.policies import Policy

__all__ = ["Backend", "evaluate"]

Backend = Literal["isaac", "mujoco"]


def evaluate(
    *,
    checkpoint: Path,
    suite: str,
    backend: Backend,
    robots: int = 0,
    seconds: float = 0.0,
    seed: int = 1,
    conditions: str = "nominal",
    device: str = "cpu",
    out: Path,
    processes: int = 0,
) -> dict[str, Any]:
    """Let a checkpoint walk the courses of a suite and write what came of it to `out`.

    Writes report.json, report.md and plots; in MuJoCo pictures too. When the same checkpoint was
    evaluated on the same courses in the other backend, next door in `<suite>-<backend>`, the
    comparison sim2sim.json, .md and .png is written as well.

    Args:
        checkpoint: what `python -m krabby_trainer train` wrote; in MuJoCo also the folder of a
            policy bundle.
        suite: a name in `krabby_trainer.evaluation.suite.SUITES`.
        backend: isaac for Isaac Lab, mujoco for the physics of the runtime's simulation.
        robots: how many; 0 for the suite's own number.
        seconds: simulated time for each of them; 0 for the suite's own.
        seed: of courses, speeds, pushes, friction and starts.
        conditions: a name in `krabby_trainer.evaluation.conditions.CONDITIONS`.
        device: of the policy, and of Isaac Lab.
        out: folder.
        processes: that share MuJoCo's physics; 0 for all cores.

    Returns:
        What report.json says.

    Raises:
        TrainerError: an unknown suite, a damaged checkpoint, a missing package.
    """
    from krabby_trainer.evaluation.conditions import find_condition
    from krabby_trainer.evaluation.suite import find_suite

    harder = find_condition(conditions)
    chosen = find_suite(suite)
    cfg = chosen.env_cfg(robots=robots or chosen.robots, seed=seed)
    seconds = seconds or chosen.seconds
    if seconds <= 0.0:
        raise EvaluationError(
            f"seconds = {seconds}; give a positive time, or 0 for the suite's own"
        )

    from krabby_trainer.evaluation.pictures import write_pictures
    from krabby_trainer.evaluation.report import results, write_comparison, write_report
    from krabby_trainer.evaluation.suite import assign
    from krabby_trainer.task.terrain import Terrain

    policy, about = _subject(checkpoint, backend, device)
    cfg.camera.enabled = policy.sees
    harder.change(cfg)
    if policy.sees:  # as the camera service: what comes faster than it looks is skipped
        rates = cfg.camera.errors.rate_hz
        cfg.camera.errors.rate_hz = [min(rate, policy.rate_hz) for rate in rates]
    if backend == "mujoco":
        from krabby_trainer.evaluation.mujoco import evaluate_mujoco

        outcome = evaluate_mujoco(
            policy, cfg, seconds=seconds, seed=seed, device=device, processes=processes
        )
    else:
        from krabby_trainer.evaluation.isaac import evaluate_isaac

        outcome = evaluate_isaac(policy, cfg, seconds=seconds, seed=seed, device=device)

    _, courses = assign(Terrain(cfg.terrain), cfg.num_envs)
    about |= {
        "seed": seed,
        "sees": policy.sees,
        "conditions": harder.name,
        "conditions_are": harder.summary,
    }
    report = results(outcome, courses, suite=chosen, backend=backend, about=about)
    if outcome.poses is not None:
        report["pictures"] = "pictures.webp"
        out.mkdir(parents=True, exist_ok=True)
        write_pictures(outcome.run, outcome.poses, courses, out / report["pictures"])
    write_report(report, out)
    other = _other_report(out, suite, backend) if harder.name == "nominal" else None
    if other is not None:
        write_comparison(report, other, out)
    return report


def _subject(path: Path, backend: Backend, device: str) -> tuple[Policy, dict[str, Any]]:
    """What is evaluated, and what the report says about it."""
    from krabby.policy.bundle import MANIFEST_FILE, POLICY_FILE

    about: dict[str, Any] = {
        "format": 1,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "checkpoint": path.name,
    }
    if (path / MANIFEST_FILE).is_file():
        if backend != "mujoco":
            raise EvaluationError(
                f"{path} is a policy bundle, which runs robot by robot as on the robot; evaluate "
                "it with backend=mujoco, or the checkpoint it came from with backend=isaac"
            )
        from krabby_trainer.evaluation.bundle import BundlePolicy

        policy = BundlePolicy(path)
        bundle = policy.bundle
        return policy, about | {
            "checkpoint_sha256": bundle.hashes[POLICY_FILE],
            "provenance": dict(bundle.provenance),
        }
    from krabby_trainer.learn.policies import load_policy
    from krabby_trainer.run import checkpoints

    policy = load_policy(path, device)
    payload = checkpoints.load(path, "cpu")
    return policy, about | {
        "checkpoint_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "iteration": payload.get("iteration"),
        "env_steps": payload.get("env_steps"),
        "provenance": payload.get("provenance"),
    }


def _other_report(out: Path, suite: str, backend: Backend) -> Mapping[str, Any] | None:
    """Report of the same suite in the other backend, if there is one."""
    other = "isaac" if backend == "mujoco" else "mujoco"
    try:
        return json.loads((out.parent / f"{suite}-{other}" / "report.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
