"""A change of any bit of a recording is found, and where it is."""

import random

import numpy as np
import pytest
from krabby_proto import STATE, TICKS, RecordingError, decode, encode
from krabby_proto.recording import Recorder, Recording, SigningKey, verify


def message(stream, sequence):
    payload = bytes(range(200)) if stream is TICKS else np.arange(70) + sequence
    frames = encode(
        stream,
        payload,
        instance_id=3,
        sequence=sequence,
        capture_ns=1_000 * sequence,
        publish_ns=1_000 * sequence,
    )
    return decode(frames)


def recorded(path, key=None, seal=True):
    """200 messages and a link after every fiftieth."""
    seconds = [0.0]
    recorder = Recorder(path, {"run_id": "r"}, key=key, clock_s=lambda: seconds[0])
    for n in range(1, 201):
        seconds[0] += 0.01
        recorder.write(message(STATE if n % 2 else TICKS, n))
    if seal:
        recorder.close()
    else:  # as when the process is killed
        recorder.flush()
        recorder._file.close()
    return path.read_bytes()


@pytest.fixture(params=["unsigned", "signed"])
def key(request, tmp_path):
    return SigningKey(tmp_path / "key") if request.param == "signed" else None


def test_a_whole_recording_is_intact_and_readable(tmp_path, key):
    path = tmp_path / "a.mcap"
    recorded(path, key)
    verdict = verify(path)
    assert verdict.intact
    assert verdict.signer == ("" if key is None else key.public)
    assert verdict.verified == verdict.size == path.stat().st_size
    reading = Recording(path)
    assert len(list(reading)) == 200
    assert reading.damage == ""


def test_every_flipped_bit_is_found_in_the_place_that_is_named(tmp_path, key):
    path = tmp_path / "a.mcap"
    content = recorded(path, key)
    rng = random.Random(4)
    # Every byte of the last 700, where seal, index and end are, and of the others one in 60.
    places = [*range(0, len(content), 60), *range(len(content) - 700, len(content))]
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        verdict = verify(path)
        assert not verdict.intact, place
        assert verdict.verified <= place, verdict


def test_each_bit_of_one_link_and_of_the_seal_counts(tmp_path, key):
    path = tmp_path / "a.mcap"
    content = recorded(path, key)
    for name in (b"krabby.link", b"krabby.seal"):
        place = content.index(name)
        for bit in range(0, 8 * 300, 11):
            changed = bytearray(content)
            changed[place + bit // 8] ^= 1 << bit % 8
            path.write_bytes(changed)
            assert not verify(path).intact, (name, bit)


def test_a_chunk_that_is_changed_is_named(tmp_path):
    path = tmp_path / "a.mcap"
    content = bytearray(recorded(path))
    place = content.index(b"\x28\xb5\x2f\xfd") + 60  # within the first compressed data
    content[place] ^= 1
    path.write_bytes(content)
    text = verify(path).text
    assert "the chunk at bytes" in text
    begin, end = (int(word) for word in text.split("bytes ")[1].split(" (")[0].split(" to "))
    assert begin < place < end


def test_bytes_that_are_added_or_removed_are_found(tmp_path):
    path = tmp_path / "a.mcap"
    content = recorded(path)
    for changed in (content + b"\0", content[:-1], content[: len(content) // 2]):
        path.write_bytes(changed)
        assert not verify(path).intact


def test_a_recording_without_an_end_is_intact_up_to_its_last_link(tmp_path):
    path = tmp_path / "a.mcap"
    recorded(path, seal=False)
    verdict = verify(path)
    assert not verdict.intact
    assert f"intact up to byte {verdict.verified}" in verdict.text
    assert 0 < verdict.verified < path.stat().st_size
    assert len(list(Recording(path))) == 200


def test_the_signer_is_asked_for_by_name(tmp_path):
    path, key, other = tmp_path / "a.mcap", SigningKey(tmp_path / "k"), SigningKey(tmp_path / "o")
    recorded(path, key)
    assert verify(path, key.public).intact
    assert "not by" in verify(path, other.public).text
    recorded(path)
    assert "signed by nobody" in verify(path, key.public).text


def test_a_signature_of_another_key_does_not_fit(tmp_path):
    path, key, other = tmp_path / "a.mcap", SigningKey(tmp_path / "k"), SigningKey(tmp_path / "o")
    content = recorded(path, key)
    path.write_bytes(content.replace(key.public.encode(), other.public.encode()))
    assert "the signature at byte" in verify(path).text


def test_a_key_is_kept_and_must_be_private(tmp_path):
    path = tmp_path / "key"
    assert SigningKey(path).public == SigningKey(path).public
    path.chmod(0o644)
    with pytest.raises(RecordingError, match="can be read by others; chmod 600"):
        SigningKey(path)
    path.write_text("no key")
    path.chmod(0o600)
    with pytest.raises(RecordingError, match="is not a key of 64 hexadecimal digits"):
        SigningKey(path)


def test_what_is_no_recording_has_no_chain(tmp_path):
    path = tmp_path / "a.mcap"
    path.write_bytes(b"something else")
    assert not verify(path).intact
    with pytest.raises(RecordingError, match="cannot read"):
        verify(tmp_path / "none.mcap")
