"""The pass before the first update: its numbers are the head's, and what it settles is what the settings ask for."""

import dataclasses
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from entrostat.learner.batching import Sample, flatten
from entrostat.learner.measures import per_sample
from entrostat.learner.objective import Objective, needs_survey
from entrostat.learner.policy import Policy, freeze
from entrostat.learner.survey import survey
from entrostat.learner.update import accumulate
from entrostat.protocol.entropy_settings import ClampedEntropy, SmoothedTokens, TopEntropyTokens
from entrostat.protocol.errors import NumericsError
from entrostat.protocol.learner_settings import Cispo, ClipCov, Gspo, KlCov, LearnerSettings
from entrostat.protocol.messages import PolicyVersion
from tests.tiny_policy import in_float64, loaded, make_group, make_order, make_policy, moved

VERSION = PolicyVersion(branch=0, step=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def policy(folder: Path) -> Policy:
    return in_float64(loaded(folder))


def objective(tokens: Any = None, **changes: object) -> Objective:
    learner = msgspec.structs.replace(LearnerSettings(microbatch_tokens=60), **changes)
    plain = Objective(learner=learner, estimator=ClampedEntropy(drop_fraction=0.25), temperature=0.8)
    return plain if tokens is None else replace(plain, tokens=tokens)


def samples_of(wanted: Objective) -> list[Sample]:
    groups = [make_group(0), make_group(1, rewards=(0.0, 0.0)), make_group(2, rewards=(1.0, 0.0, 0.5), truncated=1)]
    return flatten(make_order(groups, VERSION, bonus_alone=(1,)).groups, groups, wanted.learner)


@pytest.mark.parametrize("shared", [True, False])
def test_it_measures_what_the_gradient_pass_does_and_leaves_no_gradient(
    policy: Policy, folder: Path, shared: bool
) -> None:
    wanted = objective(kl_coefficient=0.1)
    here = replace(policy, shares_prompts=shared)
    reference = freeze(moved(in_float64(loaded(folder)), 0.05))
    here.model.zero_grad(set_to_none=True)
    seen = survey(here, reference, samples_of(wanted), wanted, 0, "step 1").measured
    assert all(weight.grad is None for weight in here.model.parameters())
    found = accumulate(here, reference, samples_of(wanted), wanted, "step 1").tokens
    order = found.sample.argsort(stable=True)
    for field in dataclasses.fields(seen):
        torch.testing.assert_close(
            getattr(seen, field.name), getattr(found, field.name)[order], atol=1e-10, rtol=0, msg=field.name
        )
    assert not torch.equal(seen.reference, seen.logprob)


def test_only_what_needs_the_whole_order_needs_a_survey() -> None:
    needing: list[dict[str, Any]] = [{"minibatches": 2}, {"epochs": 2}, {"policy_tokens": 0.5}, {"sequence_mask": 1.0}]
    assert all(needs_survey(objective(**changes)) for changes in needing)
    assert needs_survey(objective(loss=ClipCov()))
    assert needs_survey(objective(loss=KlCov()))
    assert needs_survey(objective(TopEntropyTokens()))
    free: list[dict[str, Any]] = [{}, {"loss": Gspo()}, {"loss": Cispo()}, {"proximal": "behaviour"}]
    assert not any(needs_survey(objective(**changes)) for changes in free)
    assert not needs_survey(objective(entropy_advantage=0.4))
    assert not needs_survey(objective(SmoothedTokens()))


def test_a_survey_that_chooses_nothing_changes_nothing(policy: Policy) -> None:
    wanted = objective()
    found = []
    for seen in (None, survey(policy, None, samples_of(wanted), wanted, 0, "step 1")):
        policy.model.zero_grad(set_to_none=True)
        measured = accumulate(policy, None, samples_of(wanted), wanted, "step 1", seen)
        gradients = [weight.grad.clone() for weight in policy.model.parameters()]
        found.append((dataclasses.asdict(measured.terms), dataclasses.asdict(measured.denominators), gradients))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-12)
    assert found[0][1] == found[1][1]
    torch.testing.assert_close(found[0][2], found[1][2], atol=1e-12, rtol=0)


