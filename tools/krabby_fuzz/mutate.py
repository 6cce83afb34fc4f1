"""Mutations without feedback, for a fixed seed: a valid input with a few things wrong."""

from __future__ import annotations

import random
from collections.abc import Sequence

__all__ = ["mutated"]

_INTERESTING = (
    *(b"\x00" * 4, b"\xff" * 4, b"\xff" * 8, b"\x7f" * 8, b"\x00\x00\x80\x7f", b"\x00\x00\xc0\xff"),
    *((1 << 40).to_bytes(8, "little"), b"KRBY", b"KRPL", b"1e999", b"-1", b"nan", b"9" * 40),
    *(
        b"null",
        b"{}",
        b"[]",
        b'""',
        b"[" * 60,
        b"[" * 2000,
        b"9" * 5000,
        b"\\u0000",
        b"\xed\xa0\x80",
        b"$VN",
        b"\xfa\x05",
    ),
)
_MOST_BYTES = 1 << 16


def mutated(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """One input: usually a seed with one to three mutations, one in twenty only noise."""
    if rng.random() < 0.05:
        return rng.randbytes(rng.randrange(120))
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        _CHANGES[int(rng.random() * len(_CHANGES))](rng, data, seeds)
    return bytes(data[:_MOST_BYTES])


def _at(rng: random.Random, data: bytearray) -> int:
    return int(rng.random() * len(data)) if data else 0


def _flip(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    if data:
        data[_at(rng, data)] ^= 1 << int(rng.random() * 8)


def _set(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    if data:
        data[_at(rng, data)] = int(rng.random() * 256)


def _patch(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    value, at = rng.choice(_INTERESTING), _at(rng, data)
    data[at : at + len(value)] = value


def _insert(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = _at(rng, data)
    data[at:at] = rng.choice(_INTERESTING)


def _cut(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    del data[_at(rng, data) :]


def _remove(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = _at(rng, data)
    del data[at : at + rng.choice((1, 2, 4, 16, 64))]


def _double(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = _at(rng, data)
    data[at:at] = data[at : at + rng.choice((1, 4, 16, 64))]


def _splice(rng: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    other = rng.choice(seeds)
    data[_at(rng, data) :] = other[int(rng.random() * len(other)) :]


_CHANGES = (_flip, _set, _patch, _insert, _cut, _remove, _double, _splice)
