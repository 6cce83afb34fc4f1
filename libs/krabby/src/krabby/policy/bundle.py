"""Policy bundles: a folder with networks and a manifest that says exactly what they expect.

`assets/policies/README.md` describes every key of `manifest.json`. A bundle either fits this robot,
number for number, or is refused with the first difference named: a policy that is fed its joints in
another order walks off a table without any error.

    bundle = PolicyBundle.load(bundle_dir("gait"), desc)
    policy = OnnxPolicy(bundle)
    builder = ObservationBuilder(bundle.observation, desc)
    ...
    joint_pos_target = policy.step(builder.build(inputs))

Exporters call `write_bundle`. Needs the extra `policy`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import stat
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from krabby.course.timing import CONTROL_HZ
from krabby.policy import _exchange
from krabby.policy._manifest import (
    ENCODER_FILE,
    FORMAT,
    LATENT_SIZE,
    MANIFEST_FILE,
    POLICY_FILE,
    SAMPLE_FILES,
    STATISTICS_FILE,
    Features,
    Kind,
    Manifest,
    StateEntry,
    check_fit,
    layout_of,
    parse_manifest,
    robot_manifest,
)
from krabby.policy.depth_image import IMAGE_SHAPE
from krabby.policy.network import Backend, Network, NetworkSpec, StateTensor
from krabby.policy.observation import ObservationLayout
from krabby.policy.onnx_runtime import OnnxRuntime
from krabby.robot.assets import assets_dir, robot_dir
from krabby.robot.description import RobotDescription
from krabby.robot.errors import (
    BundleError,
    BundleMismatch,
    MissingRuntime,
    PolicyOutputError,
)

MAX_MANIFEST_BYTES = 1 << 20
"""Largest manifest that is read; the shipped ones have 5 kB."""
MAX_FILE_BYTES = 256 << 20
"""Largest network or recording that is read."""
_FORGET_AFTER_S = 1.0
_EXPORT = ".venv-train/bin/python -m krabby_trainer export checkpoint={} name=NAME"
_MADE_BY = {".pt": _EXPORT, ".pth": _EXPORT, ".onnx": "krabby import-policy {} --out NAME"}
"""How a bundle is made of a file, by its suffix."""
_BUNDLE_FILES = {MANIFEST_FILE, *SAMPLE_FILES, *SAMPLE_FILES.values(), STATISTICS_FILE}

__all__ = [
    "ENCODER_FILE",
    "FORMAT",
    "LATENT_SIZE",
    "MANIFEST_FILE",
    "POLICY_FILE",
    "SAMPLE_FILES",
    "Abilities",
    "MissingRuntime",
    "OnnxEncoder",
    "OnnxPolicy",
    "PolicyBundle",
    "PolicyOutputError",
    "StateTensor",
    "bundle_dir",
    "encoder_network",
    "policy_network",
    "robot_manifest",
    "write_bundle",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class ActionSpec:
    """joint_pos_target = offset + scale * clip(action, -clip, clip)."""

    scale: NDArray[np.float64]
    """[rad], shape (18,)."""
    offset: NDArray[np.float64]
    """[rad], shape (18,)."""
    clip: float
    """Largest magnitude of an action that is let through."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EncoderSpec:
    """What `depth_encoder.onnx` expects."""

    rate_hz: float
    """Images per second it was trained on."""
    proprio: ObservationLayout | None
    """Its second input, or None when it sees the image alone."""
    state: tuple[StateTensor, ...]
    forget_after_s: float
    """Images further apart than this show another place: its memory is cleared between them."""


@dataclass(frozen=True, kw_only=True)
class Abilities:
    """What a policy was measured to do on flat ground; None where the manifest does not say."""

    stands: bool
    """Holds the stance on a zero command; if not, the blind policy stands in its place."""
    reverses: bool | None
    side_steps: bool | None
    turns_in_place: bool | None


