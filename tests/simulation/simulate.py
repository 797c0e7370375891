"""One seed's run, from its first event to its end."""

from collections.abc import Callable

import msgspec

from entrostat.protocol.errors import EntrostatError
from tests.simulation.checks import Checks
from tests.simulation.driver import Disk, SimulatedCluster, live
from tests.simulation.network import Network
from tests.simulation.scenario import Scenario, scenario
from tests.simulation.world import Violation, World

RECOVERY_SECONDS = 600.0  # after the last fault the run is done within so much virtual time …
STEP_SECONDS = 60.0  # … and so much for each of its steps
RESTART_SECONDS = 5.0  # mean, until somebody resumes a run
MOST_LIVES = 60


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a seed came to."""

    scenario: Scenario
    violation: str  # "" where every promise held
    now: float  # virtual seconds
    events: int
    controller_events: int
    lives: int  # of the driver
    met: dict[str, int]  # how often each kind of fault came about
    ends: dict[str, int]  # leases by their end
    digests: list[bytes]
    trace: list[str]


def simulate(seed: int, make_cluster: Callable[..., SimulatedCluster] = SimulatedCluster) -> Outcome:
    """Runs a seed, and first its undisturbed twin where the run is deterministic."""
    one = scenario(seed)
    reference = None
    if one.deterministic:
        twin = Simulation(one.undisturbed(), None, SimulatedCluster).run()
        if twin.violation:
            return twin
        reference = twin.digests
    return Simulation(one, reference, make_cluster).run()


class Simulation:
    """A run of a scenario."""

    def __init__(
        self, one: Scenario, reference: list[bytes] | None, make_cluster: Callable[..., SimulatedCluster]
    ) -> None:
        self._scenario, self._make_cluster = one, make_cluster
        self._world = World(one.seed)
        self._network = Network(self._world, one.faults)
        self._disk = Disk()
        self._checks = Checks(self._world, one, reference)
        self._cluster: SimulatedCluster | None = None
        self._lives = 0
        self._deadline = one.faults.quiet_at + RECOVERY_SECONDS + STEP_SECONDS * one.steps

    def run(self) -> Outcome:
        """Lives it through to its end, or to the first promise that is broken."""
        violation = ""
        try:
            self._trouble()
            while not self._one_life():
                pass
            self._settle()
        except Violation as broken:
            violation = str(broken)
        except EntrostatError as error:
            # A named error that reaches nobody's handler is one that a real run would have died of.
            violation = f"{type(error).__name__}: {error}"
        return self._outcome(violation)

    def _one_life(self) -> bool:
        world = self._world
        self._lives += 1
        if self._lives > MOST_LIVES:
            raise Violation(f"the run was resumed {MOST_LIVES} times and is not done")
        cluster = self._cluster = self._make_cluster(world, self._scenario, self._network, self._disk, self._checks)
        how = live(cluster, world, self._scenario, self._deadline)
        world.note(f"the driver's life {self._lives} ended: {how}")
        if world.now > self._deadline:
            raise Violation(
                f"{len(self._checks.history)} of {self._scenario.steps} steps after {world.now:.0f} s, the last fault "
                f"was at {self._scenario.faults.quiet_at:.0f} s; the last life ended: {how}; "
                f"{cluster.controller.desk.controller.counts}"
            )
        if how == "done":
            return True
        cluster.die(how)
        world.run(lambda: False, world.now + world.random.expovariate(1.0 / RESTART_SECONDS))
        return False

    def _settle(self) -> None:
        """The run is done: the journal and the counts at its end; of a dead controller something may be lost."""
        assert self._cluster is not None
        if self._cluster.controller.life.alive:
            self._checks.replays(self._cluster.controller.desk, self._disk.journal)
        if len(self._checks.history) != self._scenario.steps:
            raise Violation(f"{len(self._checks.history)} steps were made of {self._scenario.steps}")

    # ── faults that are no message's ─────────────────────────────────────────────────────────────────────────────────

    def _trouble(self) -> None:
        if self._scenario.fault_seconds and self._network.noisy:
            delay = self._world.random.expovariate(1.0 / self._scenario.fault_seconds)
            self._world.after(delay, self._make_trouble)

    def _make_trouble(self) -> None:
        cluster, world = self._cluster, self._world
        if not self._network.noisy:
            return
        if cluster is not None and cluster.driver.alive:
            kinds = ["partition", "actor", "hang", "replaced", "station", "partition", "hang", "driver"]
            kinds += ["scale"] * 3 * self._scenario.scales
            self._one_trouble(world.random.choice(kinds), cluster)
        self._trouble()

    def _one_trouble(self, kind: str, cluster: SimulatedCluster) -> None:
        world, random = self._world, self._world.random
        actors = [actor for actor in cluster.slots.all.values() if actor.life.alive]
        if kind == "partition":
            nodes = ["controller", "buffer", "learner", *(actor.life.node for actor in actors)]
            self._network.cut(random.choice(nodes), random.choice([2.0, 10.0, 40.0, 90.0]) * random.random())
            return
        if kind == "station":
            name = random.choice(["controller", "controller", "buffer", "buffer", "learner"])
            life = self._network.life_of(name)
            if life is not None:
                self._count(f"{name} kill")
                life.end("killed")
            return
        if kind == "driver":
            if world.chance(0.5):
                self._count("driver kill")
                cluster.driver.end("killed")
            return
        if kind == "scale":
            self._count("scale")
            count = random.randint(1, 5)
            world.note(f"scaled to {count} actors")
            world.after(0.0, lambda: self._scale(cluster, count))
            return
        if not actors:
            return
        actor = random.choice(actors)
        self._count(f"actor {kind}")
        if kind == "actor":
            actor.life.end("killed")
        elif kind == "hang":
            seconds = random.choice([1.0, 5.0, 30.0]) * random.random()
            world.note(f"{actor.life.name} hangs for {seconds:.1f} s")
            actor.life.paused_until = world.now + seconds
            world.after(seconds, actor.life.wake)
        elif kind == "replaced":
            world.note(f"{actor.life.name} is held for dead, and is not")
            cluster.slots.fill(actor.slot)

    def _scale(self, cluster: SimulatedCluster, count: int) -> None:
        """As the command line does: the controller is told, the driver sees it."""
        if cluster.driver.alive:
            self._network.call(cluster.driver, "controller", "scale", count)
            cluster.slots.resize(count)

    def _count(self, what: str) -> None:
        self._network.met[what] = self._network.met.get(what, 0) + 1

    def _outcome(self, violation: str) -> Outcome:
        ends: dict[str, int] = {}
        if self._cluster is not None:
            ends = msgspec.structs.asdict(self._cluster.controller.desk.controller.counts)
        return Outcome(
            scenario=self._scenario,
            violation=violation,
            now=self._world.now,
            events=self._world.events,
            controller_events=self._checks.events,
            lives=self._lives,
            met=self._network.met,
            ends=ends,
            digests=[done.digest for done in self._checks.history],
            trace=list(self._world.trace),
        )
