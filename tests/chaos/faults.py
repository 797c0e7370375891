"""The faults that stop no run: each hurts a run of the quickstart's policy, and says what came of it.

A fault takes an empty folder. Whatever must hold afterwards is asserted; what is measured is returned.
"""

import random
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from benchmarks.cells import ROOT
from tests.chaos.living import (
    ACTOR,
    BUFFER,
    CONTROLLER,
    ENGINE,
    LEARNER,
    START_SECONDS,
    Living,
    locks_in_shared_memory,
    send,
    suspended,
    tear,
)
from tests.chaos.outcome import Hit, Outcome, hit, median_step
from tests.chaos.outcome import resumed as hit_of
from tests.chaos.proof import prove, replay

CONFIG = str(ROOT / "deploy/runs/quickstart.toml")
LEASE_SECONDS, STALL_SECONDS = 10, 60
SETTINGS = (
    "batch.prompts=8",
    "rollout.samples_per_prompt=8",
    "evaluation.tasks=[]",
    "checkpoint.every_steps=10",
    "verifier.deadline_seconds=5",
    f"rollout.lease_seconds={LEASE_SECONDS}",
    f"run.stall_seconds={STALL_SECONDS}",
)
BEGIN = 6  # steps before the first signal
BETWEEN = 6  # steps between two
RECEIVES = 2  # versions an actor has locked while it loads one: that one, and the one it serves
CATCH_SECONDS = 60.0
INTERRUPTED = 130  # exit code

Signal = tuple[float, int]  # Unix time, and the last step that had its row


def begun(folder: Path, *settings: str, steps: int) -> Living:
    """A new run of so many steps."""
    return Living(folder, CONFIG, "--run", str(folder / "run"), settings=(*SETTINGS, f"run.steps={steps}", *settings))


def resumed(folder: Path, *settings: str, name: str) -> Living:
    """The run in `folder` again."""
    return Living(folder, "--resume", str(folder / "run"), settings=settings, name=name)


def told(
    living: Living,
    signals: Sequence[Signal],
    steps: int,
    hits: Sequence[Hit] = (),
    *,
    stop: bool = False,
    found: Mapping[str, object] | None = None,
) -> Outcome:
    """A run that came to its end, or is stopped by Ctrl-C; `hits` were seen, and so was what is `found`, before."""
    if stop:
        living.process.send_signal(signal.SIGINT)
    code = living.end(2 * START_SECONDS)
    assert code == (INTERRUPTED if stop else 0), living.said
    steps = living.step if stop else steps
    assert not (left := living.left()), left
    proof = prove(living.run, steps)
    rows = living.rows
    ends = [*(at for at, _ in signals[1:]), float("inf")]
    more = [hit(rows, at, last, until) for (at, last), until in zip(signals, ends if signals else [], strict=True)]
    seen = {"counts": proof.counts, "branches": proof.branches, "signals": list(signals), **(found or {})}
    return Outcome(exit_codes=[code], said=living.said, hits=[*hits, *more], step_seconds=median_step(rows), found=seen)


def killed(living: Living, one: psutil.Process) -> Signal:
    """Kills a process; the signal."""
    last = living.step
    return send(one), last


def replaced(living: Living, title: str, before: psutil.Process, count: int = 1) -> None:
    """Waits until another process has its place, and training goes on."""

    def happened() -> bool:
        now = living.stations(title)
        return len(now) >= count and before.pid not in [one.pid for one in now]

    living.wait(happened, f"another {title}")
    living.wait_more(BETWEEN)


def incarnations(living: Living, count: int) -> Callable[[], bool]:
    """Whether so many lives of rollout actors have begun to serve."""
    logs = living.run / "logs"
    return lambda: sum(log.read_text().count(" serves version ") for log in logs.glob("rollout-*.log")) >= count


def begun_branch(living: Living, number: int) -> Callable[[], bool]:
    """Whether a step of that branch is made."""
    return lambda: any(row.branch == number for row in living.rows)


def actor_generates(folder: Path, actors: int, steps: int) -> Outcome:
    """SIGKILL, three times, an actor in the midst of its samples."""
    with begun(folder, f"rollout.actors={actors}", steps=steps) as living:
        living.wait_step(BEGIN)
        signals: list[Signal] = []
        for number in range(3):
            victim = living.stations(ACTOR)[0]
            signals.append(killed(living, victim))
            living.wait(incarnations(living, actors + number + 1), "a new incarnation")
            living.wait_more(BETWEEN)
        return told(living, signals, steps, stop=actors > 1)