@dataclass(frozen=True, kw_only=True, eq=False)
class PolicyBundle:
    """A bundle that fits the robot. Its files are in memory, exactly as they were hashed."""

    path: Path
    name: str
    kind: Kind
    robot: str
    """Name of the robot it was made for: this one, or one of the same joints and lengths."""
    mass_kg: float | None
    """What that robot weighs; None where the manifest does not say."""
    joint_names: tuple[str, ...]
    """(18,) as the robot's."""
    control_rate_hz: float
    observation: ObservationLayout
    action: ActionSpec
    needs_features: Features
    """What the observation term "features" is: nothing, the depth image or the latent."""
    command_range: NDArray[np.float64] | None
    """Lowest and highest vx, vy [m/s], yaw_rate [rad/s] it follows, shape (2, 3); None: any."""
    abilities: Abilities
    features_age_s: float
    """Oldest features that it acts on [s]; older ones are no picture."""
    memory_s: float | None
    """Up to this age of the last picture [s] it walks on without one, told so by the no-picture
    token; None: it was not trained for that, and the blind policy walks in its place."""
    state: tuple[StateTensor, ...]
    """Recurrent state of `policy.onnx`."""
    encoder: EncoderSpec | None
    files: Mapping[str, bytes]
    """Contents by file name."""
    hashes: Mapping[str, str]
    """SHA-256 by file name, hex."""
    manifest_hash: str
    """SHA-256 of the manifest, hex."""
    provenance: Mapping[str, Any]
    """Where it comes from; free form."""
    evaluation: Mapping[str, Any]
    """How well it does; free form."""

    @classmethod
    def load(
        cls, path: str | Path, desc: RobotDescription, *, control_rate_hz: float = CONTROL_HZ
    ) -> PolicyBundle:
        """Reads and checks a bundle.

        Args:
            path: Its folder.
            desc: The robot it must fit.
            control_rate_hz: The loop rate it must have been made for.

        Raises:
            BundleMismatch: It was made for another robot or rate; names the first difference.
            BundleError: A file is missing, damaged or malformed.
        """
        path = Path(path)
        source = str(path / MANIFEST_FILE)
        content = _read(path / MANIFEST_FILE, MAX_MANIFEST_BYTES)
        manifest = parse_manifest(content, source)
        check_fit(manifest, desc, control_rate_hz, source)
        return cls(
            path=path,
            name=manifest.name,
            kind=manifest.kind,
            robot=manifest.robot,
            mass_kg=manifest.mass_kg,
            joint_names=manifest.joint_names,
            control_rate_hz=manifest.control_rate_hz,
            observation=layout_of(manifest.observation, source),
            action=_action_spec(manifest),
            needs_features=manifest.needs_features,
            command_range=_command_range(manifest),
            abilities=Abilities(
                stands=manifest.stands,
                reverses=manifest.reverses,
                side_steps=manifest.side_steps,
                turns_in_place=manifest.turns_in_place,
            ),
            features_age_s=manifest.features_age_s,
            memory_s=manifest.memory_s,
            state=tuple(map(_state_tensor, manifest.state)),
            encoder=_encoder_spec(manifest, source),
            files={name: _read_file(path / name, want) for name, want in manifest.files.items()},
            hashes=manifest.files,
            manifest_hash=_digest(content),
            provenance=manifest.provenance,
            evaluation=manifest.evaluation,
        )


def bundle_dir(name_or_path: str | Path) -> Path:
    """Folder of a bundle: a path if it has a separator in it, else a name.

    Names are looked up in `policies` of the robot's own folder, then in `assets/policies`.

    Raises:
        BundleError: There is none of that name, or it is a checkpoint or a network alone; the
            message has the command that makes a bundle of it.
    """
    path = Path(name_or_path)
    command = _MADE_BY.get(path.suffix.lower())
    if command is not None and not path.is_dir():
        raise BundleError(
            f"policy {str(path)!r} is a file, a bundle is a folder; make one: "
            + command.format(path)
        )
    if path.is_absolute() or os.sep in str(name_or_path):
        return path
    shelves = [robot_dir() / "policies", assets_dir() / "policies"]
    with contextlib.suppress(OSError):  # a name that is too long
        for policies in shelves:
            if (policies / path / MANIFEST_FILE).is_file():
                return policies / path
    known = sorted({m.parent.name for shelf in shelves for m in shelf.glob(f"*/{MANIFEST_FILE}")})
    raise BundleError(
        f"no policy {str(path)!r} in {shelves[-1]}; there is: {', '.join(known) or 'none'}. Give "
        "one of these names, or a path with a slash in it"
    )


