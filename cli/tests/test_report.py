"""`krabby diagnose`, `report`, `identify` and `bundle` on a recording made here."""

import json
import re
import sys
import zipfile

import numpy as np
import pytest
from krabby.robot.description import RobotDescription
from krabby_cli import report
from krabby_cli.__main__ import main
from krabby_cli.scrub import Scrubber
from krabby_proto import CAMERA, STATE, TICKS, TRUTH, TickRecord
from krabby_proto.codec import decode, encode
from krabby_proto.recording import Recorder, Recording
from mcap.reader import make_reader

DESC = RobotDescription.load()
HOST, USER, TOKEN = "pelican-lab-7", "marguerite", "tok-5f2e91aa77"
KEY = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"


def messages(knee=None):
    """Three seconds of a robot that lies still, as the HAL would publish them."""
    from krabby.safety.trajectories import rest_joint_pos

    pos = rest_joint_pos(DESC)
    if knee is not None:
        pos[DESC.joint_names.index(knee)] *= -1.0
    state, truth = np.zeros(STATE.size), np.zeros(TRUTH.size)
    state[STATE.slices["base_quat_w"]] = truth[TRUTH.slices["base_quat_w"]] = (0, 0, 0, 1)
    state[STATE.slices["base_lin_acc_b"]] = (0.0, 0.0, 9.81)
    state[STATE.slices["joint_pos"]] = pos
    depth = np.full(DESC.camera.width * DESC.camera.height, 1.5)
    for i in range(300):
        stamp = 2_000_000_000 + i * 10_000_000
        truth[TRUTH.slices["base_pos_w"]] = (0.01 * i, 0.0, 0.1)
        for stream, payload in ((STATE, state), (TRUTH, truth), (CAMERA, depth)):
            if stream is CAMERA and i % 30:
                continue
            frames = encode(
                stream, payload, instance_id=3, sequence=i + 1, capture_ns=stamp, publish_ns=stamp
            )
            yield decode(frames)


def recorded(path, knee=None, ticks=(), **metadata):
    with Recorder(path, metadata) as recorder:
        for message in messages(knee):
            recorder.write(message)
        for number, ended_ms in ticks:
            recorder.write(tick(number, ended_ms))
    return path


def tick(number, ended_ms):
    """The record of a tick of the game loop that ended then."""
    stamp_ns = 2_000_000_000 + ended_ms * 1_000_000
    content = TickRecord().finish(
        tick=number, now_ns=stamp_ns - 2_000_000, mode="policy", safety_state=2, sent=True,
        hal_checked=True, leaving=False, command_sequence=1, host_ns=(),
    )  # fmt: skip
    return decode(encode(
        TICKS, content, instance_id=4, sequence=number + 1, capture_ns=stamp_ns,
        publish_ns=stamp_ns,
    ))  # fmt: skip


def ticks_after(gaps_ms):
    return list(enumerate(np.cumsum([0, *gaps_ms]).tolist()))


def test_a_fault_is_printed_with_its_remedy_and_status_1(tmp_path, capsys):
    path = recorded(tmp_path / "run.mcap", knee="lm_knee")
    assert main(["diagnose", str(path)]) == 1
    out = capsys.readouterr().out
    assert out.startswith("1. joint-sign lm_knee (joint_pos)")
    assert "remedy: turn the joint's `direction`" in out


