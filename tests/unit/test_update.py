"""One optimizer step: its gradient against a slow oracle, its optimizer, and what it refuses."""

import math
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from entrostat.learner.batching import Sample, flatten
from entrostat.learner.entropy import clamped_entropy
from entrostat.learner.measures import per_sample
from entrostat.learner.optimizer import Optimizer, learning_rate
from entrostat.learner.policy import Policy, freeze, load_policy, score
from entrostat.learner.trainer import Trainer, chosen_device
from entrostat.learner.update import Measured, Objective, accumulate
from entrostat.protocol.errors import EntrostatError, ModelError, NumericsError, ResourceError
from entrostat.protocol.messages import Group, PolicyVersion
from entrostat.protocol.settings import ClampedEntropy, LearnerSettings, ModelSettings
from tests.tiny_policy import make_group, make_order, make_policy, make_prompts, make_stations

CPU = torch.device("cpu")
VERSION = PolicyVersion(branch=0, step=0)
ESTIMATOR = ClampedEntropy(drop_fraction=0.25)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture
def trainer(model: Path, tmp_path: Path) -> Iterator[Trainer]:
    made = Trainer(make_stations(model, tmp_path, samples_per_step=3), make_prompts(), VERSION, shared_memory=tmp_path)
    yield made
    made.close()


def loaded(model: Path, *, dtype: str = "float32", gradient_checkpointing: bool = False) -> Policy:
    settings = ModelSettings(path=str(model), dtype="bfloat16" if dtype == "bfloat16" else "float32")
    policy = load_policy(settings, source=str(model), device=CPU, gradient_checkpointing=gradient_checkpointing)
    if dtype == "float64":
        policy.model.double()
    return policy


def objective(**changes: object) -> Objective:
    learner = msgspec.structs.replace(LearnerSettings(lr=1e-3), **changes)
    return Objective(learner=learner, estimator=ESTIMATOR, temperature=0.8)


def groups_of_all_kinds() -> list[Group]:
    return [
        make_group(0),
        make_group(1, rewards=(0.0, 0.0)),
        make_group(2, rewards=(1.0, 0.0, 0.5), truncated=1),
        make_group(3, rewards=(0.0, 1.0)),
    ]


def samples_of(groups: list[Group], wanted: Objective, coefficient: float = 0.7) -> list[Sample]:
    return flatten(make_order(groups, VERSION, coefficient).groups, groups, wanted.learner)


def gradients(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in policy.model.named_parameters() if weight.grad is not None}


def objective_by_definition(
    policy: Policy, reference: Policy, samples: list[Sample], wanted: Objective
) -> torch.Tensor:
    """J as update.py states it, sample by sample, with the whole model's own logits."""
    learner = wanted.learner
    kept = sum(len(s.tokens) - s.prompt_length for s in samples if s.counts)
    every = sum(len(s.tokens) - s.prompt_length for s in samples)
    total = torch.zeros((), dtype=torch.float64)
    for one in samples:
        ids = torch.tensor(one.tokens[None], dtype=torch.int64)
        logits = policy.model(input_ids=ids).logits[0].double() / wanted.temperature
        anchor = reference.model(input_ids=ids).logits[0].detach().double() / wanted.temperature
        for t in range(one.prompt_length, len(one.tokens)):
            if not one.counts:
                continue
            logprob = logits[t - 1].log_softmax(-1)[one.tokens[t]]
            weight = min(math.exp(logprob.item() - one.behaviour[t - one.prompt_length]), learner.importance_cap)
            ratio = torch.exp(logprob - logprob.item())
            total = total + weight * ratio * one.advantage / kept
            total = total + one.coefficient * clamped_entropy(logits[t - 1][None], ESTIMATOR.drop_fraction)[0] / every
            gap = anchor[t - 1].log_softmax(-1)[one.tokens[t]] - logprob
            total = total - learner.kl_coefficient * (torch.exp(gap) - gap - 1) / kept
    return total


def shifted(policy: Policy) -> Policy:
    """The same policy moved a little, as a reference that differs."""
    torch.manual_seed(9)
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight += 0.05 * torch.randn_like(weight)
    return freeze(policy)


