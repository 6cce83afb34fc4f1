"""Starts a service with a memory limit that the kernel ends when the supervisor dies (Linux only).

It is a script, since Python code between fork and exec is unsafe in a process with threads. Usage:
``python -IS _tether.py SUPERVISOR_PID MEMORY_BYTES PROGRAM [ARGUMENT ...]``.
"""

import ctypes
import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    supervisor, memory_bytes, *argv = sys.argv[1:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(supervisor):
        sys.exit("the supervisor has gone")
    # Of private writable memory; RLIMIT_AS would count what libraries only reserve.
    resource.setrlimit(resource.RLIMIT_DATA, (int(memory_bytes), int(memory_bytes)))
    # A shell that starts the command in the background has it ignored, which is inherited.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        sys.exit(f"{argv[0]} cannot be started: {error.strerror}; run: make setup")


if __name__ == "__main__":
    main()
