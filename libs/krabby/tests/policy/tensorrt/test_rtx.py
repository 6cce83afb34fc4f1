"""The shipped networks become engines: parsed and built by TensorRT for RTX, without a GPU.

make test-tensorrt. RTX engines run neither on Orin nor here; what is checked is that TensorRT reads
the networks, makes engines of them through our code, and finds the tensors that manifests name.
"""

import os

import pytest
from krabby.policy.bundle import PolicyBundle, encoder_network, policy_network
from krabby.policy.tensorrt.engine import BuildOptions, check_signature
from krabby.policy.tensorrt.errors import BuildFailed, EngineRefused, NoDevice
from krabby.policy.tensorrt.subprocesses import Platform, build_in_child
from krabby.policy.tensorrt.testing import FAKE, FakeWatch
from krabby.robot.assets import assets_dir
from krabby.robot.description import RobotDescription

pytestmark = pytest.mark.tensorrt

BUNDLES = sorted(path.parent.name for path in (assets_dir() / "policies").glob("*/manifest.json"))


@pytest.fixture(scope="module")
def rtx():
    from krabby.policy.tensorrt.toolkit import TensorRtRtx

    return TensorRtRtx()


def built(toolkit, spec, **options):
    reports = []
    plan, timings = toolkit.build(
        spec.content,
        BuildOptions(**options),
        spec.input_shapes,
        b"",
        lambda doing, share: reports.append((doing, share)),
    )
    return plan, timings, reports


@pytest.mark.parametrize("name", BUNDLES)
def test_a_shipped_bundle_becomes_engines(rtx, name):
    bundle = PolicyBundle.load(assets_dir() / "policies" / name, RobotDescription.load())
    encoder = [] if bundle.encoder is None else [encoder_network(bundle)]
    for spec in (policy_network(bundle), *encoder):
        check_signature(rtx.parse(spec.content), spec)
        plan, timings, reports = built(rtx, spec)
        assert len(plan) > 10_000
        assert timings == b""
        shares = [share for _, share in reports]
        assert shares == sorted(shares)
        assert 0.5 < shares[-1] <= 1.0


def test_an_encoder_with_convolutions_and_a_gru_becomes_an_engine(rtx, depth_encoder):
    check_signature(rtx.parse(depth_encoder.content), depth_encoder)
    plan, _, _ = built(rtx, depth_encoder, optimization_level=2, workspace_mib=128, tf32=True)
    assert len(plan) > 10_000


def test_an_open_batch_size_is_fixed_by_the_shapes(rtx, double):
    spec = double(batch="batch")
    (x, _) = rtx.parse(spec.content)
    assert x.shape == (-1, 3)
    check_signature(rtx.parse(spec.content), spec)
    plan, _, _ = built(rtx, spec)
    assert plan


def test_a_network_that_tensorrt_cannot_read_is_refused_with_its_words(rtx):
    with pytest.raises(BuildFailed, match="TensorRT cannot read the network: "):
        rtx.build(b"nonsense", BuildOptions(), {}, b"", lambda doing, share: None)


def test_an_engine_does_not_load_without_a_gpu_and_does_not_kill(rtx, double):
    plan, _, _ = built(rtx, double())
    with pytest.raises(EngineRefused, match=r"does not take the engine: .*(driver|cannot run)"):
        rtx.load(plan)


def test_a_child_process_builds_with_progress(tmp_path, monkeypatch, depth_encoder):
    (tmp_path / "unloaded.py").write_text(
        "from krabby.policy.tensorrt.toolkit import TensorRtRtx\n\n\n"
        "class Unloaded(TensorRtRtx):\n    def load(self, plan):\n        pass\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    watch, said = FakeWatch(), []
    made = build_in_child(
        Platform(toolkit="unloaded:Unloaded", device_api=FAKE.device_api),
        depth_encoder.content,
        BuildOptions(),
        depth_encoder.input_shapes,
        timings=b"",
        timeout_s=120.0,
        watch=watch,
        report=lambda doing, share: said.append((doing, share)),
    )
    assert len(made.plan) > 10_000
    assert said[0][0] == "Building engine"


def test_a_missing_module_is_named(monkeypatch):
    from krabby.policy.tensorrt.toolkit import TensorRt

    monkeypatch.setattr(TensorRt, "module", "tensorrt_of_tomorrow")
    with pytest.raises(NoDevice, match="tensorrt_of_tomorrow cannot be imported"):
        TensorRt()
