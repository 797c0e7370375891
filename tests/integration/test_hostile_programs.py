"""Every hostile program through the real pool: answered in time, and nothing is left of any."""

import contextlib
import json
from pathlib import Path

import psutil
import pytest

from entrostat.actors.verifiers.pool import VerifierPool
from entrostat.protocol.messages import Prompt
from entrostat.protocol.settings import VerifierSettings
from entrostat.protocol.task_settings import Jsonl
from entrostat.protocol.verifier_settings import Code
from tests.hostile_programs import PROGRAMS
from tests.verifier_processes import judged, soon, workers

TASK = Jsonl(path="not read", verifier=Code(test_seconds=0.5, file_mib=1, memory_mib=128))
DEADLINE = 3.0


def prompt(**tests: object) -> Prompt:
    return Prompt(id=0, name="code:0", level="", task=0, text="", answer=json.dumps(tests), entry="")


def below(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Their children, of those that still are."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            found += process.children()
    return found


def test_every_hostile_program_is_answered_and_costs_no_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTROSTAT_SCRATCH", str(tmp_path))
    here = psutil.Process()
    before = {child.pid for child in here.children(recursive=True)}
    pool = VerifierPool(VerifierSettings(processes=3, deadline_seconds=DEADLINE), [TASK])
    try:
        items = [(prompt(inputs=["x" * 70_000], outputs=["42"]), f"```python\n{each.code}\n```") for each in PROGRAMS]
        right = (prompt(inputs=["x" * 70_000], outputs=["70000"]), "```python\nprint(len(input()))\n```")
        verdicts = judged(pool, [*items, *[right] * 10], seconds=60)
        nurseries = below(workers())
        assert 1 <= len(nurseries) <= 3
        assert soon(lambda: not below(nurseries))  # what was handed to a second worker too is still judged by the first
    finally:
        pool.close()
    for number, each in enumerate(PROGRAMS):  # where the machine is busy, any may run out of time
        assert verdicts[number].reward == 0, each.name
        assert verdicts[number].status in (each.status, "timeout"), each.name
    assert [verdicts[len(PROGRAMS) + number].status for number in range(10)] == ["correct"] * 10
    assert max(verdict.seconds for verdict in verdicts.values()) < 0.5 + 1
    assert pool.replaced == 0
    assert soon(lambda: {child.pid for child in here.children(recursive=True)} == before)
    assert soon(lambda: list(tmp_path.iterdir()) == [])


def test_a_worker_that_is_killed_takes_its_program_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTROSTAT_SCRATCH", str(tmp_path))
    slow = Jsonl(path="not read", verifier=Code(test_seconds=60, total_seconds=60))
    pool = VerifierPool(VerifierSettings(processes=1, deadline_seconds=1.5), [slow])
    try:
        program = "```python\nopen('left', 'w').close()\nwhile True: pass\n```"
        verdicts = judged(pool, [(prompt(inputs=[""], outputs=["42"]), program)])
        assert verdicts[0].status == "timeout"
        assert soon(lambda: not below(workers()))
        assert soon(lambda: not list(tmp_path.glob("**/left")))
    finally:
        pool.close()
