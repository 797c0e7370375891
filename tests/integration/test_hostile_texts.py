"""A thousand hostile texts against the real verifiers: every one answered in time, and nothing is left of them."""

import time
from pathlib import Path

import psutil
import pytest

from entrostat.actors.verifiers.judge import verifier_of
from entrostat.actors.verifiers.pool import VerifierPool
from entrostat.protocol.errors import TaskError
from entrostat.protocol.messages import Prompt, Verdict
from entrostat.protocol.settings import VerifierSettings
from entrostat.protocol.task_settings import Jsonl
from entrostat.protocol.verifier_settings import Exact, Math, Numeric
from tests.hostile_texts import FAMILIES, hostile_texts
from tests.verifier_processes import soon, workers

TEXTS = 1_000
PROCESSES = 8
DEADLINE = 0.1
IN_FLIGHT = 50  # so that the texts themselves are not what fills the memory
GROWTH_BYTES = 32 << 20  # that the pool's process may show: texts in flight of up to a megabyte each, and the tally


def _there(task: Jsonl) -> bool:
    try:
        verifier_of(task)
    except TaskError:
        return False
    return True


TASKS = [
    task for task in (Jsonl(path="not read", verifier=kind) for kind in (Math(), Numeric(), Exact())) if _there(task)
]
PROMPTS = [
    Prompt(id=number, name=f"hostile:{number}", level="", task=number, text="", answer="2", entry="")
    for number in range(len(TASKS))
]


def test_a_thousand_hostile_texts_are_all_answered_in_time_and_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENTROSTAT_SCRATCH", str(tmp_path))
    here = psutil.Process()
    before = {child.pid for child in here.children(recursive=True)}
    pool = VerifierPool(VerifierSettings(processes=PROCESSES, deadline_seconds=DEADLINE), TASKS)
    try:
        names, verdicts, growth = _judge(pool, here)
        assert soon(lambda: len(workers()) <= PROCESSES)  # the living, and no zombie beside them
        assert all(worker.status() != psutil.STATUS_ZOMBIE for worker in workers())
    finally:
        pool.close()
    assert len(verdicts) == TEXTS
    assert max(verdict.seconds for verdict in verdicts.values()) <= DEADLINE + 1
    timeouts = sum(verdict.status == "timeout" for verdict in verdicts.values())
    assert pool.replaced >= timeouts > 0  # the texts are hostile indeed
    rewarded = {names[number] for number, verdict in verdicts.items() if verdict.reward > 0}
    # Where the right answer stands amid rubbish; of a matrix `numeric` reads the last number.
    assert rewarded <= {"null bytes", "surrogates", "matrix"}
    assert growth < GROWTH_BYTES
    assert list(tmp_path.iterdir()) == []
    assert {child.pid for child in here.children(recursive=True)} == before


def _judge(pool: VerifierPool, here: psutil.Process) -> tuple[list[str], dict[int, Verdict], int]:
    """Each text's family, its verdict, and by how much this process has grown over all but the first texts."""
    names: list[str] = []
    verdicts: dict[int, Verdict] = {}
    sizes: list[int] = []
    end = time.monotonic() + 120
    texts = hostile_texts(TEXTS)
    while (len(verdicts) < TEXTS) and time.monotonic() < end:
        while pool.pending < IN_FLIGHT and (found := next(texts, None)) is not None:
            pool.submit(len(names), PROMPTS[len(names) % len(PROMPTS)], found[1])
            names.append(found[0])
        pool.wait(0.5)
        for ticket, verdict in pool.collect():
            assert isinstance(ticket, int)
            verdicts[ticket] = verdict
        sizes.append(here.memory_info().rss)
    warm = sizes[len(sizes) // 5 :]  # by then every family had its turn twice
    return names, verdicts, warm[-1] - warm[0]


def test_every_family_of_hostile_texts_is_among_them() -> None:
    assert {name for name, _ in hostile_texts(len(FAMILIES))} == set(FAMILIES)
