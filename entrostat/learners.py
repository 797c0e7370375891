"""The learner's ranks on the cluster: placed together, and watched."""

from pathlib import Path
from typing import Any

from entrostat import ray_calls
from entrostat.learner.followers import FollowerActor
from entrostat.learner.remote import LearnerActor
from entrostat.protocol.messages import PolicyVersion
from entrostat.protocol.settings import Stations

PLACE_SECONDS = 120.0
ANSWER_SECONDS = 60.0


class Learners:
    """The ranks of a run's learner. The first is the learner that everybody asks; the others follow it.

    Args:
        stations: the run's settings; `settings` and `prompts` are shared frames.
        version: where the policy stands.
        checkpoint: folder to restore from.
        gpus: of each rank.

    Raises:
        ResourceError: the cluster has no room for all of them.
    """

    def __init__(
        self,
        stations: Stations,
        settings: Any,
        prompts: Any,
        buffer: Any,
        version: PolicyVersion,
        checkpoint: Path | None,
        *,
        gpus: float,
    ) -> None:
        count, folder = stations.learner.ranks, None if checkpoint is None else str(checkpoint)
        places = ray_calls.reserve(count, cpus=1, gpus=gpus, seconds=PLACE_SECONDS) if count > 1 else [None]
        start = (version.branch, version.step, folder)
        self._followers = [
            # Whether it lives is answered while it works.
            ray_calls.remote(FollowerActor, cpus=1, gpus=gpus, max_concurrency=2, place=place).remote(
                number, settings, prompts, *start
            )
            for number, place in enumerate(places[1:], 1)
        ]
        self.first = ray_calls.remote(LearnerActor, cpus=1, gpus=gpus, max_concurrency=4, place=places[0]).remote(
            settings, prompts, buffer, *start, self._followers
        )
        self._lives = [follower.lives.remote() for follower in self._followers]

    @property
    def all(self) -> dict[str, Any]:
        """Every rank's handle, by what errors call it."""
        followers = {f"rank {number} of the learner": handle for number, handle in enumerate(self._followers, 1)}
        return {"the learner": self.first, **followers}

    def watch(self) -> None:
        """Sees that the followers live: the first rank may be waiting for one that does not, and can tell nobody.

        Raises:
            StationLost: one died.
            EntrostatError: one stopped for a reason it named.
        """
        for place, reference in enumerate(self._lives):
            if ray_calls.done(reference):
                ray_calls.answer(reference, f"rank {place + 1} of the learner", ANSWER_SECONDS)
                self._lives[place] = self._followers[place].lives.remote()
