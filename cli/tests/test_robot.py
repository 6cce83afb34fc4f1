import mujoco
import pytest
from krabby_cli.__main__ import main
from pxr import Usd


@pytest.fixture(autouse=True)
def default_robot(monkeypatch):
    monkeypatch.setenv("KRABBY_ROBOT", "crab_hex")


def test_the_robot_is_described(capsys):
    assert main(["robot"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("crab_hex: 28.60 kg, 6 legs, 18 joints, geometry ")
    assert lines[2].split() == ["lf_hip_yaw", "-0.90", "to", "0.90", "0.00", "250", "10", "120"]
    assert len(lines) == 2 + 18


@pytest.mark.parametrize("suffix", [".usd", ".usda", ".usdc"])
def test_it_is_written_as_usd(suffix, tmp_path, capsys):
    path = tmp_path / f"crab{suffix}"
    assert main(["robot", "--robot", "crab_hex_rs", "--out", str(path)]) == 0
    assert f"wrote {path}" in capsys.readouterr().out
    assert path.read_bytes().startswith(b"#usda" if suffix == ".usda" else b"PXR-USDC")
    assert Usd.Stage.Open(str(path)).GetDefaultPrim().GetName() == "crab_hex_rs"


@pytest.mark.parametrize("suffix", [".urdf", ".xml"])
def test_what_is_written_is_loaded_by_mujoco(suffix, tmp_path):
    path = tmp_path / f"crab{suffix}"
    assert main(["robot", "--out", str(path)]) == 0
    model = mujoco.MjModel.from_xml_path(str(path))
    assert model.body_subtreemass[0] == pytest.approx(28.6)


def test_mistakes_are_one_line_and_status_2(tmp_path, capsys):
    for argv, said in (
        (["--out", str(tmp_path / "a.step")], "a name ending in .urdf"),
        (["--out", str(tmp_path / "no" / "a.urdf")], "cannot write"),
        (["--robot", "crab"], "has no such robot; it has crab_hex"),
    ):
        assert main(["robot", *argv]) == 2
        err = capsys.readouterr().err
        assert said in err
        assert err.count("\n") == 1