def actor_receives(folder: Path, steps: int) -> Outcome:
    """SIGKILL, three times, an actor that is loading a version: stopped in it, seen to be in it, and killed."""
    with begun(folder, "rollout.actors=2", steps=steps) as living:
        living.wait_step(BEGIN)
        signals: list[Signal] = []
        for number in range(3):
            victim = living.stations(ACTOR)[0]
            deadline = time.monotonic() + CATCH_SECONDS
            while True:
                assert time.monotonic() < deadline, "the actor was never seen loading"
                if locks_in_shared_memory(victim.pid) < RECEIVES:
                    time.sleep(0.001)
                    continue
                with suspended(victim):
                    if locks_in_shared_memory(victim.pid) == RECEIVES:
                        signals.append(killed(living, victim))
                        break
            living.wait(incarnations(living, 2 + number + 1), "a new incarnation")
            living.wait_more(BETWEEN)
        return told(living, signals, steps, stop=True, found={"caught": len(signals)})


def engine_dies(folder: Path, steps: int) -> Outcome:
    """SIGKILL, three times, the engine's own process under an actor that lives."""
    with begun(folder, "rollout.engine.own_process=true", "rollout.actors=1", steps=steps) as living:
        living.wait_step(BEGIN)
        signals: list[Signal] = []
        for number in range(3):
            signals.append(killed(living, living.stations(ENGINE)[0]))
            living.wait(incarnations(living, 2 + number), "a new incarnation")
            living.wait_more(BETWEEN)
        return told(living, signals, steps)


def actor_hangs(folder: Path, actors: int, steps: int) -> Outcome:
    """SIGSTOP, twice, an actor: it neither dies nor answers."""
    with begun(folder, f"rollout.actors={actors}", steps=steps) as living:
        living.wait_step(BEGIN)
        signals: list[Signal] = []
        for number in range(2):
            victim, last = living.stations(ACTOR)[0], living.step
            signals.append((send(victim, signal.SIGSTOP), last))
            living.wait(incarnations(living, actors + number + 1), "a new incarnation")
            living.wait_more(BETWEEN)
        return told(living, signals, steps, stop=actors > 1)


def station_dies(folder: Path, title: str, steps: int) -> Outcome:
    """SIGKILL, three times, a station that Ray restarts."""
    with begun(folder, steps=steps) as living:
        living.wait_step(BEGIN)
        signals: list[Signal] = []
        for _ in range(3):
            victim = living.stations(title)[0]
            signals.append(killed(living, victim))
            replaced(living, title, victim)
        return told(living, signals, steps)


def controller_dies(folder: Path, steps: int) -> Outcome:
    """SIGKILL the controller; again once it has come back, and again."""
    return station_dies(folder, CONTROLLER, steps)


def buffer_dies(folder: Path, steps: int) -> Outcome:
    """SIGKILL the sample buffer; again once it has come back, and again."""
    return station_dies(folder, BUFFER, steps)


def controller_dies_in_a_row(folder: Path, steps: int) -> Outcome:
    """SIGKILL the controller, and at once the two processes after it."""
    with begun(folder, steps=steps) as living:
        living.wait_step(BEGIN)
        before: set[int] = set()
        signals: list[Signal] = []
        for _ in range(3):
            living.wait(lambda: any(one.pid not in before for one in living.stations(CONTROLLER)), "a controller")
            victim = next(one for one in living.stations(CONTROLLER) if one.pid not in before)
            before.add(victim.pid)
            signals.append(killed(living, victim))
        seconds = signals[-1][0] - signals[0][0]
        return told(living, signals[:1], steps, found={"seconds_between_first_and_last": seconds})


