"""From a checkpoint to a bundle that the runtime's loader takes.

The bundle is tried before it is put in place: the file that ONNX Runtime loads must act as the
networks in torch do, on recorded observations if there are any.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import math
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
from krabby.course.mission import MAX_YAW_RATE
from krabby.policy.bundle import (
    ENCODER_FILE,
    POLICY_FILE,
    OnnxEncoder,
    OnnxPolicy,
    PolicyBundle,
    write_bundle,
)
from krabby.policy.depth_image import IMAGE_SHAPE
from krabby.robot.description import RobotDescription
from krabby.robot.errors import RobotError
from numpy.typing import NDArray
from tensordict import TensorDict
from torch import Tensor

from krabby_trainer.errors import ExportError
from krabby_trainer.evaluation.abilities import ABILITIES, measure
from krabby_trainer.learn.networks import (
    DeployedActor,
    TeacherActor,
    actor_of,
    bundle_observation,
)
from krabby_trainer.learn.student import DeployedEncoder, DepthEncoder, StudentActor, student_of
from krabby_trainer.run import checkpoints
from krabby_trainer.run.policies import image_rate_hz
from krabby_trainer.task.config import CommandCfg
from krabby_trainer.task.observations import (
    ACTION_CLIP,
    ACTION_SCALE,
    EYE,
    EYE_SIZE,
    GROUP_SIZES,
    HISTORY,
    PROPRIO_SIZE,
    SCAN_CLIP_M,
)

__all__ = ["PARITY", "export_bundle", "to_onnx"]

log = logging.getLogger(__name__)

PARITY: Final = 1e-5
"""Largest difference between an action of the bundle and of the networks in torch; where an action
is above 1, as a share of it, which is what single precision can promise."""

_OPSET: Final = 18
_ROWS: Final = 64
_GROUPS: Final = ("history", "scan")


def export_bundle(
    checkpoint: Path,
    out: Path,
    *,
    name: str,
    observations: Path | None = None,
    evaluation: Mapping[str, Any] | None = None,
) -> PolicyBundle:
    """Make a bundle of a checkpoint's actor, replacing an older one.

    Args:
        checkpoint: File that a run wrote.
        out: Folder of the bundle.
        name: What logs call the policy.
        observations: Recorded observations to compare on: an npz file with the environment's
            groups `history` (n, 690) and `scan` (n, 325). None: made up after the statistics that
            the networks were trained with.
        evaluation: How well it does, for the manifest.

    Returns:
        The bundle as it was loaded back.

    Raises:
        CheckpointError: The checkpoint cannot be read or holds no teacher.
        ExportError: The bundle cannot be written or does not act as the networks do.
    """
    payload = checkpoints.load(checkpoint)
    desc = RobotDescription.load()
    subject: _Subject
    if checkpoints.kind_of(payload) != "teacher":
        if observations is not None:
            raise ExportError(
                f"observations={observations}: a student is compared on observations made up; "
                "leave it out"
            )
        subject = _Student(*student_of(payload, str(checkpoint)))
    else:
        subject = _Teacher(actor_of(payload, str(checkpoint)), observations)
    config = payload["config"] or {}
    manifest = {
        "name": name,
        "action": {
            "scale": ACTION_SCALE,
            "offset": desc.default_joint_pos.tolist(),
            "clip": ACTION_CLIP,
        },
        "observation": subject.actor.observation.to_manifest(),
        **subject.manifest(config),
        "provenance": _provenance(payload, checkpoint, desc),
        "evaluation": dict(evaluation or {}),
    }
    try:
        files = subject.files()
        with tempfile.TemporaryDirectory() as folder:
            trial = write_bundle(Path(folder) / "trial", manifest, files, desc)
            manifest["provenance"]["parity"] = subject.compare(trial)
            manifest |= subject.measured(trial, config, desc, manifest["provenance"])
        return write_bundle(out, manifest, files, desc)
    except (RobotError, OSError) as error:
        raise ExportError(f"cannot export {checkpoint} to {out}: {error}") from error


class _Subject(Protocol):
    @property
    def actor(self) -> TeacherActor: ...

    def manifest(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Its part of the manifest, from the configuration it was trained with."""
        ...

    def files(self) -> dict[str, bytes]: ...

    def measured(
        self,
        trial: PolicyBundle,
        config: Mapping[str, Any],
        desc: RobotDescription,
        provenance: dict[str, Any],
    ) -> dict[str, Any]:
        """What the manifest says of its commands and abilities; figures go to `provenance`."""
        ...

    def compare(self, trial: PolicyBundle) -> dict[str, Any]:
        """How far the bundle is from torch; raises `ExportError` when too far."""
        ...


