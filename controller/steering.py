"""The control law of one run, with its thermometer: what it is told of each step, and what it says."""

import math
from collections.abc import Mapping

from msgspec.structs import replace

from entrostat.controller.coefficient import LawState, Reading, initial_state, law_step, read
from entrostat.controller.thermometer import AnchorMix, Estimator, bonus_estimator, driving_estimator, measure
from entrostat.protocol.entropy_settings import EntropySettings
from entrostat.protocol.errors import CheckpointDamaged
from entrostat.protocol.messages import StepReport


class Steering:
    """Steps the law with what the thermometer reads.

    Args:
        settings: which law, and what it is told.
        momentum: β1 of the learner's optimizer.
    """

    def __init__(self, settings: EntropySettings, momentum: float) -> None:
        self._settings = settings
        self.law: LawState = initial_state(settings.law, momentum=momentum)
        self.mix = AnchorMix()
        self._measured = math.nan
        self._read_of = self.law
        self._reading = read(settings.law, self.law)

    @property
    def reading(self) -> Reading:
        """What the law says now."""
        if self._read_of is not self.law:  # asked for at every event, and changed once an order
            self._read_of, self._reading = self.law, read(self._settings.law, self.law)
        return self._reading

    @property
    def measured_entropy(self) -> float:
        """What the law was told last, nats; NaN before the first time."""
        return self._measured

    @property
    def driving_estimator(self) -> Estimator:
        """Which entropy the law is told."""
        return driving_estimator(self._settings)

    @property
    def bonus_estimator(self) -> Estimator:
        """Which entropy the bonus is on."""
        return bonus_estimator(self._settings)

    def tell(self, report: StepReport, completed: Mapping[str, int], share: float) -> None:
        """Steps the law.

        Args:
            report: of the order's step.
            completed: response tokens by level, of all groups completed for the order.
            share: of its coefficient that acted: the token mean of its groups' weights.
        """
        before = self.law.intake
        measurement, mix = measure(
            report,
            self.driving_estimator,
            mix=self.mix,
            completed=completed,
            anchoring=before.initial_entropy is None,
        )
        self.law = law_step(self._settings.law, self.law, replace(measurement, share=share))
        if self.law.intake.accepted > before.accepted:
            self.mix, self._measured = mix, measurement.entropy

    def restore(self, law: LawState, mix: AnchorMix, measured: float) -> None:
        """Goes on from a snapshot.

        Raises:
            CheckpointDamaged: it holds another law's state.
        """
        if type(law) is not type(self.law):
            raise CheckpointDamaged(
                f"the controller's snapshot holds a {type(law).__name__}; the run's law needs a "
                f"{type(self.law).__name__}: resume with the law the run was started with"
            )
        self.law, self.mix, self._measured = law, mix, measured
