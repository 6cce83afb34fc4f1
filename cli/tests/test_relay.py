"""The processes of `krabby relay`, which may die, and the keys of `krabby keys`."""

import contextlib
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest
from krabby.runtime.testing import log_events, until
from krabby_cli.__main__ import main
from krabby_proto import STATE, HalClient, LatestSubscriber, RequestTimeout
from krabby_proto.access import ClientKey, KeyFolder, KeyPair, use_client_key
from krabby_proto.recording import Recording
from krabby_proto.relay import NEXT_PORTS
from krabby_proto.testing import FakeHal


@pytest.fixture
def keys(tmp_path, monkeypatch):
    """Runs `krabby keys` on a folder of this test, in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("krabby_proto.access._chosen", None)

    def run(*argv):
        return main(["keys", argv[0], "--keys", str(tmp_path / "keys"), *argv[1:]])

    run.folder = tmp_path / "keys"
    return run


def roles(keys):
    return {one.name: set(one.roles) for one in KeyFolder(keys.folder).authorised()}


def test_a_new_folder_has_a_key_of_the_robot_and_one_of_an_operator(keys, capsys):
    assert keys("show") == 0
    robot = KeyFolder(keys.folder).robot().public
    shown = capsys.readouterr().out
    assert robot in shown
    assert "operator" in shown
    assert "see, operate" in shown
    assert ClientKey.read(keys.folder / "operator.toml").robot == robot
    assert keys.folder.stat().st_mode & 0o777 == 0o700
    for file in keys.folder.rglob("*.toml"):
        assert file.stat().st_mode & 0o777 == 0o600, file


def test_a_key_is_made_changed_rotated_and_revoked(keys, tmp_path, capsys):
    assert keys("create", "anna", "--roles", "see,operate") == 0
    first = ClientKey.read(tmp_path / "anna.toml")
    assert roles(keys)["anna"] == {"see", "operate"}
    assert keys("create", "anna", "--roles", "see") == 2
    assert "rotate or revoke it" in capsys.readouterr().err
    assert keys("authorise", "anna", first.pair.public, "--roles", "stop") == 0
    assert roles(keys)["anna"] == {"stop"}
    assert keys("rotate", "anna", "--out", "anna-2.toml") == 0
    (listed,) = [one for one in KeyFolder(keys.folder).authorised() if one.name == "anna"]
    assert (
        listed.public == ClientKey.read(tmp_path / "anna-2.toml").pair.public != first.pair.public
    )
    assert listed.roles == {"stop"}
    assert keys("revoke", "anna") == 0
    assert "anna" not in roles(keys)
    assert keys("revoke", "anna") == 1
    assert "no key is called 'anna'; there is operator" in capsys.readouterr().err


def test_a_file_that_exists_is_not_overwritten_and_no_key_is_authorised(keys, tmp_path, capsys):
    keys("show")
    (tmp_path / "anna.toml").write_text("precious")
    assert keys("create", "anna", "--roles", "see") == 1
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "anna.toml").read_text() == "precious"
    assert "anna" not in roles(keys)


def test_the_robots_key_is_rotated_in_two_steps(keys, capsys):
    keys("show")
    before = KeyFolder(keys.folder).robot().public
    assert keys("rotate", "--finish") == 1
    assert "no rotation is under way" in capsys.readouterr().err
    assert keys("rotate") == 0
    following = KeyFolder(keys.folder).next_robot().public
    said = capsys.readouterr().out
    assert following in said
    assert f"ports {NEXT_PORTS} higher" in said
    assert KeyFolder(keys.folder).robot().public == before
    assert keys("rotate") == 1
    assert keys("rotate", "--finish") == 0
    assert KeyFolder(keys.folder).robot().public == following


def test_a_key_made_elsewhere_is_authorised_by_its_public_half(keys, capsys):
    public = KeyPair.make().public
    assert keys("authorise", "c-client", public, "--roles", "command") == 0
    assert roles(keys)["c-client"] == {"command"}
    assert keys("authorise", "other", "too short", "--roles", "see") == 1
    assert "40 Z85 characters" in capsys.readouterr().err


# --- the processes --------------------------------------------------------------------------


class Serving:
    """A HAL in a thread and `krabby relay` beside it."""

    def __init__(self, folder, base_port):
        self.folder, self.base_port = folder, base_port
        inside = {name: f"ipc://{folder}/{name}" for name in ("state", "command", "safety")}
        self.hal = FakeHal(inside, armed=True)
        self.log = (folder / "relay.log").open("w+")
        began_s = time.monotonic()
        endpoints = [f"--endpoint={name}={endpoint}" for name, endpoint in inside.items()]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "krabby_cli", "relay", f"--keys={folder / 'keys'}",
             f"--base-port={base_port}", *endpoints],
            stdout=self.log, stderr=self.log,
        )  # fmt: skip
        until(lambda: self.events("running")[1:])
        self.start_s = time.monotonic() - began_s
        use_client_key(folder / "keys" / "operator.toml")

    def events(self, name):
        found = log_events(self.folder / "relay.log")
        return [one for one in found if one["event"] == name]

    def workers(self):
        return {child.pid: child for child in psutil.Process(self.process.pid).children()}

    def place(self, name):
        port = {"state": 1, "command": 2, "safety": 5}[name] + self.base_port
        return f"curve://127.0.0.1:{port}"

    def close(self):
        self.process.terminate()
        status = self.process.wait(60)
        self.log.close()
        return status


@pytest.fixture
def serving(tmp_path, monkeypatch):
    monkeypatch.setattr("krabby_proto.access._chosen", None)
    base_port = next(
        base for base in itertools.count(20_000 + 200 * (os.getpid() % 150), 11) if is_free(base)
    )
    serving = Serving(tmp_path, base_port)
    with serving.hal:
        yield serving
        assert serving.close() == 0


def is_free(base):
    with contextlib.ExitStack() as stack:
        for port in range(base, base + 11):
            probe = stack.enter_context(socket.socket())
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return False
    return True


def has_ended(worker):
    try:
        return worker.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_killed_relay_is_back_and_the_hal_behind_it_notices_nothing(serving):
    with (
        LatestSubscriber(serving.place("state"), STATE) as reader,
        HalClient({"safety": serving.place("safety")}) as client,
    ):
        assert reader.wait(60.0) is not None
        for _ in range(3):
            for worker in serving.workers().values():
                worker.kill()
            assert client.safety("estop", "anna", timeout_s=60.0)["state"] == "estop"
            assert reader.wait(60.0) is not None
    assert [op for op, _ in serving.hal.operators].count("estop") >= 3
    until(lambda: max(one["starts"] for one in serving.events("running")) >= 4)


def test_a_frozen_process_of_the_relay_is_started_again(serving):
    with HalClient({"safety": serving.place("safety")}) as client:
        for starts in (2, 3):
            for worker in serving.workers().values():
                worker.suspend()
            until(
                lambda n=starts: sum(e["starts"] == n for e in serving.events("running")) == 2,
            )
            assert client.safety("estop", "anna", timeout_s=60.0)["state"] == "estop"
    groups = [one["group"] for one in serving.events("relay process was frozen, started again")]
    assert sorted(groups) == ["estop", "estop", "streams", "streams"]


def test_a_frozen_first_process_is_killed_by_the_others_so_that_the_relay_ends(serving):
    """Its supervisor starts it again: `krabby up`, or the container engine."""
    workers = serving.workers()
    os.kill(serving.process.pid, signal.SIGSTOP)
    until(lambda: serving.process.poll() is not None)
    assert serving.close() == -signal.SIGKILL
    until(lambda: all(map(has_ended, workers.values())))
    serving.close = lambda: 0


def test_the_relay_dies_with_its_supervisor(serving):
    workers = serving.workers()
    assert len(workers) == 2
    serving.process.kill()
    until(lambda: all(map(has_ended, workers.values())))
    assert serving.close() == -signal.SIGKILL
    serving.close = lambda: 0


def test_a_revoked_key_is_cut_off_within_two_seconds_and_the_others_come_back(serving):
    """On a busy machine a second after as long as the relay took to start at first."""
    keys = KeyFolder(serving.folder / "keys")
    assert main(["keys", "create", "eve", "--keys", str(keys.path), "--roles", "see",
                 "--out", str(serving.folder / "eve.toml")]) == 0  # fmt: skip
    until(lambda: len(serving.events("running")) == 4)
    with LatestSubscriber(serving.place("state"), STATE) as anna:
        use_client_key(serving.folder / "eve.toml")
        with LatestSubscriber(serving.place("state"), STATE) as eve:
            assert anna.wait(60.0) is not None
            assert eve.wait(60.0) is not None
            begun = time.monotonic()
            keys.revoke("eve")
            until(lambda: (eve.take(), "does not know this key" in eve.refusal)[1])
            assert time.monotonic() - begun < max(2.0, 1.0 + 2.0 * serving.start_s)
            assert anna.wait(60.0) is not None
            assert eve.wait(0.3) is None


def test_a_key_folder_that_others_can_enter_shuts_everyone_out_until_it_is_mended(serving):
    folder = serving.folder / "keys"
    with HalClient({"safety": serving.place("safety")}) as client:
        assert client.safety("status", "anna", timeout_s=60.0)["ok"]
        folder.chmod(0o755)
        until(
            lambda: len({each["group"] for each in serving.events("relay cannot serve")}) == 2,
        )
        with pytest.raises(RequestTimeout):
            client.safety("status", "anna", timeout_s=0.5)
        assert "run chmod 700" in serving.events("relay cannot serve")[-1]["reason"]
        folder.chmod(0o700)
        assert client.hello(60.0)["service"] == "fake-hal"


def test_the_e_stop_has_its_own_process_and_descriptors(serving):
    """The other process has none left; libzmq's thread spins there, and the e-stop is answered."""
    streams = next(one for one in serving.events("running") if one["group"] == "streams")
    worker = next(w for w in serving.workers().values() if listens(w, serving.base_port + 1))
    assert streams["group"] == "streams"
    psutil.Process(worker.pid).rlimit(psutil.RLIMIT_NOFILE, (worker.num_fds() + 2,) * 2)
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(socket.create_connection(("127.0.0.1", serving.base_port + 1)))
        with HalClient({"safety": serving.place("safety")}) as client:
            assert client.safety("estop", "anna", timeout_s=60.0)["state"] == "estop"


