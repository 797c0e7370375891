"""Made-up rows of a run, for tests of what reads them."""

import math

from entrostat.rows import EvaluationRow, LevelScore, MetricsRow


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
    """An evaluation of two levels, one of them untrained."""
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
