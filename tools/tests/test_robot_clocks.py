"""tools/robot/krabby-clocks as systemd runs it: no terminal, stand-ins of NVIDIA's two tools."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "robot" / "krabby-clocks"
MODES = {
    "AGX Orin": ("< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=1 NAME=MODE_15W >\n", "0"),
    "Orin NX": ("< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=4 NAME=MAXN_SUPER >\n", "4"),
    "Orin Nano": ("< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n", "2"),
    "Orin Nano, old": ("< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=7W >\n", "0"),
}
NVPMODEL = """#!/bin/sh
# Keeps its mode in a file; asks before a mode that needs a reboot.
if [ "$1" = -q ]; then echo "NV Power Mode: some"; cat {folder}/mode; exit 0; fi
if [ -e {folder}/asks ]; then
  read -r answer || exit 3
  [ "$answer" = YES ] || {{ echo "mode not changed"; exit {status}; }}
fi
echo "$2" >{folder}/mode
"""


def run(folder, modes, *, asks=False, status=0):
    """Run the script where mode 9 is running; what came of it."""
    (folder / "nvpmodel.conf").write_text(modes)
    (folder / "mode").write_text("9\n")
    if asks:
        (folder / "asks").touch()
    programs = {
        "nvpmodel": NVPMODEL.format(folder=folder, status=status),
        "jetson_clocks": f"#!/bin/sh\ntouch {folder}/fixed\n",
    }
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return subprocess.run(
        ["sh", SCRIPT], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        timeout=60, env={"PATH": f"{folder}:{os.environ['PATH']}",
                         "NVPMODEL_CONF": f"{folder}/nvpmodel.conf"},
    )  # fmt: skip


@pytest.mark.parametrize("board", MODES)
def test_full_power_is_found_by_its_name_on_every_board(tmp_path, board):
    modes, wanted = MODES[board]
    ended = run(tmp_path, modes)
    assert (ended.returncode, (tmp_path / "mode").read_text()) == (0, f"{wanted}\n")
    assert (tmp_path / "fixed").exists()


@pytest.mark.parametrize("status", [0, 1])
def test_a_mode_that_needs_a_reboot_is_told_and_clocks_are_fixed_all_the_same(tmp_path, status):
    ended = run(tmp_path, MODES["Orin NX"][0], asks=True, status=status)
    assert ended.returncode == 1
    assert "sudo nvpmodel -m 4  once and answer YES" in ended.stderr
    assert (tmp_path / "mode").read_text() == "9\n"
    assert (tmp_path / "fixed").exists()
