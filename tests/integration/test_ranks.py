"""Two ranks on this machine against one: the same steps, the same versions, the same checkpoints."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from entrostat.learner.adapters import adapt, adapter_tensors, merged_as_saved
from entrostat.learner.batching import Sample
from entrostat.learner.merged import made as made_of
from entrostat.learner.optimizer import Optimizer
from entrostat.learner.policy import Policy, freeze
from entrostat.learner.ranks import ALONE, Ranks
from entrostat.learner.sharding import gather, shard
from entrostat.learner.steps import take
from entrostat.learner.trainer import Trainer
from entrostat.learner.update import accumulate
from entrostat.protocol.errors import NumericsError
from entrostat.protocol.learner_settings import (
    AllWeights,
    ClipCov,
    Gspo,
    KlCov,
    LearnerSettings,
    Lora,
    Packing,
    TrainedWeights,
)
from entrostat.protocol.messages import PolicyVersion, StepOutcome
from entrostat.protocol.settings import Stations
from tests.several_ranks import SeveralRanks
from tests.tiny_orders import PARTS, RATE, groups_of_all_kinds, objective, ordered, samples_of
from tests.tiny_policy import (
    in_float64,
    loaded,
    make_group,
    make_order,
    make_policy,
    make_prompts,
    make_stations,
    moved,
)

LORA = Lora(rank=4, alpha=6)
EXACT = 1e-6  # what is asked for; rounding in float64 is far below


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeveralRanks]:
    torch.set_num_threads(1)
    ranks = SeveralRanks(tmp_path_factory.mktemp("ranks"))
    yield ranks
    ranks.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy(tmp_path_factory.mktemp("policy"))


def whole(tensor: Any) -> Any:
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().double().numpy()


def made_policy(ranks: Ranks, folder: Path, wanted: LearnerSettings, checkpointing: bool = False) -> Policy:
    return shard(in_float64(loaded(folder, gradient_checkpointing=checkpointing, packed=wanted.packing)), ranks)


def gradient_of(ranks: Ranks, folder: Path, changes: dict[str, Any], checkpointing: bool = False) -> dict[str, Any]:
    wanted = objective(**changes)
    policy = made_policy(ranks, folder, wanted.learner, checkpointing)
    measured = accumulate(policy, None, samples_of(wanted), wanted, "step 1")
    gradients = {name: whole(weight.grad) for name, weight in policy.model.named_parameters()}
    return gradients | {"J": measured.terms.objective, "N": len(measured.tokens.entropy)}


def steps_of(ranks: Ranks, folder: Path, changes: dict[str, Any], orders: int = 1) -> dict[str, Any]:
    """What an order's steps found and the weights after them; the optimizer has moments from `orders` − 1 before."""
    wanted = objective(**changes)
    policy = made_policy(ranks, folder, wanted.learner)
    other = moved(in_float64(loaded(folder, packed=wanted.learner.packing)), 0.05)
    pull = shard(freeze(other), ranks) if wanted.learner.kl_coefficient else None
    optimizer = Optimizer(policy.model.named_parameters(), wanted.learner, ranks)
    order = ordered(groups_of_all_kinds())
    for _ in range(orders):
        taken = take(policy, pull, optimizer, samples_of(wanted), wanted, order, RATE, "step 1")
    found: dict[str, Any] = {name: whole(weight) for name, weight in policy.model.named_parameters()}
    for i, step in enumerate(taken.steps):
        found |= {f"J {i}": step.measured.terms.objective, f"norm {i}": step.gradient_norm}
        cuts = step.measured.cuts
        found |= {f"cuts {i}": np.array([cuts.tokens, cuts.clipped, cuts.capped])}
        if step.balance is not None:
            found |= {f"push {i}": step.balance.policy_push, f"bonus {i}": step.balance.bonus_push}
    by_sample = taken.tokens.sample.argsort(stable=True)
    for name in ("entropy", "drift", "clamped_entropy", "reference"):
        found[name] = getattr(taken.tokens, name)[by_sample].numpy()
    return found