def listens(worker, port):
    return any(c.status == "LISTEN" and c.laddr.port == port for c in worker.net_connections())


GREETING = b"\xff" + bytes(8) + b"\x7f\x03\0"


@pytest.mark.slow
def test_a_client_without_a_key_cannot_end_a_process_with_a_ping(serving):
    """The abort of libzmq: queue full, one PING, hang-up. A HAL on plain TCP ends within 2 s."""
    body = b"\x05READY\x0bSocket-Type\0\0\0\x06DEALER"
    ready = bytes([4, len(body)]) + body
    message = b"\1\0" + b"\0\x64" + b"m" * 100
    ping = b"\x04\x0a\x04PING\0\x0aabc"
    end = time.monotonic() + 8
    while time.monotonic() < end:
        for name in (b"NULL", b"CURVE"):
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", serving.base_port + 5), timeout=0.2) as peer,
            ):
                peer.sendall(GREETING + name.ljust(20, b"\0") + bytes(32) + ready)
                peer.sendall(message * random.randint(1, 3000) + ping)
    with HalClient({"safety": serving.place("safety")}) as client:
        assert client.safety("estop", "anna", timeout_s=60.0)["state"] == "estop"
    assert len(serving.events("running")) == 2, "no process ended"


def test_a_relay_without_ports_to_bind_says_so_and_ends(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        base = taken.getsockname()[1] - 5
        done = subprocess.run(
            [sys.executable, "-m", "krabby_cli", "relay", f"--keys={tmp_path / 'keys'}",
             f"--base-port={base}"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert f"127.0.0.1:{base + 5} cannot be bound: Address already in use" in done.stdout
    assert "the relay cannot serve" in done.stderr


def test_an_operators_command_without_a_key_says_what_to_do(serving, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("krabby_proto.access._chosen", None)
    monkeypatch.setenv("KRABBY_KEY", str(tmp_path / "none.toml"))
    where = ["--host", "127.0.0.1", "--base-port", str(serving.base_port)]
    assert main(["estop", *where]) == 1
    assert "krabby keys create NAME" in capsys.readouterr().err
    stranger = tmp_path / "stranger.toml"
    ClientKey(KeyPair.make(), KeyFolder(tmp_path / "keys").robot().public).write(stranger)
    assert main(["estop", *where, "--key", str(stranger)]) == 1
    assert "the robot does not know this key" in capsys.readouterr().err
    assert main(["dump", "state", "--once", *where, "--key", str(stranger)]) == 1
    assert "the robot does not know this key" in capsys.readouterr().err
    assert main(["estop", *where, "--key", str(tmp_path / "keys" / "operator.toml")]) == 0
    assert serving.hal.operators[-1][0] == "estop"


@pytest.mark.slow
def test_check_hal_passes_through_the_relay_with_all_roles(serving, tmp_path, capsys):
    keys = str(serving.folder / "keys")
    path = tmp_path / "all.toml"
    main(["keys", "create", "all", "--keys", keys, "--out", str(path),
          "--roles", "see,operate,command"])  # fmt: skip
    until(lambda: len(serving.events("running")) == 4)
    serving.hal.safety_state = 0
    where = ["--host", "127.0.0.1", "--base-port", str(serving.base_port), "--key", str(path)]
    for _ in range(10):  # on a busy machine the fake is late
        status = main(["check-hal", *where])
        out = capsys.readouterr().out
        failed = [line for line in out.splitlines() if "FAIL" in line]
        if status == 0 or not all("state rate" in f or "state age" in f for f in failed):
            break
    assert status == 0, out


def test_a_recording_through_the_relay_has_every_state(serving, tmp_path, capsys):
    where = ["--host", "127.0.0.1", "--base-port", str(serving.base_port)]
    where += ["--key", str(serving.folder / "keys" / "operator.toml")]
    file = tmp_path / "run.mcap"
    assert main(["record", str(file), "state", "--duration", "1.5", *where]) == 0
    assert "missed" not in capsys.readouterr().out
    sequences = [message.sequence for message in Recording(file)]
    assert len(sequences) > 10
    assert sequences == list(range(sequences[0], sequences[0] + len(sequences)))
