"""The built wheel works from outside the tree, also when built from a checkout without symlinks."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

STATIONS = ("actors", "controller", "learner", "protocol")
IGNORED = shutil.ignore_patterns(".venv", ".git", "runs", "build", "*.egg-info", "__pycache__", ".*_cache")


def build(source: Path, out: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)],
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return next(out.glob("*.whl"))


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as opened:
        return {name for name in opened.namelist() if name.endswith((".py", "py.typed"))}


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("tree") / "entrostat"
    shutil.copytree(repository, source, symlinks=True, ignore=IGNORED)
    return build(source, tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_every_module_once(wheel: Path, repository: Path) -> None:
    expected = {
        f"entrostat/{file.relative_to(repository)}"
        for station in STATIONS
        for file in (repository / station).rglob("*.py")
    }
    expected |= {f"entrostat/{file.name}" for file in (repository / "entrostat").glob("*.py")} | {"entrostat/py.typed"}
    assert contents(wheel) == expected


def test_a_checkout_without_symlinks_builds_the_same_wheel(wheel: Path, repository: Path, tmp_path: Path) -> None:
    source = tmp_path / "entrostat"
    shutil.copytree(repository, source, symlinks=True, ignore=IGNORED)
    for station in STATIONS:
        link = source / "entrostat" / station
        link.unlink()
        link.write_text(f"../{station}")  # what git leaves where symlinks can't be made
    assert contents(build(source, tmp_path / "out")) == contents(wheel)


def test_the_installed_wheel_runs_outside_the_tree(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--target",
            str(site),
            str(wheel),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    code = "import entrostat.actors.rollout as r, entrostat.cli as c; print(r.__file__); c.main(['--version'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert str(site) in done.stdout, done.stdout + done.stderr
    assert "entrostat 0." in done.stdout
