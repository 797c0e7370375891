"""What a run writes down: one `MetricsRow` per optimizer step, one `EvaluationRow` per evaluation."""

import math
from collections.abc import Sequence, Set
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from entrostat.protocol.errors import RunDirectoryError
from entrostat.protocol.messages import ActorView, ControllerView, EvaluationResult, StepReport, Waits
from entrostat.scores import Scores, correct_counts, pass_at, score

Int64 = NDArray[np.int64]
T = TypeVar("T")


class MetricsRow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """One line of `metrics.jsonl`. Entropies in nats per response token; shares 0–1; times in seconds.

    `entropy_nats`, `clamped_entropy_nats` and `sampled_entropy_nats` are of the current policy, measured by the learner
    before the step; `actor_entropy_nats` is of the policies that drew the tokens. Rewards and verdicts are over all
    groups completed for the step, filtered ones too; leases are counted since the run began.
    """

    step: int
    branch: int
    unix_seconds: float
    step_seconds: float
    reward: float
    pass_rate: float
    entropy_nats: float
    clamped_entropy_nats: float
    sampled_entropy_nats: float  # mean −log π of the drawn tokens
    clamped_mass: float
    target_nats: float | None
    low_nats: float | None
    high_nats: float | None
    initial_entropy_nats: float | None
    coefficient: float
    entropy_bonus: float
    loss: float
    policy_loss: float
    kl_nats: float
    policy_push: float | None = None  # where learner.measure_balance asks for it, see `BalanceReport`
    bonus_push: float | None = None
    gradient_norm: float
    learning_rate: float
    clip_share: float
    truncated_weight_share: float
    drift_mean_nats: float
    drift_max_nats: float
    mismatch_nats: float
    staleness_mean: float
    staleness_max: int
    tokens: int
    tokens_per_second: float
    mean_response_tokens: float
    truncated: int
    unparsable: int
    timeouts: int
    errors: int
    padding_share: float
    wait_seconds: float
    fetch_seconds: float
    forward_backward_seconds: float
    optimizer_seconds: float
    publish_seconds: float
    update_seconds: float
    leases_expired: int
    leases_stale: int
    leases_filtered: int
    law_frozen: int
    actors: int
    memory_gib: float
    difficulty: tuple[int, ...]
    law_entropy_nats: float | None = None  # what the law was told: at the mix of levels that H_0 was measured at
    sample_balance: float = 0.0
    masked_share: float = 0.0  # samples
    actor_entropy_nats: float | None = None  # mean −log μ of all groups' tokens, μ what drew them
    level_entropy_nats: dict[str, float] = msgspec.field(default_factory=dict)  # H̃, level by level
    age_entropy_nats: tuple[float | None, ...] = ()  # H̃ of groups begun 0, 1, … versions before …
    age_actor_entropy_nats: tuple[float | None, ...] = ()  # … and the mean −log μ of their tokens, k versions old
    drift_kl_nats: float = 0.0  # of what drew the tokens to the current policy, k3
    fresh_drift_nats: float | None = None  # mean |log π − log μ| of tokens that the version trained from drew itself …
    fresh_drift_max_nats: float | None = None
    fresh_drift_kl_nats: float | None = None
    fresh_tokens: int = 0  # … and how many these are
    prompts_passed_over: int = 0  # turns at which a prompt was not drawn, since the run began, see `MixedResults`
    wait_cause_seconds: dict[str, float] = msgspec.field(default_factory=dict)  # the learner's waits, see `Waits`


def metrics_row(
    report: StepReport,
    view: ControllerView,
    actors: list[ActorView],
    *,
    unix_seconds: float,
    step_seconds: float,
    coefficient: float,
    samples: int,
    memory_gib: float,
    waits: Waits,
) -> MetricsRow:
    """One optimizer step as a line, from what the three kinds of station said of it."""
    ages = np.repeat(np.arange(len(view.staleness)), view.staleness)
    _, _, unparsable, timeouts, errors = view.statuses
    return MetricsRow(
        step=report.version.step,
        branch=report.version.branch,
        unix_seconds=unix_seconds,
        step_seconds=step_seconds,
        reward=view.reward,
        pass_rate=view.pass_rate,
        entropy_nats=report.entropy,
        clamped_entropy_nats=report.clamped_entropy,
        sampled_entropy_nats=report.sampled_entropy,
        clamped_mass=report.clamped_mass,
        target_nats=view.target,
        low_nats=view.low,
        high_nats=view.high,
        initial_entropy_nats=view.initial_entropy,
        coefficient=coefficient,
        entropy_bonus=report.entropy_bonus,
        loss=report.loss,
        policy_loss=report.policy_loss,
        kl_nats=report.kl_nats,
        policy_push=None if report.balance is None else report.balance.policy_push,
        bonus_push=None if report.balance is None else report.balance.bonus_push,
        gradient_norm=report.gradient_norm,
        learning_rate=report.learning_rate,
        clip_share=report.clip_share,
        truncated_weight_share=report.truncated_weight_share,
        drift_mean_nats=report.drift_mean,
        drift_max_nats=report.drift_max,
        mismatch_nats=max((actor.max_mismatch for actor in actors), default=0.0),
        staleness_mean=float(ages.mean()) if ages.size else 0.0,
        staleness_max=int(ages.max()) if ages.size else 0,
        tokens=report.response_tokens,
        tokens_per_second=report.response_tokens / step_seconds,
        mean_response_tokens=report.response_tokens / samples,
        truncated=view.truncated,
        unparsable=unparsable,
        timeouts=timeouts,
        errors=errors,
        padding_share=report.padding_share,
        wait_seconds=report.phases.wait,
        fetch_seconds=report.phases.fetch,
        forward_backward_seconds=report.phases.forward_backward,
        optimizer_seconds=report.phases.optimizer,
        publish_seconds=report.phases.publish,
        update_seconds=max((actor.update_seconds for actor in actors), default=0.0),
        leases_expired=view.leases.expired,
        leases_stale=view.leases.stale,
        leases_filtered=view.leases.filtered,
        law_frozen=view.frozen_updates,
        actors=len(actors) if actors else view.actors,  # none are at hand for a step that was trained again
        memory_gib=memory_gib,
        difficulty=view.difficulty,
        law_entropy_nats=_or_none(view.measured_entropy),
        sample_balance=view.sample_balance,
        masked_share=report.masked_share,
        actor_entropy_nats=_or_none(view.actor_entropy),
        level_entropy_nats={level.level: level.clamped_entropy for level in report.levels},
        age_entropy_nats=tuple(_or_none(entropy) for entropy in report.ages),
        drift_kl_nats=report.drift_kl,
        fresh_drift_nats=None if report.fresh is None else report.fresh.mean,
        fresh_drift_max_nats=None if report.fresh is None else report.fresh.max,
        fresh_drift_kl_nats=None if report.fresh is None else report.fresh.kl,
        fresh_tokens=0 if report.fresh is None else report.fresh.tokens,
        age_actor_entropy_nats=tuple(_or_none(entropy) for entropy in view.actor_ages),
        prompts_passed_over=view.passed_over,
        wait_cause_seconds=msgspec.structs.asdict(waits),
    )


