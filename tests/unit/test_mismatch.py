"""The mismatch watch: which difference between engine and learner is said, whose it is called, and what ends a run."""

import pytest
from msgspec.structs import replace

from entrostat.mismatch import MismatchWatch, watch
from entrostat.protocol.errors import PolicyMismatch
from entrostat.protocol.learner_settings import LearnerSettings
from entrostat.protocol.messages import FreshDrift, StepReport
from entrostat.protocol.settings import ModelSettings, RolloutSettings, SimulatedSettings
from tests.made_messages import plain_report

TOLERANCE, ALARM, STOP = 1e-4, 0.1, 1.0
WATCH = MismatchWatch(tolerance=TOLERANCE, alarm=ALARM, stop=STOP)
GOOD_PROBE, WEAK_PROBE = 1e-6, 9e-5


def fresh(mean: float, tokens: int = 24) -> FreshDrift:
    return FreshDrift(tokens=tokens, mean=mean, max=2 * mean, kl=mean**2)


def report(mean: float, own: FreshDrift | None) -> StepReport:
    return replace(plain_report(), drift_mean=mean, drift_max=3 * mean, drift_kl=0.25, fresh=own)


def said(mean: float, own: FreshDrift | None, probe: float = GOOD_PROBE) -> dict[str, str]:
    return {name: text for name, text in WATCH.warnings(report(mean, own), probe) if text}


def test_a_step_within_the_bounds_says_nothing() -> None:
    assert said(TOLERANCE, fresh(TOLERANCE)) == {}
    assert said(ALARM, fresh(5e-7, tokens=12)) == {}
    assert said(ALARM, None) == {}


def test_tokens_of_the_measured_version_that_differ_are_laid_to_sampling_where_the_probe_agrees() -> None:
    found = said(0.3, fresh(0.3))
    assert set(found) == {"mismatch"}
    assert "a temperature other than rollout.temperature, top-p" in found["mismatch"]
    assert "staleness" not in found["mismatch"]
    assert "at most 1e-06 nats on the probe" in found["mismatch"]


def test_they_are_laid_to_precision_or_a_head_where_the_probe_is_near_its_tolerance() -> None:
    text = said(2e-4, fresh(2e-4), WEAK_PROBE)["mismatch"]
    assert "precision" in text
    assert "such as a head that was not" in text
    assert "top-p" not in text


def test_older_tokens_that_differ_are_laid_to_staleness_with_their_own_mean() -> None:
    found = said(0.2, fresh(5e-7, tokens=6))
    assert set(found) == {"drift"}
    assert "likely cause is staleness" in found["drift"]
    assert "with policy drift between versions 0.267 on the other 18" in found["drift"]  # 0.2 · 24 / 18
    assert "largest 0.6, KL 0.25" in found["drift"]


def test_without_a_sample_of_the_measured_version_the_watch_says_what_it_can_not_tell() -> None:
    text = said(0.2, None)["drift"]
    assert "older versions had a part in every sample" in text
    assert "can't be told from it here" in text


def test_a_number_that_is_none_is_an_alarm_and_ends_the_run() -> None:
    assert said(float("nan"), None)
    with pytest.raises(PolicyMismatch):
        WATCH.check(report(float("nan"), None), GOOD_PROBE)


def test_above_the_second_bound_the_run_ends_and_is_told_why() -> None:
    WATCH.check(report(STOP, None), GOOD_PROBE)
    with pytest.raises(
        PolicyMismatch, match=r"step 0\.1: .* 1\.01 nats on average .*learner\.drift_stop = 1: .*--resume"
    ):
        WATCH.check(report(1.01, fresh(1.01)), GOOD_PROBE)


def test_a_second_bound_of_0_never_ends_a_run() -> None:
    never = MismatchWatch(tolerance=TOLERANCE, alarm=ALARM, stop=0.0)
    never.check(report(100.0, None), GOOD_PROBE)


def test_the_watch_obeys_the_settings_and_leaves_simulations_alone() -> None:
    model, learner = ModelSettings(path="p", dtype="bfloat16"), LearnerSettings(drift_alarm=0.2, drift_stop=0.0)
    assert watch(model, RolloutSettings(), learner) == MismatchWatch(tolerance=5e-2, alarm=0.2, stop=0.0)
    assert watch(model, RolloutSettings(engine=SimulatedSettings()), learner) is None
