import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from krabby_proto import (
    CAMERA,
    COMMAND,
    NAV,
    STATE,
    STREAMS,
    BadMagic,
    CommandReply,
    CommandStatus,
    CorruptPayload,
    EncodeError,
    FrameError,
    SchemaVersionMismatch,
    ShortFrame,
    WrongFrameCount,
    WrongLength,
    WrongStream,
    decode,
    encode,
    fault_names,
)

U64 = st.integers(0, 2**64 - 1)
STAMPS = {"instance_id": 1, "sequence": 1, "capture_ns": 1, "publish_ns": 2}
FLOAT_STREAMS = [s for s in STREAMS.values() if s.max_elements]


@st.composite
def messages(draw):
    stream = draw(st.sampled_from(FLOAT_STREAMS))
    size = stream.size or draw(st.integers(1, 200))
    if stream.element == "uint8":
        payload = draw(hnp.arrays(np.uint8, size))
    else:
        payload = draw(hnp.arrays(np.float32, size, elements=st.floats(width=32)))
    numbers = draw(st.tuples(U64, U64, U64, U64))
    return stream, payload, numbers, draw(st.integers(0, 255))


@given(messages())
def test_what_is_encoded_is_decoded_bit_for_bit(message):
    stream, payload, (instance_id, sequence, capture_ns, publish_ns), flags = message
    frames = encode(
        stream,
        payload,
        instance_id=instance_id,
        sequence=sequence,
        capture_ns=capture_ns,
        publish_ns=publish_ns,
        flags=flags,
    )
    decoded = decode(frames, stream)
    assert decoded.payload.tobytes() == payload.tobytes()  # NaN payloads included
    header = decoded.header
    assert (header.instance_id, header.sequence) == (instance_id, sequence)
    assert (header.capture_ns, header.publish_ns, header.flags) == (capture_ns, publish_ns, flags)
    assert decoded.stream is stream
    assert decoded.frames() == frames


@given(st.lists(st.binary(max_size=120), max_size=5))
def test_random_frames_raise_nothing_but_frame_errors(frames):
    with pytest.raises(FrameError):
        decode(frames)


@given(messages(), st.data())
def test_a_flipped_payload_bit_is_always_found(message, data):
    stream, payload, _, _ = message
    topic, header, raw = encode(stream, payload, **STAMPS)
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    spoiled = bytearray(raw)
    spoiled[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CorruptPayload):
        decode([topic, header, bytes(spoiled)])


@given(st.lists(U64, min_size=4, max_size=4), st.lists(st.integers(0, 2**32 - 1), min_size=3))
def test_replies_come_back_as_they_went(longs, masks):
    raw = CommandReply.pack(
        CommandStatus.HELD,
        safety_state=3,
        fault_bits=masks[0],
        position_clamp_mask=masks[1],
        rate_clamp_mask=masks[2],
        request_sequence=longs[0],
        applied_sequence=longs[1],
        applied_ns=longs[2],
        server_ns=longs[3],
    )
    reply = CommandReply.unpack(raw)
    assert (reply.status_name, reply.safety_name, reply.applied) == ("held", "hold", False)
    assert [reply.fault_bits, reply.position_clamp_mask, reply.rate_clamp_mask] == masks[:3]
    assert [
        reply.request_sequence,
        reply.applied_sequence,
        reply.applied_ns,
        reply.server_ns,
    ] == longs


@given(st.binary(max_size=80))
def test_random_replies_raise_nothing_but_frame_errors(raw):
    with pytest.raises(FrameError):
        CommandReply.unpack(raw)


def test_payload_is_read_only_and_images_are_taken_in_row_order():
    image = np.arange(6, dtype=np.float64).reshape(2, 3)
    message = decode(encode(CAMERA, image, **STAMPS))
    assert message.payload.tolist() == [0, 1, 2, 3, 4, 5]
    assert not message.payload.flags.writeable


def test_age_counts_from_capture():
    message = decode(
        encode(NAV, [0, 0, 0], instance_id=1, sequence=1, capture_ns=5_000_000, publish_ns=1)
    )
    assert message.age_s(17_000_000) == pytest.approx(0.012)


def frames(stream=COMMAND, size=None):
    return encode(stream, np.zeros(size or stream.size), **STAMPS)


