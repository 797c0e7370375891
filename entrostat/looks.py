"""The stations asked what they do: all at once, with one short deadline, whatever becomes of them."""

import time
from collections.abc import Mapping
from typing import Any

from entrostat import ray_calls
from entrostat.processes import state_of
from entrostat.protocol import wire
from entrostat.protocol.messages import ActorView, Stacks, Standing
from entrostat.stall import Look, Told

LOOK_SECONDS = 5.0
READ_SECONDS = 1.0

Place = tuple[str, int]  # host, process


class Lookout:
    """What the driver knows of the stations without asking them: where they run, and what actors last said."""

    def __init__(self) -> None:
        self.places: dict[str, Place] = {}
        self._told: dict[int, tuple[ActorView, float]] = {}

    def hear(self, views: list[ActorView]) -> None:
        """Notes the actors' views; one that was noted before keeps its age."""
        now = time.monotonic()
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
        """Asks stations that are up where they run."""
        self.places |= {look.name: (look.host, look.process) for look in self.look(stations) if look.process}

    def look(self, stations: Mapping[str, Any], seconds: float = LOOK_SECONDS) -> tuple[Look, ...]:
        """What each station's threads do."""
        references = {name: handle.stacks.remote() for name, handle in stations.items()}
        deadline = time.monotonic() + seconds
        return tuple(self._answered(name, reference, deadline) for name, reference in references.items())

    def _answered(self, name: str, reference: Any, deadline: float) -> Look:
        try:
            found = wire.decode(_within(reference, name, deadline), Stacks)
        except Exception as error:  # the report must come, whatever this station's call came to
            host, process = self.places.get(name, ("", 0))
            return Look(
                name=name,
                host=host,
                process=process,
                stacks="",
                problem=str(error) or type(error).__name__,
                state=state_of(host, process),
            )
        return Look(name=name, host=found.host, process=found.process, stacks=found.text)


def standing(controller: Any, seconds: float = LOOK_SECONDS) -> Standing | None:
    """How the controller stands; None where it does not say in time."""
    try:
        reference = controller.standing.remote()
        return wire.decode(_within(reference, "the controller", time.monotonic() + seconds), Standing)
    except Exception:  # the report must come, whatever the call came to
        return None


def _within(reference: Any, name: str, deadline: float) -> Any:
    if not ray_calls.done(reference, deadline - time.monotonic()):
        raise TimeoutError(f"no answer within {LOOK_SECONDS:.0f} s")
    return ray_calls.answer(reference, name, READ_SECONDS)
