"""What the verifiers' pool yields and costs: verdicts a second, overhead of an item, blocking of its caller, recovery.

python -m benchmarks.verifiers [--cores 0,1] [--json FILE]

The library, the verifier and the pool are measured in turn, on the same answers, on the same cores; the middle of the
turns counts. A caller's calls are timed one by one; for how long the machine itself holds a thread up is measured
between them, with the pool at rest.
"""

import argparse
import gc
import json
import logging
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import math_verify
import msgspec

from benchmarks.cells import ROOT
from entrostat.actors.tasks.load import load_prompts
from entrostat.actors.verifiers.judge import Judge
from entrostat.actors.verifiers.pool import VerifierPool
from entrostat.actors.verifiers.warm import warm_up
from entrostat.protocol.messages import Prompt, Verdict
from entrostat.protocol.settings import VerifierSettings
from entrostat.protocol.task_settings import Jsonl, ReasoningGym

RESULT = ROOT / "benchmarks/results/verifiers.json"
GYM = ReasoningGym(dataset="chain_sum", size=64)  # its scorer takes some ten microseconds
TASKS = (GYM, Jsonl(path="not read"))
TURNS = 5
ANSWERS = 2_000
TRIVIAL = 20_000
BURST, BURSTS = 1_000, 30
HANGS_PER_BURST = 4
SPIN_SECONDS = 0.01
HUNG = "\\boxed{9^{9^{9^{9}}}}"
Items = Sequence[tuple[Prompt, str]]


class Blocking(msgspec.Struct):
    """How long single calls took, seconds."""

    submit_longest: float
    collect_longest: float
    burst_longest: float  # all submits of a burst together
    machine_longest: float  # that this thread was held up while the pool had nothing to do
    replaced: int


class Result(msgspec.Struct):
    """All that is measured; rates are verdicts a second."""

    machine: str
    cores: int
    library: list[float]  # math-verify itself, in this process
    alone: list[float]  # the verifier, in this process
    pool: list[float]  # two processes
    overhead_seconds: list[float]  # of an item, with a trivial verifier and one process
    round_trip_seconds: list[float]  # of a lone item, the same
    quiet: Blocking  # with a trivial verifier: verdicts come as fast as they can
    killing: Blocking
    start_seconds: float  # of the pool, to the first verdict
    replacement_seconds: list[float]  # from a time-out's verdict to the next one, with one process
    before_hang: float
    after_hang: float  # in the second after both processes were replaced


