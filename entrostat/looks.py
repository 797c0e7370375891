"""The stations asked what they do: all at once, with one short deadline, whatever becomes of them."""

import logging
import time
from collections.abc import Mapping
from typing import Any

from entrostat import ray_calls
from entrostat.processes import state_of
from entrostat.protocol import wire
from entrostat.protocol.errors import EntrostatError
from entrostat.protocol.messages import ActorView, Stacks, Standing
from entrostat.stall import Look, Told

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0

Place = tuple[str, int]  # host, process


class Lookout:
    """What the driver knows of the stations without asking them: where they run, and what actors last said."""

    def __init__(self) -> None:
        self.places: dict[str, Place] = {}
        self._asked: dict[str, Any] = {}
        self._told: dict[int, tuple[ActorView, float]] = {}

    def hear(self, views: list[ActorView]) -> None:
        """Notes the actors' views, one that was noted before keeps its age, and where stations say that they run."""
        now = time.monotonic()
        for name in [name for name, reference in self._asked.items() if ray_calls.done(reference)]:
            look = self._answered(name, self._asked.pop(name), now)
            if look.process:
                self.places[name] = (look.host, look.process)
        for gone in self._told.keys() - {view.slot for view in views}:
            del self._told[gone]
        for view in views:
            known = self._told.get(view.slot)
            if known is None or known[0] is not view:
                self._told[view.slot] = (view, now)
                if view.process:
                    self.places[f"rollout actor {view.slot}"] = (view.host, view.process)

    def told(self) -> tuple[Told, ...]:
        """The actors' last views."""
        now = time.monotonic()
        return tuple(Told(view=view, age_seconds=now - since) for view, since in list(self._told.values()))

    def locate(self, stations: Mapping[str, Any]) -> None:
        """Asks stations where they run, without waiting; `hear` takes the answers in."""
        self.places.clear()
        self._asked = {name: handle.stacks.remote() for name, handle in stations.items()}

    def look(self, stations: Mapping[str, Any], seconds: float = LOOK_SECONDS) -> tuple[Look, ...]:
        """What each station's threads do."""
        references = {name: handle.stacks.remote() for name, handle in stations.items()}
        deadline = time.monotonic() + seconds
        return tuple(self._answered(name, reference, deadline) for name, reference in references.items())

    def _answered(self, name: str, reference: Any, deadline: float) -> Look:
        try:
            found = wire.decode(ray_calls.soon(reference, name, deadline), Stacks)
        except EntrostatError as error:
            host, process = self.places.get(name, ("", 0))
            return Look(
                name=name,
                host=host,
                process=process,
                stacks="",
                problem=f"did not answer ({error})",
                state=state_of(host, process),
            )
        return Look(name=name, host=found.host, process=found.process, stacks=found.text)


def standing(controller: Any, seconds: float = LOOK_SECONDS) -> Standing | None:
    """How the controller stands; None where it does not say in time."""
    reference = controller.standing.remote()
    try:
        return wire.decode(ray_calls.soon(reference, "the controller", time.monotonic() + seconds), Standing)
    except EntrostatError as error:
        log.warning("the controller does not say how it stands: %s", error)
        return None