def assert_same(found: dict[str, Any], expected: dict[str, Any], tolerance: float = EXACT) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("packing", ["off", "on"])
@pytest.mark.parametrize("budget", [1, 40, 100_000])
def test_the_gradient_is_the_same_for_any_micro_batch_and_number_of_ranks(
    two: SeveralRanks, folder: Path, budget: int, packing: Packing
) -> None:
    expected = gradient_of(ALONE, folder, {"microbatch_tokens": 60})
    for found in two.run(gradient_of, folder, {"microbatch_tokens": budget, "packing": packing}):
        assert_same(found, expected)


def test_a_head_of_its_own_and_gradient_checkpointing_change_nothing(two: SeveralRanks, tmp_path: Path) -> None:
    untied = make_policy(tmp_path / "untied", tied=False)
    expected = gradient_of(ALONE, untied, {})
    for changes in ({}, {"packing": "on"}):
        for checkpointing in (False, True):
            for found in two.run(gradient_of, untied, changes, checkpointing):
                assert_same(found, expected)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {**PARTS, "loss": Gspo()},
        {"policy_tokens": 0.5, "kl_coefficient": 0.3, "aggregation": "sequence_mean"},
        {**PARTS, "loss": ClipCov(share=0.2, covariance_low=-5.0), "entropy_advantage": 0.1},
        {"loss": KlCov(share=0.2), "sequence_mask": 1.5, "proximal": "learner"},
        {"minibatches": 4, "measure_balance": True},
        {**PARTS, "packing": "on", "policy_tokens": 0.5, "kl_coefficient": 0.3},
    ],
)
def test_two_ranks_take_the_steps_that_one_takes(two: SeveralRanks, folder: Path, changes: dict[str, Any]) -> None:
    orders = 2 if changes.get("measure_balance") else 1
    expected = steps_of(ALONE, folder, changes, orders)
    for found in two.run(steps_of, folder, changes, orders):
        assert_same(found, expected)


def adapted_steps(ranks: Ranks, folder: Path, checkpointing: bool) -> dict[str, Any]:
    """Adapters after an order's steps, with a pull to the policy without them, and what is published then."""
    policy = adapt(loaded(folder, gradient_checkpointing=checkpointing), LORA, source=str(folder), seed=0)
    with torch.no_grad():
        for i, part in enumerate(adapter_tensors(policy, policy.model.state_dict()).values()):
            part.add_(0.02 * torch.arange(part.numel()).add(i).sin().view(part.shape))
    policy = shard(in_float64(policy), ranks)
    wanted = objective(**PARTS, kl_coefficient=0.3)
    optimizer = Optimizer(policy.model.named_parameters(), wanted.learner, ranks)
    order, reference = ordered(groups_of_all_kinds()), replace(policy, plain=True)
    taken = take(policy, reference, optimizer, samples_of(wanted), wanted, order, RATE, "step 1")
    found: dict[str, Any] = {name: whole(weight) for name, weight in policy.model.named_parameters()}
    found |= {f"J {i}": step.measured.terms.objective for i, step in enumerate(taken.steps)}
    by_sample = taken.tokens.sample.argsort(stable=True)
    found |= {name: getattr(taken.tokens, name)[by_sample].numpy() for name in ("entropy", "reference")}
    state = gather(policy)
    if ranks.first:
        found |= {f"merged {name}": made_of(weight).numpy() for name, weight in merged_as_saved(policy, state).items()}
    return found


@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_ranks_train_adapters_like_one(two: SeveralRanks, folder: Path, checkpointing: bool) -> None:
    expected = adapted_steps(ALONE, folder, checkpointing)
    first, other = two.run(adapted_steps, folder, checkpointing)
    assert_same(first, expected)
    assert_same(other, {name: value for name, value in expected.items() if not name.startswith("merged ")})


