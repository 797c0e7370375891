"""A learner whose optimizer steps last a set time, as long as a GPU's would: `entrostat train` with its pace set.

    ENTROSTAT_STEP_SECONDS=2 python -m benchmarks.paced_learner train benchmarks/overlap.toml …

It makes each step as ever and then waits for the rest of the time, before the new weights are published.
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType

from entrostat import cli, learners
from entrostat.learner import trainer
from entrostat.learner.remote import LearnerActor
from entrostat.protocol.arrays import UInt8
from entrostat.protocol.messages import Group, TrainOrder

VARIABLE = "ENTROSTAT_STEP_SECONDS"


def stand_in(module: ModuleType, **stations: object) -> None:
    """Gives the module other classes, or functions, under the names by which it uses its own."""
    for name, station in stations.items():
        setattr(module, name, station)


class PacedTrainer(trainer.Trainer):
    """A trainer whose steps last as long as the environment says; the wait counts as computing."""

    def make(self, order: TrainOrder, groups: Sequence[Group], *, again: bool = False) -> trainer.Made:
        """An order's optimizer steps, not sooner than the time is up."""
        began = time.perf_counter()
        made = super().make(order, groups, again=again)
        left = max(0.0, began + float(os.environ[VARIABLE]) - time.perf_counter())
        time.sleep(left)
        return replace(made, taken=replace(made.taken, gradient_seconds=made.taken.gradient_seconds + left))


class PacedLearner(LearnerActor):
    """The learner's Ray actor with that trainer."""

    made_by: type[trainer.Trainer] = PacedTrainer

    def start(self) -> UInt8:
        """Loads the policy and publishes it: a `WeightsManifest`."""
        stand_in(trainer, Trainer=self.made_by)  # the actor imports it by this name, in a process of its own
        return super().start()


if __name__ == "__main__":
    # Ray finds the class by its module's name, which is not that of the program.
    from benchmarks.paced_learner import PacedLearner as Importable

    stand_in(learners, LearnerActor=Importable)
    sys.exit(cli.main())
