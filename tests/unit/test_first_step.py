"""An order's first optimizer step: the policy is π_prox, whatever rounding parts the survey from the gradient pass."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from entrostat.learner import steps
from entrostat.learner.batching import Sample, flatten
from entrostat.learner.objective import Objective
from entrostat.learner.optimizer import Optimizer
from entrostat.learner.policy import Policy
from entrostat.learner.steps import Taken, take
from entrostat.learner.survey import Survey, survey
from entrostat.learner.update import accumulate
from entrostat.protocol.entropy_settings import ClampedEntropy
from entrostat.protocol.learner_settings import KlCov, LearnerSettings, PpoClip
from entrostat.protocol.messages import PolicyVersion
from tests.tiny_policy import in_float64, loaded, make_group, make_order, make_policy

RATE = 1e-3
ROUNDING = 1e-9  # nats
# β times the sign of any difference, on every token: far above the policy term's own gradient.
PENALISED, PLAIN = KlCov(share=1.0, strength=50.0), PpoClip(clip_low=0.9, clip_high=99.0)
GROUPS = [make_group(i, rewards=(0.0, 1.0, 0.5), started=0) for i in range(4)]
ORDER = make_order(GROUPS, PolicyVersion(branch=0, step=0), 0.3, seed=11)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_policy(tmp_path_factory.mktemp("policy"))


def objective(loss: KlCov | PpoClip, **changes: Any) -> Objective:
    learner = LearnerSettings(lr=RATE, microbatch_tokens=60, loss=loss, gradient_clip=1e9, minibatches=2)
    learner = msgspec.structs.replace(learner, **changes)
    return Objective(learner=learner, estimator=ClampedEntropy(drop_fraction=0.25), temperature=0.8)


def samples_of(wanted: Objective) -> tuple[Sample, ...]:
    return tuple(flatten(ORDER.groups, GROUPS, wanted.learner))


def rounded(found: Survey) -> Survey:
    """The survey of a pass whose log-probs all came out a little lower."""
    return replace(found, settled=replace(found.settled, logprob=found.settled.logprob - ROUNDING))


def gradients(policy: Policy) -> list[torch.Tensor]:
    return [weight.grad.clone() for weight in policy.model.parameters() if weight.grad is not None]


def norms_of(folder: Path, wanted: Objective) -> list[float]:
    policy = in_float64(loaded(folder))
    optimizer = Optimizer(policy.model.named_parameters(), wanted.learner)
    taken: Taken = take(policy, None, optimizer, samples_of(wanted), wanted, ORDER, RATE, "step 1")
    return [step.gradient_norm for step in taken.steps]


def rounding_survey(*args: Any) -> Survey:
    return rounded(survey(*args))


@pytest.mark.parametrize("measured", [False, True])
def test_kl_covs_penalty_is_silent_in_the_first_step_of_several_and_in_no_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch, measured: bool
) -> None:
    monkeypatch.setattr(steps, "survey", rounding_survey)
    ours = norms_of(folder, objective(PENALISED, epochs=2, measure_balance=measured))
    plain = norms_of(folder, objective(PLAIN, epochs=2, measure_balance=measured))
    assert len(ours) == len(plain) == 4
    assert ours[0] == pytest.approx(plain[0], rel=1e-6)
    # The second part is of the first epoch still, but the policy has moved.
    assert all(one > 2 * other for one, other in zip(ours[1:], plain[1:], strict=True))


def test_where_the_policy_is_unmoved_the_gradient_is_that_of_the_plain_ratio(folder: Path) -> None:
    policy, found = in_float64(loaded(folder)), {}
    for loss, unmoved in ((PLAIN, True), (PENALISED, True), (PENALISED, False)):
        wanted = objective(loss)
        samples = samples_of(wanted)
        seen = rounded(survey(policy, None, samples, wanted, 0, "step 1"))
        policy.model.zero_grad(set_to_none=True)
        accumulate(policy, None, samples[: len(samples) // 2], wanted, "step 1", seen, unmoved=unmoved)
        found[loss, unmoved] = gradients(policy)
    torch.testing.assert_close(found[PENALISED, True], found[PLAIN, True], atol=1e-12, rtol=0)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(found[PENALISED, False], found[PLAIN, True], atol=1e-2, rtol=0)
