"""The driver: the product's round after round, over calls that let virtual time pass, in one life after another."""

from collections.abc import Callable
from functools import partial
from typing import Any

from entrostat.loop import one_round
from entrostat.protocol.errors import EntrostatError, Stalled, StationLost
from entrostat.protocol.messages import (
    ControllerView,
    GroupsMissing,
    PolicyVersion,
    Prompt,
    StepOutcome,
    TrainOrder,
)
from tests.simulation.actors import Newest, Slots
from tests.simulation.checks import Checks, WatchedDesk
from tests.simulation.network import Network
from tests.simulation.scenario import Scenario
from tests.simulation.stations import (
    Checkpoint,
    ControllerStation,
    LearnerStation,
    MemoryStorage,
    join_buffer,
)
from tests.simulation.world import Life, World

ANSWER_SECONDS = 60.0
STALL_SECONDS = 120.0
RESTART_SECONDS = 120.0
RETRY_SECONDS = 0.2
POLL_SECONDS = 1.0
STATION_RESTART_SECONDS = 1.5  # mean
MACHINE_SHARE = 0.4  # of the controller's deaths; what it had not synced is lost
ORPHAN_SECONDS = 10.0  # processes outlive their driver at most so long


class Killed(Exception):
    """The driver died."""


class Disk:
    """What outlives every process."""

    def __init__(self) -> None:
        self.journal = MemoryStorage()
        self.checkpoints = [Checkpoint(step=0, digest=b"", state=None)]
        self.branches = 0  # lives of the run so far


