import subprocess
import sys
from importlib import import_module

import krabby_proto
import pytest
from krabby_proto import (
    COMMAND,
    FAULT_BITS,
    STATE,
    STREAMS,
    TICKS,
    TRACE,
    TRUTH,
    EncodeError,
    EndpointError,
    beside,
    default_endpoints,
    pack,
    schema_hash,
    unpack,
)
from krabby_proto.testing import resting_state


def test_table_has_the_ports_and_ids_of_the_contract():
    assert {name: (stream.id, stream.port) for name, stream in STREAMS.items()} == {
        "camera": (1, 6000),
        "state": (2, 6001),
        "command": (3, 6002),
        "features": (4, 6003),
        "nav": (5, 6004),
        "safety": (6, 6005),
        "control": (7, 6006),
        "trace": (8, 6007),
        "ticks": (9, 6008),
        "truth": (10, 6010),
        "colour": (11, 6009),
    }


def test_sizes_are_the_sums_of_their_fields():
    # state: 4 + 3 + 3 + 18 + 18 + 18 + 6; truth: 3 + 4 + 3 + 3 + 7 scalars
    assert (STATE.size, COMMAND.size, TRUTH.size) == (70, 18, 20)
    assert STATE.slices["joint_pos"] == slice(10, 28)
    assert STATE.slices["foot_contact"] == slice(64, 70)


def test_pack_and_unpack_are_inverse():
    state = resting_state()
    assert state.shape == (70,)
    fields = unpack(STATE, state)
    assert fields["base_quat_w"].tolist() == [0, 0, 0, 1]
    assert pack(STATE, **fields).tobytes() == state.tobytes()


def test_pack_names_missing_and_unknown_fields():
    with pytest.raises(EncodeError, match=r"nav fields missing: vy, yaw_rate; not in .*: speed"):
        pack(STREAMS["nav"], vx=1.0, speed=2.0)


def test_pack_names_a_field_of_the_wrong_size():
    with pytest.raises(EncodeError, match=r"command\.joint_pos has 17 floats, the stream has 18"):
        pack(COMMAND, joint_pos=[0.0] * 17)


def test_schema_hash_is_pinned():
    # A change here makes old peers refuse to start. It comes with a new SCHEMA_VERSION, unless all
    # that it adds is streams: an old peer misreads none of those; or unless it reads all and a new
    # one must not rely on it, as on a HAL that knows no FLAG_HOLD.
    assert schema_hash() == "be7d853f6235fda3"


@pytest.mark.parametrize(("names", "same"), [
    (FAULT_BITS, True),
    ((*FAULT_BITS, "one_more"), True),
    (FAULT_BITS[:12], False),
    (("renamed", *FAULT_BITS[1:]), False),
])  # fmt: skip
def test_a_fault_bit_that_is_appended_keeps_old_and_new_peers_together(monkeypatch, names, same):
    before = schema_hash()
    monkeypatch.setattr("krabby_proto.schema.FAULT_BITS", names)
    assert (schema_hash.__wrapped__() == before) == same


def test_a_stream_that_is_appended_keeps_old_and_new_peers_together(monkeypatch):
    before = schema_hash()
    old = {name: stream for name, stream in STREAMS.items() if stream.id <= 10}
    assert len(STREAMS) > len(old)
    monkeypatch.setattr("krabby_proto.schema.STREAMS", old)
    assert schema_hash.__wrapped__() == before
    del old["truth"]
    assert schema_hash.__wrapped__() != before


@pytest.mark.parametrize(
    ("base", "state"),
    [
        ("tcp://127.0.0.1", "tcp://127.0.0.1:6001"),
        ("tcp://[::1]", "tcp://[::1]:6001"),
        ("curve://crab", "curve://crab:6001"),
        ("ipc:///run/krabby/", "ipc:///run/krabby/state"),
        ("inproc://test", "inproc://test/state"),
    ],
)
def test_default_endpoints_follow_their_base(base, state):
    assert default_endpoints(base)["state"] == state


def test_endpoints_are_by_default_in_the_folder_of_this_user(monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert default_endpoints()["state"] == "ipc:///run/user/7/krabby/state"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("krabby_proto.folder.os.geteuid", lambda: 7)
    assert default_endpoints()["state"] == "ipc:///tmp/krabby-7/state"


@pytest.mark.parametrize("base", ["udp://127.0.0.1", "tcp://", "127.0.0.1"])
def test_a_base_without_a_known_transport_is_refused(base):
    with pytest.raises(EndpointError, match="give ipc:///some/folder, curve://HOST"):
        default_endpoints(base)


@pytest.mark.parametrize(
    ("endpoint", "stream", "place"),
    [
        ("ipc:///run/krabby/command", TRACE, "ipc:///run/krabby/trace"),
        ("ipc:///run/krabby/control", TICKS, "ipc:///run/krabby/ticks"),
        ("ipc:///run/krabby/other", TRACE, ""),
        ("tcp://127.0.0.1:6002", TRACE, ""),
        ("inproc://run/command", TRACE, ""),
    ],
)
def test_recorders_listen_beside_a_unix_socket_and_nowhere_else(endpoint, stream, place):
    assert beside(endpoint, stream) == place


def test_tables_codec_and_states_work_without_libzmq():
    program = (
        "import sys; sys.modules['zmq'] = None\n"
        "from krabby_proto import NAV, Fault, SafetyState, encode, fault_names\n"
        "assert SafetyState.HOLD.live and fault_names(Fault.TILT | Fault.IMU) == ['tilt', 'imu']\n"
        "encode(NAV, [0.3, 0.0, 0.0], instance_id=1, sequence=1, capture_ns=1, publish_ns=1)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


def test_the_package_offers_what_its_modules_name():
    for module, names in krabby_proto._PLACES.items():
        assert set(names) == set(import_module(f"krabby_proto.{module}").__all__)
        for name in names:
            assert getattr(krabby_proto, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = krabby_proto.nothing
