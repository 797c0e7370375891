"""Policy losses, token by token, against their formulas in plain arithmetic."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entrostat.learner.losses import importance_weight, is_clipped, kl_to_reference, ppo_clip

LOGPROB = st.floats(-20, 0)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.0, 2.0, 2.0),
        (1.5, 2.0, 1.3 * 2.0),  # the high bound
        (1.5, -2.0, 1.5 * -2.0),  # no bound where the loss grows
        (0.5, 2.0, 0.5 * 2.0),
        (0.5, -2.0, 0.8 * -2.0),  # the low bound
    ],
)
def test_ppo_clips_low_and_high_apart(ratio: float, advantage: float, expected: float) -> None:
    logprob = tensor(math.log(ratio) - 1.0).requires_grad_()
    value = ppo_clip(logprob, tensor(-1.0), tensor(advantage), 0.2, 0.3)
    assert value.item() == pytest.approx(expected)
    value.sum().backward()
    clipped = is_clipped(logprob, tensor(-1.0), tensor(advantage), 0.2, 0.3).item()
    assert clipped == (expected != pytest.approx(ratio * advantage))
    assert logprob.grad is not None
    assert logprob.grad.item() == pytest.approx(0.0 if clipped else ratio * advantage)


def test_with_the_policy_itself_as_proximal_the_gradient_is_the_policy_gradient() -> None:
    logprob = tensor(-0.1, -2.0, -7.0).requires_grad_()
    advantage = tensor(1.5, -0.5, 0.0)
    value = ppo_clip(logprob, logprob, advantage, 0.2, 0.2)
    value.sum().backward()
    torch.testing.assert_close(value.detach(), advantage)
    torch.testing.assert_close(logprob.grad, advantage)


def test_the_ppo_gradient_agrees_with_finite_differences() -> None:
    logprob = tensor(-0.1, -2.0, -3.0).requires_grad_()
    proximal, advantage = tensor(-0.15, -1.7, -3.05), tensor(1.0, -2.0, 0.5)
    assert torch.autograd.gradcheck(lambda x: ppo_clip(x, proximal, advantage, 0.2, 0.28), (logprob,))
    assert torch.autograd.gradcheck(lambda x: kl_to_reference(x, proximal), (logprob,))


def test_the_importance_weight_is_cut_at_its_cap_and_has_no_gradient() -> None:
    proximal = tensor(-1.0, -1.0, -1.0).requires_grad_()
    weight = importance_weight(proximal, tensor(-1.0, -1.0 - math.log(1.5), -9.0), 2.0)
    assert weight.tolist() == pytest.approx([1.0, 1.5, 2.0])
    assert not weight.requires_grad


@given(LOGPROB, LOGPROB, st.floats(1.0, 10.0))
@settings(max_examples=50, deadline=None)
def test_the_importance_weight_is_the_ratio_or_the_cap(proximal: float, behaviour: float, cap: float) -> None:
    weight = importance_weight(tensor(proximal), tensor(behaviour), cap).item()
    assert weight == pytest.approx(min(math.exp(proximal - behaviour), cap), rel=1e-9)


@given(LOGPROB, LOGPROB)
@settings(max_examples=50, deadline=None)
def test_the_kl_estimate_is_never_negative_and_zero_only_between_equals(logprob: float, reference: float) -> None:
    value = kl_to_reference(tensor(logprob), tensor(reference)).item()
    gap = reference - logprob
    assert value == pytest.approx(math.exp(gap) - gap - 1.0, rel=1e-9, abs=1e-9)
    assert value >= -1e-12


def test_the_kl_estimate_is_unbiased() -> None:
    policy = tensor(0.7, 0.2, 0.1).log()
    reference = tensor(0.3, 0.3, 0.4).log()
    expected = float((policy.exp() * (policy - reference)).sum())
    estimate = float((policy.exp() * kl_to_reference(policy, reference)).sum())
    assert estimate == pytest.approx(expected, rel=1e-12)
