"""Rollout actors: the product's `RolloutWorker`, its deadlines and repetitions, in lives that end and begin again."""

from collections.abc import Sequence
from typing import Any

from entrostat.actors.deliveries import Conversation, Deliveries
from entrostat.actors.rollout import RolloutWorker
from entrostat.actors.seams import Seams
from entrostat.protocol.arrays import UInt8
from entrostat.protocol.errors import EntrostatError
from entrostat.protocol.messages import PolicyVersion, Prompt
from entrostat.protocol.settings import Stations
from tests.fake_stations import FakeMeter
from tests.made_messages import manifest
from tests.simulation.network import Call, Network
from tests.simulation.sampling import Numbers, VirtualEngine, VirtualVerifiers
from tests.simulation.world import Life, World

TURN_SECONDS = 0.25  # at least so often; at once when something comes in
START_SECONDS = 2.0  # mean
NOTICED_SECONDS = 2.0  # mean, until the driver knows of a death
READABLE_VERSIONS = 2  # weights of the newest so many can be loaded


class NetworkCalls:
    """A method of a station as `Calls`."""

    def __init__(self, network: Network, life: Life, to: str, method: str) -> None:
        self._network, self._life, self._to, self._method = network, life, to, method

    def begin(self, *arguments: int | UInt8) -> Call:
        return self._network.call(self._life, self._to, self._method, *arguments)

    def answered(self, references: Sequence[Any]) -> list[Any]:
        return [call for call in references if call.arrived]

    def answer(self, reference: Any) -> Any:
        return reference.answer()


class ActorLife:
    """One life of a rollout actor; `worker` is None while its engine starts, and when it refused its weights."""

    def __init__(
        self, world: World, network: Network, stations: Stations, prompts: tuple[Prompt, ...], *, slot: int, number: int
    ) -> None:
        self._world, self._network, self._stations, self._prompts = world, network, stations, prompts
        self.slot, self.number = slot, number
        self.life = Life(world, f"actor {slot}#{number}", f"actor {slot}", self._wake)
        self.worker: RolloutWorker | None = None
        self.leaving = False
        self._awake = False

    def start(self, version: PolicyVersion, newest: "Newest", seconds: float) -> None:
        """Loads the first version and begins to sample."""
        world, life = self._world, self.life
        engine = VirtualEngine(
            world, seconds, lambda: newest.step - READABLE_VERSIONS + 1, lambda: self._network.noisy, self._wake
        )
        seams = Seams(
            engine=engine,
            controller=Conversation(NetworkCalls(self._network, life, "controller", "pulse"), world.clock),
            buffer=Deliveries(NetworkCalls(self._network, life, "buffer", "put"), world.clock),
            verifiers=VirtualVerifiers(world, self._wake),
            tokenizer=Numbers(),
            meter=FakeMeter(),
            clock=world.clock,
            idle_seconds=0.0,
        )
        first = manifest(version.step, version.branch)
        try:
            self.worker = RolloutWorker(
                self._stations.rollout,
                self._prompts,
                self.slot,
                self.number,
                seams,
                first,
                deterministic=self._stations.deterministic,
            )
        except EntrostatError as error:
            life.end(str(error))
            return
        if self.leaving:
            self.worker.drain(self._stations.rollout.drain_seconds)
        life.every(TURN_SECONDS, self._turn)
        self._wake()

    def drain(self) -> None:
        """It takes no more leases, and leaves when it holds none."""
        self.leaving = True
        if self.worker is not None:
            self.worker.drain(self._stations.rollout.drain_seconds)

    def _wake(self) -> None:
        if not self._awake:
            self._awake = True
            self._world.after(0.0, self._woken)

    def _woken(self) -> None:
        self._awake = False
        if self.life.alive and self.life.paused_until <= self._world.now:
            self._turn()

    def _turn(self) -> None:
        if self.worker is None:
            return
        try:
            self.worker.turn()
        except EntrostatError as error:
            self.life.end(str(error))
            return
        if self.leaving and self.worker.drained(0.0):
            self.life.end("drained")


class Newest:
    """The newest version that the driver knows of."""

    def __init__(self, version: PolicyVersion) -> None:
        self.version = version

    @property
    def step(self) -> int:
        return self.version.step


class Slots:
    """The rollout actors of one life of the driver: filled, and filled again when an actor dies."""

    def __init__(
        self,
        world: World,
        network: Network,
        stations: Stations,
        prompts: tuple[Prompt, ...],
        *,
        driver: Life,
        newest: Newest,
        group_seconds: float,
    ) -> None:
        self._world, self._network, self._stations, self._prompts = world, network, stations, prompts
        self._driver, self._newest, self._group_seconds = driver, newest, group_seconds
        self._lives: dict[int, int] = {}  # slot → incarnations so far
        self.all: dict[int, ActorLife] = {}  # who fills a slot
        self.restarts = 0

    def resize(self, count: int) -> None:
        """Fills slots, or has the highest ones drained."""
        for slot in range(count):
            if slot not in self.all or self.all[slot].leaving:
                self.fill(slot)
        for slot in [slot for slot in self.all if slot >= count]:
            self.all[slot].drain()

    def fill(self, slot: int) -> None:
        """A new life in a slot; whoever was there before is replaced, even if it does not know."""
        lives = self._lives[slot] = self._lives.get(slot, 0) + 1
        actor = ActorLife(
            self._world,
            self._network,
            self._stations,
            self._prompts,
            slot=slot,
            number=lives,  # each branch counts anew
        )
        self.all[slot] = actor
        actor.life.ended.append(lambda: self._ended(actor))
        delay = self._world.random.expovariate(1.0 / START_SECONDS)
        self._world.after(delay, lambda: self._start(actor))

    def _start(self, actor: ActorLife) -> None:
        if actor.life.alive and self._driver.alive:
            actor.start(self._newest.version, self._newest, self._group_seconds)

    def _ended(self, actor: ActorLife) -> None:
        if self.all.get(actor.slot) is not actor:
            return
        if actor.leaving:
            del self.all[actor.slot]
            return
        self.restarts += 1
        delay = self._world.random.expovariate(1.0 / NOTICED_SECONDS)
        self._world.after(delay, lambda: self._refill(actor))

    def _refill(self, actor: ActorLife) -> None:
        if self._driver.alive and self.all.get(actor.slot) is actor:
            if actor.leaving:
                del self.all[actor.slot]
            else:
                self.fill(actor.slot)