class _Teacher:
    def __init__(self, actor: TeacherActor, observations: Path | None) -> None:
        self.actor = actor
        self._source = "made up" if observations is None else "recorded"
        self._groups = _plausible(actor) if observations is None else _recorded(observations)

    def manifest(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return {}

    def files(self) -> dict[str, bytes]:
        return {POLICY_FILE: to_onnx(self.actor)}

    def compare(self, trial: PolicyBundle) -> dict[str, Any]:
        history, scan = self._groups["history"], self._groups["scan"]
        groups = {**self._groups, "proprio": history[:, -PROPRIO_SIZE:]}
        with torch.inference_mode():
            wanted = self.actor(TensorDict(groups, batch_size=[len(history)])).numpy()
        worst = _compare(trial, bundle_observation(history, scan).numpy(), wanted)
        return {"observations": self._source, "rows": len(scan), "largest_difference": worst}

    def measured(
        self,
        trial: PolicyBundle,
        config: Mapping[str, Any],
        desc: RobotDescription,
        provenance: dict[str, Any],
    ) -> dict[str, Any]:
        """Nothing: no game loop walks with a teacher."""
        return {}


class _Student:
    def __init__(self, actor: StudentActor, encoder: DepthEncoder) -> None:
        self.actor, self._encoder = actor, encoder

    def manifest(self, config: Mapping[str, Any]) -> dict[str, Any]:
        state = {"input": "memory", "output": "next_memory", "shape": [1, self._encoder.cfg.memory]}
        return {
            "needs_features": "latent",
            **_ages(config),
            "encoder": {
                # As trained; the camera service skips images beyond this rate.
                "rate_hz": image_rate_hz(config),
                "proprio": EYE.to_manifest(),
                "state": [state],
            },
        }

    def measured(
        self,
        trial: PolicyBundle,
        config: Mapping[str, Any],
        desc: RobotDescription,
        provenance: dict[str, Any],
    ) -> dict[str, Any]:
        command = {**asdict(CommandCfg()), **config.get("env", {}).get("command", {})}
        span = _span(command)
        found = measure(trial.path, desc, _trained(command, span))
        able = {name: found.get(name, (False, 0.0))[0] for name in ABILITIES}
        for name, (_, figure) in found.items():
            log.info("%s: %s (%.3g)", name, able[name], figure)
        provenance["abilities"] = {
            name: figure if math.isfinite(figure) else None for name, (_, figure) in found.items()
        }
        if not able["reverses"]:
            span["vx"] = [0.0, span["vx"][1]]
        if not able["side_steps"]:
            span["vy"] = [0.0, 0.0]
        return {"command": span, **able}

    def files(self) -> dict[str, bytes]:
        encoder = DeployedEncoder(self._encoder)
        example = (
            torch.zeros(1, 1, *IMAGE_SHAPE),
            torch.zeros(1, EYE_SIZE),
            torch.zeros(1, self._encoder.cfg.memory),
        )
        names = ["image", "proprio", "memory"], ["latent", "next_memory"]
        return {POLICY_FILE: to_onnx(self.actor), ENCODER_FILE: _trace(encoder, example, *names)}

    def compare(self, trial: PolicyBundle) -> dict[str, Any]:
        """Along a sequence, so that the memory is compared too."""
        generator = torch.Generator().manual_seed(0)
        deployed, eye = DeployedEncoder(self._encoder), self._encoder
        images = torch.rand(_ROWS, 1, 1, *IMAGE_SHAPE, generator=generator) - 0.5
        eyes = eye.eye_mean + eye.eye_std * torch.randn(_ROWS, 1, EYE_SIZE, generator=generator)
        memory, runs, codes, worst = torch.zeros(1, eye.cfg.memory), OnnxEncoder(trial), [], 0.0
        with torch.inference_mode():
            for image, pose in zip(images, eyes, strict=True):
                code, memory = deployed(image, pose, memory)
                found = runs.step(image[0, 0].numpy(), pose.numpy())
                worst = max(worst, _difference(found, code[0].numpy(), "encoder", len(codes)))
                codes.append(code)
            frames = _around(
                self.actor.proprio_normalizer, (_ROWS, HISTORY, PROPRIO_SIZE), generator
            )
            # Scaled, as a bundle's observation has it; up to twice the oldest where there is one.
            age = max(1.0, 20.0 * self.actor.oldest_s) * torch.rand(_ROWS, 1, generator=generator)
            rows = bundle_observation(frames.flatten(1), torch.cat((torch.cat(codes), age), dim=1))
            wanted = DeployedActor(self.actor)(rows).numpy()
        worst = max(worst, _compare(trial, rows.numpy(), wanted))
        return {"observations": "made up", "rows": _ROWS, "largest_difference": worst}


def _span(command: Mapping[str, Any]) -> dict[str, list[float]]:
    """Lowest and highest commands of training, by axis: waypoints', and those of free robots."""
    spans = {
        "vx": [0.0, command["speed_high"]],
        "vy": [0.0, 0.0],
        "yaw_rate": [-MAX_YAW_RATE, MAX_YAW_RATE],
    }
    if command["free_flat"] or command["free_share"]:
        for axis, (low, high) in spans.items():
            free = command[f"free_{axis}"]
            spans[axis] = [min(low, free[0]), max(high, free[1])]
    return spans


def _trained(command: Mapping[str, Any], span: Mapping[str, list[float]]) -> list[str]:
    """The abilities that training had commands for."""
    free = command["free_flat"] or command["free_share"]
    stops = command["pause_share"] or command["rest_s"] or (free and command["free_still"])
    asked = {
        "stands": stops,
        "reverses": span["vx"][0],
        "side_steps": any(span["vy"]),
        "turns_in_place": free,
    }
    return [name for name in ABILITIES if asked[name]]


def _ages(config: Mapping[str, Any]) -> dict[str, float]:
    """Manifest keys for ages of features; none without the no-picture token in training."""
    errors = config.get("env", {}).get("camera", {}).get("errors", {})
    oldest_s = errors.get("oldest_s", 0.0)
    if not oldest_s:
        return {}
    return {"features_age_s": oldest_s, "memory_s": max(oldest_s, errors["outage_s"][1])}


def to_onnx(actor: TeacherActor) -> bytes:
    """The deployed actor as one ONNX file: input `obs` (1, N), output `actions` (1, 18)."""
    example = torch.zeros(1, actor.observation.size)
    return _trace(DeployedActor(actor), (example,), ["obs"], ["actions"])


def _trace(
    model: torch.nn.Module, example: tuple[Tensor, ...], inputs: list[str], outputs: list[str]
) -> bytes:
    # The exporter prints, warns of what changes inside torch and logs what it rewrites.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), _quiet("onnxscript"):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            example,
            input_names=inputs,
            output_names=outputs,
            opset_version=_OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    _forget_the_machine(proto)
    return proto.SerializeToString(deterministic=True)


def _forget_the_machine(proto: Any) -> None:
    """Drop stack traces, which hold this machine's paths."""
    graph = proto.graph
    parts = (proto, graph, *graph.node, *graph.input, *graph.output, *graph.value_info)
    for part in (*parts, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


@contextlib.contextmanager
def _quiet(name: str) -> Any:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _compare(bundle: PolicyBundle, rows: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """Largest difference of the bundle's actions on observations (n, k) from those wanted."""
    policy, worst = OnnxPolicy(bundle), 0.0
    for row, obs in enumerate(rows):
        policy.step(obs[None])
        worst = max(worst, _difference(policy.last_action, wanted[row], "policy", row))
    return worst


def _difference(
    found: NDArray[np.float32], wanted: NDArray[np.float32], network: str, row: int
) -> float:
    """How far two outputs are apart, as `PARITY` has it."""
    worst = float((np.abs(found - wanted) / np.maximum(np.abs(wanted), 1.0)).max())
    if not worst <= PARITY:
        raise ExportError(
            f"on observation {row} the exported {network} acts {worst:.2g} away from the networks "
            f"in torch, {PARITY:g} is allowed; nothing was written. Export with the versions "
            "of services/trainer/uv.lock"
        )
    return worst


def _plausible(actor: TeacherActor) -> dict[str, Tensor]:
    """Observations distributed as those the networks were trained on."""
    generator = torch.Generator().manual_seed(0)
    frames = _around(actor.proprio_normalizer, (_ROWS, HISTORY, PROPRIO_SIZE), generator)
    scan = _around(actor.scan_normalizer, (_ROWS, GROUP_SIZES["scan"]), generator)
    return {"history": frames.flatten(1), "scan": scan.clamp(-SCAN_CLIP_M, SCAN_CLIP_M)}


def _around(normalizer: Any, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    noise = torch.randn(*shape, generator=generator)
    known = hasattr(normalizer, "mean")
    return normalizer.mean + normalizer.std * noise if known else noise


def _recorded(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as file:
            groups = {name: torch.from_numpy(file[name].astype(np.float32)) for name in _GROUPS}
    except (OSError, KeyError, ValueError) as error:
        raise ExportError(
            f"cannot read recorded observations {path} ({error}); give an npz file with arrays "
            f"{' and '.join(_GROUPS)}"
        ) from error
    rows = {len(group) if group.dim() else 0 for group in groups.values()}
    for name, group in groups.items():
        if group.shape[1:] != (GROUP_SIZES[name],) or rows == {0} or len(rows) != 1:
            raise ExportError(
                f"{path} has {name} of shape {tuple(group.shape)}; give as many rows of each group "
                f"as there are steps, (n, {GROUP_SIZES[name]})"
            )
        if not group.isfinite().all():
            raise ExportError(f"{path} has values in {name} that are not finite; record it again")
    return groups


def _provenance(
    payload: Mapping[str, Any], checkpoint: Path, desc: RobotDescription
) -> dict[str, Any]:
    # The keys of `run` hold this machine's paths and say nothing about the policy.
    config = {key: value for key, value in (payload["config"] or {}).items() if key != "run"}
    return {
        "generator": "python -m krabby_trainer export",
        "checkpoint_sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "robot_hash": desc.content_hash,
        "iteration": payload["iteration"],
        "env_steps": payload["env_steps"],
        "wall_s": payload["wall_s"],
        "config": config,
        "training": payload["provenance"] or {},
    }