def test_a_message_without_payload_is_refused():
    with pytest.raises(WrongFrameCount, match="2 frames, the contract has 3"):
        decode(frames()[:2])


def test_a_cut_header_is_refused():
    topic, header, payload = frames()
    with pytest.raises(ShortFrame, match="47 bytes, the contract has 48"):
        decode([topic, header[:47], payload])


def test_a_foreign_header_is_refused():
    topic, header, payload = frames()
    with pytest.raises(BadMagic, match=r"b'ROSX', expected b'KRBY'"):
        decode([topic, b"ROSX" + header[4:], payload])


def test_frame_from_another_schema_version_is_refused():
    topic, header, payload = frames()
    with pytest.raises(SchemaVersionMismatch, match=r"version 2, this process has 1; install"):
        decode([topic, header[:4] + b"\x02\x00" + header[6:], payload])


def test_a_message_of_another_stream_is_refused():
    with pytest.raises(WrongStream, match=r"b'nav' with stream id 5, expected 'state' with 2"):
        decode(frames(NAV), STATE)


def test_a_topic_that_is_not_the_headers_stream_is_refused():
    _, header, payload = frames()
    with pytest.raises(WrongStream, match="'state' with stream id 3"):
        decode([b"state", header, payload])


def test_a_json_stream_has_no_float_message():
    topic, header, _ = frames()
    patched = header[:6] + b"\x06\x00" + header[8:40] + bytes(8)
    with pytest.raises(WrongLength, match="safety payload has 0 floats"):
        decode([b"safety", patched, b""])
    assert topic == b"command"


@pytest.mark.parametrize(("count", "cut"), [(18, -4), (18, -1), (17, 72), (2**32 - 1, 72)])
def test_a_payload_that_is_not_what_the_header_announces_is_refused(count, cut):
    topic, header, payload = frames()
    patched = header[:40] + count.to_bytes(4, "little") + header[44:]
    with pytest.raises(WrongLength, match=f"announces {count} float32"):
        decode([topic, patched, payload[:cut]])


def test_a_command_of_17_joints_is_refused():
    topic, header, payload = frames()
    patched = header[:40] + (17).to_bytes(4, "little") + header[44:]
    with pytest.raises(WrongLength, match="17 floats, the stream has 18"):
        decode([topic, patched, payload[:-4]])


def test_a_payload_of_the_wrong_size_is_not_sent():
    with pytest.raises(EncodeError, match="command payload has 17 floats, the stream has 18"):
        encode(COMMAND, np.zeros(17), **STAMPS)
    with pytest.raises(EncodeError, match="camera payload has 0 floats, the stream has 1 to"):
        encode(CAMERA, np.zeros((0, 3)), **STAMPS)


def test_a_time_that_does_not_fit_is_not_sent():
    with pytest.raises(EncodeError, match="capture_ns -1"):
        encode(COMMAND, np.zeros(18), **{**STAMPS, "capture_ns": -1})


def test_fault_bits_have_names():
    assert fault_names(0) == []
    assert fault_names(0b1001) == ["command_timeout", "tilt"]
    assert fault_names(1 << 20) == ["bit_20"]


def test_statuses_and_states_of_a_later_version_still_print():
    raw = bytearray(
        CommandReply.pack(
            0,
            safety_state=0,
            fault_bits=0,
            position_clamp_mask=0,
            rate_clamp_mask=0,
            request_sequence=0,
            applied_sequence=0,
            applied_ns=0,
            server_ns=0,
        )
    )
    raw[6], raw[7] = 99, 77
    reply = CommandReply.unpack(bytes(raw))
    assert (reply.status_name, reply.safety_name) == ("status_99", "state_77")


def test_a_reply_of_another_kind_or_version_is_refused():
    golden = bytes.fromhex("4b52504c0100") + bytes(50)
    assert CommandReply.unpack(golden).status_name == "applied"
    with pytest.raises(BadMagic, match=r"b'KRBY', expected b'KRPL'"):
        CommandReply.unpack(b"KRBY" + golden[4:])
    with pytest.raises(SchemaVersionMismatch, match="server has schema version 7"):
        CommandReply.unpack(golden[:4] + b"\x07" + golden[5:])
