import contextlib
import random
import struct
import subprocess
import sys

import numpy as np
import pytest
from krabby_proto import (
    CAMERA,
    STATE,
    TICKS,
    TRACE,
    Exchange,
    RecordingError,
    TickRecord,
    decode,
    encode,
)
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
        metadata, *chain = reader.iter_metadata()
    assert (schema.name, channel.topic, record.log_time) == ("krabby.state", "state", 1_000_000)
    assert b'["joint_pos", 18, "rad"]' in schema.data
    assert b"<4sHBBQQQQII" in schema.data
    assert metadata.metadata["run_id"] == "r1"
    assert chain[-1].name == "krabby.seal"


def test_an_empty_recording_is_one(tmp_path):
    Recorder(tmp_path / "empty.mcap").close()
    assert list(Recording(tmp_path / "empty.mcap")) == []


def test_a_file_that_is_no_recording_is_refused(tmp_path):
    path = tmp_path / "x.mcap"
    path.write_bytes(b"not a recording at all, but long enough to be read")
    with pytest.raises(RecordingError, match=r"x\.mcap is not a readable recording"):
        list(Recording(path))


def recorded(path, count=50, stream=STATE):
    with Recorder(path, clock_s=lambda: 0.0) as recorder:  # only by size, however slow this is
        for n in range(1, count):
            recorder.write(message(stream, n, 1_000_000 * n))
    return path.read_bytes()


def test_a_recording_cut_short_at_any_place_gives_what_is_readable(tmp_path):
    """262144 bytes hold 730 records of 9 + 22 + 48 + 280 bytes: nine chunks, the rest in one."""
    path = tmp_path / "cut.mcap"
    whole = recorded(path, 7000)
    counts = []
    for size in sorted({*range(0, 400, 7), *range(400, len(whole), len(whole) // 40)}):
        path.write_bytes(whole[:size])
        reading = Recording(path)
        counts.append(0)
        with contextlib.suppress(RecordingError):  # nothing is readable
            counts[-1] = sum(1 for _ in reading)
        if counts[-1] < 6999:
            assert reading.damage
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] == 6999
    *whole_chunks, _ = np.diff(sorted(set(counts)))
    assert len(whole_chunks) == 9
    assert all(729 <= count <= 731 for count in whole_chunks)


def test_a_recording_cut_short_says_so(tmp_path):
    path = tmp_path / "cut.mcap"
    path.write_bytes(recorded(path, 7000)[:-100_000])
    reading = Recording(path)
    assert len(list(reading)) > 5000
    assert reading.damage == "it ends in the middle; was the recorder stopped cleanly?"


def test_a_missing_file_and_an_unwritable_place_are_named(tmp_path):
    with pytest.raises(RecordingError, match=r"no recording at .*none\.mcap"):
        Recording(tmp_path / "none.mcap")
    with pytest.raises(RecordingError, match=r"cannot write the recording .*: No such file"):
        Recorder(tmp_path / "none" / "x.mcap")


def test_a_corrupt_message_is_left_out_and_named(tmp_path):
    path = tmp_path / "bad.mcap"
    good, other = message(STATE, 1, 1_000), message(STATE, 2, 2_000)
    with Recorder(path) as recorder:
        recorder.write(good._replace(payload=good.payload + 1))
        recorder.write(other)
    reading = Recording(path)
    assert [each.sequence for each in reading] == [2]
    assert "state payload has CRC-32" in reading.damage


def test_a_recording_of_corrupt_messages_alone_is_refused(tmp_path):
    path = tmp_path / "bad.mcap"
    good = message(STATE, 1, 1_000)
    with Recorder(path) as recorder:
        recorder.write(good._replace(payload=good.payload + 1))
    with pytest.raises(RecordingError, match="not a readable recording: state payload has CRC-32"):
        list(Recording(path))


def test_a_chunk_that_is_damaged_is_left_out(tmp_path):
    path = tmp_path / "bad.mcap"
    content = bytearray(recorded(path, 7000))
    content[2000] ^= 0x10  # within the first chunk
    path.write_bytes(content)
    reading = Recording(path)
    assert 6999 - 731 <= len(list(reading)) <= 6999 - 729
    assert "a chunk is damaged" in reading.damage


def peak_mb(tmp_path, path):
    """Peak memory of a process that reads `path`, and what it said."""
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from krabby_proto import RecordingError\nfrom krabby_proto.recording import Recording\n"
        "try: print(sum(1 for _ in Recording(Path(sys.argv[1]))))\n"
        "except RecordingError as error: print(error)\n"
        # ru_maxrss would count the process that started this one.
        "print(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])"
    )
    argv = [sys.executable, "-c", code, str(path)]
    said, peak = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )[:2]
    return said, int(peak) // 1024


