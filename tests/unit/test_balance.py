"""The balance of policy term and bonus: its definition, what it is good for, and that it leaves the steps alone."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from entrostat.learner.balance import accumulate_apart
from entrostat.learner.batching import Sample
from entrostat.learner.objective import Objective
from entrostat.learner.optimizer import Optimizer
from entrostat.learner.policy import Policy
from entrostat.learner.survey import survey
from entrostat.learner.update import accumulate
from entrostat.protocol.errors import EntrostatError
from entrostat.protocol.learner_settings import LearnerSettings
from tests.tiny_orders import PARTS, RATE, objective, samples_of, taken_by, weights_of
from tests.tiny_policy import in_float64, loaded, make_policy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_policy(tmp_path_factory.mktemp("policy"))


def by_hand(policy: Policy, one: Sample, wanted: Objective) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.tensor(one.tokens[None], dtype=torch.int64)
    table = (policy.model(input_ids=ids).logits[0] / wanted.temperature)[one.prompt_length - 1 : -1]
    logprob = table.log_softmax(-1).gather(-1, ids[0, one.prompt_length :, None]).squeeze(-1)
    kept = table.topk(table.shape[-1] - table.shape[-1] // 4, dim=-1).values.log_softmax(-1)
    return logprob, -(kept.exp() * kept).sum(-1)


def policy_term(policy: Policy, samples: Sequence[Sample], wanted: Objective) -> torch.Tensor:
    """With the gradient of the policy term; its value means nothing."""
    kept = sum(one.response_length for one in samples if one.counts)
    total = torch.zeros((), dtype=torch.float64)
    for one in samples:
        if one.counts:
            logprob, _ = by_hand(policy, one, wanted)
            weight = (logprob.detach() - torch.tensor(one.behaviour)).exp().clamp(max=2.0)
            total = total + (weight * one.advantage * logprob).sum() / kept
    return total


def weighted_entropy(policy: Policy, samples: Sequence[Sample], wanted: Objective) -> torch.Tensor:
    every = sum(one.response_length for one in samples)
    terms = [one.weight * by_hand(policy, one, wanted)[1].sum() / every for one in samples if one.counts]
    return torch.stack(terms).sum()


def gradient_of(value: torch.Tensor, policy: Policy) -> list[torch.Tensor]:
    return list(torch.autograd.grad(value, list(policy.model.parameters())))


def metric(optimizer: Optimizer) -> list[torch.Tensor]:
    """P of every weight, from Adam's own state."""
    moments = optimizer.state()["adam"]["state"]
    corrected = [m["exp_avg_sq"] / (1 - 0.999 ** float(m["step"])) for m in moments.values()]
    return [1 / (moment.sqrt() + 1e-8) for moment in corrected]


@pytest.fixture
def trained_twice(folder: Path) -> tuple[Policy, Optimizer, Objective]:
    wanted = objective(measure_balance=True)
    policy = in_float64(loaded(folder))
    optimizer = Optimizer(policy.model.named_parameters(), wanted.learner)
    for step in range(2):
        accumulate(policy, None, samples_of(wanted), wanted, f"step {step}")
        optimizer.step(RATE, f"step {step}")
    return policy, optimizer, wanted


@pytest.mark.parametrize("surveyed", [False, True])
def test_the_balance_is_made_of_the_inner_products_of_its_definition(
    trained_twice: tuple[Policy, Optimizer, Objective], surveyed: bool
) -> None:
    policy, optimizer, wanted = trained_twice
    optimizer.clear()
    samples = samples_of(wanted)
    found_before = survey(policy, None, samples, wanted, 0, "step 3") if surveyed else None
    _, balance = accumulate_apart(policy, None, optimizer, samples, wanted, 0.3, "step 3", found_before)
    left = [weight.grad.clone() for weight in policy.model.parameters()]
    of_policy = gradient_of(policy_term(policy, samples, wanted), policy)
    of_bonus = gradient_of(weighted_entropy(policy, samples, wanted), policy)
    pushes = [
        sum(float((p * a * b).sum()) for p, a, b in zip(metric(optimizer), first, of_bonus, strict=True))
        for first in (of_policy, of_bonus)
    ]
    assert balance is not None
    assert (balance.policy_push, balance.bonus_push) == pytest.approx(tuple(pushes), rel=1e-7)
    # What is left for the step is the whole gradient.
    for found, a, b in zip(left, of_policy, of_bonus, strict=True):
        torch.testing.assert_close(found, -a - 0.3 * b, atol=1e-10, rtol=1e-7)


def test_a_push_is_how_fast_the_entropy_rises_along_its_gradient(
    trained_twice: tuple[Policy, Optimizer, Objective],
) -> None:
    policy, optimizer, wanted = trained_twice
    samples = samples_of(wanted)
    _, balance = accumulate_apart(policy, None, optimizer, samples, wanted, 0.3, "step 3")
    assert balance is not None
    along = (
        gradient_of(policy_term(policy, samples, wanted), policy),
        gradient_of(weighted_entropy(policy, samples, wanted), policy),
    )
    for gradient, push in zip(along, (balance.policy_push, balance.bonus_push), strict=True):
        step, found = 1e-7, []
        with torch.no_grad():
            for move in (step, -2 * step):
                for weight, p, g in zip(policy.model.parameters(), metric(optimizer), gradient, strict=True):
                    weight += move * p * g
                found.append(float(weighted_entropy(policy, samples, wanted)))
            for weight, p, g in zip(policy.model.parameters(), metric(optimizer), gradient, strict=True):
                weight += step * p * g
        assert (found[0] - found[1]) / (2 * step) == pytest.approx(push, rel=1e-4)


def test_a_weight_without_a_gradient_takes_no_part_in_the_inner_product() -> None:
    used, unused = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    optimizer = Optimizer(
        [("used", used), ("unused", unused)], LearnerSettings(epsilon=1.0, betas=(0.0, 0.0), gradient_clip=9.0)
    )
    moments = [optimizer.has_moments]
    used.grad = torch.tensor([1.0, 3.0])
    optimizer.step(RATE, "step 1")
    assert [*moments, optimizer.has_moments] == [False, True]
    one = [torch.tensor([2.0, 4.0]), torch.ones(3)]
    assert optimizer.inner(one, one) == pytest.approx(4.0 / (1.0 + 1.0) + 16.0 / (3.0 + 1.0))


def test_measuring_the_balance_leaves_the_steps_as_they_are(folder: Path) -> None:
    policies = []
    for measured in (False, True):
        wanted = objective(measure_balance=measured, **PARTS)
        policy = loaded(folder)
        found = taken_by(policy, wanted)
        assert [step.balance is not None for step in found.steps] == [measured and i > 0 for i in range(6)]
        policies.append(weights_of(policy))
    assert all(torch.equal(one, other) for one, other in zip(*policies, strict=True))


def test_a_coefficient_that_is_not_the_weights_share_is_refused(folder: Path) -> None:
    wanted = objective(measure_balance=True)
    policy = loaded(folder)
    optimizer = Optimizer(policy.model.named_parameters(), wanted.learner)
    taken_by(policy, wanted, optimizer)
    with pytest.raises(EntrostatError, match=r"λ_q = 0\.3 with α = 0\.7 and w̄_q = 1\.0"):
        accumulate_apart(policy, None, optimizer, samples_of(wanted), wanted, 0.7, "step 2")
