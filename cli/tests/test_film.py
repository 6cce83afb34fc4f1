"""Pictures of a recorded run."""

import json

import av
import numpy as np
import pytest
from krabby.course.courses import make_course
from krabby.robot.description import RobotDescription
from krabby_cli.__main__ import main
from krabby_cli.film_draw import Film, draw_film
from krabby_cli.film_poses import Pose, Scene, along, read_poses
from krabby_cli.film_write import write_film
from krabby_proto import STATE, TICKS, TRUTH, TickRecord, decode, encode, pack
from krabby_proto.recording import HELLO, Recorder
from PIL import Image

MS = 1_000_000
UPRIGHT = (0.0, 0.0, 0.0, 1.0)


def write(path, *, truth=True, course=None, ticks=False):
    """A robot that slides along a course at 1 m/s for a second; its joints follow in time."""
    pose = RobotDescription.load().default_joint_pos
    with Recorder(path) as recorder:
        if course is not None:
            named = {
                "name": course.name,
                "difficulty": course.difficulty,
                "seed": course.seed,
                "hash": course.content_hash,
            }
            hello = {"robot": {"name": "crab_hex"}, "extra": {"course": named}}
            recorder.add_metadata(f"{HELLO}hal", {"hello": json.dumps(hello)})

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
                moves = {"base_lin_vel_w": (1.0, 0.0, 0.0), "base_ang_vel_b": (0.0, 0.0, 0.1)}
                tell(TRUTH, at_ms, base_pos_w=(x, 0.0, 0.42), base_quat_w=UPRIGHT, **moves)
            if ticks:
                recorder.write(tick(at_ms))
    return path


def tick(at_ms):
    record = TickRecord()
    record.add_decision(np.zeros(18), (0.9, 0.0, 0.1), (1.0, 0.0, 0.1))
    record.add_status({"policy": "parkour", "walking": "parkour"})
    content = record.finish(
        tick=at_ms, now_ns=at_ms * MS, mode="policy", safety_state=2, sent=True, hal_checked=True,
        leaving=False, command_sequence=1, host_ns=(),
    )  # fmt: skip
    frames = encode(
        TICKS, content, instance_id=1, sequence=at_ms, capture_ns=at_ms * MS, publish_ns=at_ms * MS
    )
    return decode(frames, TICKS)


def test_poses_are_the_truth_with_the_joints_of_that_moment(tmp_path):
    poses = read_poses(write(tmp_path / "run.mcap"))

    assert len(poses) == 101
    assert (poses[0].time_s, poses[-1].time_s) == (0.0, 1.0)
    assert poses[50].base_pos_w == pytest.approx((1.5, 0.0, 0.42))
    default = RobotDescription.load().default_joint_pos
    assert poses[50].joint_pos - default == pytest.approx(np.full(18, 0.05), abs=1e-6)


def test_captions_tell_velocities_and_the_state_of_the_loop(tmp_path):
    """Half a second in; it faces along x, so it walks forward as fast as it moves along x."""
    pose = read_poses(write(tmp_path / "run.mcap", ticks=True))[50]
    assert pose.scene == Scene("policy", "active", "parkour", (0.9, 0.0, 0.1))
    assert pose.captions == [
        "  0.50 s",
        "command +0.90 +0.00 m/s +0.10 rad/s",
        "walked  +1.00 +0.00 m/s +0.10 rad/s",
        "parkour · policy · gate active",
    ]
    turned = pose._replace(base_quat_w=np.array([0.0, 0.0, np.sqrt(0.5), np.sqrt(0.5)]))
    assert "walked  +0.00 -1.00 m/s +0.10 rad/s" in turned.captions  # it faces along y


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


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "h264"), ("webm", "vp9")])
def test_a_video_needs_no_options_where_the_recording_names_its_course(
    tmp_path, capsys, suffix, codec
):
    course = make_course("steps", 0.2, 3)
    recording = write(tmp_path / "run.mcap", course=course, ticks=True)
    out = tmp_path / f"film.{suffix}"
    assert main(["film", str(recording), str(out), "--fps", "5", "--width", "96"]) == 0

    assert f"wrote {out}: 6 pictures" in capsys.readouterr().out
    with av.open(str(out)) as video:
        stream = video.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.height) == (codec, 96, 60)
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 6
    assert all(frame.std() > 5.0 for frame in frames)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"film.{suffix}", "run.mcap"]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--course", "gap"), "--course gap: the run had course steps"),
        (("--difficulty", "0.5"), "--difficulty 0.5: the run had difficulty 0.2"),
        (("--seed", "4"), "--seed 4: the run had seed 3"),
        (("--robot", "crab_hex_rs"), "--robot crab_hex_rs: the run had robot crab_hex"),
    ],
)
def test_what_contradicts_the_recording_is_refused_with_both_values(
    tmp_path, monkeypatch, capsys, option, said
):
    monkeypatch.setenv("KRABBY_ROBOT", "crab_hex")  # choose_robot changes it
    path = write(tmp_path / "run.mcap", course=make_course("steps", 0.2, 3))
    assert main(["film", str(path), str(tmp_path / "x.webp"), *option]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "x.webp").exists()