@pytest.mark.parametrize("claims", [None, 1 << 20])
def test_a_small_file_that_unpacks_to_gigabytes_is_refused_in_bounded_memory(tmp_path, claims):
    """2 GB of zeros in 60 kB; honest about it, or with the size of an ordinary chunk."""
    import zstandard

    packer = zstandard.ZstdCompressor().compressobj()
    zeros = bytes(16 << 20)
    packed = b"".join(packer.compress(zeros) for _ in range(128)) + packer.flush()
    size = (2 << 30) if claims is None else claims
    content = struct.pack("<QQQII", 0, 1, size, 0, 4) + b"zstd" + struct.pack("<Q", len(packed))
    record = struct.pack("<BQ", 6, len(content) + len(packed)) + content + packed
    path = tmp_path / "bomb.mcap"
    path.write_bytes(b"\x89MCAP0\r\n" + record)
    assert path.stat().st_size < 300_000
    said, peak = peak_mb(tmp_path, path)
    assert "a chunk is damaged (it claims" in said
    assert peak < 200


def test_a_record_that_claims_terabytes_is_refused_in_bounded_memory(tmp_path):
    path = tmp_path / "huge.mcap"
    path.write_bytes(b"\x89MCAP0\r\n" + struct.pack("<BQ", 6, 1 << 42) + bytes(100))
    said, peak = peak_mb(tmp_path, path)
    assert "a record claims 4398046511104 bytes" in said
    assert peak < 200


def test_messages_of_one_time_that_fill_memory_are_given_out(tmp_path):
    """Every chunk says that it begins at 0, so that nothing could ever be given out in order."""
    path = tmp_path / "held.mcap"
    content = recorded(path, 7000)
    assert len(list(Recording(path))) == 6999
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("krabby_proto.recording._read._HELD_BYTES", 100_000)
        assert len(list(Recording(path))) == 6999
    assert content


def test_a_full_disk_ends_a_recording_with_one_error_and_leaves_it_readable(tmp_path):
    """A limit on the size of files fails as a full disk does, with another reason."""
    code = (
        "import resource, signal, sys\nfrom pathlib import Path\nimport numpy as np\n"
        "from krabby_proto import CAMERA, RecordingError, decode, encode\n"
        "from krabby_proto.recording import Recorder\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))\n"
        "noise = np.random.default_rng(0).random(5000, dtype=np.float32)\n"
        "def message(n): return decode(encode(CAMERA, noise + n, instance_id=1, sequence=n, "
        "capture_ns=n, publish_ns=n))\n"
        "recorder = Recorder(Path(sys.argv[1]))\n"
        "try:\n    for n in range(1, 1000): recorder.write(message(n))\n"
        "except RecordingError as error: print(error, recorder.messages)\n"
        "recorder.close()"
    )
    path = tmp_path / "full.mcap"
    argv = [sys.executable, "-c", code, str(path)]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"the recording {path} ends after ")
    assert "File too large; it can be read up to there" in said
    written = int(said.split()[-1])
    reading = Recording(path)
    readable = len(list(reading))
    assert 0 < readable < written
    assert reading.damage


def test_without_the_extra_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mcap.writer", None)
    with pytest.raises(RecordingError, match=r"install krabby-proto\[recording\]"):
        Recorder(tmp_path / "x.mcap")


def test_a_thousand_cuts_give_what_is_in_front_of_them(tmp_path):
    """Streams, records of ticks and exchanges, metadata and channels of viewers, cut anywhere."""
    path = tmp_path / "cut.mcap"
    seconds = [0.0]
    tick = TickRecord()
    with Recorder(path, {"run_id": "r1"}, clock_s=lambda: seconds[0]) as recorder:
        drawn = recorder.register("/log", "foxglove.Log", "protobuf", b"", "protobuf")
        for n in range(1, 101):
            seconds[0] += 0.05
            stamps = {"instance_id": 1, "sequence": n, "capture_ns": n, "publish_ns": 1000 * n}
            content = tick.finish(
                tick=n,
                now_ns=n,
                mode="policy",
                safety_state=2,
                sent=True,
                hal_checked=True,
                leaving=False,
                command_sequence=n,
                host_ns=(n,),
            )
            recorder.write(message(STATE, n, 1000 * n))
            recorder.write(decode(encode(TICKS, content, **stamps)))
            gate = Exchange.of_gate(n, 2, 0).pack()
            recorder.write(decode(encode(TRACE, gate, **stamps)))
            recorder.append(drawn, b"words", 1000 * n)
            if n == 40:
                recorder.add_metadata("krabby.hello.hal", {"hello": '{"service": "sim-hal"}'})
    whole = path.read_bytes()
    counts = []
    for size in sorted(random.Random(2).sample(range(len(whole)), 1000)):
        path.write_bytes(whole[:size])
        reading = Recording(path)
        counts.append(0)
        with contextlib.suppress(RecordingError):  # nothing is readable
            counts[-1] = sum(1 for _ in reading)
        assert "\n" not in reading.damage
        assert counts[-1] == 300 or reading.damage
        if counts[-1] and not size % 10:
            assert len(list(reading.ticks())) == counts[-1] // 3
        assert isinstance(reading.run.hellos.get("hal", {}), dict)
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] == 300
    assert len(set(counts)) > 4
