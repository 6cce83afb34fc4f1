"""Read by every Python that has this folder on its path: signals that make its main thread fail."""

import signal


def stick(*_):
    """Do not return."""
    while True:
        pass


def eat(*_):
    """Take memory without end."""
    kept = []
    while True:
        kept.append(bytearray(8 << 20))


signal.signal(signal.SIGUSR1, stick)
signal.signal(signal.SIGUSR2, eat)
