"""What a trainer reports of an order, and which orders it refuses."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from entrostat.learner.batching import flatten
from entrostat.learner.measures import per_sample
from entrostat.learner.trainer import Trainer
from entrostat.learner.update import accumulate
from entrostat.protocol.entropy_settings import EntropySettings, SmoothedTokens
from entrostat.protocol.errors import ConfigError, EntrostatError, NumericsError
from entrostat.protocol.learner_settings import LearnerSettings
from entrostat.protocol.messages import Group, PolicyVersion, StepReport
from entrostat.protocol.settings import RolloutSettings
from tests.tiny_orders import PARTS, RATE, VERSION, groups_of_all_kinds, objective, ordered, samples_of
from tests.tiny_policy import make_group, make_order, make_policy, make_prompts, make_stations


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_policy(tmp_path_factory.mktemp("policy"))


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


def test_a_trainer_that_is_told_to_pack_reports_the_same_step_without_padding(make_trainer: Any) -> None:
    packed, padded = (trained(make_trainer(packing=how, kl_coefficient=0.3)) for how in ("on", "auto"))
    assert (packed.padding_share, padded.padding_share > 0) == (0.0, True)
    for name in ("entropy", "clamped_entropy", "loss", "gradient_norm", "drift_mean"):
        assert getattr(packed, name) == pytest.approx(getattr(padded, name), rel=1e-4, abs=1e-6), name


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


@pytest.mark.parametrize("token", [-1, 10_000])
def test_tokens_that_are_not_the_policys_are_refused_before_the_step(make_trainer: Any, token: int) -> None:
    trainer, groups = make_trainer(), groups_of_all_kinds()
    order = ordered(groups, version=trainer.version)
    samples = msgspec.structs.replace(groups[2].rollout.samples, tokens=groups[2].rollout.samples.tokens.copy())
    samples.tokens[0] = token
    groups[2] = msgspec.structs.replace(groups[2], rollout=msgspec.structs.replace(groups[2].rollout, samples=samples))
    with pytest.raises(EntrostatError, match="another model or tokenizer"):
        trainer.train(order, groups, wait=0.0, fetch=0.0)
    trainer.train(order, groups_of_all_kinds(), wait=0.0, fetch=0.0)


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
        trainer.save(tmp_path / "step-3", np.zeros(1, np.uint8))()
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


def with_spans(group: Group, *rows: tuple[int, int, int, int]) -> Group:
    samples = msgspec.structs.replace(group.rollout.samples, spans=np.array(rows, np.int32))
    return msgspec.structs.replace(group, rollout=msgspec.structs.replace(group.rollout, samples=samples))


def test_drift_is_measured_apart_on_samples_that_the_measured_version_drew_alone(make_trainer: Any) -> None:
    trainer = make_trainer()
    whole, part = [(0, 0, 0, 3), (1, 0, 0, 3)], [(0, 0, 0, 2), (0, 1, 0, 3), (1, 0, 0, 3)]
    other = [(0, 0, 1, 3), (1, 0, 0, 2)]  # of another branch, and older
    groups = [
        with_spans(make_group(i, rewards=(0.0, 1.0), started=3), *rows) for i, rows in enumerate((whole, part, other))
    ]
    order = make_order(groups, trainer.version)
    samples = flatten(order.groups, groups, trainer._objective.learner)
    tokens = accumulate(make_trainer()._policy, None, samples, trainer._objective, "again").tokens
    report = trainer.train(order, groups, wait=0.0, fetch=0.0).report
    own = torch.isin(tokens.sample, torch.tensor([0, 1, 3]))
    behaviour = np.concatenate([group.rollout.samples.logprobs for group in groups])
    by_sample = torch.tensor(np.concatenate([tokens.logprob[tokens.sample == i].double() for i in range(6)]))
    gap = by_sample - torch.tensor(behaviour).double()
    assert report.fresh is not None
    assert report.fresh.tokens == int(own.sum())
    assert report.fresh.mean == pytest.approx(tokens.drift[own].mean().item())
    assert report.fresh.max == pytest.approx(tokens.drift[own].max().item())
    assert report.drift_max == pytest.approx(tokens.drift.max().item())
    # KL(μ ‖ π) = E_μ[π/μ − 1 − log(π/μ)]
    assert report.drift_kl == pytest.approx((gap.exp() - 1 - gap).mean().item(), rel=1e-5)
    assert report.fresh.kl != pytest.approx(report.drift_kl)


def test_where_older_versions_had_a_part_in_every_sample_nothing_is_fresh(make_trainer: Any) -> None:
    trainer = make_trainer()
    groups = [with_spans(make_group(0, rewards=(0.0, 1.0)), (0, 0, 0, 2), (1, 0, 0, 2), (1, 1, 0, 3))]
    assert trainer.train(make_order(groups, trainer.version), groups, wait=0.0, fetch=0.0).report.fresh is None
