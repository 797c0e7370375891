"""An order in several optimizer steps, and what is reported of them; the balance of policy term and bonus."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from entrostat.learner.balance import accumulate_apart
from entrostat.learner.batching import Sample, flatten
from entrostat.learner.measures import per_sample
from entrostat.learner.minibatches import minibatches
from entrostat.learner.objective import Objective
from entrostat.learner.optimizer import Optimizer
from entrostat.learner.policy import Policy
from entrostat.learner.steps import take
from entrostat.learner.survey import survey
from entrostat.learner.trainer import Trainer
from entrostat.learner.update import accumulate
from entrostat.protocol.entropy_settings import ClampedEntropy, EntropySettings, SmoothedTokens
from entrostat.protocol.errors import ConfigError, EntrostatError, NumericsError
from entrostat.protocol.learner_settings import Gspo, LearnerSettings
from entrostat.protocol.messages import Group, PolicyVersion, StepReport, TrainOrder
from entrostat.protocol.settings import RolloutSettings
from tests.tiny_policy import in_float64, loaded, make_group, make_order, make_policy, make_prompts, make_stations

VERSION = PolicyVersion(branch=0, step=0)
RATE = 1e-3
PARTS = {"minibatches": 3, "epochs": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_policy(tmp_path_factory.mktemp("policy"))


def objective(**changes: object) -> Objective:
    learner = msgspec.structs.replace(LearnerSettings(lr=RATE, microbatch_tokens=60), **changes)
    return Objective(learner=learner, estimator=ClampedEntropy(drop_fraction=0.25), temperature=0.8)


def groups_of_all_kinds() -> list[Group]:
    return [
        make_group(0),
        make_group(1, rewards=(0.0, 0.0), started=1),
        make_group(2, rewards=(1.0, 0.0, 0.5), truncated=1),
        make_group(3, rewards=(0.0, 1.0), started=3),
    ]


def ordered(groups: list[Group], version: PolicyVersion = VERSION, **changes: Any) -> TrainOrder:
    return make_order(groups, version, 0.3, weights=(1.0, 2.0, 0.5, 0.25), seed=11, **changes)


def samples_of(wanted: Objective) -> tuple[Sample, ...]:
    groups = groups_of_all_kinds()
    return tuple(flatten(ordered(groups).groups, groups, wanted.learner))


def taken_by(policy: Policy, wanted: Objective, optimizer: Optimizer | None = None) -> Any:
    optimizer = optimizer or Optimizer(policy.model.named_parameters(), wanted.learner)
    order = ordered(groups_of_all_kinds())
    return take(policy, None, optimizer, samples_of(wanted), wanted, order, RATE, "step 1")


def weights_of(policy: Policy) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in policy.model.parameters()]


@pytest.mark.parametrize("changes", [{}, {"proximal": "behaviour"}, {"loss": Gspo()}, {"policy_tokens": 0.5}])
def test_minibatches_and_epochs_are_a_loop_over_parts_with_one_survey(folder: Path, changes: dict[str, Any]) -> None:
    wanted = objective(**PARTS, **changes)
    ours, theirs, before = (in_float64(loaded(folder)) for _ in range(3))
    found = taken_by(ours, wanted)
    optimizer = Optimizer(theirs.model.named_parameters(), wanted.learner)
    seen = survey(before, None, samples_of(wanted), wanted, 11, "by hand")
    parts = list(minibatches(samples_of(wanted), 3, 2, 11))
    for part, step in zip(parts, found.steps, strict=True):
        measured = accumulate(theirs, None, part, wanted, "by hand", seen)
        norm = optimizer.step(RATE, "by hand")
        assert step.measured.terms.objective == pytest.approx(measured.terms.objective, abs=1e-12)
        assert step.gradient_norm == pytest.approx(norm, rel=1e-9)
    torch.testing.assert_close(weights_of(ours), weights_of(theirs), atol=1e-12, rtol=0)
    assert len({step.measured.terms.objective for step in found.steps}) > 2


def test_the_ratio_is_against_the_policy_before_the_orders_first_update(folder: Path) -> None:
    # An update large enough that the second epoch's ratios leave the bounds: against the policy before each step none
    # would.
    wanted = objective(epochs=2)
    policy = in_float64(loaded(folder))
    optimizer = Optimizer(policy.model.named_parameters(), wanted.learner)
    order = ordered(groups_of_all_kinds())
    found = take(policy, None, optimizer, samples_of(wanted), wanted, order, 0.05, "step 1")
    assert found.steps[0].measured.cuts.clipped == 0
    assert found.steps[1].measured.cuts.clipped > 5


def test_one_step_for_the_whole_order_needs_no_survey_and_is_what_it_was(folder: Path) -> None:
    wanted = objective()
    ours, theirs = loaded(folder), loaded(folder)
    taken_by(ours, wanted)
    accumulate(theirs, None, samples_of(wanted), wanted, "by hand")
    Optimizer(theirs.model.named_parameters(), wanted.learner).step(RATE, "by hand")
    assert all(torch.equal(one, other) for one, other in zip(weights_of(ours), weights_of(theirs), strict=True))


# ── the balance ──────────────────────────────────────────────────────────────────────────────────────────────────────


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


# ── the report ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def make_trainer(folder: Path, tmp_path: Path) -> Iterator[Any]:
    made: list[Trainer] = []

    def make(**changes: Any) -> Trainer:
        learner = LearnerSettings(lr=RATE, threads=1, **changes)
        made.append(
            Trainer(make_stations(folder, tmp_path, learner=learner), make_prompts(), VERSION, shared_memory=tmp_path)
        )
        made[-1].version = PolicyVersion(branch=0, step=3)
        return made[-1]

    yield make
    for trainer in made:
        trainer.close()


def trained(trainer: Trainer, **changes: Any) -> StepReport:
    groups = groups_of_all_kinds()
    order = ordered(groups, levels=("b", "a", "b", "c"), bonus_alone=(1,), version=trainer.version, **changes)
    return trainer.train(order, groups, wait=0.0, fetch=0.0).report


@pytest.mark.parametrize("changes", [{}, {**PARTS, "measure_balance": True}])
def test_a_report_measures_the_policy_before_the_first_update(make_trainer: Any, changes: dict[str, Any]) -> None:
    report = trained(make_trainer(**changes))
    groups, trainer = groups_of_all_kinds(), make_trainer()
    wanted = trainer._objective
    samples = flatten(ordered(groups).groups, groups, wanted.learner)
    tokens = accumulate(trainer._policy, None, samples, wanted, "again").tokens
    of_group = torch.tensor([one.group for one in samples])[tokens.sample]
    assert report.entropy == pytest.approx(tokens.entropy.mean().item())
    assert report.clamped_entropy == pytest.approx(tokens.clamped_entropy.mean().item())
    assert report.sampled_entropy == pytest.approx(-tokens.logprob.mean().item())
    assert report.drift_mean == pytest.approx(tokens.drift.mean().item())
    assert [level.level for level in report.levels] == ["a", "b", "c"]
    for level, held in zip(report.levels, ([1], [0, 2], [3]), strict=True):
        here = torch.isin(of_group, torch.tensor(held))
        assert level.tokens == int(here.sum())
        assert level.entropy == pytest.approx(tokens.entropy[here].mean().item())
        assert level.clamped_entropy == pytest.approx(tokens.clamped_entropy[here].mean().item())
        assert level.sampled_entropy == pytest.approx(-tokens.logprob[here].mean().item())
    # Begun at versions 0, 1, 0 and 3, and trained at 3.
    assert len(report.ages) == 4
    for age, held in ((0, [3]), (2, [1]), (3, [0, 2])):
        here = torch.isin(of_group, torch.tensor(held))
        assert report.ages[age] == pytest.approx(tokens.clamped_entropy[here].mean().item())
    assert math.isnan(report.ages[1])


@pytest.mark.parametrize("changes", [{}, PARTS, {"epochs": 3}])
def test_a_report_counts_each_token_once_and_each_step(make_trainer: Any, changes: dict[str, int]) -> None:
    report = trained(make_trainer(**changes))
    lengths = [group.rollout.samples.lengths for group in groups_of_all_kinds()]
    assert report.response_tokens == sum(int(one.sum()) for one in lengths)
    assert report.policy_tokens == report.response_tokens - int(lengths[1].sum()) - int(lengths[2][0])
    assert report.masked_share == pytest.approx(1 / 11)
    assert report.optimizer_steps == math.prod(changes.values())
    assert report.balance is None
    assert report.loss == pytest.approx(report.policy_loss - report.entropy_bonus)
    assert report.phases.forward_backward > report.phases.optimizer > 0


def test_rejected_samples_are_counted_in_the_report(make_trainer: Any) -> None:
    groups = groups_of_all_kinds()
    trainer = make_trainer()
    wanted = trainer._objective
    samples = flatten(ordered(groups).groups, groups, wanted.learner)
    drift = per_sample(accumulate(trainer._policy, None, samples, wanted, "again").tokens, len(samples)).drift
    limit = float(np.median(drift))
    report = trained(make_trainer(sequence_mask=limit, truncated="keep"))
    assert report.masked_share == pytest.approx(np.mean(drift > limit))


def test_the_balance_comes_with_the_second_order(make_trainer: Any) -> None:
    trainer = make_trainer(measure_balance=True)
    assert trained(trainer).balance is None
    balance = trained(trainer).balance
    assert balance is not None
    assert balance.bonus_push > 0
    assert math.isfinite(balance.policy_push)


def test_more_minibatches_than_groups_are_refused(make_trainer: Any) -> None:
    with pytest.raises(ConfigError, match=r"learner\.minibatches = 5 and an order of 4 groups came"):
        trained(make_trainer(minibatches=5))


def test_an_order_that_fails_between_its_steps_is_the_learners_last(make_trainer: Any, tmp_path: Path) -> None:
    trainer = make_trainer(minibatches=4)
    groups = groups_of_all_kinds()
    order = ordered(groups, version=trainer.version)
    spoilt = msgspec.structs.replace(order.groups[2], coefficient=math.nan)
    order = msgspec.structs.replace(order, groups=(*order.groups[:2], spoilt, *order.groups[3:]))
    with pytest.raises(NumericsError, match=r"optimizer step 0\.4, part \d"):
        trainer.train(order, groups, wait=0.0, fetch=0.0)
    with pytest.raises(EntrostatError, match=r"from version 0\.3 failed between its optimizer steps"):
        trained(trainer)
    with pytest.raises(EntrostatError, match="resume the run from its last checkpoint"):
        trainer.save(tmp_path / "step-3", np.zeros(1, np.uint8))
    assert not (tmp_path / "step-3").exists()


def test_what_an_order_and_the_settings_say_reaches_the_objective(folder: Path, tmp_path: Path) -> None:
    smoothed = EntropySettings(tokens=SmoothedTokens(low=0.0, high=1e-6, penalty=0.5))  # every token is outside
    learner = LearnerSettings(lr=RATE, threads=1, aggregation="fixed_length")
    found: list[StepReport] = []
    for entropy, limit, changes in (
        (EntropySettings(), 8, {}),
        (EntropySettings(), 16, {}),
        (EntropySettings(), 8, {"sample_balance": 1.0}),
        (smoothed, 8, {"usual_entropy": 1.0}),
    ):
        rollout = RolloutSettings(max_response_tokens=limit)
        stations = make_stations(folder, tmp_path, learner=learner, entropy=entropy, rollout=rollout)
        trainer = Trainer(stations, make_prompts(), VERSION, shared_memory=tmp_path)
        found.append(trained(trainer, **changes))
        trainer.close()
    plain, longer, balanced, penalised = found
    assert longer.policy_loss == pytest.approx(plain.policy_loss / 2)
    assert balanced.policy_loss != pytest.approx(plain.policy_loss)
    counting = sum(one.weight * one.response_length for one in samples_of(objective()) if one.counts)
    lost = 0.3 * 0.5 * counting / plain.response_tokens
    assert plain.entropy_bonus - penalised.entropy_bonus == pytest.approx(lost, rel=1e-4)
