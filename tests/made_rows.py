"""Made-up rows of a run, for tests of what reads them."""

import math

import numpy as np

from entrostat import rows
from entrostat.protocol.messages import NO_VOTE, STATUSES, EvaluationResult, PolicyVersion
from entrostat.protocol.moments import Moments
from entrostat.rows import EvaluationRow, LevelScore, MetricsRow
from entrostat.scores import tries


def metrics_row(step: int, **changes: object) -> MetricsRow:
    """A plausible step: rising reward, falling entropy."""
    numbers: dict[str, object] = dict.fromkeys(MetricsRow.__struct_fields__, 0.0)
    numbers |= {
        "step": step,
        "branch": 0,
        "step_seconds": 2.0,
        "reward": 0.3 + 0.01 * step,
        "entropy_nats": 0.2 * math.exp(-0.01 * step),
        "clamped_entropy_nats": 0.19 * math.exp(-0.01 * step),
        "target_nats": 0.15,
        "low_nats": None,
        "high_nats": None,
        "initial_entropy_nats": 0.2,
        "coefficient": 0.05,
        "mismatch_nats": 1e-6 * step,
        "staleness_max": step % 2,
        "tokens": 1000,
        "truncated": 0,
        "unparsable": 0,
        "timeouts": 0,
        "errors": 0,
        "leases_expired": 0,
        "leases_stale": 0,
        "leases_filtered": 0,
        "prompts_passed_over": 0,
        "law_frozen": 0,
        "actors": 1,
        "fresh_tokens": 0,
        "difficulty": tuple(range(10)),
        "law_entropy_nats": 0.19 * math.exp(-0.01 * step),
        "level_entropy_nats": {"3 terms": 0.15 * math.exp(-0.01 * step), "5 terms": 0.2},
        "age_entropy_nats": (0.19, None),
        "age_actor_entropy_nats": (0.21, None),
        "wait_cause_seconds": {"sampling": 0.3, "weights": 0.1, "evaluation": 0.0},
    }
    return MetricsRow(**(numbers | changes))  # type: ignore[arg-type]  # the fields are named by the class itself


def evaluation_row(step: int, pass_at_1: float) -> EvaluationRow:
    """An evaluation of two levels, one of them untrained, as releases before this one wrote it."""
    levels = (
        LevelScore(level="3 terms", trained=True, prompts=100, pass_at_1=pass_at_1, pass_at_8=0.9),
        LevelScore(level="6 terms", trained=False, prompts=100, pass_at_1=0.1, pass_at_8=0.2),
    )
    return EvaluationRow(
        step=step,
        branch=0,
        prompts=100,
        samples=8,
        pass_at_1=pass_at_1,
        pass_at_8=0.9,
        entropy_nats=0.2,
        mean_tokens=20.0,
        seconds=5.0,
        levels=levels,
    )


def evaluation_result(
    correct: list[int], samples: int, *, step: int = 0, levels: tuple[str, ...] = (), answer: int = NO_VOTE
) -> EvaluationResult:
    """So many correct samples of each prompt; the others vote for `answer`, and every response has 20 tokens."""
    wrong = np.arange(samples)[None, :] >= np.array(correct)[:, None]
    shape = wrong.shape
    return EvaluationResult(
        version=PolicyVersion(branch=0, step=step),
        prompts="made up",
        levels=levels or ("3 terms",) * len(correct),
        samples=samples,
        statuses=np.where(wrong, STATUSES.index("wrong"), 0).astype(np.uint8),
        rewards=np.where(wrong, 0.0, 1.0).astype(np.float32),
        votes=np.where(wrong, answer, 0).astype(np.int32),
        lengths=np.full(shape, 20, np.int32),
        finish=np.zeros(shape, np.uint8),
        surprise=(Moments(count=20 * samples, mean=0.2, squares=1.0),) * len(correct),
        seconds=5.0,
    )


def scored_row(step: int, pass_at_1: float, *, prompts: int = 200, samples: int = 8) -> EvaluationRow:
    """An evaluation of two levels of as many prompts, the second harder and untrained, with all its scores."""
    rates = np.random.default_rng(step).beta(2 * pass_at_1, 2 * (1 - pass_at_1), prompts)
    correct = np.random.default_rng(step + 1).binomial(samples, np.concatenate([rates, rates / 3]))
    levels = ("3 terms",) * prompts + ("6 terms",) * prompts
    result = evaluation_result([int(count) for count in correct], samples, step=step, levels=levels, answer=1)
    return rows.evaluation_row(result, {"3 terms"}, tries(samples))