def write_bundle(
    path: str | Path,
    manifest: Mapping[str, Any],
    files: Mapping[str, bytes],
    desc: RobotDescription,
) -> PolicyBundle:
    """Writes a bundle folder, replacing an older bundle, and loads it.

    What else lies in the folder, notes or the training it came from, stays.

    The new folder is written beside its place, checked as the gameloop would check it and then
    exchanged with the old one: whenever the writer is interrupted or killed, the old bundle or the
    new one is there. Two writers take turns.

    Args:
        path: The bundle's folder.
        manifest: Keys as in `assets/policies/README.md`, values that JSON has. "format", "files"
            and what `robot_manifest` gives are filled in, and so are `"kind": "policy"` and
            `"needs_features": "none"`.
        files: Contents by name, `policy.onnx` among them.
        desc: The robot the bundle is for.
    """
    path = Path(path)
    if path.exists() and not (path / MANIFEST_FILE).is_file():
        raise BundleError(f"{path} exists and is not a policy bundle; give another folder")
    defaults = {"kind": "policy", "needs_features": "none"}
    hashes = {name: _digest(content) for name, content in sorted(files.items())}
    complete = {"format": FORMAT, **robot_manifest(desc), **defaults, **manifest, "files": hashes}
    try:
        text = json.dumps(complete, indent=2, allow_nan=False)  # numbers read back equal
    except (TypeError, ValueError) as error:
        raise BundleError(f"the manifest of {path} cannot be written: {error}") from error
    with _exchange.staging(path) as folder:
        fresh = folder / "new"
        fresh.mkdir()
        for name, content in {**files, MANIFEST_FILE: f"{text}\n".encode()}.items():
            _write_durably(fresh / name, content)
        PolicyBundle.load(fresh, desc, control_rate_hz=complete["control_rate_hz"])
        if path.exists():
            _exchange.carry_over(path, fresh, without=_BUNDLE_FILES)
        _exchange.put(fresh, path)
    return PolicyBundle.load(path, desc, control_rate_hz=complete["control_rate_hz"])


def policy_network(bundle: PolicyBundle) -> NetworkSpec:
    """What a backend has to run for the bundle's `policy.onnx`.

    Its inputs are `obs` (1, N) and the states, its outputs `actions` (1, 18) and the states, all
    float32.
    """
    inputs = {"obs": (1, bundle.observation.size)}
    output = ("actions", (1, len(bundle.joint_names)))
    return _network_spec(bundle, POLICY_FILE, inputs, output, bundle.state)


def encoder_network(bundle: PolicyBundle) -> NetworkSpec:
    """What a backend has to run for the bundle's `depth_encoder.onnx`.

    Its inputs are `image` (1, 1, 58, 87), `proprio` (1, P) if the manifest has it, and the states,
    its outputs `latent` (1, 32) and the states, all float32.

    Raises:
        BundleError: The bundle has no encoder.
    """
    if bundle.encoder is None:
        raise BundleError(
            f"policy {bundle.name!r} has no {ENCODER_FILE}: it needs features "
            f"{bundle.needs_features!r}; publish those, or name a policy with an encoder"
        )
    inputs: dict[str, tuple[int, ...]] = {"image": (1, 1, *IMAGE_SHAPE)}
    if bundle.encoder.proprio is not None:
        inputs["proprio"] = (1, bundle.encoder.proprio.size)
    output = ("latent", (1, LATENT_SIZE))
    return _network_spec(bundle, ENCODER_FILE, inputs, output, bundle.encoder.state)


