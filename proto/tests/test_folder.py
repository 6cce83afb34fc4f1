"""Whether the folder of the sockets is private, and what another user of the host can do."""

import os
import subprocess
import sys

import numpy as np
import pytest
from krabby_proto import (
    STATE,
    EndpointError,
    LatestSubscriber,
    Publisher,
    private_folder,
)

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def test_a_folder_is_made_for_this_user_alone(tmp_path):
    private_folder(tmp_path / "run" / "krabby")
    assert (tmp_path / "run" / "krabby").stat().st_mode & 0o777 == 0o700
    private_folder(tmp_path / "run" / "krabby")


@pytest.mark.parametrize("mode", [0o770, 0o755, 0o701])
@pytest.mark.parametrize("end", [Publisher, LatestSubscriber])
def test_a_folder_that_others_can_enter_is_refused_with_the_remedy(tmp_path, context, mode, end):
    folder = tmp_path / "krabby"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(EndpointError, match=rf"mode {mode:04o}.*run chmod 700 {folder}"):
        end(f"ipc://{folder}/state", STATE, context=context)


def test_the_folder_of_another_user_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("krabby_proto.folder.os.geteuid", lambda: os.getuid() + 1)
    monkeypatch.setattr("krabby_proto.folder._check_above", lambda _: None)
    with pytest.raises(EndpointError, match=r"belongs to user \d+, this process runs as user"):
        private_folder(tmp_path)


def test_a_link_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "krabby").symlink_to(tmp_path / "real")
    with pytest.raises(EndpointError, match="is not a folder"):
        private_folder(tmp_path / "krabby")


def test_a_folder_that_others_can_replace_is_refused(tmp_path):
    """Renaming needs no right on a folder, only on the one above it; a sticky one allows none."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(EndpointError, match="another user can replace the sockets below it"):
        private_folder(tmp_path / "open" / "krabby")
    (tmp_path / "open").chmod(0o1777)
    private_folder(tmp_path / "open" / "krabby")


def test_a_folder_behind_a_link_that_others_can_replace_is_refused(tmp_path):
    for name, mode in (("ours", 0o700), ("open", 0o777)):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(mode)
    (tmp_path / "open" / "second").symlink_to("../ours")
    (tmp_path / "first").symlink_to("open/second")
    with pytest.raises(EndpointError, match=r"open .* another user can replace the sockets"):
        private_folder(tmp_path / "first" / "krabby")
    (tmp_path / "open").chmod(0o755)
    private_folder(tmp_path / "first" / "krabby")
    assert (tmp_path / "ours" / "krabby").is_dir()


@pytest.mark.parametrize("endpoint", ["ipc://state", "ipc://@state", "ipc://*"])
def test_a_unix_socket_without_a_folder_is_refused(endpoint, context):
    with pytest.raises(EndpointError, match="the path is not absolute"):
        Publisher(endpoint, STATE, context=context)


@pytest.mark.parametrize("host", ["0.0.0.0", "*", "10.0.0.7", "[::]", "crab.local"])
@pytest.mark.parametrize("end", [Publisher, LatestSubscriber])
def test_plain_tcp_beyond_the_loopback_interface_is_refused(host, end, context):
    with pytest.raises(EndpointError, match="plain TCP is for the loopback interface only"):
        end(f"tcp://{host}:6001", STATE, context=context)


def test_a_transport_without_access_control_is_refused(context):
    with pytest.raises(EndpointError, match="there is no access control for its transport"):
        Publisher("tipc://{5560,0,0}", STATE, context=context)


def test_plain_tcp_is_warned_of(context, caplog):
    Publisher("tcp://127.0.0.1:*", STATE, context=context).close()
    assert "is plain TCP: every user of this host can use it" in caplog.text


_PEER = """
import os, sys, time, zmq
os.setgid(65534); os.setuid(65534)
socket = zmq.Context().socket(zmq.SUB)
socket.subscribe(b"")
socket.connect(sys.argv[1])
print(socket.poll(1500), flush=True)
os._exit(0)
"""


@needs_root
def test_another_user_receives_nothing_even_through_an_open_folder(tmp_path, context):
    """libzmq asks the kernel for the peer's user: the second of two barriers."""
    endpoint = f"ipc://{tmp_path}/state"
    with (
        Publisher(endpoint, STATE, context=context) as publisher,
        LatestSubscriber(endpoint, STATE, context=context) as reader,
    ):
        for folder in (tmp_path, *tmp_path.parents[:2]):
            folder.chmod(0o755)
        (tmp_path / "state").chmod(0o777)
        heard = 0
        command = [sys.executable, "-c", _PEER, endpoint]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            while child.poll() is None:
                publisher.publish(np.zeros(STATE.size), capture_ns=1)
                heard += reader.wait(0.02) is not None
            assert child.stdout.read().strip() == "0"
        assert heard > 10
