"""The optimizer alone: its rates, its norm, its masters in float32, and what it refuses."""

import math
from pathlib import Path

import msgspec
import pytest
import torch

from entrostat.learner.optimizer import Optimizer, learning_rate
from entrostat.protocol.errors import NumericsError
from entrostat.protocol.learner_settings import LearnerSettings
from tests.tiny_policy import loaded, make_policy


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_policy(tmp_path_factory.mktemp("policy"))


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("constant", 1, 0.25),
        ("constant", 3, 0.75),
        ("constant", 4, 1.0),
        ("constant", 99, 1.0),
        ("linear", 4, 1.0),
        ("linear", 12, 0.55),
        ("linear", 20, 0.1),
        ("linear", 50, 0.1),
        ("cosine", 4, 1.0),
        ("cosine", 8, 0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2),
        ("cosine", 20, 0.1),
    ],
)
def test_the_learning_rate_follows_its_schedule(schedule: str, step: int, expected: float) -> None:
    settings = msgspec.convert(
        {"lr": 2e-4, "schedule": schedule, "warmup_steps": 4, "final_lr_ratio": 0.1}, LearnerSettings
    )
    assert learning_rate(step, 20, settings) == pytest.approx(2e-4 * expected)


def test_the_gradient_is_clipped_to_its_norm_and_the_norm_before_is_told(model: Path) -> None:
    policy = loaded(model)
    settings = LearnerSettings(gradient_clip=0.5, betas=(0.0, 0.0), epsilon=1e6)  # so large that Adam is linear
    optimizer = Optimizer(policy.model.named_parameters(), settings)
    before = [weight.detach().double().clone() for weight in policy.model.parameters()]
    for weight in policy.model.parameters():
        weight.grad = torch.ones_like(weight)
    count = sum(weight.numel() for weight in policy.model.parameters())
    assert optimizer.step(1e6, "step 1") == pytest.approx(math.sqrt(count), rel=1e-5)
    moved = [weight.detach().double() - was for weight, was in zip(policy.model.parameters(), before, strict=True)]
    assert math.sqrt(sum(float((part**2).sum()) for part in moved)) == pytest.approx(0.5, rel=1e-3)


def test_bfloat16_weights_take_updates_that_bfloat16_can_not_resolve(model: Path) -> None:
    policy = loaded(model, dtype="bfloat16")
    optimizer = Optimizer(policy.model.named_parameters(), LearnerSettings())
    weight = policy.head_weight
    before = weight.detach().clone()
    for step in range(60):
        (weight.float().sum() * 1.0).backward()
        assert weight.grad is None  # the master holds it
        optimizer.step(1e-4, f"step {step}")
    # 60 steps of about 1e-4 each, where a weight near 0.3 has neighbours 2e-3 apart.
    moved = (before.float() - weight.detach().float()).mean().item()
    assert moved == pytest.approx(60e-4, rel=0.05)


def test_gradients_of_micro_batches_add_up_in_float32(model: Path) -> None:
    policy = loaded(model, dtype="bfloat16")
    optimizer = Optimizer(policy.model.named_parameters(), LearnerSettings())
    for _ in range(1000):
        policy.head_weight[0, 0].backward()
    # In bfloat16 a sum of ones stops at 256.
    assert optimizer.step(1e-3, "step 1") == pytest.approx(1000.0)


def test_a_gradient_that_is_not_finite_is_named_and_leaves_weights_and_moments(model: Path) -> None:
    policy = loaded(model)
    optimizer = Optimizer(policy.model.named_parameters(), LearnerSettings())
    name, weight = list(policy.model.named_parameters())[3]
    before = weight.detach().clone()
    for other in policy.model.parameters():
        other.grad = torch.ones_like(other)
    assert weight.grad is not None
    weight.grad[0] = math.inf
    with pytest.raises(NumericsError, match=rf"step 7: the gradient is not finite.*{name}"):
        optimizer.step(1e-3, "step 7")
    assert torch.equal(weight, before)
    assert optimizer.state()["adam"]["state"] == {}
    assert weight.grad is None
