"""Low-rank adapters in the learner: what is trained, what is published, and what a checkpoint gives back."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from entrostat.learner.adapters import adapt, adapter_tensors, merged_as_saved, merged_weights
from entrostat.learner.merged import Merged, Weight, held, made
from entrostat.learner.optimizer import Optimizer
from entrostat.learner.policy import Policy, score
from entrostat.learner.trainer import Trainer
from entrostat.learner.update import accumulate
from entrostat.learner.weights import as_tensor, fill, layout
from entrostat.protocol.errors import CheckpointDamaged, ModelError
from entrostat.protocol.learner_settings import LearnerSettings, Lora
from entrostat.protocol.messages import PolicyVersion
from tests.tiny_orders import objective, samples_of
from tests.tiny_policy import (
    in_float64,
    loaded,
    make_group,
    make_one_layer,
    make_order,
    make_policy,
    make_prompts,
    make_stations,
)

LORA = Lora(rank=4, alpha=6)
SEQUENCES = [np.arange(3, 3 + n, dtype=np.int32) for n in (9, 5)]
MODULES = 2 * 7  # linear layers of the tiny policy, head apart


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_policy(tmp_path_factory.mktemp("policy"))


def adapted(folder: Path, lora: Lora = LORA, *, dtype: str = "float32", moved: float = 0.1) -> Policy:
    """With adapters that do something: each number moved at random."""
    policy = adapt(loaded(folder, dtype=dtype), lora, source=str(folder), seed=0)
    torch.manual_seed(5)
    with torch.no_grad():
        for part in parts_of(policy).values():
            part.add_(moved * torch.randn_like(part))
    return policy


def parts_of(policy: Policy) -> dict[str, torch.Tensor]:
    """A and B themselves."""
    return adapter_tensors(policy, dict(policy.model.named_parameters()))


def merged_of(policy: Policy) -> dict[str, Weight]:
    return merged_as_saved(policy, policy.model.state_dict())


def begun_from(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: held(weight) for name, weight in merged_weights(policy, policy.model.state_dict()).items()}


def copies(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


# ── what is trained ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_before_it_is_trained_an_adapted_policy_is_the_policy_itself(folder: Path) -> None:
    policy = adapted(folder, moved=0.0)
    for ours, plain in zip(score(policy, SEQUENCES), score(loaded(folder), SEQUENCES), strict=True):
        np.testing.assert_array_equal(ours, plain)


def test_adapters_begin_by_the_run_s_seed_and_leave_torch_s_random_state_alone(folder: Path) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = adapt(loaded(folder), LORA, source="one", seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    same, other = (adapt(loaded(folder), LORA, source="other", seed=seed) for seed in (3, 4))
    ours, theirs, others = (parts_of(each) for each in (one, same, other))
    assert all(torch.equal(part, theirs[name]) for name, part in ours.items())
    assert not all(torch.equal(part, others[name]) for name, part in ours.items())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_alone_have_a_gradient_and_a_place_in_the_optimizer(folder: Path, checkpointing: bool) -> None:
    policy = adapt(loaded(folder, gradient_checkpointing=checkpointing), LORA, source=str(folder), seed=0)
    wanted = objective()
    accumulate(policy, None, samples_of(wanted), wanted, "step 1")
    parts = parts_of(policy)
    assert len(parts) == 2 * MODULES
    assert {id(w) for w in policy.model.parameters() if w.grad is not None} == {id(part) for part in parts.values()}
    ups = [part.grad for name, part in parts.items() if ".lora_B." in name]
    assert all(float(gradient.abs().max()) > 0 for gradient in ups)
    optimizer = Optimizer(policy.model.named_parameters(), wanted.learner)
    assert len(optimizer.gradients()) == 2 * MODULES


def test_the_gradient_is_that_of_the_merged_weight_carried_to_its_factors(folder: Path) -> None:
    """∂J/∂A = (α/r) Bᵀ (∂J/∂W) and ∂J/∂B = (α/r) (∂J/∂W) Aᵀ, with the gradient of a policy that is trained whole."""
    policy, wanted = adapted(folder), objective()
    in_float64(policy)
    whole = in_float64(loaded(folder))
    whole.model.load_state_dict({name: made(weight) for name, weight in merged_of(policy).items()})
    for each in (policy, whole):
        accumulate(each, None, samples_of(wanted), wanted, "step 1")
    gradients = {name: weight.grad for name, weight in whole.model.named_parameters()}
    for adapter in policy.adapters:
        down, up = (part["default"].weight for part in (adapter.layer.lora_A, adapter.layer.lora_B))
        of_whole = LORA.alpha / LORA.rank * gradients[f"{adapter.path}.weight"]
        torch.testing.assert_close(down.grad, up.detach().T @ of_whole, rtol=0, atol=1e-6)
        torch.testing.assert_close(up.grad, of_whole @ down.detach().T, rtol=0, atol=1e-6)


def test_half_precision_adapters_have_float32_masters_and_a_base_in_its_own_dtype(tmp_path: Path) -> None:
    policy = adapted(make_policy(tmp_path / "half", dtype=torch.bfloat16), dtype="bfloat16")
    assert {tensor.dtype for tensor in policy.model.state_dict().values()} == {torch.bfloat16}
    optimizer = Optimizer(policy.model.named_parameters(), LearnerSettings())
    masters = optimizer.state()["masters"]
    assert len(masters) == 2 * MODULES
    assert {master.dtype for master in masters} == {torch.float32}


def test_without_its_adapters_it_is_the_policy_it_was_begun_from(folder: Path) -> None:
    policy = adapted(folder)
    expected = score(policy, SEQUENCES)
    plain = score(replace(policy, plain=True), SEQUENCES)
    for ours, theirs in zip(plain, score(loaded(folder), SEQUENCES), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for ours, again in zip(score(policy, SEQUENCES), expected, strict=True):
        np.testing.assert_array_equal(ours, again)
    assert max(np.abs(a - b).max() for a, b in zip(plain, expected, strict=True)) > 0.1


def test_a_pull_to_the_start_has_the_gradient_it_has_with_a_second_copy_of_it(folder: Path) -> None:
    wanted = objective(kl_coefficient=0.5)
    found = []
    for second in (False, True):
        policy = adapted(folder)
        reference = loaded(folder) if second else replace(policy, plain=True)
        measured = accumulate(policy, reference, samples_of(wanted), wanted, "step 1")
        found.append([measured.terms.objective, *(part.grad for part in parts_of(policy).values())])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


# ── what is published ────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=30, deadline=None)
@given(
    out=st.integers(1, 9),
    width=st.integers(1, 9),
    rank=st.integers(1, 5),
    scale=st.floats(0.01, 8),
    seed=st.integers(0),
)
def test_a_merged_weight_is_the_sum_written_out(out: int, width: int, rank: int, scale: float, seed: int) -> None:
    draw = np.random.default_rng(seed)
    base, up, down = (draw.normal(size=size) for size in ((out, width), (out, rank), (rank, width)))
    expected = base.copy()
    for i in range(out):
        for j in range(width):
            expected[i, j] += scale * sum(up[i, k] * down[k, j] for k in range(rank))
    weight = Merged(base=torch.tensor(base), down=torch.tensor(down), up=torch.tensor(up), scale=scale)
    np.testing.assert_allclose(weight.made().numpy(), expected, rtol=0, atol=1e-12 * max(1.0, np.abs(expected).max()))


def test_half_precision_is_rounded_once() -> None:
    torch.manual_seed(0)
    base, down, up = (torch.randn(size).bfloat16() for size in ((64, 32), (8, 32), (64, 8)))
    exact = base.double() + 0.3 * up.double() @ down.double()
    found = Merged(base=base, down=down, up=up, scale=0.3).made()
    assert found.dtype == torch.bfloat16
    assert (found == exact.bfloat16()).double().mean() > 0.999  # float32 sums may fall on the other side of a tie


def test_the_merged_policy_is_the_one_with_adapters(folder: Path) -> None:
    policy, merged = adapted(folder), in_float64(loaded(folder))
    in_float64(policy)
    merged.model.load_state_dict({name: made(weight) for name, weight in merged_of(policy).items()})
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        assert float((policy.hidden(ids) - merged.hidden(ids)).abs().max()) < 1e-6
        assert float((policy.hidden(ids) - replace(policy, plain=True).hidden(ids)).abs().max()) > 0.1


def test_merged_weights_have_the_names_of_the_model_s_own_checkpoint(folder: Path) -> None:
    plain = loaded(folder).named_tensors()
    published = merged_of(adapted(folder))
    assert list(published) == list(plain)
    assert sum(isinstance(weight, Merged) for weight in published.values()) == MODULES
    places, size = layout(published)
    assert (size, [place.offset for place in places]) == (layout(plain)[1], [p.offset for p in layout(plain)[0]])
    buffer = np.zeros(size, np.uint8)
    fill(as_tensor(buffer), places)
    for place in places:
        there = as_tensor(buffer)[place.offset : place.offset + place.bytes].view(place.dtype).view(place.tensor.shape)
        assert torch.equal(there, made(published[place.name])), place.name


# ── a run's worth of it ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def make_trainer(tmp_path: Path) -> Iterator[Callable[..., Trainer]]:
    torch.set_num_threads(1)
    trainers: list[Trainer] = []

    def make(model: Path, dtype: str = "float32", checkpoint: Path | None = None, **changes: Any) -> Trainer:
        learner = LearnerSettings(lr=1e-2, threads=1, **({"weights": LORA} | changes))
        stations = make_stations(model, tmp_path, dtype=dtype, learner=learner)
        version = PolicyVersion(branch=1, step=2) if checkpoint else PolicyVersion(branch=0, step=0)
        trainers.append(Trainer(stations, make_prompts(), version, checkpoint, shared_memory=tmp_path))
        return trainers[-1]

    yield make
    for trainer in trainers:
        trainer.close()


def train(trainer: Trainer, step: int) -> Any:
    groups = [make_group(i, seed=step) for i in range(4)]
    return trainer.train(make_order(groups, trainer.version), groups, wait=0.0, fetch=0.0)


@pytest.mark.parametrize("publish", ["merged", "adapter"])
def test_training_moves_the_policy_and_never_the_weights_it_was_begun_from(
    folder: Path, make_trainer: Callable[..., Trainer], publish: Literal["merged", "adapter"]
) -> None:
    trainer = make_trainer(folder, weights=Lora(rank=4, publish=publish))
    begun = copies(begun_from(trainer.policy))
    first = trainer.publish_first()
    for step in range(3):
        probe = train(trainer, step).manifest.probe
    assert float(np.abs(probe.logprobs - probe.previous).max()) > 1e-3
    assert all(torch.equal(tensor, begun[name]) for name, tensor in begun_from(trainer.policy).items())
    names = {spec.name for spec in first.tensors}
    assert names == set(parts_of(trainer.policy) if publish == "adapter" else loaded(folder).named_tensors())


def test_with_a_pull_no_second_model_is_held(folder: Path, make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer(folder, kl_coefficient=0.1)
    assert trainer._reference is not None
    assert trainer._reference.model is trainer.policy.model
    assert train(trainer, 0).report.kl_nats == pytest.approx(0.0, abs=1e-7)
    assert train(trainer, 1).report.kl_nats > 1e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_resumed_learner_goes_on_from_base_and_adapter_to_the_bit(
    tmp_path: Path, make_trainer: Callable[..., Trainer], dtype: str
) -> None:
    model = make_policy(tmp_path / "policy", dtype=getattr(torch, dtype))
    first = make_trainer(model, dtype)
    for step in range(2):
        train(first, step)
    saved = tmp_path / "checkpoints" / "step-2"
    first.save(saved, np.zeros(3, np.uint8))()
    second = make_trainer(model, dtype, saved)
    before = copies(second.policy.model.state_dict())
    assert all(torch.equal(tensor, before[name]) for name, tensor in first.policy.model.state_dict().items())
    for trainer in (first, second):
        train(trainer, 2)
    after = second.policy.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in first.policy.model.state_dict().items())
    assert any(not torch.equal(tensor, before[name]) for name, tensor in after.items())
    for ours, theirs in zip(first._optimizer._weights, second._optimizer._weights, strict=True):
        assert torch.equal(ours, theirs)


def test_a_checkpoint_s_policy_is_merged_and_its_adapter_is_one_of_peft_s(
    folder: Path, tmp_path: Path, make_trainer: Callable[..., Trainer]
) -> None:
    trainer = make_trainer(folder)
    for step in range(2):
        train(trainer, step)
    saved = tmp_path / "checkpoints" / "step-2"
    trainer.save(saved, np.zeros(3, np.uint8))()
    merged, found = AutoModelForCausalLM.from_pretrained(saved / "policy", output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    beside = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), saved / "adapter").eval()
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        expected = torch.nn.functional.linear(trainer.policy.hidden(ids), trainer.policy.head_weight)
        for model in (merged.eval(), beside):
            torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=1e-4)
    assert beside.peft_config["default"].base_model_name_or_path == str(folder)


def test_an_adapter_is_not_put_beside_another_model(tmp_path: Path, make_trainer: Callable[..., Trainer]) -> None:
    model = make_policy(tmp_path / "policy")
    trainer = make_trainer(model)
    train(trainer, 0)
    saved = tmp_path / "checkpoints" / "step-1"
    trainer.save(saved, np.zeros(3, np.uint8))()
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-3
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointDamaged, match=r"model\.norm\.weight is not what .* belongs to the one before"):
        make_trainer(model, checkpoint=saved)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (Lora(rank=8, alpha=6), r"holds \(4, 48\) for .*down_proj\.lora_A\.weight, expected \(8, 48\)"),
        (Lora(rank=4, alpha=6, targets=("q_proj",)), "expected nothing"),
    ],
)
def test_an_adapter_of_other_settings_is_refused(
    folder: Path, tmp_path: Path, make_trainer: Callable[..., Trainer], changed: Lora, said: str
) -> None:
    trainer = make_trainer(folder)
    train(trainer, 0)
    saved = tmp_path / "checkpoints" / "step-1"
    trainer.save(saved, np.zeros(3, np.uint8))()
    with pytest.raises(CheckpointDamaged, match=said):
        make_trainer(folder, checkpoint=saved, weights=changed)


def test_a_run_that_trained_all_weights_does_not_resume_with_adapters(
    folder: Path, tmp_path: Path, make_trainer: Callable[..., Trainer]
) -> None:
    trainer = make_trainer(folder, weights=LearnerSettings().weights)
    saved = tmp_path / "checkpoints" / "step-0"
    trainer.save(saved, np.zeros(3, np.uint8))()
    with pytest.raises(CheckpointDamaged, match=r"holds no adapter .* other \[learner.weights\]"):
        make_trainer(folder, checkpoint=saved)


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("targets", [("none_such",), ("q_proj", "none_such")])
def test_a_target_that_no_layer_bears_is_named(folder: Path, targets: tuple[str, ...]) -> None:
    with pytest.raises(ModelError, match="none_such"):
        adapt(loaded(folder), Lora(targets=targets), source=str(folder), seed=0)


def test_a_target_may_be_one_layer_s_own_name(folder: Path) -> None:
    policy = adapt(loaded(folder), Lora(targets=("layers.1.mlp.up_proj", "q_proj")), source=str(folder), seed=0)
    assert sorted(adapter.path for adapter in policy.adapters) == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
        "model.layers.1.self_attn.q_proj",
    ]


def test_a_layer_that_is_not_linear_is_refused(tmp_path: Path) -> None:
    folder = make_one_layer(tmp_path / "gpt2", GPT2LMHeadModel, n_embd=16, n_head=1, n_layer=1, n_positions=64)
    with pytest.raises(ModelError, match="Conv1D"):
        adapt(loaded(folder), LORA, source=str(folder), seed=0)