def test_objective_and_gradient_are_what_the_definition_says(model: Path) -> None:
    wanted = objective(kl_coefficient=0.3, truncated="mask", microbatch_tokens=64)
    samples = samples_of(groups_of_all_kinds(), wanted)
    ours, slow, reference = (loaded(model, dtype="float64") for _ in range(3))
    reference = shifted(reference)
    measured = accumulate(ours, reference, samples, wanted, "step 1")
    expected = objective_by_definition(slow, reference, samples, wanted)
    (-expected).backward()
    assert measured.terms.objective == pytest.approx(expected.item(), abs=1e-6)
    mine, theirs = gradients(ours), gradients(slow)
    assert mine.keys() == theirs.keys()
    for name, gradient in mine.items():
        torch.testing.assert_close(gradient, theirs[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("budget", [1, 40, 100, 100_000])
def test_the_size_of_micro_batches_changes_nothing(model: Path, budget: int) -> None:
    results = []
    for tokens in (budget, 60):
        wanted, policy = objective(microbatch_tokens=tokens), loaded(model, dtype="float64")
        measured = accumulate(policy, None, samples_of(groups_of_all_kinds(), wanted), wanted, "step 1")
        results.append((measured.terms, gradients(policy)))
    (terms, ours), (others, theirs) = results
    assert (terms.policy, terms.bonus) == pytest.approx((others.policy, others.bonus), abs=1e-6)
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], atol=1e-6, rtol=0)


def test_gradient_checkpointing_changes_nothing(model: Path) -> None:
    wanted = objective()
    plain, saving = loaded(model), loaded(model, gradient_checkpointing=True)
    for policy in (plain, saving):
        accumulate(policy, None, samples_of(groups_of_all_kinds(), wanted), wanted, "step 1")
    theirs = gradients(saving)
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(gradient, theirs[name])


@pytest.mark.parametrize("gradient_checkpointing", [True, False])
def test_dropout_is_off_in_every_mode(tmp_path: Path, gradient_checkpointing: bool) -> None:
    folder = make_policy(tmp_path / "policy")  # for its tokenizer
    config = GPT2Config(vocab_size=29, n_embd=16, n_layer=2, n_head=2, n_positions=64, attn_pdrop=0.5, resid_pdrop=0.5)
    GPT2LMHeadModel(config).save_pretrained(folder)
    policy = loaded(folder, gradient_checkpointing=gradient_checkpointing)
    tokens = torch.arange(20)[None]
    torch.testing.assert_close(policy.hidden(tokens), policy.hidden(tokens), rtol=0, atol=0)


def test_a_rejected_sample_loses_both_terms_and_still_counts_in_the_measured_entropy(model: Path) -> None:
    wanted = objective(truncated="mask")
    groups = [make_group(0, rewards=(1.0, 0.0), truncated=2)]
    policy = loaded(model)
    measured = accumulate(policy, None, samples_of(groups, wanted), wanted, "step 1")
    assert measured.terms.objective == 0.0
    assert measured.denominators.policy_tokens == 0
    assert all(torch.all(gradient == 0.0) for gradient in gradients(policy).values())
    assert len(measured.tokens.entropy) == int(groups[0].rollout.samples.lengths.sum())
    assert measured.tokens.entropy.min() > 0


