"""Policies from files: a checkpoint's networks or a bundle, ready to act."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from krabby.policy.bundle import MANIFEST_FILE, POLICY_FILE
from krabby.robot.assets import robot_name
from krabby.robot.description import RobotDescription

from krabby_trainer.errors import EvaluationError
from krabby_trainer.evaluation import Backend
from krabby_trainer.learn.networks import actor_of
from krabby_trainer.learn.policies import Policy, StudentPolicy, TeacherPolicy
from krabby_trainer.learn.student import student_of
from krabby_trainer.run import checkpoints

__all__ = ["image_rate_hz", "load_policy", "load_subject"]


def load_policy(checkpoint: Path, device: str = "cpu") -> Policy:
    """What a checkpoint holds, ready to act.

    Raises:
        CheckpointError: The file cannot be read, or it holds no actor.
    """
    return _policy(checkpoints.load(checkpoint, device), str(checkpoint), device)


def _policy(payload: Mapping[str, Any], source: str, device: str) -> Policy:
    if checkpoints.kind_of(payload) == "teacher":
        return TeacherPolicy(actor_of(payload, source).to(device))
    actor, encoder = student_of(payload, source)
    return StudentPolicy(actor, encoder, device, rate_hz=image_rate_hz(payload["config"] or {}))


def image_rate_hz(config: Mapping[str, Any]) -> float:
    """Image rate of a student trained with `config`: the highest that it has learned [Hz]."""
    camera = RobotDescription.load().camera
    errors = config.get("env", {}).get("camera", {}).get("errors", {})
    return min(camera.rate_hz, max(errors.get("rate_hz", [camera.rate_hz])))


def load_subject(path: Path, backend: Backend, device: str) -> tuple[Policy, dict[str, Any]]:
    """The policy to evaluate, and what the report says about it.

    Args:
        path: A checkpoint; in MuJoCo also the folder of a policy bundle.
        backend: Where it is evaluated.
        device: Of the networks.

    Raises:
        CheckpointError: As `load_policy`.
        EvaluationError: A bundle in Isaac Lab, or one that reads other observations.
    """
    about: dict[str, Any] = {
        "format": 1,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "checkpoint": path.name,
        "robot_name": robot_name(),
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
    payload = checkpoints.load(path, device)
    return _policy(payload, str(path), device), about | {
        "kind": checkpoints.kind_of(payload),
        "checkpoint_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "iteration": payload.get("iteration"),
        "env_steps": payload.get("env_steps"),
        "provenance": payload.get("provenance"),
    }
