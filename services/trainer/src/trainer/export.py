"""From a checkpoint to a bundle that the runtime's loader takes.

The bundle is tried before it is put in place: the file that ONNX Runtime loads must act as the
networks in torch do, on recorded observations if there are any.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from krabby_robot.description import RobotDescription
from krabby_robot.errors import RobotError
from krabby_robot.policy import POLICY_FILE, OnnxPolicy, PolicyBundle, write_bundle
from tensordict import TensorDict

from trainer import checkpoints
from trainer.errors import ExportError
from trainer.networks import (
    BUNDLE_OBSERVATION,
    GROUP_SIZES,
    DeployedTeacher,
    TeacherActor,
    actor_of,
    bundle_observation,
)
from trainer.observations import (
    ACTION_CLIP,
    ACTION_SCALE,
    HISTORY,
    PROPRIO_SIZE,
    SCAN_CLIP_M,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

__all__ = ["PARITY", "export_bundle", "to_onnx"]

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
    actor = actor_of(payload, str(checkpoint))
    desc = RobotDescription.load()
    groups = _plausible(actor) if observations is None else _recorded(observations)
    files = {POLICY_FILE: to_onnx(actor)}
    manifest = {
        "name": name,
        "observation": BUNDLE_OBSERVATION.to_manifest(),
        "action": {
            "scale": ACTION_SCALE,
            "offset": desc.default_joint_pos.tolist(),
            "clip": ACTION_CLIP,
        },
        "provenance": _provenance(payload, checkpoint, desc),
        "evaluation": dict(evaluation or {}),
    }
    try:
        with tempfile.TemporaryDirectory() as folder:
            trial = write_bundle(Path(folder) / "trial", manifest, files, desc)
            manifest["provenance"]["parity"] = {
                "observations": "made up" if observations is None else "recorded",
                "rows": len(groups["scan"]),
                "largest_difference": _compare(actor, trial, groups),
            }
        return write_bundle(out, manifest, files, desc)
    except (RobotError, OSError) as error:
        raise ExportError(f"cannot export {checkpoint} to {out}: {error}") from error


def to_onnx(actor: TeacherActor) -> bytes:
    """The deployed actor as one ONNX file: input `obs` (1, 1015), output `actions` (1, 18)."""
    model = DeployedTeacher(actor)
    example = (torch.zeros(1, BUNDLE_OBSERVATION.size),)
    # The exporter prints, warns of what changes inside torch and logs what it rewrites.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), _quiet("onnxscript"):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            example,
            input_names=["obs"],
            output_names=["actions"],
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
    """Drop stack traces: they tell of this machine's folders, and nobody reads them."""
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


def _compare(actor: TeacherActor, bundle: PolicyBundle, groups: Mapping[str, Tensor]) -> float:
    """Largest difference between the bundle's actions and the actor's, as `PARITY` has it."""
    history = groups["history"]
    seen = TensorDict({**groups, "proprio": history[:, -PROPRIO_SIZE:]}, batch_size=[len(history)])
    with torch.inference_mode():
        wanted = actor(seen).numpy()
    policy, worst = OnnxPolicy(bundle), 0.0
    for row, obs in enumerate(bundle_observation(groups["history"], groups["scan"]).numpy()):
        policy.step(obs[None])
        difference = np.abs(policy.last_action - wanted[row])
        worst = max(worst, float((difference / np.maximum(np.abs(wanted[row]), 1.0)).max()))
        if not worst <= PARITY:
            raise ExportError(
                f"on observation {row} the exported policy acts {worst:.2g} away from the networks "
                f"in torch, {PARITY:g} is allowed; nothing was written. Export with the versions "
                "of requirements.lock"
            )
    return worst


def _plausible(actor: TeacherActor) -> dict[str, Tensor]:
    """Observations spread as those the networks were trained on."""
    generator = torch.Generator().manual_seed(0)

    def around(normalizer: Any, shape: Sequence[int]) -> Tensor:
        noise = torch.randn(*shape, generator=generator)
        known = hasattr(normalizer, "mean")
        return normalizer.mean + normalizer.std * noise if known else noise

    frames = around(actor.proprio_normalizer, (_ROWS, HISTORY, PROPRIO_SIZE))
    scan = around(actor.scan_normalizer, (_ROWS, GROUP_SIZES["scan"]))
    return {"history": frames.flatten(1), "scan": scan.clamp(-SCAN_CLIP_M, SCAN_CLIP_M)}


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
    # Where a run was kept says nothing about the policy, and much about the machine.
    config = {key: value for key, value in (payload["config"] or {}).items() if key != "run"}
    return {
        "generator": "trainer export",
        "checkpoint_sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "robot_hash": desc.content_hash,
        "iteration": payload["iteration"],
        "env_steps": payload["env_steps"],
        "wall_s": payload["wall_s"],
        "config": config,
        "training": payload["provenance"] or {},
    }