def test_a_step_raises_the_objective(model: Path) -> None:
    wanted = objective()
    samples = samples_of(groups_of_all_kinds(), wanted, coefficient=0.5)
    policy, before = loaded(model, dtype="float64"), loaded(model, dtype="float64")

    def surrogate(measured: Measured, now: list[np.ndarray], old: list[np.ndarray]) -> float:
        value = measured.terms.bonus
        for one, new, was in zip(samples, now, old, strict=True):
            if one.counts:
                weight = np.minimum(np.exp(was - one.behaviour), wanted.learner.importance_cap)
                value += float((weight * np.exp(new - was) * one.advantage).sum()) / measured.denominators.policy_tokens
        return value

    def logprobs(of: Policy) -> list[np.ndarray]:
        found = []
        for one in samples:
            ids = torch.tensor(one.tokens[None], dtype=torch.int64)
            with torch.no_grad():
                table = (of.model(input_ids=ids).logits[0] / wanted.temperature).log_softmax(-1)
            rows = torch.arange(one.prompt_length - 1, len(one.tokens) - 1)
            found.append(table[rows, ids[0, one.prompt_length :]].numpy())
        return found

    optimizer = Optimizer(policy.model.named_parameters(), wanted.learner)
    first = accumulate(policy, None, samples, wanted, "step 1")
    optimizer.step(1e-4, "step 1")
    second = accumulate(policy, None, samples, wanted, "step 2")
    old = logprobs(before)
    assert surrogate(second, logprobs(policy), old) > surrogate(first, old, old) + 1e-5


def test_the_bonus_alone_raises_the_clamped_entropy(model: Path) -> None:
    wanted = objective()
    samples = samples_of([make_group(i, rewards=(0.0, 0.0)) for i in range(4)], wanted)
    policy = loaded(model)
    optimizer = Optimizer(policy.model.named_parameters(), wanted.learner)
    entropies = []
    for step in range(5):
        measured = accumulate(policy, None, samples, wanted, f"step {step}")
        optimizer.step(1e-3, f"step {step}")
        entropies.append(float(measured.tokens.clamped_entropy.mean()))
    assert entropies == sorted(entropies)
    assert entropies[-1] > entropies[0] + 0.05


def test_the_pull_to_the_reference_is_zero_at_the_reference(model: Path) -> None:
    wanted = objective(kl_coefficient=1.0)
    groups = [make_group(0, rewards=(0.0, 0.0))]
    policy = loaded(model)
    measured = accumulate(policy, freeze(loaded(model)), samples_of(groups, wanted, 0.0), wanted, "step 1")
    assert measured.terms.kl == 0.0
    assert all(gradient.abs().max() < 1e-6 for gradient in gradients(policy).values())


@pytest.mark.parametrize(("where", "term"), [("behaviour", "policy"), ("coefficient", "bonus")])
def test_a_term_that_is_not_finite_is_named_and_leaves_the_weights(trainer: Trainer, where: str, term: str) -> None:
    groups = [make_group(0), make_group(1)]
    order = make_order(groups, VERSION, coefficient=math.inf if where == "coefficient" else 0.1)
    if where == "behaviour":
        samples = groups[0].rollout.samples
        broken = msgspec.structs.replace(samples, logprobs=np.full_like(samples.logprobs, np.nan))
        rollout = msgspec.structs.replace(groups[0].rollout, samples=broken)
        groups[0] = msgspec.structs.replace(groups[0], rollout=rollout)
    before = {name: tensor.clone() for name, tensor in trainer._policy.named_tensors().items()}
    with pytest.raises(NumericsError, match=rf"optimizer step 0\.1: the {term} term"):
        trainer.train(order, groups, wait=0.0, fetch=0.0)
    assert trainer.version == VERSION
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer._policy.named_tensors().items())
    # The failed order's gradients don't leak into the next.
    clean = [make_group(2), make_group(3)]
    outcome = trainer.train(make_order(clean, VERSION), clean, wait=0.0, fetch=0.0)
    assert math.isfinite(outcome.report.gradient_norm)


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


def test_an_order_without_response_tokens_is_refused(model: Path) -> None:
    with pytest.raises(NumericsError, match="step 1: the order holds no response token"):
        accumulate(loaded(model), None, [], objective(), "step 1")


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