class SimulatedCluster:
    """The stations of one life of the driver, as entrostat/cluster.py asks them."""

    def __init__(self, world: World, scenario: Scenario, network: Network, disk: Disk, checks: Checks) -> None:
        self._world, self._scenario, self._network, self._disk, self._checks = world, scenario, network, disk, checks
        self._stations = scenario.stations()
        self._start = disk.checkpoints[-1]
        self._version = PolicyVersion(branch=disk.branches, step=self._start.step)
        disk.branches += 1
        self.driver = Life(world, f"driver {self._version.branch}", "driver")
        self.newest = Newest(self._version)
        self._published = self._version
        self._controller_away = False
        checks.branch_began(self._version.step)
        self.controller: ControllerStation
        self._join_buffer()
        self._join_controller()
        self._learner = LearnerStation(
            world,
            network,
            Life(world, f"learner {self._version.branch}", "learner"),
            version=self._version,
            digest=self._start.digest,
            trained=checks.trained,
            commit=disk.checkpoints.append,
        )
        prompts = tuple(
            Prompt(id=i, name=f"p{i}", level=level, task=0, text=f"{i}?", answer="", entry="")
            for i, level in enumerate(scenario.levels)
        )
        self.slots = Slots(
            world,
            network,
            self._stations,
            prompts,
            driver=self.driver,
            newest=self.newest,
            group_seconds=scenario.group_seconds,
        )

    def start(self) -> PolicyVersion:
        """Publishes the starting version and fills the slots."""
        self._ask("publish", self._published)
        self.slots.resize(self._scenario.actors)
        return self._version

    # ── what a round asks ────────────────────────────────────────────────────────────────────────────────────────────

    def next_order(self, wait_seconds: float) -> TrainOrder | None:
        order: TrainOrder | None = self._ask("order", wait_seconds, seconds=wait_seconds + ANSWER_SECONDS)
        return order

    def train(self, order: TrainOrder, wait_seconds: float) -> StepOutcome | GroupsMissing:
        outcome: StepOutcome | GroupsMissing = self._answer("learner", "train", order, seconds=STALL_SECONDS)
        if isinstance(outcome, StepOutcome):
            self._published = self.newest.version = outcome.manifest.version
        return outcome

    def report(self, outcome: StepOutcome) -> ControllerView:
        view: ControllerView = self._ask("report", outcome.report)
        self._ask("publish", self._published)
        return view

    def missing(self, missing: GroupsMissing) -> None:
        self._ask("missing", missing)

    def save(self) -> None:
        """Commits a checkpoint."""
        state = self._ask("checkpoint")
        self._answer("learner", "save", state, seconds=STALL_SECONDS)

    def scale(self, actors: int) -> None:
        """So many actors from now on."""
        self._ask("scale", actors)
        self.slots.resize(actors)

    def die(self, why: str) -> None:
        """Everything ends, but not all of it at once: processes outlive their driver by seconds."""
        self.driver.end(why)
        orphans = [actor.life for actor in self.slots.all.values()]
        for life in (self._learner.life, *(self._network.life_of(name) for name in ("controller", "buffer"))):
            if life is not None:
                life.end("its driver ended")
        for life in orphans:
            self._world.after(
                self._world.random.uniform(0.0, ORPHAN_SECONDS), partial(life.end, "its driver ended some time ago")
            )

    # ── stations that are restarted ──────────────────────────────────────────────────────────────────────────────────

    def _join_buffer(self) -> None:
        if self.driver.alive:
            life = Life(self._world, "buffer", "buffer")
            self.buffer = join_buffer(self._network, life)
            life.ended.append(lambda: self._soon(self._join_buffer))

    def _join_controller(self) -> None:
        if self.driver.alive:
            life = Life(self._world, "controller", "controller")
            self.controller = ControllerStation(self._world, self._network, life, self._desk)
            self._checks.replays(self.controller.desk, self._disk.journal)
            life.ended.append(self._controller_died)

    def _desk(self, clock: Callable[[], float]) -> WatchedDesk:
        begun = any(branch == self._version.branch for branch, _ in self._disk.journal.segments())
        return self.make_desk(
            self._stations,
            None if begun else self._scenario.levels,
            self._disk.journal,
            clock,
            branch=self._version.branch,
            step=self._start.step,
            state=self._start.state,
            task_prompts=() if begun else self._scenario.task_prompts,
        )

    def make_desk(self, *arguments: Any, **named: Any) -> WatchedDesk:
        """A desk that is watched."""
        made = type("Desk", (WatchedDesk,), {"checks": self._checks})
        desk: WatchedDesk = made(*arguments, **named)
        return desk

    def _controller_died(self) -> None:
        if self._world.chance(MACHINE_SHARE):
            lost = self._disk.journal.tear(self._world)
            self._world.note(f"{lost} bytes of the journal were not on disk")
        self._soon(self._join_controller)

    def _soon(self, restart: Callable[[], None]) -> None:
        self._world.after(self._world.random.expovariate(1.0 / STATION_RESTART_SECONDS), restart)

    # ── calls that let time pass ─────────────────────────────────────────────────────────────────────────────────────

    def _ask(self, method: str, *arguments: Any, seconds: float = ANSWER_SECONDS) -> Any:
        """The controller's answer; while it is restarted it is asked again, and told the newest version first."""
        deadline = self._world.now + RESTART_SECONDS
        while True:
            try:
                if self._controller_away:
                    self._answer("controller", "publish", self._published, seconds=ANSWER_SECONDS)
                    self._controller_away = False
                return self._answer("controller", method, *arguments, seconds=seconds)
            except StationLost:
                self._controller_away = True
                if self._world.now > deadline:
                    raise
                self._pass(RETRY_SECONDS)

    def _answer(self, to: str, method: str, *arguments: Any, seconds: float) -> Any:
        call = self._network.call(self.driver, to, method, *arguments, reliable=True)
        came = self._world.run(lambda: call.arrived or not self.driver.alive, self._world.now + seconds)
        self._live()
        if not came:
            raise Stalled(f"{to}.{method} was not answered within {seconds:.0f} s")
        return call.answer()

    def _pass(self, seconds: float) -> None:
        self._world.run(lambda: not self.driver.alive, self._world.now + seconds)
        self._live()

    def _live(self) -> None:
        if not self.driver.alive:
            raise Killed


def live(cluster: SimulatedCluster, world: World, scenario: Scenario, deadline: float) -> str:
    """One life of the driver; how it ended, "done" when the run is."""
    try:
        version = cluster.start()
        while version.step < scenario.steps:
            done = one_round(
                cluster,
                before=lambda: None,
                after=lambda _: _within(world, deadline),
                clock=world.clock,
                poll_seconds=POLL_SECONDS,
            )
            if isinstance(done, GroupsMissing):
                continue
            version = done.outcome.report.version
            if version.step % scenario.checkpoint_every == 0 or version.step == scenario.steps:
                cluster.save()
    except Killed:
        return "killed"
    except EntrostatError as error:
        return f"{type(error).__name__}: {error}"
    return "done"


def _within(world: World, deadline: float) -> None:
    if world.now > deadline:
        raise Stalled("the run was not done in time")
