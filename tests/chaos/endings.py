"""The faults that end a run: by name, with an exit code, and with advice that works."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

from tests.chaos.faults import begun, begun_branch, resumed, told
from tests.chaos.living import LEARNER, Living, send
from tests.chaos.outcome import Outcome
from tests.chaos.outcome import resumed as hit_of
from tests.chaos.proof import replay

DISK_MIB = 64
SHORT_STALL_SECONDS = 15


def after(ended: Living, code: int, resume: Living, steps: int, last: int, **found: float) -> Outcome:
    """A run that ended by name, and was gone on with."""
    branch = max(row.branch for row in ended.rows) + 1
    resume.wait(begun_branch(resume, branch), "a step")
    hits = [hit_of(resume.rows, branch, resume.began, last)]
    outcome = told(resume, [], steps, hits, found=found)
    return Outcome(
        exit_codes=[code, *outcome.exit_codes],
        said=[*ended.said, *outcome.said],
        hits=outcome.hits,
        step_seconds=outcome.step_seconds,
        found=outcome.found,
    )


def disk_full(folder: Path, steps: int) -> Outcome:
    """The run directory's disk is full: a small one, mounted for it; afterwards there is room again."""
    if os.geteuid() != 0:
        raise PermissionError("a small disk is mounted for it: run it as root")
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)], check=True)
    try:
        with begun(folder, steps=steps) as living:
            living.wait_step(12)
            last, at = living.step, time.time()
            ballast = folder / "ballast"
            with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
            code = living.end()
            seconds = time.time() - at
            assert code == 2, living.said
            assert not (left := living.left()), left
        ballast.unlink()
        with resumed(folder, name="second") as resume:
            return after(living, code, resume, steps, last, seconds_to_its_end=seconds)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def damaged_checkpoint(folder: Path, steps: int) -> Outcome:
    """One byte of the newest checkpoint is another: refused, and what the refusal advises is done."""
    with begun(folder, steps=steps) as first:
        first.wait_step(23)
        first.wait(lambda: (first.run / "checkpoints/step-20").is_dir(), "a checkpoint")
        last = first.step
        first.kill()
        first.process.wait()
    damaged = first.run / "checkpoints/step-20"
    weights = damaged / "policy/model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    before = (first.run / "metrics.jsonl").read_bytes()
    with resumed(folder, name="second") as refused:
        code = refused.end()
        assert code == 2, refused.said
        assert any("model.safetensors" in line for line in refused.said), refused.said
    assert (first.run / "metrics.jsonl").read_bytes() == before
    subprocess.run(["rm", "-r", str(damaged)], check=True)
    with resumed(folder, name="third") as resume:
        return after(refused, code, resume, steps, last)


def learner_hangs(folder: Path, steps: int) -> Outcome:
    """SIGSTOP the learner: a stall, and its report."""
    with begun(folder, f"run.stall_seconds={SHORT_STALL_SECONDS}", steps=steps) as living:
        living.wait_step(12)
        last = living.step
        at = send(living.stations(LEARNER)[0], signal.SIGSTOP)
        code = living.end()
        seconds = time.time() - at
        assert code == 3, living.said
        assert not (left := living.left()), left
        assert (living.run / "stall.txt").is_file()
    with resumed(folder, name="second") as resume:
        return after(living, code, resume, steps, last, seconds_to_its_end=seconds)


def damaged_journal(folder: Path, steps: int) -> Outcome:
    """A finished run's journal: a torn end is void and said, one byte in the middle is refused with its place."""
    with begun(folder, steps=steps) as living:
        outcome = told(living, [], steps)
    segments = sorted((living.run / "journal").glob("*.journal"))
    newest, content = segments[-1], segments[-1].read_bytes()
    newest.write_bytes(content[:-20])
    torn = replay(living.run)
    assert torn.returncode == 0, torn.stderr
    newest.write_bytes(content)
    middle = segments[0]
    whole = bytearray(middle.read_bytes())
    whole[len(whole) // 2] ^= 1
    middle.write_bytes(whole)
    flipped = replay(living.run)
    assert flipped.returncode == 1, flipped.stderr
    return Outcome(
        exit_codes=[torn.returncode, flipped.returncode],
        said=[*(line for line in torn.stdout.splitlines() if "void" in line), *flipped.stderr.splitlines()],
        hits=[],
        step_seconds=outcome.step_seconds,
        found={},
    )