class _Runner:
    """A network of a bundle in the calling thread, with buffers bound once."""

    def __init__(self, bundle: PolicyBundle, spec: NetworkSpec, backend: Backend | None) -> None:
        self.bundle = bundle
        self.network: Network = (backend or OnnxRuntime()).open(spec)
        """The network as opened by the back end in use."""

    def use(self, backend: Backend) -> None:
        """Change to another back end, with a fresh state; no change when that fails."""
        before, self.network = self.network, backend.open(self.network.spec)
        before.close()
        self.reset()

    def reset(self) -> None:
        """Put the recurrent state back to its start."""
        self.network.reset()


class OnnxPolicy(_Runner):
    """Runs a bundle's `policy.onnx`; by default on ONNX Runtime."""

    def __init__(self, bundle: PolicyBundle, backend: Backend | None = None) -> None:
        super().__init__(bundle, policy_network(bundle), backend)
        self.last_action: NDArray[np.float32] = np.zeros(len(bundle.joint_names), dtype=np.float32)
        """Network output of the newest step, before clip and scale, shape (18,); zero after a
        reset. A step replaces the array, it does not write to it."""

    def reset(self) -> None:
        """Put the recurrent state and `last_action` back to their start."""
        super().reset()
        self.last_action = np.zeros_like(self.last_action)

    def step(self, obs: NDArray[np.float32]) -> NDArray[np.float64]:
        """One control step.

        Args:
            obs: Observation as `ObservationBuilder` gives it, shape (1, N).

        Returns:
            Joint position targets [rad], shape (18,), not limited: that is the gate's part.

        Raises:
            PolicyOutputError: An output is not finite. The policy was reset.
        """
        self.network.set_input("obs", obs)
        try:
            action = self.network.run()[0]
        except PolicyOutputError:
            self.reset()
            raise
        finite = np.isfinite(action)
        if not finite.all():
            joint = int(np.argmin(finite))
            self.reset()
            raise PolicyOutputError(
                f"policy {self.bundle.name!r} gave {action[joint]} for "
                f"{self.bundle.joint_names[joint]}; it was reset. Fall back to another policy"
            )
        self.last_action = action.copy()
        spec = self.bundle.action
        target = np.minimum(np.maximum(action, -spec.clip), spec.clip)
        return spec.offset + spec.scale * target