def test_a_sound_recording_has_status_0_and_says_what_was_not_checked(tmp_path, capsys):
    path = recorded(tmp_path / "run.mcap")
    assert main(["diagnose", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["findings"] == []
    assert any("no commands were recorded" in note for note in told["notes"])


@pytest.mark.parametrize("command", ["diagnose", "report", "identify"])
def test_what_is_no_recording_is_refused_in_one_line(tmp_path, capsys, command):
    path = tmp_path / "run.mcap"
    path.write_bytes(b"no recording")
    assert main([command, str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_page_has_every_section_and_needs_no_other_host(tmp_path, capsys):
    path = recorded(tmp_path / "run.mcap")
    assert main(["report", str(path), "--no-film"]) == 0
    page = (tmp_path / "run.html").read_text()
    for title in ("Diagnosis", "Path on the course", "Gait", "Torque and speed", "Depth pictures"):
        assert f"<h2>{title}</h2>" in page
    assert "<script" not in page
    assert not re.search(r"(?:https?:)?//[a-z]", page)
    assert page.count("data:image/png;base64,") == 8
    assert "wrote" in capsys.readouterr().out


LATE = "45% of the ticks late, 13 of 29, up to 90 ms from one to the next"


@pytest.fixture
def late(tmp_path):
    # 10, 5 times 2 and 9 periods, of which none, 5 and 8 had no tick
    ticks = ticks_after([10] * 10 + [24] * 5 + [90])
    ticks.append((40, 2000))  # records before it are missing
    return recorded(tmp_path / "run.mcap", ticks=ticks)


def test_late_ticks_are_in_the_summary_and_no_timing_is_called_sound(late):
    assert main(["report", str(late), "--no-film"]) == 0
    page = late.with_suffix(".html").read_text()
    assert "<td>late ticks</td><td>13 of 29</td>" in page
    assert f"<b>late-ticks </b> {LATE}.<br>Remedy: look at the load of the host" in page
    assert "nothing wrong" not in page


def test_late_ticks_are_a_finding_of_the_command_too_behind_a_fault_of_wiring(
    late, tmp_path, capsys
):
    assert main(["diagnose", str(late)]) == 1
    # 0.448 of the ticks are 9 times the limit, and count as 3
    assert capsys.readouterr().out.startswith(
        f"1. late-ticks, 3.0 times the limit\n   {LATE}\n   remedy: look at the load of the host"
    )
    ticks = ticks_after([30] * 10)
    path = recorded(tmp_path / "both.mcap", knee="lm_knee", ticks=ticks)
    assert main(["diagnose", str(path), "--json"]) == 1
    kinds = [each["kind"] for each in json.loads(capsys.readouterr().out)["findings"]]
    assert kinds == ["joint-sign", "late-ticks"]


def test_a_tick_in_twenty_that_is_late_is_no_finding_yet(tmp_path, capsys):
    path = recorded(tmp_path / "run.mcap", ticks=ticks_after([10] * 18 + [20]))
    assert main(["diagnose", str(path)]) == 0
    assert "nothing wrong" in capsys.readouterr().out


def test_ticks_that_come_early_and_late_by_less_than_half_a_period_are_in_time(tmp_path):
    path = recorded(tmp_path / "run.mcap", ticks=ticks_after([14, 6] * 10))
    assert main(["report", str(path), "--no-film"]) == 0
    page = (tmp_path / "run.html").read_text()
    assert "<td>late ticks</td><td>0 of 20</td>" in page
    assert "timing: nothing wrong" in page


def test_a_recording_without_commands_shows_gains_as_unknown(tmp_path, capsys):
    assert main(["identify", str(recorded(tmp_path / "run.mcap"))]) == 0
    assert "no commands were recorded" in capsys.readouterr().out


@pytest.fixture
def secrets(monkeypatch, tmp_path):
    """This machine and user have names, keys and tokens."""
    home = tmp_path / "home" / USER
    keys = home / ".config" / "krabby"
    keys.mkdir(parents=True)
    (keys / "key.toml").write_text(f'secret = "{KEY}"\n')
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
    monkeypatch.setenv("USER", USER)
    monkeypatch.setenv("LOGNAME", USER)
    monkeypatch.setenv("DEPLOY_TOKEN", TOKEN)
    monkeypatch.setattr("socket.gethostname", lambda: HOST)
    monkeypatch.setattr("socket.getfqdn", lambda: f"{HOST}.example.org")
    return (HOST, USER, TOKEN, KEY, str(home))


def test_a_bundle_holds_no_secret_that_was_planted_in_any_place(tmp_path, secrets, capsys):
    run = tmp_path / "runs" / "1"
    run.mkdir(parents=True)
    everything = " ".join(secrets)
    (run / "gameloop.log").write_text(
        json.dumps({"event": "start", "text": everything, "password": "hunter2!x"}) + "\n"
        "Authorization: Bearer abcdef0123456789\n"
        "fetched https://bob:pa55word@example.org/x\n"
        "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBg\n-----END PRIVATE KEY-----\n"
        'secret = "0123456789abcdefghijABCDEFGHIJ!%@#$^&*()"\n'
    )
    (run / "run.json").write_text(json.dumps({"folder": f"{secrets[4]}/runs", "api_key": "k-77aa"}))
    (run / "summary.json").write_text('{"exit": "finished"}')
    (run / ".env").write_text(f"DEPLOY_TOKEN={TOKEN}")
    recorded(run / "blackbox.mcap", policy=f"{secrets[4]}/assets", host=HOST)
    out = tmp_path / "bundle.zip"
    assert main(["bundle", "--run", str(run), "--out", str(out)]) == 0
    planted = [*secrets, "hunter2!x", "abcdef0123456789", "pa55word", "MIIEvQIBADANBg", "k-77aa",
               "0123456789abcdefghijABCDEFGHIJ"]  # fmt: skip
    with zipfile.ZipFile(out) as archive:
        names = archive.namelist()
        texts = [archive.read(name) for name in names if not name.endswith(".mcap")]
        archive.extract("recordings/blackbox.mcap", tmp_path / "x")
    assert {"versions.json", "doctor.txt", "run/gameloop.log", "run/summary.json",
            "MANIFEST.txt"} <= set(names)  # fmt: skip
    assert not any(name.endswith((".env", "key.toml")) for name in names)
    copy = tmp_path / "x" / "recordings" / "blackbox.mcap"
    with copy.open("rb") as file:
        reader = make_reader(file)
        texts += [json.dumps(record.metadata).encode() for record in reader.iter_metadata()]
        texts += [message.data for _, _, message in reader.iter_messages()]
    texts.append(copy.read_bytes())
    for text in texts:
        for secret in planted:
            assert secret.encode() not in text, secret
    assert len(list(Recording(copy))) == 610  # 300 states, 300 of truth, 10 pictures


def test_a_changed_message_keeps_a_valid_checksum():
    frames = encode(STATE, np.zeros(70), instance_id=1, sequence=1, capture_ns=1, publish_ns=1)
    raw = frames[1] + frames[2]
    secret = raw[48:56].decode()
    clean = Scrubber({secret: "name"}).data(raw)
    assert clean[48:56] == b"x" * 8
    decode([frames[0], clean[:48], clean[48:]])


@pytest.mark.parametrize(
    ("does", "expected"),
    [
        ("sys.stderr.write('3 of 9 pictures\\n')", (0, "3 of 9 pictures")),
        ("sys.exit('no ground truth')", (1, "no ground truth")),
        ("pass", (0, "no reason")),
    ],
)
def test_the_film_s_last_line_is_what_became_of_it(does, expected):
    assert report._run_film([sys.executable, "-c", f"import sys; {does}"]) == expected


def test_a_film_that_takes_too_long_is_given_up(monkeypatch):
    monkeypatch.setattr(report, "_FILM_S", 0.1)
    status, _ = report._run_film([sys.executable, "-c", "import time; time.sleep(600)"])
    assert status == report._TOO_LATE
