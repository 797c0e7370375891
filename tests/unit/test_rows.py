"""A chunk's rows, on the CPU and by the GPU's kernels in Triton's interpreter, against the plain definitions."""

import importlib
import math
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from entrostat.learner import rows_torch
from entrostat.learner.entropy import entropy_within, full_entropy, mass_outside
from entrostat.learner.rows import Estimator, Kernels
from entrostat.learner.token_sets import FewTokens, TokenSet, kept_tokens, nucleus_tokens, top_k_tokens
from entrostat.protocol.entropy_settings import ClampedEntropy, FullEntropy, NucleusEntropy, TopKEntropy
from entrostat.protocol.errors import ConfigError

ESTIMATORS: tuple[Estimator, ...] = (
    ClampedEntropy(drop_fraction=0.3),
    ClampedEntropy(drop_fraction=0.99),
    FullEntropy(),
    TopKEntropy(k=4),
    NucleusEntropy(mass=0.7),
)
GPU_MODULES = ("entrostat.learner.cuts_cuda", "entrostat.learner.rows_cuda")


@pytest.fixture(scope="module", params=["cpu", "interpreted"])
def kernels(request: pytest.FixtureRequest) -> Iterator[Kernels]:
    """Each implementation; Triton looks at its setting when a kernel is defined."""
    if request.param == "cpu":
        yield rows_torch
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        for name in GPU_MODULES:
            patch.delitem(sys.modules, name, raising=False)
        with np.errstate(all="ignore"):  # the interpreter computes with numpy
            yield importlib.import_module(GPU_MODULES[-1])
        for name in GPU_MODULES:
            sys.modules.pop(name)


