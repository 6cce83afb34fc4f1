"""How good is a checkpoint? The paper's metrics and more, in Isaac Lab and in MuJoCo.

`evaluate` runs a suite and writes its report; nothing heavy is imported before it is called.
"""

from __future__ import annotations

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
    policy: Policy,
    about: Mapping[str, Any],
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
    """Let a policy walk the courses of a suite and write what came of it to `out`.

    Writes report.json, report.md and plots; in MuJoCo pictures too. When the same checkpoint was
    evaluated on the same courses in the other backend, next door in `<suite>-<backend>`, the
    comparison sim2sim.json, .md and .png is written as well.

    Args:
        policy: what walks; `krabby_trainer.run.policies.load_subject` loads it from a file.
        about: what the report says of it.
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
        TrainerError: an unknown suite, a missing package.
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
    about = dict(about) | {
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


def _other_report(out: Path, suite: str, backend: Backend) -> Mapping[str, Any] | None:
    """Report of the same suite in the other backend, if there is one."""
    other = "isaac" if backend == "mujoco" else "mujoco"
    try:
        return json.loads((out.parent / f"{suite}-{other}" / "report.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
