"""What a seed means: a run's settings, and what goes wrong in it."""

import random

import msgspec
from msgspec.structs import replace

from entrostat.protocol.entropy_settings import FixedLaw, ThermostatLaw, WeightSettings
from entrostat.protocol.settings import MixedResults, Stations, Uniform
from entrostat.protocol.task_settings import ReasoningGym
from tests.made_messages import run_of
from tests.simulation.network import Faults

SAMPLES = 2
LEVELS = ("easy", "hard", "odd")
FEWEST_WEIGHTED = 12  # prompts: with fewer a task may have no place in an epoch


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """One simulated run."""

    seed: int
    actors: int
    groups_in_flight: int
    batch: int
    staleness: int
    refill: float  # 0: no filter
    deterministic: bool
    lease_seconds: float
    prompts: int
    steps: int
    checkpoint_every: int
    group_seconds: float  # median
    faults: Faults
    fault_seconds: float  # mean time between those that are no message's
    scales: bool  # whether actors come and go
    floor: float = 1.0  # of drawing by mixed results; 1: every prompt when its turn comes
    weights: tuple[float, ...] = ()  # of the tasks, among which the prompts are divided

    def stations(self) -> Stations:
        """The settings as every station gets them."""
        law = FixedLaw(coefficient=0.1) if self.seed % 3 == 0 else ThermostatLaw(balance=0.1, drift=0.01)
        weight = WeightSettings(half_life_versions=3.0)
        stations = run_of(
            batch=self.batch,
            staleness=self.staleness,
            lease_seconds=self.lease_seconds,
            law=law,
            weight=weight,
            deterministic=self.deterministic,
            checkpoint_every=self.checkpoint_every,
            refill=self.refill,
        )
        rollout = replace(
            stations.rollout,
            actors=self.actors,
            samples_per_prompt=SAMPLES,
            groups_in_flight=self.groups_in_flight,
            max_response_tokens=8,
        )
        sampling = MixedResults(floor=self.floor) if self.floor < 1.0 else Uniform()
        tasks = tuple(ReasoningGym(dataset="any", size=1, weight=weight) for weight in self.weights)
        batch = replace(stations.batch, sampling=sampling)
        return replace(stations, seed=self.seed, total_steps=self.steps, rollout=rollout, batch=batch, tasks=tasks)

    @property
    def task_prompts(self) -> tuple[int, ...]:
        """How many prompts each task has."""
        if not self.weights:
            return ()
        parts = [self.prompts // len(self.weights)] * (len(self.weights) - 1)
        return (*parts, self.prompts - sum(parts))

    @property
    def levels(self) -> list[str]:
        """`[prompts]` the level of each."""
        return [LEVELS[prompt % len(LEVELS)] for prompt in range(self.prompts)]

    def undisturbed(self) -> "Scenario":
        """The same run with one actor, where nothing goes wrong and nothing is late."""
        return replace(self, actors=1, faults=Faults(delay_seconds=0.001), fault_seconds=0.0, scales=False)


def scenario(seed: int) -> Scenario:
    """The run that a seed stands for."""
    draw = random.Random(seed)
    batch = draw.randint(1, 6)
    deterministic = draw.random() < 0.35
    quiet_at = draw.uniform(20.0, 90.0)
    rough = draw.choice([0.0, 0.3, 1.0])

    def share(most: float) -> float:
        return draw.choice([0.0, 0.2, 1.0]) * most * rough

    # From a source of its own, so that all else of a seed stays as it was.
    more = random.Random(f"sampling {seed}")
    floor = 1.0 if deterministic or more.random() < 0.5 else more.choice([0.05, 0.3])
    weights = () if more.random() < 0.5 else more.choice([(1.0, 1.0), (1.0, 2.0), (1.5, 1.0, 1.0)])
    one = Scenario(
        seed=seed,
        actors=draw.randint(1, 5),
        groups_in_flight=draw.randint(1, 6),
        batch=batch,
        # The learner keeps the weights of two versions, so a deterministic run can sample no older ones.
        staleness=draw.randint(0, 1 if deterministic else 4),
        refill=0.0 if deterministic or draw.random() < 0.5 else draw.choice([1.5, 2.0, 3.0]),
        deterministic=deterministic,
        lease_seconds=draw.choice([3.0, 6.0, 15.0, 40.0]),
        prompts=draw.choice([3, 12, 24, 60]) + draw.randint(0, 3),
        steps=draw.randint(5, 14),
        checkpoint_every=draw.randint(1, 5),
        group_seconds=draw.choice([0.2, 0.6, 1.5]),
        faults=Faults(
            delay_seconds=draw.choice([0.002, 0.02, 0.2]),
            loss=share(0.05),
            repeat=share(0.1),
            crash={
                "actor": share(0.004),
                "controller": share(0.01),
                "buffer": share(0.01),
                "learner": share(0.02),
                "driver": share(0.01),
            },
            silent_death=draw.choice([0.0, 0.3]),
            quiet_at=quiet_at,
        ),
        fault_seconds=draw.choice([0.0, 4.0, 10.0, 25.0]),
        scales=draw.random() < 0.5,
        floor=floor,
        weights=weights,
    )
    return one if one.prompts >= FEWEST_WEIGHTED else replace(one, weights=())
