"""Generated files follow from their sources, and stale ones are noticed."""

import shutil

import pytest
from krabby.robot.assets import ASSETS_ENV, robot_dir
from krabby.robot.errors import AssetError
from krabby_assets import generate, urdf


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the assets to spoil."""
    copied = tmp_path / "assets" / "crab_hex"
    for name in ("crab_hex", "crab_hex_rs"):
        shutil.copytree(robot_dir().parent / name, copied.parent / name)
    monkeypatch.setenv(ASSETS_ENV, str(copied.parent))
    return copied


def test_committed_files_are_what_their_sources_give():
    assert [folder.name for folder in generate.robots()] == ["crab_hex", "crab_hex_rs"]
    for folder in generate.robots():
        assert generate.first_difference(folder) is None


def test_generation_is_the_same_byte_for_byte():
    assert generate.texts(robot_dir()) == generate.texts(robot_dir())


def test_check_passes_silently_on_fresh_files(folder, capsys):
    assert generate.main(["--check"]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_longer_femur_in_the_table_makes_every_file_stale(folder, capsys):
    table = folder / "robot.toml"
    table.write_text(table.read_text().replace("femur_length = 0.6096", "femur_length = 0.62"))
    assert generate.main(["--check"]) == 1
    error = capsys.readouterr().err
    assert "crab_hex.urdf:" in error
    assert "run `make assets`" in error
    assert generate.main(["--no-pictures"]) == 0
    assert generate.main(["--check"]) == 0


def test_a_heavier_part_makes_the_files_of_its_robot_stale(folder, capsys):
    table = folder.parent / "crab_hex_rs" / "robot.toml"
    table.write_text(table.read_text().replace("mass = 0.12", "mass = 0.13"))
    assert generate.main(["--check"]) == 1
    assert "crab_hex_rs.urdf:" in capsys.readouterr().err


def test_a_folder_that_is_not_called_as_its_robot_is_refused(folder, capsys):
    folder.with_name("crab_hex_rs").rename(folder.with_name("ant"))
    assert generate.main(["--check"]) == 1
    assert "robot.toml has name = 'crab_hex_rs'; call both alike" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["crab_hex.urdf", "crab_hex.xml", "crab_hex.usda"])
def test_a_file_edited_by_hand_is_named_with_the_line(folder, capsys, name):
    path = folder / name
    lines = path.read_text().splitlines(keepends=True)
    lines[9] = "something else\n"
    path.write_text("".join(lines))
    assert generate.main(["--check"]) == 1
    assert f"{name}:10: has 'something else', its sources give" in capsys.readouterr().err


def test_a_file_cut_short_is_noticed(folder, capsys):
    path = folder / "crab_hex.xml"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    assert generate.main(["--check"]) == 1
    assert f"crab_hex.xml:{len(lines)}: has {len(lines) - 1} lines" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["crab_hex.usda", "pictures/views.png"])
def test_a_missing_file_is_named(folder, capsys, name):
    (folder / name).unlink()
    assert generate.main(["--check"]) == 1
    assert f"{name} is missing" in capsys.readouterr().err


def test_a_picture_too_big_for_the_repository_is_refused(folder, capsys):
    (folder / "pictures" / "views.png").write_bytes(bytes(400_001))
    assert generate.main(["--check"]) == 1
    assert "views.png has 400001 bytes; the most is 400000" in capsys.readouterr().err


def test_an_argument_missing_from_the_xacro_call_is_a_clean_error(folder, capsys):
    source = folder / "crab_hex.urdf.xacro"
    source.write_text(source.read_text().replace("$(arg tibia_mass)", "$(arg tibia_weight)"))
    assert generate.main(["--check"]) == 1
    assert "cannot expand" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('type="revolute"', 'type="prismatic"', "is 'prismatic'; this robot has revolute"),
        ("<sphere ", "<capsule ", "shape 'capsule' has no translation"),
        ('ixy="0"', 'ixy="0.1"', "has products; write principal moments"),
        ('<axis xyz="0 0 1" />', "", "has no <axis>; add it"),
    ],
)
def test_urdf_that_cannot_be_translated_is_refused(old, new, message):
    text = (robot_dir() / "crab_hex.urdf").read_text()
    assert old in text
    with pytest.raises(AssetError, match=message):
        urdf.parse(text.replace(old, new))
