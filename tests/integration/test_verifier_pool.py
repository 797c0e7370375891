"""The pool with the real verifiers: what it gives back, and what hostile answers cost."""

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator

import psutil
import pytest

from entrostat.actors.tasks.load import load_prompts
from entrostat.actors.verifiers.pool import VerifierPool
from entrostat.protocol.errors import StationLost
from entrostat.protocol.messages import Prompt, Verdict
from entrostat.protocol.settings import VerifierSettings
from entrostat.protocol.task_settings import Jsonl, ReasoningGym, TaskSettings
from tests.verifier_processes import judged, soon, workers

SUMS = ReasoningGym(dataset="chain_sum", size=32)
TASKS: tuple[TaskSettings, ...] = (SUMS, Jsonl(path="not read by a verifier"))
SUM = load_prompts([SUMS]).prompts[0]
TWO = Prompt(id=0, name="maths:1", level="", task=1, text="", answer="2", entry="")
HANGS = "\\boxed{9^{9^{9^{9}}}}"  # sympy really tries
RIGHT = "\\boxed{2}"


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    made = VerifierPool(VerifierSettings(processes=1, deadline_seconds=0.5), TASKS)
    yield made
    made.close()


def test_each_verdict_comes_back_with_its_ticket(pool: VerifierPool) -> None:
    statuses, replaced = pool.statuses, pool.replaced
    items = [(SUM, f"<answer>{SUM.answer if number % 3 else 'no'}</answer>") for number in range(100)]
    verdicts = judged(pool, items)
    assert {number: verdict.status for number, verdict in verdicts.items()} == {
        number: "correct" if number % 3 else "wrong" for number in range(100)
    }
    assert pool.statuses - statuses == Counter(correct=66, wrong=34)
    assert pool.replaced == replaced


def test_a_hanging_item_costs_itself_alone(pool: VerifierPool) -> None:
    replaced = pool.replaced
    verdicts = judged(pool, [(TWO, RIGHT), (TWO, HANGS), (TWO, RIGHT), (TWO, HANGS), (TWO, RIGHT)])
    assert [verdicts[number].status for number in range(5)] == ["correct", "timeout", "correct", "timeout", "correct"]
    assert verdicts[1].reward == 0
    assert "0.5 s (deadline_seconds)" in verdicts[1].detail
    assert pool.replaced == replaced + 2
    assert soon(lambda: len(workers()) <= 1)  # those that hung are gone, and no zombie is left of them


def test_a_killed_process_costs_the_item_it_was_judging_alone(pool: VerifierPool) -> None:
    judged(pool, [(TWO, RIGHT)])
    assert soon(lambda: len(workers()) == 1)
    [worker] = workers()
    pool.submit("killed", TWO, HANGS)
    for number in range(4):
        pool.submit(number, TWO, RIGHT)
    time.sleep(0.2)
    os.kill(worker.pid, signal.SIGKILL)
    verdicts: dict[object, Verdict] = {}
    while pool.pending and pool.wait(10):
        verdicts |= dict(pool.collect())
    assert verdicts["killed"].status == "error"
    assert "SIGKILL" in verdicts["killed"].detail
    assert [verdicts[number].status for number in range(4)] == ["correct"] * 4


def test_a_process_killed_while_idle_costs_nothing(pool: VerifierPool) -> None:
    judged(pool, [(SUM, "")])
    for worker in workers():
        worker.kill()
    time.sleep(0.2)
    verdicts = judged(pool, [(TWO, RIGHT)] * 5)
    assert [verdict.status for verdict in verdicts.values()] == ["correct"] * 5


def test_a_huge_number_does_not_take_the_machines_memory_along(pool: VerifierPool) -> None:
    verdicts = judged(pool, [(TWO, "\\boxed{10^{20000000000}}"), (TWO, RIGHT)])
    assert verdicts[0].reward == 0
    assert verdicts[1].status == "correct"


def test_half_a_surrogate_pair_is_judged_like_any_text(pool: VerifierPool) -> None:
    verdicts = judged(pool, [(SUM, f"\ud800 <answer>{SUM.answer}</answer>")])
    assert verdicts[0].status == "correct"


def test_a_response_longer_than_any_policy_writes_is_not_read(pool: VerifierPool) -> None:
    verdicts = judged(pool, [(TWO, "1" * (1 << 20) + RIGHT), (TWO, RIGHT)])
    assert (verdicts[0].status, verdicts[1].status) == ("unparsable", "correct")
    assert "at most 1048576 are read" in verdicts[0].detail


def test_a_worker_has_limits_and_none_of_the_parents_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    pool = VerifierPool(VerifierSettings(), [SUMS])
    judged(pool, [(SUM, "")])
    worker = next(one for one in workers() if "WANDB_API_KEY" not in one.environ())
    limits = {name: worker.rlimit(getattr(psutil, f"RLIMIT_{name}")) for name in ("AS", "FSIZE", "NOFILE", "CPU")}
    group = os.getpgid(worker.pid)
    below = workers()
    secrets = [one for one in below if "WANDB_API_KEY" in one.environ()]
    pool.close()
    assert not secrets
    assert limits["FSIZE"] == (0, 0)
    assert limits["AS"][0] <= 4 << 30
    assert limits["NOFILE"][0] <= 64
    assert 0 < limits["CPU"][0] < 60
    assert group == worker.pid


def test_a_pool_whose_processes_cannot_start_says_why_and_waits_for_nobody() -> None:
    pool = VerifierPool(VerifierSettings(), [ReasoningGym(dataset="chain_sums", size=1)])
    try:
        with pytest.raises(StationLost, match=r"no verifier process could be started in 3 attempts.*chain_sums"):
            judged(pool, [(SUM, "")])
    finally:
        pool.close()
