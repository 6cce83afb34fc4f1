"""Makes a stand-in of Stereolabs' installer for Jetsons: it needs what the real one needs.

    python zed_installer.py FOLDER

Taken from Stereolabs' own images (stereolabs/zed-docker, 5.X/l4t) and `get_python_api.py`: a
self-extracting script with a zstd archive, which wants lsb-release, wget, less, zstd, udev, sudo
and apt-transport-https, `/etc/nv_tegra_release` with its release of Jetson Linux, apt's package
lists for its libraries, and `silent`, or else it asks. The script that fetches the wheel wants pip,
requests and the SDK's headers; here it makes a wheel in place of a download. The SDK itself is
empty files.
"""

import io
import sys
import tarfile
from pathlib import Path

__all__ = ["NAME", "make_installer"]

NAME = "ZED_SDK_Tegra_L4T39.2_v5.4.0.zstd.run"
_HEAD = r"""#!/bin/bash
# Stand-in of the ZED SDK's installer. Arguments up to -- are makeself's.
fail() { echo "ZED SDK installer: $*" >&2; exit 1; }
while [ "${1:-}" = --quiet ]; do shift; done
[ "${1:-}" != -- ] || shift
for tool in lsb_release wget less zstd udevadm sudo; do
  command -v "$tool" >/dev/null || fail "$tool is missing"
done
dpkg-query --show apt-transport-https >/dev/null 2>&1 || fail "apt-transport-https is missing"
lsb_release -cs >/dev/null || fail "unknown distribution"
[ -n "${USER:-}" ] || fail "USER is not set"
grep -q '^# R39 (release), REVISION: 2\.' /etc/nv_tegra_release 2>/dev/null ||
  fail "this is no Jetson with L4T 39.2"
case " $* " in
  *" silent "*) ;;
  *) read -r -p "Accept the license? [y/n] " answer || fail "no answer"
     [ "$answer" = y ] || exit 1 ;;
esac
for flag in "$@"; do
  case $flag in silent | runtime_only | skip_python | skip_cuda | skip_drivers | skip_tools) ;;
    *) fail "unknown option $flag" ;; esac
done
case " $* " in
  *" skip_python "*) ;;
  *) python3 -m pip --version >/dev/null || fail "pip is missing" ;;
esac
sudo apt-get install -qq -y --no-install-recommends libusb-1.0-0 libturbojpeg0 >/dev/null ||
  fail "libraries cannot be installed"
line=$(awk '/^PAYLOAD$/ { print NR + 1; exit }' "$0")
tail -n "+$line" "$0" | zstd -dc | tar -x -C /usr/local || fail "damaged archive"
exit 0
PAYLOAD
"""
_HEADER = "#define ZED_SDK_MAJOR_VERSION 5\n#define ZED_SDK_MINOR_VERSION 4\n"
_FETCH = '''"""Stand-in of get_python_api.py: makes the wheel that the real one downloads."""
import argparse
import platform
import re
import subprocess
import sys
import zipfile

import requests  # the real one downloads with it

parser = argparse.ArgumentParser()
parser.add_argument("--path", default=".")
folder = parser.parse_args().path
header = open("/usr/local/zed/include/sl/Camera.hpp").read()
version = ".".join(re.findall(r"VERSION (\\d+)", header))
python = "cp%d%d" % sys.version_info[:2]
tag = f"{python}-{python}-linux_{platform.machine().lower()}"
info = f"pyzed-{version}.dist-info"
wheel = f"{folder}/pyzed-{version}-{tag}.whl"
files = {
    "pyzed/__init__.py": "",
    "pyzed/sl.py": "class Camera:\\n    @staticmethod\\n    def get_sdk_version():\\n"
    f"        return {version + '.0'!r}\\n",
    f"{info}/METADATA": f"Metadata-Version: 2.1\\nName: pyzed\\nVersion: {version}\\n",
    f"{info}/WHEEL": f"Wheel-Version: 1.0\\nRoot-Is-Purelib: false\\nTag: {tag}\\n",
}
files[f"{info}/RECORD"] = "".join(f"{name},,\\n" for name in (*files, f"{info}/RECORD"))
with zipfile.ZipFile(wheel, "w") as archive:
    for name, text in files.items():
        archive.writestr(name, text)
print("-> Found ! Downloading python package into", wheel, requests.__version__)
subprocess.check_call([sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", wheel])
'''
_FILES = {
    "zed/lib/libsl_zed.so": "stand-in\n",
    "zed/include/sl/Camera.hpp": _HEADER,
    "zed/zed-config-version.cmake": 'set(PACKAGE_VERSION "5.4.0")\n',
    "zed/get_python_api.py": _FETCH,
}


def make_installer(folder: Path) -> Path:
    """Write the stand-in into a folder; returns its path."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, text in _FILES.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(text.encode()), 0o644
            tar.addfile(member, io.BytesIO(text.encode()))
    path = folder / NAME
    path.write_bytes(_HEAD.encode() + _as_zstd(archive.getvalue()))
    return path


def _as_zstd(data: bytes) -> bytes:
    """A frame of RFC 8878 with raw blocks: no compressor is needed."""
    frame = b"\x28\xb5\x2f\xfd\xe0" + len(data).to_bytes(8, "little")
    pieces = [data[at : at + 0x20000] for at in range(0, len(data), 0x20000)]
    for piece in pieces:
        header = len(piece) << 3 | (piece is pieces[-1])
        frame += header.to_bytes(3, "little") + piece
    return frame


if __name__ == "__main__":
    make_installer(Path(sys.argv[1]))
