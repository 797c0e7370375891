"""The head: its numbers against the definition, its chunks against the whole."""

import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from entrostat.learner import head as heads
from entrostat.learner.entropy import (
    clamped_entropy,
    clamped_mass,
    full_entropy,
    nucleus_entropy,
    nucleus_mass,
    top_k_entropy,
    top_k_mass,
)
from entrostat.learner.head import fused_head as head
from entrostat.learner.head import fused_head_loss
from entrostat.learner.rows import HeadOutput
from entrostat.protocol.entropy_settings import (
    ClampedEntropy,
    EstimatorSettings,
    FullEntropy,
    NucleusEntropy,
    TopKEntropy,
)

ESTIMATORS: tuple[EstimatorSettings, ...] = (
    ClampedEntropy(drop_fraction=0.3),
    FullEntropy(),
    TopKEntropy(k=4),
    NucleusEntropy(mass=0.7),
)


def inputs(rows: int = 13) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(5)
    hidden = torch.randn(rows, 8, dtype=torch.float64, generator=random, requires_grad=True)
    weight = torch.randn(29, 8, dtype=torch.float64, generator=random, requires_grad=True)
    return hidden, weight, torch.randint(0, 29, (rows,), generator=random)


def expected(logits: torch.Tensor, estimator: EstimatorSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """The bonus' entropy and the mass outside its set."""
    match estimator:
        case FullEntropy():
            return full_entropy(logits), torch.zeros(len(logits), dtype=logits.dtype)
        case ClampedEntropy(drop_fraction=fraction):
            return clamped_entropy(logits, fraction), clamped_mass(logits, fraction)
        case TopKEntropy(k=k):
            return top_k_entropy(logits, k), top_k_mass(logits, k)
        case NucleusEntropy(mass=mass):
            return nucleus_entropy(logits, mass), nucleus_mass(logits, mass)


def objective(out: HeadOutput) -> torch.Tensor:
    weights = torch.linspace(0.1, 2.0, len(out.logprob), dtype=out.logprob.dtype)
    return (weights * out.logprob).sum() + (weights.flip(0) * out.clamped_entropy).sum()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_head_gives_what_the_definitions_give_at_its_temperature(estimator: EstimatorSettings) -> None:
    hidden, weight, targets = inputs()
    out = head(hidden, weight, targets, temperature=0.7, estimator=estimator, chunk_tokens=100)
    logits = hidden @ weight.T / 0.7
    entropy, mass = expected(logits, estimator)
    torch.testing.assert_close(out.logprob, logits.log_softmax(-1)[torch.arange(13), targets])
    torch.testing.assert_close(out.entropy, full_entropy(logits.detach()))
    torch.testing.assert_close(out.clamped_entropy, entropy)
    torch.testing.assert_close(out.clamped_mass, mass)
    assert not out.entropy.requires_grad
    assert not out.clamped_mass.requires_grad


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("chunk", [1, 4, 13])
def test_a_chunked_head_equals_the_whole(
    estimator: EstimatorSettings, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, weight, targets = inputs()
    objective(head(whole, weight, targets, temperature=1.3, estimator=estimator, chunk_tokens=100)).backward()
    monkeypatch.setattr(heads, "KEPT_LOGITS", 0)
    parts, other, _ = inputs()
    out = head(parts, other, targets, temperature=1.3, estimator=estimator, chunk_tokens=chunk)
    objective(out).backward()
    torch.testing.assert_close(parts.grad, whole.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(other.grad, weight.grad, rtol=1e-12, atol=1e-12)


def test_a_chunked_head_holds_no_more_logits_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "KEPT_LOGITS", 0)
    hidden, weight, targets = inputs(rows=400)
    with Largest() as largest:
        objective(head(hidden, weight, targets, temperature=1.0, estimator=ESTIMATORS[0], chunk_tokens=20)).backward()
    assert largest.elements == max(20 * 29, hidden.numel())


class Largest(TorchDispatchMode):  # type: ignore[misc]  # torch is not typed
    """The most elements that any tensor had that was made meanwhile."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **kwargs or {})
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, torch.Tensor):
                self.elements = max(self.elements, one.numel())
        return made


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_gradient_agrees_with_finite_differences(estimator: EstimatorSettings) -> None:
    hidden, weight, targets = inputs(rows=4)
    assert torch.autograd.gradcheck(
        lambda h, w: objective(head(h, w, targets, temperature=0.8, estimator=estimator, chunk_tokens=9)),
        (hidden, weight),
    )


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_bonus_gradient_against_raw_logits_carries_one_over_the_temperature(estimator: EstimatorSettings) -> None:
    _, _, targets = inputs()
    raw = torch.randn(13, 29, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    out = head(raw, torch.eye(29).double(), targets, temperature=0.6, estimator=estimator, chunk_tokens=100)
    (ours,) = torch.autograd.grad(out.clamped_entropy.sum(), raw)
    scaled = (raw.detach() / 0.6).requires_grad_()
    (theirs,) = torch.autograd.grad(expected(scaled, estimator)[0].sum(), scaled)
    torch.testing.assert_close(ours, theirs / 0.6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_no_rows_give_no_rows(estimator: EstimatorSettings) -> None:
    hidden, weight, targets = inputs()
    out = head(hidden[:0], weight, targets[:0], temperature=1.0, estimator=estimator, chunk_tokens=9)
    assert {len(out.logprob), len(out.entropy), len(out.clamped_entropy), len(out.clamped_mass)} == {0}


def test_a_head_of_zeros_is_uniform() -> None:
    hidden, weight, targets = inputs()
    out = head(hidden, weight * 0, targets, temperature=1.0, estimator=ESTIMATORS[0], chunk_tokens=9)
    assert out.logprob.tolist() == pytest.approx([-math.log(29)] * 13)
    assert out.clamped_entropy.tolist() == pytest.approx([math.log(29 - 8)] * 13)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("chunk", [1, 4, 13])
def test_a_loss_taken_inside_the_head_has_the_gradients_of_one_taken_outside(
    estimator: EstimatorSettings, chunk: int
) -> None:
    hidden, weight, targets = inputs()
    out = head(hidden, weight, targets, temperature=1.3, estimator=estimator, chunk_tokens=100)
    (2.5 * objective(out)).backward()
    within, other, _ = inputs()
    at = torch.linspace(0.1, 2.0, 13, dtype=torch.float64)
    seen: list[int] = []

    def loss(now: HeadOutput, rows: slice) -> torch.Tensor:
        seen.extend(range(13)[rows])
        return at[rows] * now.logprob + at.flip(0)[rows] * now.clamped_entropy

    total, told = fused_head_loss(
        within, other, targets, loss, temperature=1.3, estimator=estimator, chunk_tokens=chunk
    )
    (2.5 * total).backward(retain_graph=True)
    assert seen == list(range(13))
    torch.testing.assert_close(total, objective(out))
    torch.testing.assert_close(told.entropy, out.entropy)
    torch.testing.assert_close(within.grad, hidden.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(other.grad, weight.grad, rtol=1e-12, atol=1e-12)
    with pytest.raises(RuntimeError, match="differentiated once"):
        total.backward()


def test_without_a_gradient_the_head_makes_one_product_a_chunk() -> None:
    hidden, weight, targets = inputs()
    with torch.no_grad(), Products() as products:
        fused_head_loss(
            hidden,
            weight,
            targets,
            lambda now, _: now.logprob,
            temperature=1.0,
            estimator=ESTIMATORS[0],
            chunk_tokens=4,
        )
    assert products.made == 4


class Products(TorchDispatchMode):  # type: ignore[misc]  # torch is not typed
    """How many matrix products are made meanwhile."""

    made = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.made += function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
        return function(*args, **kwargs or {})


def test_a_half_precision_weight_is_converted_slab_by_slab_to_the_last_row(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets = (one.detach() for one in inputs())
    half = (hidden.bfloat16().requires_grad_(), weight.bfloat16().requires_grad_())
    exact = (half[0].detach().double().requires_grad_(), half[1].detach().double().requires_grad_())
    wanted = head(exact[0], exact[1], targets, temperature=1.0, estimator=ESTIMATORS[0], chunk_tokens=4)
    objective(wanted).backward()
    monkeypatch.setattr(heads, "SLAB", 6)
    found = head(half[0], half[1], targets, temperature=1.0, estimator=ESTIMATORS[0], chunk_tokens=4)
    objective(found).backward()
    torch.testing.assert_close(found.logprob.double(), wanted.logprob, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(half, exact, strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-2, atol=1e-2)


def test_half_precision_becomes_float32_before_the_sums() -> None:
    hidden, weight, targets = inputs()
    out = head(
        hidden.bfloat16(), weight.bfloat16(), targets, temperature=1.0, estimator=ESTIMATORS[0], chunk_tokens=100
    )
    assert {out.logprob.dtype, out.entropy.dtype, out.clamped_entropy.dtype} == {torch.float32}
