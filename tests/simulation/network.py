"""Calls between lives, as Ray makes them: late, lost, twice, out of order, cut off for minutes; or an error."""

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from entrostat.protocol.errors import EntrostatError, StationLost
from tests.simulation.world import Life, World

LONG_DELAY_SHARE = 0.02  # of messages; these take up to …
LONG_DELAY_SECONDS = 4.0

Reply = Callable[[Any], None]  # with a value, or an error of ours


class Faults(msgspec.Struct, frozen=True, kw_only=True):
    """How badly messages fare until `quiet_at`."""

    delay_seconds: float = 0.01  # mean
    loss: float = 0.0  # share of messages, requests and answers alike
    repeat: float = 0.0
    crash: dict[str, float] = {}  # by role: share of messages at which who gets it dies, before or after its work
    silent_death: float = 0.3  # share of calls whose caller is never told that who was called died
    quiet_at: float = 0.0


class Call:
    """A call under way: its answer once it has arrived."""

    def __init__(self) -> None:
        self.arrived = False
        self.value: Any = None

    def answer(self) -> Any:
        """The value, or the error raised."""
        if isinstance(self.value, EntrostatError):
            raise self.value
        return self.value


class Station:
    """Somebody who is called: a life and its methods, each `(reply, *arguments)`."""

    def __init__(self, life: Life, role: str, methods: dict[str, Callable[..., None]]) -> None:
        self.life, self.role, self.methods = life, role, methods


class Network:
    """Who is where, and every message between them."""

    def __init__(self, world: World, faults: Faults) -> None:
        self._world, self._faults = world, faults
        self._stations: dict[str, Station] = {}
        self._cut: dict[str, float] = {}  # node → until when nothing reaches or leaves it
        self.met: dict[str, int] = {}  # how often each kind of fault came about

    def join(self, name: str, station: Station) -> None:
        """From now on `name` is this station; calls to an earlier life of that name fail."""
        self._stations[name] = station
        station.life.ended.append(partial(self._died, station.life))

    def life_of(self, name: str) -> Life | None:
        """Who lives under a name."""
        station = self._stations.get(name)
        return station.life if station is not None and station.life.alive else None

    def cut(self, node: str, seconds: float) -> None:
        """Nothing reaches or leaves a node for so long."""
        self._world.note(f"{node} is cut off for {seconds:.1f} s")
        self._cut[node] = self._world.now + seconds
        self._count("partition")

    def call(self, sender: Life, to: str, method: str, *arguments: Any, reliable: bool = False) -> Call:
        """Sends a request; `reliable` ones are neither lost nor repeated: late, or answered by an error."""
        call = Call()
        message = partial(self._deliver, call, sender, to, method, arguments, reliable)
        station = self._stations.get(to)
        there = to if station is None else station.life.node
        self._send(sender.node, there, message, reliable, f"{sender.name} → {to}.{method}")
        return call

    # ── on the way ───────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def noisy(self) -> bool:
        """Whether faults still happen."""
        return self._world.now < self._faults.quiet_at

    def _send(self, node: str, other: str, message: Callable[[], None], reliable: bool, what: str) -> None:
        world, faults = self._world, self._faults
        if self.noisy and not reliable and world.chance(faults.loss):
            world.note(f"{what} is lost")
            self._count("loss")
            return
        until = 0.0 if node == other else max(self._cut.get(node, 0.0), self._cut.get(other, 0.0))
        held = max(0.0, until - world.now)
        if held and not reliable and world.chance(0.5):
            world.note(f"{what} is lost at a cut")
            return
        world.after(held + self._delay(), message)
        if self.noisy and not reliable and world.chance(faults.repeat):
            world.note(f"{what} comes twice")
            self._count("repeat")
            world.after(held + self._delay() + world.random.expovariate(2.0), message)

    def _delay(self) -> float:
        delay = self._world.random.expovariate(1.0 / self._faults.delay_seconds)
        if self.noisy and self._world.chance(LONG_DELAY_SHARE):
            delay += self._world.random.uniform(0.0, LONG_DELAY_SECONDS)
        return delay

    # ── there and back ───────────────────────────────────────────────────────────────────────────────────────────────

    def _deliver(
        self, call: Call, sender: Life, to: str, method: str, arguments: tuple[Any, ...], reliable: bool
    ) -> None:
        station = self._stations.get(to)
        if station is None or not station.life.alive:
            self._answer(sender, call, StationLost(f"{to} is not there"))
            return
        life = station.life
        if life.paused_until > self._world.now:
            again = partial(self._deliver, call, sender, to, method, arguments, reliable)
            self._world.after(life.paused_until - self._world.now, again)
            return
        dies = self.noisy and self._world.chance(self._faults.crash.get(station.role, 0.0))
        life.pending[(call, sender)] = None
        if dies and self._world.chance(0.5):
            self._count(f"{station.role} crash")
            life.end(f"killed before {sender.name}'s {method}")
            return
        self._world.note(f"{sender.name} → {to}.{method}")
        answers: list[Any] = []
        reply = answers.append if dies else partial(self._reply, life, sender, call, reliable)
        station.methods[method](reply, *arguments)
        if dies:
            self._count(f"{station.role} crash")
            life.end(f"killed after {sender.name}'s {method}, before its answer left")

    def _reply(self, life: Life, sender: Life, call: Call, reliable: bool, value: Any) -> None:
        if life.alive and (call, sender) in life.pending:
            del life.pending[(call, sender)]
            arrive = partial(self._arrive, sender, call, value)
            self._send(life.node, sender.node, arrive, reliable, f"{life.name}'s answer to {sender.name}")

    def _died(self, life: Life) -> None:
        pending, life.pending = life.pending, {}
        for call, sender in pending:
            if not self._world.chance(self._faults.silent_death) or not self.noisy:
                self._answer(sender, call, StationLost(f"{life.name} died"))

    def _answer(self, sender: Life, call: Call, error: EntrostatError) -> None:
        self._world.after(
            self._delay() + self._world.random.uniform(0.0, 0.5), partial(self._arrive, sender, call, error)
        )

    def _arrive(self, sender: Life, call: Call, value: Any) -> None:
        if sender.alive and not call.arrived:
            call.arrived, call.value = True, value
            sender.wake()

    def _count(self, what: str) -> None:
        self.met[what] = self.met.get(what, 0) + 1