def test_another_release_s_course_of_the_same_name_is_refused(tmp_path, capsys):
    class Other:
        name, difficulty, seed, content_hash = "steps", 0.2, 3, "0123456789abcdef"

    path = write(tmp_path / "run.mcap", course=Other)
    assert main(["film", str(path), str(tmp_path / "x.webp")]) == 1
    assert "that of the recording 0123456789ab" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["mp4", "webp"])
def test_ctrl_c_leaves_the_old_file_and_no_other(tmp_path, suffix):
    out = tmp_path / f"film.{suffix}"
    out.write_bytes(b"before")

    def pictures():
        yield np.zeros((40, 64, 3), np.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_film(pictures(), out, fps=10.0)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert out.read_bytes() == b"before"


@pytest.mark.timeout(600)
def test_several_processes_draw_what_one_draws():
    film = Film(course="flat", difficulty=0.0, seed=0, width=64, height=40)
    pose = RobotDescription.load().default_joint_pos
    poses = [
        Pose(0.1 * i, np.array([1.0 + 0.05 * i, 0.0, 0.42]), np.array(UPRIGHT), pose)
        for i in range(30)
    ]
    one = list(draw_film(film, poses, jobs=1))
    two = list(draw_film(film, poses, jobs=2))
    assert len(one) == len(two) == 30
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize(
    ("argv", "status", "said"),
    [
        (["run.mcap", "run.avi"], 2, "choose a name ending in .mp4, .webm, .webp, .gif, .png"),
        (["run.mcap", "none/run.mp4"], 2, "no such writable folder"),
        (["unnamed.mcap", "run.mp4"], 2, "does not name its course; give --course"),
        (["run.mcap", "run.webp", "--fps", "0"], 2, "--fps 0.0: give 0.5 to 50"),
        (["run.mcap", "run.webp", "--begin", "7"], 2, "nothing between 7 and inf s"),
        (["unnamed.mcap", "run.webp", "--course", "moon"], 2, "moon"),
        (["none.mcap", "run.webp"], 1, "no recording at none.mcap"),
        (["robot.mcap", "run.webp"], 1, "has no stream 'truth'"),
    ],
)
def test_what_cannot_be_drawn_is_said(tmp_path, monkeypatch, capsys, argv, status, said):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "run.mcap", course=make_course("flat", 0.5, 0))
    write(tmp_path / "unnamed.mcap")
    write(tmp_path / "robot.mcap", truth=False, course=make_course("flat", 0.5, 0))
    assert main(["film", *argv]) == status
    assert said in capsys.readouterr().err


def test_a_recording_cut_short_is_drawn_as_far_as_it_goes_with_one_line(tmp_path, capsys):
    path = write(tmp_path / "run.mcap", course=make_course("flat", 0.5, 0))
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
    monkeypatch.setattr("krabby_cli.film_poses._MOST_POSES", 100)
    path = write(tmp_path / "run.mcap", course=make_course("flat", 0.5, 0))
    assert main(["film", str(path), str(tmp_path / "x.png")]) == 1
    assert "more than 100 states and poses" in capsys.readouterr().err
    assert main(["film", str(path), str(tmp_path / "x.png"), "--end", "0.4", "--width", "64"]) == 0