def test_the_share_of_policy_tokens_is_of_those_in_the_policy_term_and_the_denominator_counts_it(
    policy: Policy,
) -> None:
    wanted = objective(policy_tokens=0.3)
    samples = samples_of(wanted)
    seen = survey(policy, None, samples, wanted, 0, "step 1")
    lengths = [one.response_length for one in samples]
    eligible = np.repeat([one.counts and one.in_policy for one in samples], lengths)
    chosen, entropy = seen.settled.policy.numpy(), seen.measured.entropy.numpy()
    assert chosen.sum() == math.ceil(0.3 * eligible.sum())
    assert not np.any(chosen & ~eligible)
    assert entropy[chosen].min() >= entropy[eligible & ~chosen].max()
    assert seen.denominators(samples).policy_tokens == chosen.sum()
    assert seen.denominators(samples).response_tokens == sum(lengths)
    parts = [seen.denominators(samples[:4]), seen.denominators(samples[4:])]
    assert sum(part.policy_tokens for part in parts) == chosen.sum()


def test_the_top_entropy_bonus_is_of_all_response_tokens_without_those_of_rejected_samples(policy: Policy) -> None:
    wanted = objective(TopEntropyTokens(share=0.5))
    samples = samples_of(wanted)
    seen = survey(policy, None, samples, wanted, 0, "step 1")
    entropy = seen.measured.entropy
    counts = torch.tensor([one.counts for one in samples])[seen.measured.sample]
    cut = entropy.sort(descending=True).values[math.ceil(0.5 * len(entropy)) - 1]
    assert torch.equal(seen.settled.bonus, (entropy >= cut) & counts)
    assert torch.equal(
        seen.settled.policy, torch.tensor([o.counts and o.in_policy for o in samples])[seen.measured.sample]
    )


def test_samples_too_far_from_what_drew_them_are_rejected(policy: Policy) -> None:
    wanted = objective(truncated="keep")
    samples = samples_of(wanted)
    drift = per_sample(survey(policy, None, samples, wanted, 0, "step 1").measured, len(samples)).drift
    limit = float(np.median(drift))
    strict = objective(truncated="keep", sequence_mask=limit)
    kept = survey(policy, None, samples, strict, 0, "step 1").samples
    assert [one.counts for one in kept] == (drift <= limit).tolist()
    assert not all(one.counts for one in kept)


def test_the_penalty_of_kl_cov_on_the_smallest_share_falls_on_one_token(policy: Policy) -> None:
    wanted = objective(loss=KlCov(share=1e-9))
    seen = survey(policy, None, samples_of(wanted), wanted, 0, "step 1")
    assert seen.settled.singled_out.sum() == 1
    assert (seen.settled.singled_out & seen.settled.policy).sum() == 1


def test_the_lot_of_clip_cov_follows_the_seed(policy: Policy) -> None:
    wanted = objective(loss=ClipCov(share=0.3, covariance_low=-9.0, covariance_high=9.0))
    found = [survey(policy, None, samples_of(wanted), wanted, seed, "x").settled.singled_out for seed in (1, 1, 2)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert found[0].sum() == found[2].sum() > 1


def test_what_is_not_finite_is_named_before_the_update(policy: Policy) -> None:
    wanted = objective(policy_tokens=0.5)
    samples = samples_of(wanted)
    behaviour = samples[2].behaviour.copy()
    behaviour[1] = np.nan
    samples[2] = replace(samples[2], behaviour=behaviour)
    with pytest.raises(NumericsError, match=r"step 1: of \d+ tokens 1 have a drift that is not finite"):
        survey(policy, None, samples, wanted, 0, "step 1")


def test_an_order_without_response_tokens_is_refused(policy: Policy) -> None:
    with pytest.raises(NumericsError, match="step 1: the order holds no response token"):
        survey(policy, None, [], objective(epochs=2), 0, "step 1")