def test_a_step_reports_the_policy_before_it_and_publishes_the_one_after(trainer: Trainer, model: Path) -> None:
    groups = groups_of_all_kinds()
    outcome = trainer.train(make_order(groups, VERSION), groups, wait=1.5, fetch=0.25)
    report, tokens = outcome.report, sum(int(group.rollout.samples.lengths.sum()) for group in groups)
    assert (report.measured, report.version) == (VERSION, PolicyVersion(branch=0, step=1))
    assert outcome.manifest.version == trainer.version == report.version
    assert report.response_tokens == tokens
    assert report.policy_tokens == tokens - int(groups[2].rollout.samples.lengths[0])
    assert 0 < report.clamped_entropy <= math.log(29 - 7)
    again = loaded(model)
    wanted = Objective(learner=LearnerSettings(lr=1e-3), estimator=ESTIMATOR, temperature=1.0)
    tokenwise = accumulate(again, None, samples_of(groups, wanted), wanted, "again").tokens
    assert report.entropy == pytest.approx(tokenwise.entropy.mean().item())
    assert report.clamped_entropy == pytest.approx(tokenwise.clamped_entropy.mean().item())
    assert len(tokenwise.entropy) == tokens
    assert report.loss == pytest.approx(report.policy_loss - report.entropy_bonus)
    assert report.clip_share == 0.0
    assert 0 < report.truncated_weight_share < 1
    assert report.drift_max > report.drift_mean > 0
    assert report.kl_nats == 0.0
    assert (report.phases.wait, report.phases.fetch) == (1.5, 0.25)
    assert report.learning_rate == 1e-3


def test_means_of_single_samples_join_to_the_mean_of_all(model: Path) -> None:
    wanted = objective(microbatch_tokens=30)
    samples = samples_of(groups_of_all_kinds(), wanted)
    measured = accumulate(loaded(model), None, samples, wanted, "step 1")
    means = per_sample(measured.tokens, len(samples))
    lengths = np.array([one.response_length for one in samples])
    assert (means.entropy * lengths).sum() / lengths.sum() == pytest.approx(measured.tokens.entropy.mean().item())
    assert (means.drift * lengths).sum() / lengths.sum() == pytest.approx(measured.tokens.drift.mean().item())


def test_an_order_for_another_version_is_refused(trainer: Trainer) -> None:
    groups = [make_group(0)]
    with pytest.raises(EntrostatError, match=r"version 1\.0 came, the learner stands at 0\.0"):
        trainer.train(make_order(groups, PolicyVersion(branch=1, step=0)), groups, wait=0.0, fetch=0.0)


def test_scores_are_the_models_own_log_probs_whatever_the_padding(model: Path) -> None:
    policy = loaded(model)
    sequences = [np.array([3, 4, 5], np.int32), np.array([9, 8, 7, 6, 5, 4], np.int32)]
    for sequence, ours in zip(sequences, score(policy, sequences), strict=True):
        ids = torch.tensor(sequence[None], dtype=torch.int64)
        with torch.no_grad():
            table = policy.model(input_ids=ids).logits[0].log_softmax(-1)
        expected = [table[t - 1, sequence[t]].item() for t in range(1, len(sequence))]
        assert ours.tolist() == pytest.approx(expected, abs=1e-6)


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        loaded(tmp_path / "nowhere")


def test_a_model_with_a_corrupt_weights_file_is_refused(tmp_path: Path) -> None:
    folder = make_policy(tmp_path / "policy")
    (folder / "model.safetensors").write_bytes(b"not weights at all")
    with pytest.raises(ModelError, match="can be loaded"):
        loaded(folder)


def test_a_model_that_lacks_weights_is_refused_and_not_filled_with_noise(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = make_policy(tmp_path / "policy")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights, model\.layers\.1\.mlp\.up_proj\.weight first"):
        loaded(folder)


def test_a_model_that_caps_its_logits_is_refused(tmp_path: Path) -> None:
    folder = make_policy(tmp_path / "policy")  # for its tokenizer
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=29,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
        final_logit_softcapping=1.0,
        initializer_range=0.5,
    )
    Gemma2ForCausalLM(config).save_pretrained(folder)
    with pytest.raises(ModelError, match="caps, scales or shifts"):
        loaded(folder)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_asking_for_a_gpu_where_there_is_none_is_refused() -> None:
    assert chosen_device(LearnerSettings(device="auto")) == CPU
    with pytest.raises(ResourceError, match=r"learner\.device"):
        chosen_device(LearnerSettings(device="cuda"))
