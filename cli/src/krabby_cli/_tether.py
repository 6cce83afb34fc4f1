"""Run as a script before a service: tie its life to the supervisor's, then become the service.

A supervisor that is killed outright cannot stop anything; the kernel then does it (Linux only). It
is a script rather than code between fork and exec, which is no place for Python in a process that
has threads. Usage: ``python -IS _tether.py SUPERVISOR_PID PROGRAM [ARGUMENT ...]``.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    supervisor, *argv = sys.argv[1:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(supervisor):
        sys.exit("the supervisor has gone")
    # Inherited as ignored from a shell that started the command in the background.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        sys.exit(f"{argv[0]} cannot be started: {error.strerror}; run: make setup")


if __name__ == "__main__":
    main()