def made(rows: int, vocabulary: int, *, steps: float = 0.0, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Logits, in multiples of `steps` where it is above 0, and targets."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocabulary, generator=random) * 2.0
    return (logits / steps).round() * steps if steps else logits, torch.randint(vocabulary, (rows,), generator=random)


def set_of(logits: Tensor, estimator: Estimator) -> TokenSet:
    match estimator:
        case ClampedEntropy(drop_fraction=fraction):
            return kept_tokens(logits, fraction)
        case TopKEntropy(k=k):
            return top_k_tokens(logits, k)
        case NucleusEntropy(mass=mass):
            return nucleus_tokens(logits, mass)
        case _:
            return None


def check(kernels: Kernels, logits: Tensor, targets: Tensor, estimator: Estimator) -> None:
    """Measurements and gradient against autograd through the definitions, in float64."""
    kept = set_of(logits, estimator)
    exact = logits.double().requires_grad_()
    logprob = exact.log_softmax(-1)[torch.arange(len(logits)), targets]
    entropy = entropy_within(exact, kept)
    output, rows = kernels.measure(logits, targets, estimator)
    close = {"rtol": 2e-5, "atol": 2e-6, "check_dtype": False}
    torch.testing.assert_close(output.logprob, logprob.detach(), **close)
    torch.testing.assert_close(output.entropy, full_entropy(exact.detach()), **close)
    torch.testing.assert_close(output.clamped_entropy, entropy.detach(), **close)
    torch.testing.assert_close(output.clamped_mass, mass_outside(exact.detach(), kept), **close)
    g, h = torch.linspace(-1.0, 2.0, len(logits)), torch.linspace(0.5, -0.3, len(logits))
    (wanted,) = torch.autograd.grad((g * logprob).sum() + (h * entropy).sum(), exact)
    place = logits.clone()
    kernels.gradient_(place, targets, rows, g, h)
    torch.testing.assert_close(place, wanted, **close)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("steps", [0.0, 0.5], ids=["distinct", "many equals"])
@pytest.mark.parametrize("vocabulary", [2, 61, 5001])
def test_rows_and_their_gradient_are_those_of_the_definitions(
    kernels: Kernels, vocabulary: int, steps: float, estimator: Estimator
) -> None:
    check(kernels, *made(3, vocabulary, steps=steps), estimator)


@pytest.mark.parametrize("fraction", [0.25, 0.9])
def test_a_real_vocabulary_is_cut_exactly(kernels: Kernels, fraction: float) -> None:
    logits, targets = made(1, 151_936)
    check(kernels, logits, targets, ClampedEntropy(drop_fraction=fraction))


def test_equals_at_the_cut_are_kept_from_the_lowest_id_on(kernels: Kernels) -> None:
    logits, targets = torch.zeros(2, 10), torch.zeros(2, dtype=torch.int64)
    logits[1, 4] = -1.0
    _, rows = kernels.measure(logits, targets, ClampedEntropy(drop_fraction=0.4))
    assert rows.last.tolist() == [5, 6]
    place = logits.clone()
    kernels.gradient_(place, targets, rows, torch.zeros(2), torch.ones(2))
    assert (place == 0).all()  # uniform over the set, and nothing beyond it


def test_dropped_tokens_get_nothing_from_the_entropy(kernels: Kernels) -> None:
    logits, targets = made(4, 501)
    kept = kept_tokens(logits, 0.5)
    assert isinstance(kept, Tensor)
    _, rows = kernels.measure(logits, targets, ClampedEntropy(drop_fraction=0.5))
    place = logits.clone()
    kernels.gradient_(place, targets, rows, torch.zeros(4), torch.ones(4))
    assert (place[~kept] == 0).all()
    assert (place[kept] != 0).all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_tokens_that_cannot_be_drawn_do_no_harm(kernels: Kernels, estimator: Estimator) -> None:
    logits, targets = made(3, 61)
    logits[0, 5:] = -math.inf
    logits[1, ::2] = -math.inf
    targets[:] = 1
    kept = set_of(logits, estimator)
    output, rows = kernels.measure(logits, targets, estimator)
    torch.testing.assert_close(output.clamped_entropy, entropy_within(logits, kept), rtol=1e-5, atol=1e-6)
    kernels.gradient_(logits, targets, rows, torch.ones(3), torch.ones(3))
    assert logits.isfinite().all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_row_that_is_not_finite_shows_it_and_leaves_the_others_alone(
    kernels: Kernels, value: float, estimator: Estimator
) -> None:
    logits, targets = made(3, 61)
    logits[1, 7] = value
    output, rows = kernels.measure(logits, targets, estimator)
    for values in (output.logprob, output.entropy, output.clamped_entropy):
        assert values.isnan().tolist() == [False, True, False]
    kernels.gradient_(logits, targets, rows, torch.ones(3), torch.ones(3))
    assert logits.isfinite().all(1).tolist() == [True, False, True]


def test_without_an_estimator_the_drawn_token_alone_is_measured(kernels: Kernels) -> None:
    logits, targets = made(3, 61)
    output, rows = kernels.measure(logits, targets, None)
    torch.testing.assert_close(output.logprob, logits.log_softmax(-1)[torch.arange(3), targets])
    assert output.clamped_entropy.isnan().all()
    wanted = -logits.softmax(-1)
    wanted[torch.arange(3), targets] += 1.0
    kernels.gradient_(logits, targets, rows, torch.ones(3), torch.zeros(3))
    torch.testing.assert_close(logits, wanted)


def test_logits_of_minus_infinity_at_a_rows_front_leave_the_rest_as_it_is(kernels: Kernels) -> None:
    logits, targets = made(2, 5001)
    logits[:, :4500] = -math.inf
    targets[:] = 5000
    check_finite = rows_torch.measure(logits, targets, FullEntropy())[0]
    output, rows = kernels.measure(logits, targets, FullEntropy())
    torch.testing.assert_close(output.logprob, check_finite.logprob)
    torch.testing.assert_close(output.entropy, check_finite.entropy, rtol=1e-5, atol=1e-6)
    kernels.gradient_(logits, targets, rows, torch.ones(2), torch.ones(2))
    assert logits.isfinite().all()


@pytest.mark.parametrize("kernels", ["interpreted"], indirect=True)
def test_a_row_whose_bracket_is_overfull_is_cut_exactly_too(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets = made(2, 9001)
    monkeypatch.setattr(sys.modules[GPU_MODULES[0]], "room", lambda _: 16)
    check(kernels, logits, targets, ClampedEntropy(drop_fraction=0.25))


@pytest.mark.parametrize("kernels", ["interpreted"], indirect=True)
@pytest.mark.parametrize("vocabulary", [10_007, 32_000, 151_936, 201_088, 262_144])
@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_a_bracket_holds_the_cut_and_has_room(kernels: Kernels, vocabulary: int, share: float) -> None:
    cuts, random = sys.modules[GPU_MODULES[0]], np.random.default_rng(7)
    low, high = cuts.bracket(share)
    for _ in range(5):
        row = random.standard_normal(vocabulary)
        stride = vocabulary // cuts.SAMPLE
        sample = np.sort(row[: cuts.SAMPLE * stride : stride])
        ranked = np.sort(row)
        below, end = np.searchsorted(ranked, sample[low]), np.searchsorted(ranked, sample[high], side="right")
        assert below <= int(share * vocabulary) < end
        assert end - below <= cuts.room(vocabulary)


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_row_is_cut_as_a_sort_cuts_it(data: st.DataObject) -> None:
    levels = st.sampled_from([-math.inf, -2.0, -0.0, 0.0, 1.5, 1.5000001, 7.0])
    row = data.draw(st.lists(levels, min_size=2, max_size=40))
    logits, fraction = torch.tensor([row]), data.draw(st.floats(0.0, 0.99))
    _, found = rows_torch.measure(logits, torch.zeros(1, dtype=torch.int64), ClampedEntropy(drop_fraction=fraction))
    kept = len(row) - min(int(fraction * len(row)), len(row) - 1)
    best = sorted(range(len(row)), key=lambda at: (-row[at], at))[:kept]
    ids = torch.arange(len(row))
    inside = (logits[0] > found.cut) | ((logits[0] == found.cut) & (ids <= found.last))
    assert sorted(best) == ids[inside].tolist()


@pytest.mark.parametrize(
    "estimator",
    [ClampedEntropy(drop_fraction=1.0), TopKEntropy(k=0), NucleusEntropy(mass=0.0), NucleusEntropy(mass=1.5)],
)
def test_a_setting_out_of_range_is_refused(kernels: Kernels, estimator: Estimator) -> None:
    with pytest.raises(ConfigError, match="expected"):
        kernels.measure(*made(2, 9), estimator)


def test_few_tokens_are_what_the_listed_set_holds() -> None:
    assert isinstance(set_of(made(1, 61)[0], TopKEntropy(k=4)), FewTokens)  # so that `check` sees both kinds
