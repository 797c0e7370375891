"""The whole objective, for every loss, aggregation and choice of tokens, against its definition; gradients too."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from entrostat.learner.batching import Sample, flatten
from entrostat.learner.objective import Objective, needs_survey
from entrostat.learner.policy import Policy, freeze
from entrostat.learner.survey import survey
from entrostat.learner.update import accumulate
from entrostat.protocol.entropy_settings import AllTokens, ClampedEntropy, SmoothedTokens, TopEntropyTokens
from entrostat.protocol.errors import NumericsError
from entrostat.protocol.learner_settings import Cispo, ClipCov, Gspo, KlCov, LearnerSettings, PolicyLoss, PpoClip
from entrostat.protocol.messages import PolicyVersion
from tests.objective_oracle import Said, objective_by_definition, said_of_all
from tests.tiny_orders import groups_of_all_kinds
from tests.tiny_policy import in_float64, loaded, make_order, make_policy, moved

VERSION = PolicyVersion(branch=0, step=0)
SEED = 5
# So narrow that the bounds act on a policy that has moved a little.
LOSSES: dict[str, PolicyLoss] = {
    "ppo": PpoClip(clip_low=0.05, clip_high=0.1),
    "dual": PpoClip(clip_low=0.05, clip_high=0.1, dual_clip=1.05),
    "gspo": Gspo(clip_low=0.01, clip_high=0.02),
    "cispo": Cispo(clip_low=0.1, clip_high=0.05),
    "clip_cov": ClipCov(share=0.3, covariance_low=-0.5, covariance_high=5.0, clip_low=0.05, clip_high=0.1),
    "kl_cov": KlCov(share=0.2, strength=0.7),
}
CHOICES: dict[str, dict[str, Any]] = {
    "plain": {},
    "four tenths of the policy's tokens": {"policy_tokens": 0.4},
    "far samples rejected": {"sequence_mask": 3.0},
    "an advantage of entropy": {"entropy_advantage": 0.3, "entropy_advantage_bound": 1.5},
    "the ratio against the behaviour": {"proximal": "behaviour"},
    "no importance weight": {"importance_cap": 0.0},
    "a pull to a reference": {"kl_coefficient": 0.3},
    "left-out baselines, truncated kept": {"advantages": "leave_one_out", "truncated": "keep"},
    "all at once": {
        "policy_tokens": 0.6,
        "sequence_mask": 2.95,
        "entropy_advantage": 0.3,
        "kl_coefficient": 0.2,
        "aggregation": "sequence_mean",
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def now(folder: Path) -> Policy:
    return moved(in_float64(loaded(folder)), 0.02)


@pytest.fixture(scope="module")
def before(folder: Path) -> Policy:
    return in_float64(loaded(folder))


@pytest.fixture(scope="module")
def reference(folder: Path) -> Policy:
    return freeze(moved(in_float64(loaded(folder)), 0.05, seed=3))


@pytest.fixture(scope="module")
def old(before: Policy) -> dict[int, Said]:
    return said_of_all(before, samples_of(objective({})), objective({}))


@pytest.fixture(scope="module")
def pulled(reference: Policy) -> dict[int, Said]:
    return said_of_all(reference, samples_of(objective({})), objective({}))


def objective(changes: dict[str, Any], **others: Any) -> Objective:
    learner = msgspec.structs.replace(LearnerSettings(microbatch_tokens=60), **changes)
    plain = Objective(learner=learner, estimator=ClampedEntropy(drop_fraction=0.25), temperature=0.8, response_limit=20)
    return replace(plain, **others)


def samples_of(wanted: Objective, balance: float = 0.25) -> list[Sample]:
    groups = groups_of_all_kinds()
    order = make_order(groups, VERSION, 0.7, weights=(1.0, 2.0, 0.5, 0.25), bonus_alone=(1,))
    return flatten(order.groups, groups, wanted.learner, balance)


@pytest.fixture(scope="module")
def assert_as_defined(
    now: Policy, before: Policy, reference: Policy, old: dict[int, Said], pulled: dict[int, Said]
) -> Callable[..., None]:
    """Of the whole order, and of a part of it, after an update of the policy that the survey was made of."""

    def compare(wanted: Objective, *, in_parts: bool = False) -> None:
        pull = reference if wanted.learner.kl_coefficient else None
        samples = samples_of(wanted)
        seen = survey(before, pull, samples, wanted, SEED, "step 1")
        for part in (seen.samples, seen.samples[4:9])[: 1 + in_parts]:
            now.model.zero_grad(set_to_none=True)
            measured = accumulate(now, pull, part, wanted, "step 1", seen)
            mine = {name: weight.grad.clone() for name, weight in now.model.named_parameters()}
            now.model.zero_grad(set_to_none=True)
            expected = objective_by_definition(now, old, pulled, samples, part, wanted, SEED)
            (-expected).backward()
            assert measured.terms.objective == pytest.approx(expected.item(), abs=1e-10)
            for name, weight in now.model.named_parameters():
                torch.testing.assert_close(mine[name], weight.grad, atol=1e-9, rtol=1e-7)

    return compare


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "fixed_length"])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_under_every_aggregation_is_what_its_definition_says(
    assert_as_defined: Callable[..., None], loss: str, aggregation: str
) -> None:
    assert_as_defined(objective({"loss": LOSSES[loss], "aggregation": aggregation}), in_parts=True)


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_with_every_correction_is_what_its_definition_says(
    assert_as_defined: Callable[..., None], loss: str, choice: str
) -> None:
    assert_as_defined(objective({"loss": LOSSES[loss], **CHOICES[choice]}))


@pytest.mark.parametrize(
    ("tokens", "usual"),
    [
        (TopEntropyTokens(share=0.3), math.nan),
        (SmoothedTokens(low=0.9, high=1.1, penalty=0.3), 2.5),
        (SmoothedTokens(low=0.9, high=1.1, penalty=0.3), math.nan),
    ],
)
def test_the_bonus_of_chosen_tokens_is_what_its_definition_says(
    assert_as_defined: Callable[..., None], tokens: TopEntropyTokens | SmoothedTokens, usual: float
) -> None:
    assert_as_defined(objective({}, tokens=tokens, usual_entropy=usual))


@pytest.mark.parametrize("loss", LOSSES)
def test_before_any_update_every_ratio_loss_has_the_gradient_of_the_policy(before: Policy, loss: str) -> None:
    gradients = []
    for kind in (LOSSES[loss], PpoClip()):
        if isinstance(kind, ClipCov):
            kind = msgspec.structs.replace(kind, covariance_low=98.0, covariance_high=99.0)  # none is drawn
        wanted = objective({"loss": kind})
        before.model.zero_grad(set_to_none=True)
        samples = samples_of(wanted)
        seen = survey(before, None, samples, wanted, SEED, "step 1") if needs_survey(wanted) else None
        accumulate(before, None, samples, wanted, "step 1", seen)
        gradients.append([weight.grad.clone() for weight in before.model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-10, rtol=1e-7)


def test_a_penalty_that_smooths_lowers_the_bonus_and_has_no_gradient(before: Policy) -> None:
    found = []
    for tokens in (AllTokens(), SmoothedTokens(low=0.9, high=1.1, penalty=0.3)):
        wanted = objective({}, tokens=tokens, usual_entropy=2.5)
        before.model.zero_grad(set_to_none=True)
        measured = accumulate(before, None, samples_of(wanted), wanted, "step 1")
        found.append((measured.terms.bonus, [weight.grad.clone() for weight in before.model.parameters()]))
    (plain, ours), (smoothed, theirs) = found
    assert smoothed < plain - 1e-3
    torch.testing.assert_close(ours, theirs, atol=0, rtol=0)


def test_a_sample_balance_scales_losses_by_their_sign(before: Policy) -> None:
    wanted = objective({})
    whole = {balance: samples_of(wanted, balance) for balance in (0.0, 1.0, -1.0)}
    policy = {
        balance: accumulate(before, None, samples, wanted, "step 1").terms.policy for balance, samples in whole.items()
    }
    positive = [replace(one, advantage=max(one.advantage, 0.0)) for one in whole[0.0]]
    alone = accumulate(before, None, positive, wanted, "step 1").terms.policy
    assert policy[1.0] == pytest.approx(2 * alone)
    assert policy[1.0] + policy[-1.0] == pytest.approx(2 * policy[0.0])
    assert {one.balance for one in whole[1.0]} == {0.0, 1.0, 2.0}


def test_a_group_that_came_for_its_bonus_counts_in_one_denominator_only(before: Policy) -> None:
    wanted = objective({"truncated": "keep"})
    samples = samples_of(wanted)
    measured = accumulate(before, None, samples, wanted, "step 1")
    every = sum(one.response_length for one in samples)
    assert measured.denominators.response_tokens == every
    assert measured.denominators.policy_tokens == every - sum(o.response_length for o in samples if o.group == 1)
    assert measured.denominators.policy_samples == 9
    assert measured.cuts.tokens == measured.denominators.policy_tokens


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_coefficient_that_is_not_finite_is_named(before: Policy, value: float) -> None:
    samples = samples_of(objective({}))
    samples[3] = replace(samples[3], coefficient=value)
    with pytest.raises(NumericsError, match=rf"step 1: the bonus term would be weighted by λ_q = {value} in sample 3"):
        accumulate(before, None, samples, objective({}), "step 1")


def test_a_negative_coefficient_lowers_the_entropy(folder: Path) -> None:
    policy = in_float64(loaded(folder))
    wanted = objective({})
    samples = [replace(one, advantage=0.0, coefficient=-0.5) for one in samples_of(wanted)]
    first = accumulate(policy, None, samples, wanted, "step 1")
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight -= 0.01 * weight.grad
    second = accumulate(policy, None, samples, wanted, "step 2")
    assert second.tokens.clamped_entropy.mean() < first.tokens.clamped_entropy.mean()
