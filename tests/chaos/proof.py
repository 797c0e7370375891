"""What a run must look like however it was hurt: nothing lost, nothing trained twice, every lease with one end."""

import json
import subprocess
import sys
from pathlib import Path

import msgspec

from entrostat import config as configs
from entrostat.controller import history
from entrostat.controller.events import Event
from entrostat.controller.journal import Folder
from entrostat.controller.state import Controller
from entrostat.protocol.messages import LeaseCounts, PolicyVersion
from entrostat.rows import read_metrics

REPLAY_SECONDS = 120.0


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """What was found."""

    steps: int
    branches: int
    counts: dict[str, int]


def prove(run: Path, steps: int) -> Proof:
    """Holds a run that made `steps` steps to it.

    Raises:
        AssertionError: it does not hold.
    """
    rows = read_metrics(run / "metrics.jsonl")
    assert [row.step for row in rows] == list(range(1, steps + 1)), [row.step for row in rows]
    assert [row.branch for row in rows] == sorted(row.branch for row in rows)
    config = configs.load(run / "config.toml")
    assert max(row.staleness_max for row in rows) <= config.rollout.max_staleness
    counts = LeaseCounts()

    def watch(event: Event, controller: Controller) -> None:
        nonlocal counts
        counts = controller.counts
        ends = msgspec.structs.asdict(counts)
        assert ends.pop("granted") == sum(ends.values()), (type(event).__name__, counts)

    branches = history.read(Folder(run / "journal"), watch)
    root = branches[-1]
    while root.parent is not None:
        root = next(one for one in branches if root.parent is not None and one.number == root.parent.branch)
    trained = history.since(branches, PolicyVersion(branch=root.number, step=0))
    assert [one.report.version.step for one in trained] == list(range(1, steps + 1))
    leases = [group.lease_id for one in trained for group in one.order.groups]
    prompts = [group.prompt_id for one in trained for group in one.order.groups]
    assert len(leases) == steps * config.batch.prompts == len(set(leases)) == counts.trained, counts
    training = sum(task.size for task in config.tasks if hasattr(task, "size"))
    visits = -(-counts.granted // training)  # epochs that were begun
    assert max(prompts.count(prompt) for prompt in set(prompts)) <= visits, "a prompt was trained twice in one epoch"
    clean = replay(run)
    assert clean.returncode == 0, clean.stderr
    return Proof(steps=steps, branches=len(branches), counts=msgspec.structs.asdict(counts))


def replay(run: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """`entrostat replay`."""
    command = [sys.executable, "-m", "entrostat", "replay", str(run), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=REPLAY_SECONDS, check=False)


def leases_at(run: Path, step: int) -> dict[str, int]:
    """What `entrostat replay --to-step` says of the leases there."""
    said = replay(run, "--to-step", str(step), "--json")
    found: dict[str, int] = json.loads(said.stdout)["leases"]
    return found
