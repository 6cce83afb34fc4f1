import pytest
import trimesh
from krabby_cli.__main__ import main
from PIL import Image


def test_a_course_is_described(capsys):
    assert main(["course", "gap", "--difficulty", "1", "--seed", "2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("gap: six gaps")
    assert "difficulty 1, seed 2" in out


def test_a_course_is_exported(tmp_path, capsys):
    path = tmp_path / "steps.glb"
    assert main(["course", "steps", "--out", str(path)]) == 0
    assert f"wrote {path}" in capsys.readouterr().out
    assert trimesh.load(path, force="mesh").is_watertight


@pytest.mark.slow
def test_a_course_is_rendered_with_the_robot_on_it(tmp_path):
    path = tmp_path / "steps.png"
    assert main(["course", "steps", "--out", str(path)]) == 0
    with Image.open(path) as picture:
        assert picture.size == (1200, 480)
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 1000


def test_mistakes_are_one_line_and_status_2(tmp_path, capsys):
    for argv, said in (
        (["course", "stpes"], "did you mean 'steps'?"),
        (["course", "steps", "--difficulty", "3"], "outside 0 to 2.5"),
        (["course", "steps", "--out", str(tmp_path / "a.step")], "a name ending in .png, .glb"),
        (["course", "steps", "--out", str(tmp_path / "no" / "a.stl")], "cannot write"),
    ):
        assert main(argv) == 2
        err = capsys.readouterr().err
        assert said in err
        assert err.count("\n") == 1
