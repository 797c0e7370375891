"""One optimizer step: its gradient against a slow oracle, what it reports, and what it refuses."""

import math
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from entrostat.learner.batching import Sample, flatten
from entrostat.learner.entropy import clamped_entropy
from entrostat.learner.measures import per_sample
from entrostat.learner.objective import Objective
from entrostat.learner.optimizer import Optimizer
from entrostat.learner.policy import Policy, freeze
from entrostat.learner.trainer import Trainer
from entrostat.learner.trainer_setup import chosen_device
from entrostat.learner.update import Measured, accumulate
from entrostat.protocol.entropy_settings import ClampedEntropy
from entrostat.protocol.errors import EntrostatError, NumericsError, ResourceError
from entrostat.protocol.learner_settings import LearnerSettings
from entrostat.protocol.messages import Group, PolicyVersion
from tests.tiny_orders import groups_of_all_kinds
from tests.tiny_policy import loaded, make_group, make_order, make_policy, make_prompts, make_stations

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


def objective(**changes: object) -> Objective:
    learner = msgspec.structs.replace(LearnerSettings(lr=1e-3), **changes)
    return Objective(learner=learner, estimator=ESTIMATOR, temperature=0.8)


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
    assert measured.terms.kl == pytest.approx(0.0, abs=1e-12)  # two passes of float32
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


def test_an_order_without_response_tokens_is_refused(model: Path) -> None:
    with pytest.raises(NumericsError, match="step 1: the order holds no response token"):
        accumulate(loaded(model), None, [], objective(), "step 1")


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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_asking_for_a_gpu_where_there_is_none_is_refused() -> None:
    assert chosen_device(LearnerSettings(device="auto")) == torch.device("cpu")
    with pytest.raises(ResourceError, match=r"learner\.device"):
        chosen_device(LearnerSettings(device="cuda"))
