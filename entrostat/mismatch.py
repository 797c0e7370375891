"""The mismatch watch: whether the tokens are drawn from the policy that the learner trains.

μ is what an engine drew a token with, π what the learner computes for it. Three things part them, and each is seen by
something else: the engine's own arithmetic and weights by the probe, which both compute under one version; what
sampling adds to that (temperature, cut-offs) by samples that the measured version drew alone; and the drift of the
policy from version to version by what is left, the samples of older versions.
"""

from dataclasses import dataclass

from entrostat.learner.probe import tolerance
from entrostat.protocol.errors import PolicyMismatch
from entrostat.protocol.learner_settings import LearnerSettings
from entrostat.protocol.messages import StepReport
from entrostat.protocol.settings import ModelSettings, RolloutSettings, SimulatedSettings

NEAR_TOLERANCE = 0.5  # of the probe's tolerance: above it the engine's own arithmetic or weights are suspects


@dataclass(frozen=True, kw_only=True)
class MismatchWatch:
    """Bounds on the mean |log π − log μ| of a step's tokens, nats."""

    tolerance: float  # where one version drew and is measured; the probe's
    alarm: float  # of all tokens
    stop: float  # of all tokens; 0 never stops

    def warnings(self, report: StepReport, probe: float) -> tuple[tuple[str, str | None], ...]:
        """Alarms with their texts, None where all is well; `probe` is the actors' largest probe difference, nats."""
        fresh = report.fresh
        own = fresh is not None and not fresh.mean <= self.tolerance
        said = None
        if fresh is not None and own:
            said = (
                f"tokens that version {report.measured} drew itself have log-probs that differ from the learner's by "
                f"{fresh.mean:.3g} nats on average, more than {self.tolerance:g} (rollout.tolerance, or the dtype's "
                f"own): {self._parts(report, probe)}"
            )
        drift = f"{_drift(report)}, more than learner.drift_alarm = {self.alarm:g}: {self._parts(report, probe)}"
        return (("mismatch", said), ("drift", drift if not report.drift_mean <= self.alarm and not own else None))

    def check(self, report: StepReport, probe: float) -> None:
        """Stops a run that learns from another policy's samples.

        Raises:
            PolicyMismatch: the mean difference is above the second bound.
        """
        if self.stop and not report.drift_mean <= self.stop:
            raise PolicyMismatch(
                f"step {report.version}: {_drift(report)}, more than learner.drift_stop = {self.stop:g}: "
                f"{self._parts(report, probe)}. The run goes on from its last checkpoint with --resume once the cause "
                "is removed; 0 switches this bound off"
            )

    def _parts(self, report: StepReport, probe: float) -> str:
        """Which part is whose, and the likely causes."""
        seen = f"the engine's own part is at most {probe:.3g} nats on the probe (tolerance {self.tolerance:g})"
        fresh, tokens = report.fresh, report.response_tokens
        if fresh is None:
            return (
                f"{seen}; older versions had a part in every sample, so that drift of the policy between versions is "
                "the likely cause (lower rollout.max_staleness, learner.lr, or learner.minibatches and epochs). A "
                "wrong temperature or top-p can't be told from it here: for that set rollout.max_staleness = 0"
            )
        older = tokens - fresh.tokens
        rest = (report.drift_mean * tokens - fresh.mean * fresh.tokens) / older if older else 0.0
        said = (
            f"{seen}, {fresh.mean:.3g} on the {fresh.tokens} of {tokens} tokens that the measured version drew itself "
            f"(largest {fresh.max:.3g}, KL {fresh.kl:.3g})"
        )
        if older:
            said += f", and with policy drift between versions {rest:.3g} on the other {older}"
        if fresh.mean <= self.tolerance:
            return (
                f"{said}; the engine samples from the version it serves, and the likely cause is staleness: lower "
                "rollout.max_staleness, learner.lr, or learner.minibatches and epochs"
            )
        if probe > NEAR_TOLERANCE * self.tolerance:
            return (
                f"{said}; the probe is near its tolerance, so that the likely causes are precision (model.dtype, or a "
                "quantised cache of the engine's) and weights that were updated in part, such as a head that was not: "
                "see the actors' logs, and lower rollout.tolerance"
            )
        return (
            f"{said}; the probe agrees, so that the likely causes lie in sampling: a temperature other than "
            "rollout.temperature, top-p, top-k or a penalty from the model's generation config, or log-probs of "
            "unprocessed logits; at long contexts also precision (model.dtype)"
        )


def watch(model: ModelSettings, rollout: RolloutSettings, learner: LearnerSettings) -> MismatchWatch | None:
    """The run's watch; None with the simulated engine, whose samples are no policy's."""
    if isinstance(rollout.engine, SimulatedSettings):
        return None
    return MismatchWatch(
        tolerance=tolerance(rollout.tolerance, model.dtype), alarm=learner.drift_alarm, stop=learner.drift_stop
    )


def _drift(report: StepReport) -> str:
    return (
        f"the engine's log-probs of the sampled tokens differ from the learner's by {report.drift_mean:.3g} nats on "
        f"average (largest {report.drift_max:.3g}, KL {report.drift_kl:.3g})"
    )