def main() -> None:
    """Measures, prints a table, writes the result."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--cores", default="", help="run on these, as 0,1")
    arguments.add_argument("--json", type=Path, default=RESULT)
    chosen = arguments.parse_args()
    if chosen.cores:
        os.sched_setaffinity(0, {int(core) for core in chosen.cores.split(",")})
    logging.disable(logging.WARNING)  # hung items are meant
    result = measure()
    chosen.json.parent.mkdir(parents=True, exist_ok=True)
    chosen.json.write_text(json.dumps(msgspec.to_builtins(result), indent=1) + "\n")
    print(table(result))


def measure() -> Result:
    """Everything, in half a minute."""
    problems, answers = load_prompts([GYM]).prompts, short_answers(ANSWERS)
    warm_up(TASKS)
    judge = Judge(TASKS)
    gc.collect()
    gc.freeze()  # a collection of all that the library made here would be taken for the pool's
    start = time.perf_counter()
    two = _opened(2, deadline=5.0, first=answers[0])
    started = time.perf_counter() - start
    _rate(two, answers[:500])
    library, alone, pooled = [], [], []
    for _ in range(TURNS):
        library.append(_rate_of(lambda: [_by_library(*item) for item in answers[:500]], 500))
        alone.append(_rate_of(lambda: [judge.verify(*item) for item in answers[:1000]], 1000))
        pooled.append(_rate(two, answers))
    two.close()
    one = _opened(1, deadline=0.3, first=answers[0])
    overhead = [_overhead(one, problems) for _ in range(TURNS)]
    trips = [_round_trip(one, problems[0]) for _ in range(300)]
    quiet = _blocking(one, problems, hangs=0)
    replacement = [_replacement(one, answers) for _ in range(15)]
    one.close()
    two = _opened(2, deadline=0.3, first=answers[0])
    killing = _blocking(two, problems, hangs=HANGS_PER_BURST)
    before, after = _recovery(two, answers)
    two.close()
    return Result(
        machine=f"{platform.machine()}, Python {platform.python_version()}",
        cores=len(os.sched_getaffinity(0)),
        library=library,
        alone=alone,
        pool=pooled,
        overhead_seconds=overhead,
        round_trip_seconds=trips,
        quiet=quiet,
        killing=killing,
        start_seconds=started,
        replacement_seconds=replacement,
        before_hang=before,
        after_hang=after,
    )


def _by_library(prompt: Prompt, text: str) -> bool:
    """math-verify as its own documentation uses it, but for its time-outs."""
    expected = math_verify.parse(f"\\boxed{{{prompt.answer}}}", parsing_timeout=0)
    return bool(math_verify.verify(expected, math_verify.parse(text, parsing_timeout=0), timeout_seconds=0))


def short_answers(count: int, seed: int = 0) -> list[tuple[Prompt, str]]:
    """Answers as they end a solution of a word problem, groups of 8 to a problem, half of them right.

    Mostly whole numbers, as in GSM8K. What is dear in the library (a root 3 ms, an interval 25 ms) is left out: it says
    nothing of the pool.
    """
    draw = random.Random(seed)
    items = []
    for number in range(-(-count // 8)):
        made = _answer(draw)
        prompt = Prompt(id=number, name=f"p:{number}", level="", task=1, text="", answer=made, entry="")
        for sample in range(8):
            said = made if sample % 2 else _answer(draw)
            items.append((prompt, f"First we add, then we multiply by {sample}. The answer is \\boxed{{{said}}}."))
    return items[:count]


def _answer(draw: random.Random) -> str:
    number, other = draw.randint(1, 2000), draw.randint(2, 99)
    return draw.choice([*[str(number)] * 8, f"{number / 8}", f"\\frac{{{number}}}{{{other}}}"])


def _two() -> Prompt:
    return Prompt(id=0, name="hung", level="", task=1, text="", answer="2", entry="")


def _opened(processes: int, deadline: float, first: tuple[Prompt, str]) -> VerifierPool:
    pool = VerifierPool(VerifierSettings(processes=processes, deadline_seconds=deadline), TASKS)
    _rate(pool, [first])
    return pool


def _rate(pool: VerifierPool, items: Items) -> float:
    return _rate_of(lambda: _judged(pool, items), len(items))


def _rate_of(work: Callable[[], object], items: int) -> float:
    start = time.perf_counter()
    work()
    return items / (time.perf_counter() - start)


def _judged(pool: VerifierPool, items: Items) -> list[Verdict]:
    for number, (prompt, text) in enumerate(items):
        pool.submit(number, prompt, text)
    verdicts: list[Verdict] = []
    while len(verdicts) < len(items) and pool.wait(60):
        verdicts += [verdict for _, verdict in pool.collect()]
    return verdicts


def _overhead(pool: VerifierPool, problems: Sequence[Prompt]) -> float:
    items = [(problems[number % len(problems)], "<answer>1</answer>") for number in range(TRIVIAL)]
    start = time.perf_counter()
    verdicts = _judged(pool, items)
    return (time.perf_counter() - start - sum(verdict.seconds for verdict in verdicts)) / TRIVIAL


def _round_trip(pool: VerifierPool, problem: Prompt) -> float:
    start = time.perf_counter()
    [verdict] = _judged(pool, [(problem, "<answer>1</answer>")])
    return time.perf_counter() - start - verdict.seconds


def _blocking(pool: VerifierPool, problems: Sequence[Prompt], hangs: int) -> Blocking:
    """Bursts of submits, and collects in between, as an engine's loop makes them; it waits for nobody."""
    submits, collects, bursts, held_up = 0.0, 0.0, 0.0, 0.0
    before = pool.replaced
    for burst in range(BURSTS):
        items = [(problems[number % len(problems)], "<answer>1</answer>") for number in range(BURST)]
        for place in range(hangs):
            items[place * BURST // hangs] = (_two(), HUNG)
        began = time.perf_counter()
        for item in items:
            start = time.perf_counter()
            pool.submit(burst, *item)
            submits = max(submits, time.perf_counter() - start)
        bursts = max(bursts, time.perf_counter() - began)
        while pool.pending:
            start = time.perf_counter()
            pool.collect()
            collects = max(collects, time.perf_counter() - start)
            time.sleep(0.001)
        held_up = max(held_up, _held_up(SPIN_SECONDS))
    return Blocking(submits, collects, bursts, held_up, pool.replaced - before)


def _held_up(seconds: float) -> float:
    """The longest that this thread, which does nothing but look, did not see the clock move."""
    longest, last = 0.0, time.perf_counter()
    end = last + seconds
    while last < end:
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    return longest


def _replacement(pool: VerifierPool, answers: Items) -> float:
    """From the verdict on a hung item to the next verdict."""
    pool.submit("hung", _two(), HUNG)
    pool.submit("next", *answers[1])
    seen: dict[object, float] = {}
    while len(seen) < 2 and pool.wait(60):
        seen |= {ticket: time.perf_counter() for ticket, _ in pool.collect()}
    return seen["next"] - seen["hung"]


def _recovery(pool: VerifierPool, answers: Items) -> tuple[float, float]:
    """Verdicts in the second before as many hung items as processes, and in the second after the last time-out."""
    stamps: list[float] = []
    number, asked, last = 0, 0.0, float("inf")
    begun = time.perf_counter()
    while time.perf_counter() < min(last + 1.0, begun + 60):
        if not asked and time.perf_counter() > begun + 1.5:
            asked = time.perf_counter()
            for _ in range(2):
                pool.submit("hung", _two(), HUNG)
        while pool.pending < 400:
            pool.submit(number, *answers[number % len(answers)])
            number += 1
        pool.wait(0.05)
        now = time.perf_counter()
        for _, verdict in pool.collect():
            stamps.append(now)
            last = now if verdict.status == "timeout" and asked else last
    before = sum(asked - 1.0 < stamp <= asked for stamp in stamps)
    return float(before), float(sum(last < stamp <= last + 1.0 for stamp in stamps))


def table(result: Result) -> str:
    """The result beside the goals."""
    library, alone, pool = (statistics.median(one) for one in (result.library, result.alone, result.pool))
    overhead = statistics.median(result.overhead_seconds)
    trips, replaced = sorted(result.round_trip_seconds), sorted(result.replacement_seconds)
    quiet, killing = result.quiet, result.killing
    rows = [
        ("math-verify alone, one process", f"{library:,.0f} verdicts/s ({_spread(result.library)})", ""),
        ("`math` alone, one process", f"{alone:,.0f} verdicts/s ({_spread(result.alone)})", ""),
        (
            f"pool, 2 processes on {result.cores} cores",
            f"{pool:,.0f} verdicts/s ({_spread(result.pool)}), {pool / library:.1f} × the library's",
            "≥ 1,000",
        ),
        ("overhead of an item", f"{overhead * 1e3:.3f} ms", "≤ 1 ms"),
        ("round trip of a lone item, median · longest of 300", f"{_ms(trips[150])} · {_ms(trips[-1])}", "≤ 1 ms"),
        ("longest submit · collect", f"{_ms(quiet.submit_longest)} · {_ms(quiet.collect_longest)}", "≤ 5 ms"),
        (
            f"… while {killing.replaced} processes are killed",
            f"{_ms(killing.submit_longest)} · {_ms(killing.collect_longest)}",
            "≤ 5 ms",
        ),
        (
            "longest burst of 1,000 submits, quiet · killing",
            f"{_ms(quiet.burst_longest)} · {_ms(killing.burst_longest)}",
            "≤ 5 ms",
        ),
        (
            "the machine held the caller up with the pool at rest, longest",
            f"{_ms(quiet.machine_longest)} · {_ms(killing.machine_longest)}",
            "",
        ),
        ("start of the pool, to its first verdict", f"{result.start_seconds:.2f} s", ""),
        ("a process replaced, median · longest of 15", f"{_ms(replaced[7])} · {_ms(replaced[-1])}", ""),
        (
            "throughput in the second after both hung, over that before",
            f"{result.after_hang / max(1.0, result.before_hang):.2f}",
            "",
        ),
    ]
    lines = [f"{result.machine}, {result.cores} cores.", "", "| | measured | goal |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {name} | {measured} | {goal} |" for name, measured, goal in rows)])


def _spread(rates: Sequence[float]) -> str:
    return f"{min(rates):,.0f}–{max(rates):,.0f}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


if __name__ == "__main__":
    main()
