"""A wall clock that steps for the processes of a stack alone: no namespace has one.

The time stamps of received frames step with it, as the kernel's do.
"""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path
from typing import Final

__all__ = ["WallClock"]

_SHIM: Final = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
static const volatile int64_t *ahead;
__attribute__((constructor)) static void begin(void) {
  int file = open(AHEAD, O_RDONLY);
  void *at = file < 0 ? MAP_FAILED : mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
  if (at != MAP_FAILED) ahead = at;
}
int clock_gettime(clockid_t id, struct timespec *t) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
  int result = real(id, t);
  if (!result && id == CLOCK_REALTIME && ahead) t->tv_sec += *ahead;
  return result;
}
int gettimeofday(struct timeval *restrict t, void *restrict zone) {
  struct timespec now;
  if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
  t->tv_sec = now.tv_sec;
  t->tv_usec = now.tv_nsec / 1000;
  return 0;
}
/* Stamps of the kernel are of the same clock. */
ssize_t recvmsg(int fd, struct msghdr *m, int flags) {
  static ssize_t (*real)(int, struct msghdr *, int);
  if (!real) real = dlsym(RTLD_NEXT, "recvmsg");
  ssize_t result = real(fd, m, flags);
  if (result < 0 || !ahead) return result;
  for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c))
    if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SO_TIMESTAMPNS)
      ((struct timespec *)CMSG_DATA(c))->tv_sec += *ahead;
  return result;
}
time_t time(time_t *at) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return at ? (*at = now.tv_sec) : now.tv_sec;
}
"""


class WallClock:
    """CLOCK_REALTIME of processes started with `env`; needs a C compiler.

    Without one `env` is empty and `step` raises `OSError`.
    """

    def __init__(self, folder: Path) -> None:
        self._ahead = folder / "ahead"
        self._ahead.write_bytes(bytes(8))
        library = folder / "wall.so"
        command = ["cc", "-shared", "-fPIC", "-O1", f'-DAHEAD="{self._ahead}"', "-xc", "-"]
        try:
            subprocess.run(
                [*command, "-o", str(library), "-ldl"], input=_SHIM, text=True, check=True,
                capture_output=True,
            )  # fmt: skip
            self.env = {"LD_PRELOAD": str(library)}
        except (OSError, subprocess.CalledProcessError):
            self.env = {}

    def step(self, seconds: int) -> None:
        """Let it be so far ahead of this host's [s]."""
        if not self.env:
            raise OSError("the wall clock cannot be stepped without a C compiler, cc")
        with self._ahead.open("r+b") as file:
            file.write(struct.pack("=q", seconds))
