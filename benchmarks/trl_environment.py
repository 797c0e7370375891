"""TRL beside the project's environment: a folder of its own under `build/`, never installed into `.venv`.

It holds only what TRL's trainer needs and the environment lacks, all pinned, and is searched last: whatever both have,
torch and transformers above all, comes from the environment. `python -m benchmarks.trl_environment` makes it ahead of
time and prints where it is.
"""

import fcntl
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from entrostat.protocol.errors import EntrostatError, ResourceError

REQUIREMENTS = Path(__file__).parent / "trl-requirements.txt"
BUILD = Path(__file__).parent.parent / "build" / "trl"
# dill takes a module for a library's where its path says so; of others it pickles the content, and fails on pyarrow's.
PACKAGES = "site-packages"
STAMP = "ready"
PIP_SECONDS = 900


def prepare(build: Path = BUILD, requirements: Path = REQUIREMENTS) -> Path:
    """The folder with TRL's packages, to be put at the end of `sys.path`; made if it isn't there for these versions.

    Several processes may ask at once: one makes it, the others wait.

    Raises:
        ResourceError: pip can't get the packages, or takes longer than a quarter of an hour.
    """
    wanted = _digest(requirements)
    build.mkdir(parents=True, exist_ok=True)
    with _alone(build / "lock"):
        if not ready(build, requirements):
            (build / STAMP).unlink(missing_ok=True)
            shutil.rmtree(build / PACKAGES, ignore_errors=True)
            _install(requirements, build / PACKAGES)
            (build / STAMP).write_text(wanted)
    return build / PACKAGES


def ready(build: Path = BUILD, requirements: Path = REQUIREMENTS) -> bool:
    """Whether the folder holds these versions, complete, for this Python."""
    stamp = build / STAMP
    return stamp.is_file() and stamp.read_text() == _digest(requirements)


def _digest(requirements: Path) -> str:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return hashlib.sha256(requirements.read_bytes() + version.encode()).hexdigest()


def _install(requirements: Path, target: Path) -> None:
    options = ["--quiet", "--disable-pip-version-check", "--no-input", "--no-deps", "--retries", "0"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), "-r", str(requirements)]
    print(f"getting TRL and what it needs into {target}", file=sys.stderr)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise ResourceError(
            f"pip took more than {PIP_SECONDS} s to get {requirements.name}: is an index slow?"
        ) from error
    if done.returncode:
        said = [line for line in done.stderr.strip().splitlines() if line.strip()]
        reason = next((line for line in said if line.startswith("ERROR")), said[-1] if said else "it said nothing")
        raise ResourceError(
            f"TRL's packages can't be had ({reason}): {requirements} names them; the comparison with TRL needs a "
            "package index that pip can reach, and nothing else of this project does"
        )


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Holds the lock; whoever waits, waits at most for one installation, which has its own deadline."""
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Makes the folder and says where it is."""
    try:
        print(prepare())
    except EntrostatError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
