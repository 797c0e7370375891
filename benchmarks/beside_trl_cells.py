"""The cells of `benchmarks/beside_trl.py`: how much is measured, what each cell depends on, and what makes it."""

import hashlib
import tempfile
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import msgspec

from benchmarks import own_process
from benchmarks.beside_trl_sides import TOML, ours, theirs
from benchmarks.cells import ROOT
from benchmarks.trl_ways import FASTEST, WAYS, Way
from entrostat import config as configs

Result = dict[str, Any]
Part = Literal["ways", "step", "reward", "uncontrolled"]

CORES = 2
SIDES_CODE = tuple(f"benchmarks/{name}.py" for name in ("beside_trl_sides", "deadlines", "held_out"))
TRL_CODE = tuple(f"benchmarks/trl_{name}.py" for name in ("request", "run", "timed", "vllm"))
OUR_CODE = tuple(
    str(file.relative_to(ROOT))
    for folder in ("actors", "actors/tasks", "actors/verifiers", "controller", "entrostat", "learner", "protocol")
    for file in sorted((ROOT / folder).glob("*.py"))
)
UNCONTROLLED = 'entropy.law={kind="fixed",coefficient=0.0}'


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How much is measured."""

    rounds: int = 5
    our_steps: int = 30  # in a round
    their_steps: int = 12
    our_first: int = 8  # steps of a round that are left out
    their_first: int = 2
    seconds: float = 270.0  # from the command, start-up included
    seeds: tuple[int, ...] = (1, 2, 3)
    samples: int = 16  # of each held-out problem
    way_steps: int = 8

    @property
    def left_out(self) -> dict[str, int]:
        """First steps, by side."""
        return {"ours": self.our_first, "theirs": self.their_first}


QUICK = Plan(
    rounds=1, our_steps=8, their_steps=4, our_first=3, their_first=1, seconds=60.0, seeds=(1,), samples=4, way_steps=3
)


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One cell."""

    name: str
    part: Part
    seed: int | None = None
    config: dict[str, Any]
    code: tuple[str, ...]
    compute: Callable[[], Result]


def jobs(plan: Plan) -> list[Job]:
    """Every cell: the ways first, which chose the one that TRL is held to."""
    way = {"cores": CORES, "files": files(), "steps": plan.way_steps}
    made = [
        Job(
            name=f"way-{index}",
            part="ways",
            config=way | {"way": msgspec.to_builtins(WAYS[name])},
            code=(*SIDES_CODE, *TRL_CODE),
            compute=partial(try_way, name, WAYS[name], plan.way_steps),
        )
        for index, name in enumerate(WAYS)
    ]
    pair = {"cores": CORES, "files": files(), "way": msgspec.to_builtins(WAYS[FASTEST])}
    code = (*SIDES_CODE, *TRL_CODE, *OUR_CODE)
    for number in range(1, plan.rounds + 1):
        config = pair | {"round": number, "our_steps": plan.our_steps, "their_steps": plan.their_steps}
        compute = partial(one_round, number, plan.our_steps, plan.their_steps)
        made.append(Job(name=f"step-{number}", part="step", config=config, code=code, compute=compute))
    for seed in plan.seeds:
        config = pair | {"seed": seed, "seconds": plan.seconds, "samples": plan.samples}
        compute = partial(one_pair, seed, plan.seconds, plan.samples)
        made.append(Job(name=f"reward-{seed}", part="reward", seed=seed, config=config, code=code, compute=compute))
    for seed in plan.seeds:
        config = pair | {"seed": seed, "seconds": plan.seconds, "samples": plan.samples, "override": UNCONTROLLED}
        compute = partial(one_uncontrolled, seed, plan.seconds, plan.samples)
        made.append(
            Job(name=f"uncontrolled-{seed}", part="uncontrolled", seed=seed, config=config, code=code, compute=compute)
        )
    return made


def one_round(number: int, our_steps: int, their_steps: int) -> Result:
    """Our steps, then TRL's."""
    mine = ours(f"round {number} of Entrostat", number, steps=our_steps)
    other = theirs(f"round {number} of TRL", number, WAYS[FASTEST], steps=their_steps)
    return {"ours": msgspec.to_builtins(mine), "theirs": msgspec.to_builtins(other)}


def one_pair(seed: int, seconds: float, samples: int) -> Result:
    """Ours, then TRL's for as long; then both policies on the held-out problems."""
    with tempfile.TemporaryDirectory() as folder:
        first, second = str(Path(folder, "ours")), str(Path(folder, "theirs"))
        mine = ours(f"seed {seed} of Entrostat", seed, seconds=seconds, policy=first)
        other = theirs(f"seed {seed} of TRL", seed, WAYS[FASTEST], seconds=seconds, policy=second)
        return {
            "ours": msgspec.to_builtins(mine),
            "theirs": msgspec.to_builtins(other),
            "ours_correct": correct(first, samples),
            "theirs_correct": correct(second, samples),
        }


def one_uncontrolled(seed: int, seconds: float, samples: int) -> Result:
    """Ours without its entropy control, to be held against the TRL of the seed's pair."""
    with tempfile.TemporaryDirectory() as folder:
        policy = str(Path(folder, "ours"))
        name = f"seed {seed} of Entrostat without control"
        mine = ours(name, seed, seconds=seconds, policy=policy, overrides=[UNCONTROLLED])
        return {"ours": msgspec.to_builtins(mine), "ours_correct": correct(policy, samples)}


def correct(policy: str, samples: int) -> list[int]:
    """By held-out problem, how many samples of the policy were right."""
    asked = {"toml": TOML, "model": policy, "samples": samples}
    scored = own_process.run("an evaluation", "benchmarks.held_out", asked, lambda source, told: [source, told])
    found: list[int] = scored["correct"]
    return found


def try_way(name: str, way: Way, steps: int) -> Result:
    """TRL's steps in one way, or the reason why there are none."""
    try:
        return {"theirs": msgspec.to_builtins(theirs(f"TRL, {name}", 1, way, steps=steps))}
    except RuntimeError as error:
        return {"failed": reason(str(error))}


def reason(text: str) -> str:
    """The first line that names an exception, of what a failed command wrote; else the last."""
    lines = [line.partition("]:")[2].strip() or line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if line.partition(":")[0].endswith(("Error", "Exception"))]
    named = [line for line in named if not line.startswith("torch.distributed.elastic")]  # the launcher's own
    return (named or lines[-1:])[0]


@lru_cache
def files() -> str:
    """A digest of the quickstart and of the policy it starts from."""
    policy = Path(configs.load(ROOT / TOML).model.path)
    digest = hashlib.sha256()
    for file in (ROOT / TOML, *sorted(policy.iterdir())):
        digest.update(file.read_bytes())
    return digest.hexdigest()