def uneven(ranks: Ranks, folder: Path, kind: str, packing: Packing) -> dict[str, Any]:
    """A step that is another for each rank: a lone sample for one of them, or responses of one token for one."""
    wanted = objective(microbatch_tokens=40, packing=packing)
    policy, samples = made_policy(ranks, folder, wanted.learner), samples_of(wanted)
    if kind == "a lone sample":
        samples = tuple(one for one in samples if one.counts)[:1]
    else:
        samples = tuple(shortened(one) if one.group < 2 else one for one in samples)
    measured = accumulate(policy, None, samples, wanted, "step 1")
    gradients = {name: whole(weight.grad) for name, weight in policy.model.named_parameters()}
    return gradients | {"J": measured.terms.objective, "N": len(measured.tokens.entropy)}


def shortened(sample: Sample) -> Sample:
    """Its response's first token."""
    return replace(sample, tokens=sample.tokens[: sample.prompt_length + 1], behaviour=sample.behaviour[:1])


@pytest.mark.parametrize("packing", ["off", "on"])
@pytest.mark.parametrize("kind", ["a lone sample", "responses of one token"])
def test_a_rank_with_less_to_do_keeps_step(two: SeveralRanks, folder: Path, kind: str, packing: Packing) -> None:
    expected = uneven(ALONE, folder, kind, "off")
    for found in two.run(uneven, folder, kind, packing):
        assert_same(found, expected)


def not_finite(ranks: Ranks, folder: Path) -> str:
    """The error of a step with one bad sample, which only one rank computes."""
    wanted = objective(importance_cap=0.0, proximal="behaviour")
    policy = made_policy(ranks, folder, wanted.learner)
    first, *others = samples_of(wanted)
    bad = replace(first, behaviour=np.full_like(first.behaviour, np.nan))
    with pytest.raises(NumericsError) as caught:
        accumulate(policy, None, [bad, *others], wanted, "step 1")
    return str(caught.value)


def test_what_is_not_finite_on_one_rank_is_refused_on_all(two: SeveralRanks, folder: Path) -> None:
    assert two.run(not_finite, folder) == [not_finite(ALONE, folder)] * 2


# ── the trainer ──────────────────────────────────────────────────────────────────────────────────────────────────────

made: list[Trainer] = []  # in each rank's process


def start(ranks: Ranks, stations: Stations, memory: Path, step: int, checkpoint: Path | None) -> Any:
    """A trainer on every rank; the first one's manifest."""
    version = PolicyVersion(branch=0 if checkpoint is None else 1, step=step)
    made.append(Trainer(stations, make_prompts(), version, checkpoint, memory, ranks))
    return made[-1].publish_first() if ranks.first else made[-1].make_first()[0]


def train(ranks: Ranks, seed: int) -> StepOutcome | None:
    trainer = made[-1]
    groups = [make_group(i, seed=seed) for i in range(4)]
    order = make_order(groups, trainer.version)
    if ranks.first:
        return trainer.train(order, groups, wait=0.0, fetch=0.0)
    trainer.make(order, groups)
    return None


def save(ranks: Ranks, folder: Path) -> None:
    if ranks.first:
        made[-1].save(folder, np.zeros(3, np.uint8))()
    else:
        made[-1].save_part(folder)


def state_of(ranks: Ranks) -> dict[str, Any]:
    """Weights and moments, whole."""
    return {name: whole(value) for name, value in made[-1]._optimizer.named().items()}


def stations_of(model: Path, directory: Path, dtype: str = "float32", **learner: Any) -> Stations:
    # A large ε: by the usual one Adam makes a step of a gradient's sign, and so of its rounding.
    settings = LearnerSettings(lr=1e-3, threads=1, epsilon=1e-3, **learner)
    return make_stations(model, directory, dtype=dtype, learner=settings, samples_per_step=2)