class OnnxEncoder(_Runner):
    """Runs a bundle's `depth_encoder.onnx`; by default on ONNX Runtime."""

    def __init__(self, bundle: PolicyBundle, backend: Backend | None = None) -> None:
        super().__init__(bundle, encoder_network(bundle), backend)
        assert bundle.encoder is not None, "encoder_network has refused it"
        self.spec = bundle.encoder

    def step(
        self, image: NDArray[np.float32], proprio: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Encodes one image.

        Args:
            image: Policy image as `DepthPreprocessor` gives it, shape (58, 87).
            proprio: Observation of `spec.proprio`, shape (1, P); None when the encoder has none.

        Returns:
            Latent, shape (32,), float32, the caller's own.

        Raises:
            PolicyOutputError: An output is not finite. The encoder was reset.
        """
        self.network.set_input("image", image[None, None])
        if self.spec.proprio is not None:
            self.network.set_input("proprio", proprio)
        latent = self.network.run()[0]
        if not np.isfinite(latent).all():
            self.reset()
            raise PolicyOutputError(
                f"the depth encoder of {self.bundle.name!r} gave a latent that is not finite; it "
                "was reset. Drop this image"
            )
        return latent.copy()


def _network_spec(
    bundle: PolicyBundle,
    file: str,
    inputs: Mapping[str, tuple[int, ...]],
    output: tuple[str, tuple[int, ...]],
    state: tuple[StateTensor, ...],
) -> NetworkSpec:
    return NetworkSpec(
        content=bundle.files[file],
        source=str(bundle.path / file),
        inputs=inputs,
        output=output,
        state=state,
        samples=_samples(bundle, SAMPLE_FILES[file], inputs),
    )


def _samples(
    bundle: PolicyBundle, file: str, inputs: Mapping[str, tuple[int, ...]]
) -> dict[str, NDArray[np.float32]]:
    """Recorded inputs, if the bundle carries them."""
    if file not in bundle.files:
        return {}
    source = bundle.path / file
    try:
        with zipfile.ZipFile(io.BytesIO(bundle.files[file])) as packed:
            size = sum(part.file_size for part in packed.infolist())
        if size > MAX_FILE_BYTES:
            raise ValueError(f"it unpacks to {size} bytes, at most {MAX_FILE_BYTES} are read")
        with np.load(io.BytesIO(bundle.files[file]), allow_pickle=False) as arrays:
            samples = {name: arrays[name] for name in arrays.files}
    except Exception as error:  # of zipfile, zlib and NumPy, a dozen kinds for a damaged file
        raise BundleError(f"{source} is not an .npz file: {error}; export it again") from error
    steps = {array.shape[:1] for array in samples.values()}
    found = {name: (array.dtype.name, array.shape[1:]) for name, array in samples.items()}
    wanted = {name: ("float32", shape) for name, shape in inputs.items()}
    if found != wanted or len(steps) != 1 or () in steps or (0,) in steps:
        shapes = {name: array.shape for name, array in samples.items()}
        raise BundleError(
            f"{source} holds {shapes}; expected float32 arrays of as many steps each, (steps, "
            f"*shape), of {dict(inputs)}; export it again or leave it out"
        )
    return samples


def _action_spec(manifest: Manifest) -> ActionSpec:
    offset = np.array(manifest.action.offset)
    scale = np.broadcast_to(np.array(manifest.action.scale, dtype=np.float64), offset.shape)
    return ActionSpec(scale=scale, offset=offset, clip=manifest.action.clip)


def _state_tensor(entry: StateEntry) -> StateTensor:
    values = np.zeros(entry.shape) if entry.initial is None else np.array(entry.initial)
    initial = values.astype(np.float32).reshape(entry.shape)
    return StateTensor(input=entry.input, output=entry.output, initial=initial)


def _command_range(manifest: Manifest) -> NDArray[np.float64] | None:
    command = manifest.command
    return None if command is None else np.array([command.vx, command.vy, command.yaw_rate]).T


def _encoder_spec(manifest: Manifest, source: str) -> EncoderSpec | None:
    entry = manifest.encoder
    if entry is None:
        return None
    return EncoderSpec(
        rate_hz=entry.rate_hz,
        proprio=layout_of(entry.proprio, source) if entry.proprio else None,
        state=tuple(map(_state_tensor, entry.state)),
        forget_after_s=max(_FORGET_AFTER_S, manifest.memory_s or 0.0),
    )


def _read_file(path: Path, digest: str) -> bytes:
    """A file of the bundle; the very bytes that were hashed are the ones that run."""
    content = _read(path)
    if (found := _digest(content)) != digest:
        raise BundleMismatch(
            f"{path} has SHA-256 {found[:12]}…, the manifest {digest[:12]}…; the two come from "
            "different exports: copy the whole bundle again"
        )
    # Entry ("location", …) of TensorProto.external_data. The runtime would look for the weights in
    # the working directory, unhashed.
    if path.suffix == ".onnx" and b"\x0a\x08location\x12" in content:
        raise BundleError(f"{path} keeps weights in another file; export it as a single file")
    return content


def _read(path: Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """A regular file as it is; opening a FIFO would wait for a writer."""

    def open_now(path: str, flags: int) -> int:
        return os.open(path, flags | os.O_NONBLOCK)

    try:
        with open(path, "rb", opener=open_now) as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise BundleError(f"{path} is not a regular file; copy the whole bundle again")
            if facts.st_size > limit:
                raise BundleError(
                    f"{path} has {facts.st_size} bytes, at most {limit} are read; export a "
                    "smaller policy"
                )
            return file.read(limit)
    except OSError as error:
        raise BundleError(
            f"cannot read {path}: {error.strerror}; check the path, or copy the whole bundle again"
        ) from error
    except ValueError as error:  # a null character, a surrogate
        raise BundleError(
            f"{str(path)!r} is not a path: {error}; name a bundle's folder"
        ) from error


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
