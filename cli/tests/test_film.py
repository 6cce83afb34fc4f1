"""Pictures of a recorded run."""

import numpy as np
import pytest
from krabby.robot.description import RobotDescription
from krabby_cli.__main__ import main
from krabby_cli.film import along, read_poses
from krabby_proto import STATE, TRUTH, decode, encode, pack
from krabby_proto.recording import Recorder
from PIL import Image

MS = 1_000_000
UPRIGHT = (0.0, 0.0, 0.0, 1.0)


def write(path, *, truth=True):
    """A robot that slides along a flat course at 1 m/s for a second; its joints follow in time."""
    pose = RobotDescription.load().default_joint_pos
    with Recorder(path) as recorder:

        def tell(stream, at_ms, **values):
            sizes = {field.name: field.size for field in stream.fields}
            payload = pack(stream, **{name: np.zeros(n) for name, n in sizes.items()} | values)
            frames = encode(
                stream, payload, instance_id=1, sequence=at_ms, capture_ns=at_ms * MS,
                publish_ns=at_ms * MS,
            )  # fmt: skip
            recorder.write(decode(frames, stream))

        for at_ms in range(1000, 2001, 10):
            tell(STATE, at_ms, base_quat_w=UPRIGHT, joint_pos=pose + 1e-4 * (at_ms - 1000))
            if truth:
                x = 1.0 + 1e-3 * (at_ms - 1000)
                tell(TRUTH, at_ms, base_pos_w=(x, 0.0, 0.42), base_quat_w=UPRIGHT)
    return path


def test_poses_are_the_truth_with_the_joints_of_that_moment(tmp_path):
    poses = read_poses(write(tmp_path / "run.mcap"))

    assert len(poses) == 101
    assert (poses[0].time_s, poses[-1].time_s) == (0.0, 1.0)
    assert poses[50].base_pos_w == pytest.approx((1.5, 0.0, 0.42))
    default = RobotDescription.load().default_joint_pos
    assert poses[50].joint_pos - default == pytest.approx(np.full(18, 0.05), abs=1e-6)


def test_a_strip_is_spread_over_the_way_not_the_time(tmp_path):
    poses = read_poses(write(tmp_path / "run.mcap"))
    waited = [poses[0]._replace(time_s=-5.0 + 0.01 * i) for i in range(500)]

    # A way of 1 m in two halves: their middles lie at 0.25 and 0.75 m.
    chosen = along([*waited, *poses], 2)
    assert [pose.base_pos_w[0] for pose in chosen] == pytest.approx([1.25, 1.75], abs=0.011)


@pytest.mark.parametrize(
    ("name", "options", "size", "frames"),
    [
        ("strip.png", ("--pictures", "2"), (132, 40), 1),
        ("film.webp", ("--fps", "4", "--begin", "0.2", "--end", "0.8"), (64, 40), 3),
    ],
)
def test_it_is_drawn(tmp_path, capsys, name, options, size, frames):
    recording, out = write(tmp_path / "run.mcap"), tmp_path / name
    argv = ["film", str(recording), str(out), "--course", "flat", "--width", "64", *options]
    assert main(argv) == 0

    assert f"wrote {out}" in capsys.readouterr().out
    with Image.open(out) as picture:
        assert picture.size == size
        assert getattr(picture, "n_frames", 1) == frames
        assert np.asarray(picture.convert("RGB")).std() > 5.0  # there is something to see


@pytest.mark.parametrize(
    ("argv", "status", "said"),
    [
        (["run.mcap", "run.mp4"], 2, "choose a name ending in .webp, .gif, .png"),
        (["run.mcap", "run.webp", "--fps", "0"], 2, "--fps 0.0: give 0.5 to 50"),
        (["run.mcap", "run.webp", "--begin", "7"], 2, "nothing between 7 and inf s"),
        (["run.mcap", "run.webp", "--course", "moon"], 2, "moon"),
        (["none.mcap", "run.webp"], 1, "no recording at none.mcap"),
        (["robot.mcap", "run.webp"], 1, "has no stream 'truth'"),
    ],
)
def test_what_cannot_be_drawn_is_said(tmp_path, monkeypatch, capsys, argv, status, said):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "run.mcap")
    write(tmp_path / "robot.mcap", truth=False)
    assert main(["film", *argv]) == status
    assert said in capsys.readouterr().err


def test_a_recording_cut_short_is_drawn_as_far_as_it_goes_with_one_line(tmp_path, capsys):
    path = write(tmp_path / "run.mcap")
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(b"\x0f" + (4).to_bytes(8, "little"))])  # the end of data
    assert (
        main(["film", str(path), str(tmp_path / "x.png"), "--width", "64", "--pictures", "1"]) == 0
    )
    err = capsys.readouterr().err
    assert err.startswith(f"krabby film: {path} is not complete: it ends in the middle; ")
    assert err.count("\n") == 1


def test_a_part_of_a_recording_is_read_alone(tmp_path):
    poses = read_poses(write(tmp_path / "run.mcap"), 0.3, 0.5)
    assert [poses[0].time_s, poses[-1].time_s] == pytest.approx([0.3, 0.5])
    default = RobotDescription.load().default_joint_pos
    assert poses[0].joint_pos - default == pytest.approx(np.full(18, 0.03), abs=1e-6)


def test_more_poses_than_are_held_are_refused_with_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("krabby_cli.film._MOST_POSES", 100)
    path = write(tmp_path / "run.mcap")
    assert main(["film", str(path), str(tmp_path / "x.png")]) == 1
    assert "more than 100 states and poses" in capsys.readouterr().err
    assert main(["film", str(path), str(tmp_path / "x.png"), "--end", "0.4", "--width", "64"]) == 0
