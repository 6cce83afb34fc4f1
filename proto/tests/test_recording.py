import sys

import numpy as np
import pytest
from krabby_proto import CAMERA, STATE, RecordingError, decode, encode
from krabby_proto.recording import Recorder, Recording


def message(stream, sequence, publish_ns):
    size = stream.size or 12
    payload = np.arange(size, dtype=np.float32) + sequence
    return decode(
        encode(
            stream,
            payload,
            instance_id=2**63 + 5,
            sequence=sequence,
            capture_ns=publish_ns - 1000,
            publish_ns=publish_ns,
            flags=32,
        )
    )


def test_what_is_recorded_is_replayed_byte_for_byte_in_order_of_time(tmp_path):
    path = tmp_path / "walk.mcap"
    messages = [message(STATE, n, 1_000_000 * n) for n in range(1, 50)]
    messages += [message(CAMERA, n, 3_000_000 * n + 1) for n in range(1, 10)]
    with Recorder(path, {"run_id": "r1"}) as recorder:
        for each in messages:
            recorder.write(each)
        assert recorder.messages == len(messages)
    replayed = list(Recording(path))
    expected = sorted(messages, key=lambda each: each.header.publish_ns)
    assert [each.frames() for each in replayed] == [each.frames() for each in expected]
    assert {each.stream.name for each in replayed} == {"state", "camera"}


def test_sequences_beyond_32_bits_survive(tmp_path):
    with Recorder(tmp_path / "long.mcap") as recorder:
        recorder.write(message(STATE, 2**40, 5_000))
    (only,) = Recording(tmp_path / "long.mcap")
    assert only.sequence == 2**40


def test_a_recording_explains_itself(tmp_path):
    from mcap.reader import make_reader

    path = tmp_path / "walk.mcap"
    with Recorder(path, {"run_id": "r1"}) as recorder:
        recorder.write(message(STATE, 1, 1_000_000))
    with path.open("rb") as file:
        reader = make_reader(file)
        schema, channel, record = next(iter(reader.iter_messages()))
        (metadata,) = reader.iter_metadata()
    assert (schema.name, channel.topic, record.log_time) == ("krabby.state", "state", 1_000_000)
    assert b'["joint_pos", 18, "rad"]' in schema.data
    assert b"<4sHBBQQQQII" in schema.data
    assert metadata.metadata["run_id"] == "r1"


def test_an_empty_recording_is_one(tmp_path):
    Recorder(tmp_path / "empty.mcap").close()
    assert list(Recording(tmp_path / "empty.mcap")) == []


def test_a_file_that_is_no_recording_is_refused(tmp_path):
    path = tmp_path / "x.mcap"
    path.write_bytes(b"not a recording at all, but long enough to be read")
    with pytest.raises(RecordingError, match=r"x\.mcap is not a readable MCAP file"):
        list(Recording(path))


def test_a_recording_cut_short_is_refused(tmp_path):
    path = tmp_path / "cut.mcap"
    with Recorder(path) as recorder:
        for n in range(1, 50):
            recorder.write(message(STATE, n, 1_000_000 * n))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(RecordingError, match="was the recorder stopped cleanly"):
        list(Recording(path))


def test_a_missing_file_and_an_unwritable_place_are_named(tmp_path):
    with pytest.raises(RecordingError, match=r"no recording at .*none\.mcap"):
        Recording(tmp_path / "none.mcap")
    with pytest.raises(RecordingError, match=r"cannot write the recording .*: No such file"):
        Recorder(tmp_path / "none" / "x.mcap")


def test_a_corrupt_message_in_a_recording_is_named(tmp_path):
    path = tmp_path / "bad.mcap"
    good = message(STATE, 1, 1_000)
    with Recorder(path) as recorder:
        recorder.write(good._replace(payload=good.payload + 1))
    with pytest.raises(RecordingError, match="cannot be replayed: state payload has CRC-32"):
        list(Recording(path))


def test_without_the_extra_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mcap.writer", None)
    with pytest.raises(RecordingError, match=r"install krabby-proto\[recording\]"):
        Recorder(tmp_path / "x.mcap")