def torn_journal(folder: Path, steps: int) -> Outcome:
    """The controller dies in the midst of a record: held still, half a frame added, killed."""
    with begun(folder, steps=steps) as living:
        living.wait_step(BEGIN)
        victim, last = living.stations(CONTROLLER)[0], living.step
        with suspended(victim):
            segment = max((living.run / "journal").glob("*.journal"), key=lambda path: path.stat().st_mtime)
            tear(segment)
            at = send(victim)
        replaced(living, CONTROLLER, victim)
        outcome = told(living, [(at, last)], steps)
        clean = replay(living.run)
        outcome.found["replay"] = [line for line in clean.stdout.splitlines() if "void" in line]
        return outcome


def learner_dies(folder: Path, steps: int) -> Outcome:
    """SIGKILL the learner: the run ends by name; `--resume`."""
    with begun(folder, steps=steps) as living:
        living.wait_step(12)
        signals = [killed(living, living.stations(LEARNER)[0])]
        code = living.end()
        seconds = time.time() - signals[0][0]
        assert code == 1, living.said
        assert any("the learner died" in line for line in living.said), living.said
        said = living.said
    with resumed(folder, name="second") as living:
        living.wait(begun_branch(living, 1), "a step")
        hits = [hit_of(living.rows, 1, living.began, signals[0][1])]
        outcome = told(living, [], steps, hits, found={"seconds_to_its_end": seconds})
    return Outcome(
        exit_codes=[code, *outcome.exit_codes],
        said=[*said, *outcome.said],
        hits=outcome.hits,
        step_seconds=outcome.step_seconds,
        found=outcome.found,
    )


def learner_dies_and_may(folder: Path, steps: int) -> Outcome:
    """SIGKILL the learner three times with `run.restarts = 3`."""
    with begun(folder, "run.restarts=3", steps=steps) as living:
        hits: list[Hit] = []
        living.wait_step(1)
        for number in range(3):
            living.wait(lambda: living.step % 10 >= 5, "steps after a checkpoint")
            at, last = killed(living, living.stations(LEARNER)[0])
            living.wait(begun_branch(living, number + 1), "a step after the restart")
            hits.append(hit_of(living.rows, number + 1, at, last))
        return told(living, [], steps, hits)


def everything_dies(folder: Path, steps: int, *settings: str, times: int = 3, seed: int = 0) -> Outcome:
    """SIGKILL the driver and all below it at random moments; `--resume` each time."""
    draw, codes, hits, said = random.Random(seed), list[int](), list[Hit](), dict[str, None]()
    living, last = begun(folder, *settings, steps=steps), 0
    for number in range(times + 1):
        with living:
            living.wait(begun_branch(living, number), "a step")
            said |= dict.fromkeys(living.said)
            if number:
                hits.append(hit_of(living.rows, number, living.began, last))
            if number == times:
                outcome = told(living, [], steps, hits)
                break
            time.sleep(draw.uniform(1.0, 8.0))
            last = living.step
            living.kill()
            codes.append(living.process.wait())
        living = resumed(folder, name=f"resumed-{number}")
    return Outcome(
        exit_codes=[*codes, *outcome.exit_codes],
        said=list(said | dict.fromkeys(outcome.said)),
        hits=outcome.hits,
        step_seconds=outcome.step_seconds,
        found=outcome.found,
    )


def everything_dies_deterministic(folder: Path, steps: int) -> Outcome:
    """The same with `run.deterministic`: the last weights are those of a run that nobody hurt."""
    settings = ("run.deterministic=true", "rollout.max_staleness=1", "checkpoint.every_steps=4")
    with begun(folder / "unbroken", *settings, steps=steps) as living:
        assert living.end(2 * START_SECONDS) == 0, living.said
    outcome = everything_dies(folder / "hurt", steps, *settings, times=2)
    unbroken, hurt = (final_weights(folder / name / "run", steps) for name in ("unbroken", "hurt"))
    assert unbroken == hurt, "the weights differ from the unbroken run's"
    outcome.found["equal_bytes"] = len(hurt)
    return outcome


def everything_dies_recorded(folder: Path, steps: int) -> Outcome:
    """The same with `run.record_samples`: no step is sampled again."""
    outcome = everything_dies(folder, steps, "run.record_samples=true", times=2)
    assert all(one.repeated == 0 for one in outcome.hits), outcome.hits
    return outcome


def final_weights(run: Path, steps: int) -> bytes:
    """Of the policy in the last checkpoint."""
    return (run / f"checkpoints/step-{steps}/policy/model.safetensors").read_bytes()