def _or_none(entropy: float) -> float | None:
    """JSON has no NaN."""
    return entropy if math.isfinite(entropy) else None


class LevelScore(msgspec.Struct, frozen=True, kw_only=True):
    """How one level of difficulty fared in an evaluation."""

    level: str
    trained: bool  # whether the run trains on this level
    prompts: int
    pass_at_1: float
    pass_at_8: float | None  # None with fewer than 8 samples
    scores: Scores | None = None  # all there is to tell; None in rows of earlier releases


class EvaluationRow(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `evaluations.jsonl`: scores over the prompts of the trained levels, and by level.

    Where no level is one the run trains on, all prompts count.
    """

    step: int
    branch: int
    prompts: int
    samples: int
    pass_at_1: float
    pass_at_8: float | None
    entropy_nats: float  # mean −log π of what was sampled
    mean_tokens: float
    seconds: float
    levels: tuple[LevelScore, ...]
    scores: Scores | None = None  # all there is to tell; None in rows of earlier releases
    correct: tuple[int, ...] = ()  # [prompts] of `samples`: what another evaluation of the same prompts is held against
    asked: str = ""  # a digest of all prompts: equal where they are the same


def evaluation_row(result: EvaluationResult, trained_levels: Set[str], k: Sequence[int]) -> EvaluationRow:
    """An evaluation's samples as scores; each k is at most `result.samples`."""
    names = np.array(result.levels)
    trained = np.isin(names, list(trained_levels))
    if not trained.any():
        trained = np.ones_like(trained)
    correct = correct_counts(result)
    whole = score(result, trained, k)
    return EvaluationRow(
        step=result.version.step,
        branch=result.version.branch,
        prompts=int(trained.sum()),
        samples=result.samples,
        pass_at_1=_pass_rate(1, correct[trained], result.samples),
        pass_at_8=_pass_rate(8, correct[trained], result.samples) if result.samples >= 8 else None,
        entropy_nats=whole.entropy_nats.mean,
        mean_tokens=whole.tokens.mean,
        seconds=result.seconds,
        levels=tuple(
            LevelScore(
                level=level,
                trained=bool(trained[chosen].all()),
                prompts=int(chosen.sum()),
                pass_at_1=_pass_rate(1, correct[chosen], result.samples),
                pass_at_8=_pass_rate(8, correct[chosen], result.samples) if result.samples >= 8 else None,
                scores=score(result, chosen, k),
            )
            for level in dict.fromkeys(result.levels)
            for chosen in (names == level,)
        ),
        scores=whole,
        correct=tuple(int(count) for count in correct[trained]),
        asked=result.prompts,
    )


def pass_rates(row: EvaluationRow) -> NDArray[np.float64]:
    """`[prompts]` share of each prompt's samples that were correct; none in a row of an earlier release."""
    return np.array(row.correct, np.float64) / row.samples


def _pass_rate(k: int, correct: Int64, samples: int) -> float:
    return float(pass_at(k, correct, samples).mean())


def read_metrics(path: Path) -> list[MetricsRow]:
    """All rows of a `metrics.jsonl`; none where there is no file yet.

    Raises:
        RunDirectoryError: a line is no row; names it.
    """
    return _rows(path, MetricsRow)


def read_evaluations(path: Path) -> list[EvaluationRow]:
    """All rows of an `evaluations.jsonl`; none where there is no file yet.

    Raises:
        RunDirectoryError: a line is no row; names it.
    """
    return _rows(path, EvaluationRow)


def _rows(path: Path, kind: type[T]) -> list[T]:
    decoder, rows = msgspec.json.Decoder(kind), []
    content = path.read_bytes() if path.exists() else b""
    # A line without its end was being written when the process or the machine died: it never was a row.
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            rows.append(decoder.decode(line))
        except msgspec.DecodeError as error:
            raise RunDirectoryError(
                f"{path}:{number} is not a row this release writes ({error}): restore the file from a copy, or remove "
                "the line"
            ) from error
    return rows