def close() -> None:
    while made:
        made.pop().close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_ranks_publish_and_report_what_one_does(two: SeveralRanks, tmp_path: Path, dtype: str) -> None:
    model = make_policy(tmp_path / "policy", dtype=getattr(torch, dtype))
    stations = stations_of(model, tmp_path, dtype)
    first = [start(ALONE, stations, tmp_path, 0, None), two.run(start, stations, tmp_path, 0, None)[0]]
    assert first[0].checksum == first[1].checksum
    np.testing.assert_allclose(first[1].probe.logprobs, first[0].probe.logprobs, atol=1e-5)
    one, other = train(ALONE, 1), two.run(train, 1)[0]
    assert one is not None
    np.testing.assert_allclose(
        other.manifest.probe.logprobs, one.manifest.probe.logprobs, atol=1e-4 if dtype == "float32" else 0.2
    )
    named = [[(spec.name, spec.dtype, spec.shape) for spec in each.manifest.tensors] for each in (one, other)]
    assert named[0] == named[1]
    tolerance = 1e-4 if dtype == "float32" else 2e-2
    for name in ("entropy", "clamped_entropy", "loss", "kl_nats", "drift_mean", "drift_max", "masked_share"):
        assert getattr(other.report, name) == pytest.approx(getattr(one.report, name), abs=tolerance), name
    assert other.report.gradient_norm == pytest.approx(one.report.gradient_norm, rel=tolerance)
    for name in ("response_tokens", "policy_tokens", "version", "learning_rate"):
        assert getattr(other.report, name) == getattr(one.report, name), name
    weights = state_of(ALONE)
    for found in two.run(state_of):
        assert_same(found, weights, 1e-3 if dtype == "bfloat16" else 1e-6)
    close()


@pytest.mark.parametrize("weights", [AllWeights(), LORA])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_checkpoint_goes_on_with_any_number_of_ranks(
    two: SeveralRanks, tmp_path: Path, dtype: str, weights: TrainedWeights
) -> None:
    model = make_policy(tmp_path / "policy", dtype=getattr(torch, dtype))
    stations = stations_of(model, tmp_path, dtype, weights=weights)
    two.run(start, stations, tmp_path, 0, None)
    two.run(train, 1)
    folder = tmp_path / "checkpoints/step-1"
    two.run(save, folder)
    saved = two.run(state_of)[0]
    onward = two.run(train, 2)[0]
    # Two ranks again, to the bit; then one, which saves what two read.
    again = two.run(start, stations, tmp_path, 1, folder)[0]
    assert_same(two.run(state_of)[0], saved, 0.0)
    assert two.run(train, 2)[0].manifest.checksum == onward.manifest.checksum
    assert start(ALONE, stations, tmp_path, 1, folder).checksum == again.checksum
    assert_same(state_of(ALONE), saved, 0.0)
    save(ALONE, tmp_path / "checkpoints/step-2")
    assert two.run(start, stations, tmp_path, 1, tmp_path / "checkpoints/step-2")[0].checksum == again.checksum
    assert_same(two.run(state_of)[0], saved, 0.0)
    assert loaded(folder / "policy", dtype=dtype).model.config.dtype == getattr(torch, dtype)
    close()


def test_weights_are_gathered_on_the_first_rank_alone(two: SeveralRanks, folder: Path) -> None:
    first, other = two.run(gathered_after_a_pass, folder)
    expected = in_float64(loaded(folder)).model.state_dict()
    assert other == {}
    assert list(first) == list(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(first[name], tensor.numpy(), err_msg=name)


def gathered_after_a_pass(ranks: Ranks, folder: Path) -> dict[str, Any]:
    policy = made_policy(ranks, folder, LearnerSettings())
    policy.hidden(torch.ones(1, 3, dtype=torch.int64))
    return {name: tensor.numpy() for name, tensor in gather(policy).items()}


def waits(ranks: Ranks) -> str:
    began = time.monotonic()
    with pytest.raises(RuntimeError) as caught:
        ranks.meet()
    assert time.monotonic() - began < 30
    return str(caught.value)


def test_a_wait_for_a_dead_rank_ends(tmp_path: Path) -> None:
    two = SeveralRanks(tmp_path, seconds=20.0)
    two.run(meet)
    two.kill(1)
    two._pipes.pop()
    assert two.run(waits) != [""]
    two.close()


def meet(ranks: Ranks) -> None:
    ranks.meet()
