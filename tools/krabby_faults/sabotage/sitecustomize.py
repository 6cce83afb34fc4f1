"""Read by every Python that has this folder on its path: signals that make its main thread fail."""

import signal

_MOST_BLOCKS = 400
"""Of 8 MB, taken by a process whose memory is not limited."""


def stick(*_: object) -> None:
    """Do not return."""
    while True:
        pass


def eat(*_: object) -> None:
    """Take memory until it is refused."""
    kept = []
    while len(kept) < _MOST_BLOCKS:
        kept.append(bytearray(8 << 20))
    stick()


signal.signal(signal.SIGUSR1, stick)
signal.signal(signal.SIGUSR2, eat)
