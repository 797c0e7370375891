import contextlib
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator

import psutil
import pytest

from entrostat.actors.tasks.load import load_prompts
from entrostat.actors.verifiers.pool import VerifierPool
from entrostat.actors.verifiers.tally import BATCH, StatusTally
from entrostat.protocol.errors import StationLost
from entrostat.protocol.messages import Prompt, Verdict
from entrostat.protocol.settings import VerifierSettings
from entrostat.protocol.task_settings import Jsonl, ReasoningGym, TaskSettings

SUMS = ReasoningGym(dataset="chain_sum", size=32)
TASKS: tuple[TaskSettings, ...] = (SUMS, Jsonl(path="not read by a verifier"))
SUM = load_prompts([SUMS]).prompts[0]
TWO = Prompt(id=0, name="maths:1", level="", task=1, text="", answer="2", entry="")
HANGS = "\\boxed{9^{9^{9^{9}}}}"  # sympy really tries
RIGHT = "\\boxed{2}"


def judged(pool: VerifierPool, items: list[tuple[Prompt, str]], seconds: float = 30.0) -> dict[object, Verdict]:
    """Verdicts by the items' positions."""
    for number, (prompt, text) in enumerate(items):
        pool.submit(number, prompt, text)
    verdicts: dict[object, Verdict] = {}
    end = time.monotonic() + seconds
    while pool.pending and time.monotonic() < end:
        pool.wait(0.5)
        verdicts |= dict(pool.collect())
    return verdicts


def workers() -> list[psutil.Process]:
    """The living worker processes below this one; other tests' children may be dead and not waited for."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            server = child.parent()
            if server is not None and "verifiers.server" in " ".join(server.cmdline()):
                found.append(child)
    return found


def soon(condition: Callable[[], bool], seconds: float = 3.0) -> bool:
    """Whether something comes true within so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


@pytest.fixture
def pool() -> Iterator[VerifierPool]:
    made = VerifierPool(VerifierSettings(processes=1, deadline_seconds=0.5), TASKS)
    yield made
    made.close()


def test_each_verdict_comes_back_with_its_ticket(pool: VerifierPool) -> None:
    items = [(SUM, f"<answer>{SUM.answer if number % 3 else 'no'}</answer>") for number in range(100)]
    verdicts = judged(pool, items)
    assert {number: verdict.status for number, verdict in verdicts.items()} == {
        number: "correct" if number % 3 else "wrong" for number in range(100)
    }
    assert pool.statuses == Counter(correct=66, wrong=34)
    assert pool.replaced == 0


def test_submitting_and_collecting_never_wait_for_a_hanging_verifier(pool: VerifierPool) -> None:
    judged(pool, [(TWO, RIGHT)])
    start = time.monotonic()
    for number in range(1000):
        pool.submit(number, TWO, HANGS)
    assert pool.collect() == []
    assert pool.pending == 1000
    assert time.monotonic() - start < 0.4


def test_a_hanging_item_costs_itself_alone(pool: VerifierPool) -> None:
    verdicts = judged(pool, [(TWO, RIGHT), (TWO, HANGS), (TWO, RIGHT), (TWO, HANGS), (TWO, RIGHT)])
    assert [verdicts[number].status for number in range(5)] == ["correct", "timeout", "correct", "timeout", "correct"]
    assert verdicts[1].reward == 0
    assert "0.5 s (deadline_seconds)" in verdicts[1].detail
    assert pool.replaced == 2
    assert soon(lambda: len(workers()) <= 1)  # those that hung are gone, and no zombie is left of them


def test_a_killed_process_costs_the_item_it_was_judging_alone(pool: VerifierPool) -> None:
    judged(pool, [(TWO, RIGHT)])
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
    [worker] = workers()
    worker.kill()
    time.sleep(0.2)
    verdicts = judged(pool, [(TWO, RIGHT)] * 5)
    assert [verdict.status for verdict in verdicts.values()] == ["correct"] * 5


def test_a_worker_has_limits_and_none_of_the_parents_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    pool = VerifierPool(VerifierSettings(), TASKS)
    judged(pool, [(SUM, "")])
    [worker] = workers()
    environment = worker.environ()
    limits = {name: worker.rlimit(getattr(psutil, f"RLIMIT_{name}")) for name in ("AS", "FSIZE", "NOFILE", "CPU")}
    group = os.getpgid(worker.pid)
    pool.close()
    assert "WANDB_API_KEY" not in environment
    assert limits["FSIZE"] == (0, 0)
    assert limits["AS"][0] <= 4 << 30
    assert limits["NOFILE"][0] <= 64
    assert 0 < limits["CPU"][0] < 60
    assert group == worker.pid


def test_a_huge_number_does_not_take_the_machines_memory_along(pool: VerifierPool) -> None:
    verdicts = judged(pool, [(TWO, "\\boxed{10^{20000000000}}"), (TWO, RIGHT)])
    assert verdicts[0].reward == 0
    assert verdicts[1].status == "correct"


def test_half_a_surrogate_pair_is_judged_like_any_text(pool: VerifierPool) -> None:
    verdicts = judged(pool, [(SUM, f"\ud800 <answer>{SUM.answer}</answer>")])
    assert verdicts[0].status == "correct"


def test_a_pool_whose_processes_cannot_start_says_why_and_waits_for_nobody() -> None:
    pool = VerifierPool(VerifierSettings(), [ReasoningGym(dataset="chain_sums", size=1)])
    try:
        with pytest.raises(StationLost, match=r"no verifier process could be started in 3 attempts.*chain_sums"):
            judged(pool, [(SUM, "")])
    finally:
        pool.close()


def test_closing_ends_every_process_at_once_even_a_hanging_one() -> None:
    pool = VerifierPool(VerifierSettings(processes=2, deadline_seconds=30), TASKS)
    judged(pool, [(SUM, "")])
    pool.submit("hangs", TWO, HANGS)
    time.sleep(0.3)
    start = time.monotonic()
    pool.close()
    pool.close()
    assert time.monotonic() - start < 3
    assert workers() == []
    with pytest.raises(StationLost, match="closed"):
        pool.submit(0, SUM, "")


# ── the tally ────────────────────────────────────────────────────────────────────────────────────────────────────────


def observe(tally: StatusTally, failures: int) -> None:
    for number in range(BATCH):
        failed = number < failures
        tally.observe(
            Verdict(
                reward=0.0, status="unparsable" if failed else "wrong", seconds=0.0, detail="no tags" if failed else ""
            )
        )


def test_a_batch_with_too_many_failures_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    tally = StatusTally(alarm_share=0.5)
    with caplog.at_level(logging.WARNING):
        observe(tally, BATCH // 2)
        assert caplog.text == ""
        observe(tally, BATCH // 2 + 1)
    assert f"verifier alarm: {BATCH // 2 + 1} of the last {BATCH} responses" in caplog.text
    assert "no tags" in caplog.text
    assert tally.counts == Counter(unparsable=BATCH + 1, wrong=BATCH - 1)
