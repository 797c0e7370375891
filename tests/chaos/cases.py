"""The list of faults: what is done, how long the run is, and what is promised."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from tests.chaos import endings, faults, nodes
from tests.chaos.outcome import Outcome

LONG = 1000  # steps: the run goes on beside the fault, and is stopped by Ctrl-C


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One fault; a row of the table."""

    name: str
    dies: str
    happens: str
    fault: Callable[[Path], Outcome]
    steps: int


def _case(name: str, dies: str, happens: str, fault: Callable[..., Outcome], steps: int, **more: object) -> Case:
    return Case(name=name, dies=dies, happens=happens, fault=partial(fault, steps=steps, **more), steps=steps)


CASES = (
    _case(
        "actor-generates",
        "the only rollout actor, while it samples",
        "its leases end and their prompts are sampled again by its replacement",
        faults.actor_generates,
        36,
        actors=1,
    ),
    _case(
        "actor-of-two-generates",
        "one of two rollout actors, while it samples",
        "the other goes on; the replacement loads the weights of that moment and joins",
        faults.actor_generates,
        LONG,
        actors=2,
    ),
    _case(
        "actor-receives",
        "one of two rollout actors, while it loads a version",
        "the same; a half-loaded version is in no other process",
        faults.actor_receives,
        LONG,
    ),
    _case(
        "engine",
        "the engine's process under a living actor (`own_process`)",
        "the actor ends with the engine's error, and is replaced with its engine",
        faults.engine_dies,
        36,
    ),
    _case(
        "actor-of-two-hangs",
        "one of two rollout actors hangs (SIGSTOP)",
        "the other goes on; the hanging one's leases end with `rollout.lease_seconds` (10 s here), and it is replaced",
        faults.actor_hangs,
        LONG,
        actors=2,
    ),
    _case(
        "actor-hangs",
        "the only rollout actor hangs (SIGSTOP)",
        "the same, but nobody samples meanwhile",
        faults.actor_hangs,
        36,
        actors=1,
    ),
    _case(
        "controller",
        "the controller",
        "Ray restarts it, it reads its journal, and everybody goes on where they were",
        faults.controller_dies,
        45,
    ),
    _case(
        "controller-in-a-row",
        "the controller, three times in a row",
        "the same; a journal that was left while it was read is read again",
        faults.controller_dies_in_a_row,
        40,
    ),
    _case(
        "buffer",
        "the sample buffer",
        "Ray restarts it empty; what lay in it is sampled again",
        faults.buffer_dies,
        45,
    ),
    _case(
        "learner",
        "the learner",
        "the run ends by name; `--resume` goes on from the newest checkpoint",
        faults.learner_dies,
        25,
    ),
    _case(
        "learner-restarts",
        "the learner, with `run.restarts = 3`",
        "the run goes on by itself from its newest checkpoint",
        faults.learner_dies_and_may,
        50,
    ),
    _case(
        "everything",
        "everything, at a random moment",
        "`--resume` goes on from the newest checkpoint",
        faults.everything_dies,
        40,
    ),
    _case(
        "everything-deterministic",
        "everything, with `run.deterministic`",
        "the same, and the last weights equal an unbroken run's, byte by byte",
        faults.everything_dies_deterministic,
        16,
    ),
    _case(
        "everything-recorded",
        "everything, with `run.record_samples`",
        "`--resume` trains the steps since the checkpoint again on their recorded samples, and goes on from the last",
        faults.everything_dies_recorded,
        36,
    ),
    _case(
        "node",
        "a node of two, with one of two rollout actors",
        "the actor is placed on another node; one that joins later is used when there is need",
        nodes.node_dies,
        LONG,
    ),
    _case(
        "disk",
        "the disk of the run directory is full",
        "the run ends by name; with room again `--resume` works",
        endings.disk_full,
        25,
    ),
    _case(
        "checkpoint",
        "a byte of the newest checkpoint",
        "it is refused by name; the advice is to remove it, and the one before is gone on from",
        endings.damaged_checkpoint,
        30,
    ),
    _case(
        "learner-hangs",
        "the learner hangs (SIGSTOP), `run.stall_seconds = 15`",
        "a stall: a report of who waits for whom, and the end",
        endings.learner_hangs,
        25,
    ),
    _case(
        "torn-journal",
        "the controller, in the midst of a record",
        "the torn end is void and said by `entrostat replay`; nothing had been done about it",
        faults.torn_journal,
        25,
    ),
    _case(
        "journal",
        "the end, and a byte in the middle, of a finished run's journal",
        "`entrostat replay` calls the first void, and refuses the second with its place",
        endings.damaged_journal,
        12,
    ),
)
