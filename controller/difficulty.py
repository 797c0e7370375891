"""How hard each prompt is for the policy of now: a decayed Beta estimate per prompt, and the weight it gives.

The clock is policy versions, not visits. With half-life `h`, samples drawn `Δ` versions ago count `2^(−Δ/h)`:

    s, f ← 2^(−Δ/h)·(s, f) + (successes, failures)
    a = m0·p_level + s        b = m0·(1 − p_level) + f        pass rate ~ Beta(a, b)
    w_q = w_min + (1 − w_min)·E[w(pass rate)]

m0 is the prior's strength in samples. `p_level = (s + ½) / (s + f + 1)` of the level's own decayed counts, so that a
level of which nothing is known starts at ½ and the prior never degenerates. The expectation is of the weight, not the
weight of the expectation: a prompt of which little is known keeps some weight.

That is `difficulty = "streaming"`, and it is ours. AER (arXiv 2510.10959) publishes a weight by the pass rate g of the
group itself, at once: `difficulty = "group"`, w_q = w(g) by `group_weights`, without prior, decay or w_min. AER as
published is "group" with `normalise = false`, under the anchored law; the form of w is ours in both.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc  # pyright: ignore[reportMissingTypeStubs]

from entrostat.protocol.arrays import Float32, Int32
from entrostat.protocol.entropy_settings import WeightSettings
from entrostat.protocol.errors import CheckpointDamaged, ConfigError
from entrostat.protocol.messages import GroupReport

Float64 = NDArray[np.float64]
Form = Literal["uniform", "hinge", "indicator", "linear"]

NEVER = -1  # `last` of a row that was never observed
BINS = 10
CHUNK_ROWS = 1 << 20  # bounds the histogram's working memory


def difficulty_weight(pass_rate: ArrayLike, *, form: Form, threshold: float) -> Float64:
    """The weight `w(g)` of prompts with pass rates `g`, elementwise, in [0, 1].

    `hinge`: max(0, (ρ − g)/ρ) · `indicator`: 1[g ≤ ρ] · `linear`: 1 − g · `uniform`: 1, with ρ the threshold (AER,
    arXiv 2510.10959; its own form is not published, these are ours).

    Raises:
        ConfigError: a pass rate is outside [0, 1], the threshold outside (0, 1], or the form unknown.
    """
    if form not in get_args(Form):
        raise ConfigError(f"a difficulty weight of form {form!r} is unknown; expected one of {get_args(Form)}")
    rate = np.asarray(pass_rate, dtype=np.float64)
    if not bool(np.all((rate >= 0.0) & (rate <= 1.0))) or not 0.0 < threshold <= 1.0:
        raise ConfigError(
            f"a difficulty weight needs pass rates in [0, 1] and a threshold in (0, 1]; got {rate} and {threshold}"
        )
    match form:
        case "hinge":
            return np.asarray(np.maximum(0.0, (threshold - rate) / threshold))
        case "indicator":
            return np.asarray(rate <= threshold, dtype=np.float64)
        case "linear":
            return np.asarray(1.0 - rate)
        case "uniform":
            return np.ones_like(rate)


def expected_weight(a: Float64, b: Float64, *, form: Form, threshold: float) -> Float64:
    """E[w(g)] for g ~ Beta(a, b), elementwise, in [0, 1].

    With I the regularised incomplete beta function and μ = a/(a+b): `hinge` I_ρ(a, b) − (μ/ρ)·I_ρ(a+1, b) ·
    `indicator` I_ρ(a, b) · `linear` 1 − μ · `uniform` 1.
    """
    mean = a / (a + b)
    if form == "hinge":
        below: Float64 = betainc(a, b, threshold)
        share: Float64 = betainc(a + 1.0, b, threshold)
        # The difference of two nearly equal numbers may round to just outside.
        return np.clip(below - mean / threshold * share, 0.0, 1.0)
    if form == "indicator":
        return np.asarray(betainc(a, b, threshold), dtype=np.float64)
    if form == "linear":
        return 1.0 - mean
    return np.ones_like(mean)


def mixed_chance(a: float, b: float, samples: int) -> float:
    """P(mixed) = 1 − E[g^G] − E[(1−g)^G] for g ~ Beta(a, b): that G samples are neither all right nor all wrong.

    E[g^G] = Γ(a+G)·Γ(a+b) / (Γ(a)·Γ(a+b+G)), and the other with b for a.
    """
    both = math.lgamma(a + b) - math.lgamma(a + b + samples)
    right = math.exp(math.lgamma(a + samples) - math.lgamma(a) + both)
    wrong = math.exp(math.lgamma(b + samples) - math.lgamma(b) + both)
    return max(0.0, 1.0 - right - wrong)  # which may round to just below


def most_mixed(samples: int) -> float:
    """The largest P(mixed) there is, of a pass rate of ½: 1 − 2^(1−G)."""
    return 1.0 - 2.0 ** (1 - samples)


def group_weights(reports: Sequence[GroupReport], settings: WeightSettings) -> Float64:
    """`[groups]` w(g) of each group's own pass rate, raw: AER's, see above."""
    rates = [report.statuses.count("correct") / len(report.statuses) for report in reports]
    return difficulty_weight(rates, form=settings.form, threshold=settings.threshold)


class CountsSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The columns of a `DecayedCounts`."""

    successes: Float32  # [rows]
    failures: Float32  # [rows]
    last: Int32  # [rows] policy step the row is decayed to, NEVER where nothing was observed


class DecayedCounts:
    """Successes and failures per row, decayed by policy steps; 12 bytes a row.

    Rows may be observed out of order: older samples enter already decayed, so the order of reports does not matter.
    """

    def __init__(self, rows: int, half_life: float) -> None:
        self._half_life = half_life
        self._successes = np.zeros(rows, np.float32)
        self._failures = np.zeros(rows, np.float32)
        self._last = np.full(rows, NEVER, np.int32)

    def observe(self, row: int, step: int, successes: float, failures: float) -> None:
        """Enters samples drawn by the policy of `step`."""
        last = int(self._last[row])
        if step > last:
            decay = 0.0 if last == NEVER else 2.0 ** ((last - step) / self._half_life)
            self._successes[row] = float(self._successes[row]) * decay + successes
            self._failures[row] = float(self._failures[row]) * decay + failures
            self._last[row] = step
        else:
            decay = 2.0 ** ((step - last) / self._half_life)
            self._successes[row] += successes * decay
            self._failures[row] += failures * decay

    def at(self, rows: Any, step: int) -> tuple[Float64, Float64]:
        """Successes and failures of `rows` (an index or slice), decayed to `step`."""
        age = np.maximum(step - self._last[rows].astype(np.float64), 0.0)
        decay = np.exp2(-age / self._half_life)
        successes: Float64 = self._successes[rows].astype(np.float64) * decay
        failures: Float64 = self._failures[rows].astype(np.float64) * decay
        return successes, failures

    def of(self, row: int, step: int) -> tuple[float, float]:
        """`at` of one row, in a tenth of the time."""
        last = self._last.item(row)
        decay = 2.0 ** ((last - step) / self._half_life) if step > last else 1.0
        return self._successes.item(row) * decay, self._failures.item(row) * decay

    def visited(self, rows: Any) -> NDArray[np.bool_]:
        """Which of `rows` were observed at least once."""
        return np.asarray(self._last[rows] != NEVER)

    def snapshot(self) -> CountsSnapshot:
        """A copy of the columns."""
        return CountsSnapshot(successes=self._successes.copy(), failures=self._failures.copy(), last=self._last.copy())

    def restore(self, snapshot: CountsSnapshot) -> None:
        """Takes over a snapshot's columns.

        Raises:
            CheckpointDamaged: they have another number of rows.
        """
        columns = (snapshot.successes, snapshot.failures, snapshot.last)
        if any(column.shape != self._last.shape for column in columns):
            raise CheckpointDamaged(
                f"the controller's snapshot has {[column.size for column in columns]} rows of difficulty, "
                f"the run has {self._last.size}: resume with the tasks the run was started with"
            )
        self._successes, self._failures, self._last = (
            snapshot.successes.copy(),
            snapshot.failures.copy(),
            snapshot.last.copy(),
        )


class DifficultySnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a `DifficultyTable` has learnt."""

    prompts: CountsSnapshot
    levels: CountsSnapshot
    names: tuple[str, ...]  # of the levels, in the rows' order


class DifficultyTable:
    """Expected pass rates and weights of all prompts; 16 bytes a prompt.

    Args:
        levels: `[prompts]` the level of each prompt.
        settings: the form of the weight and the estimate's constants.
    """

    def __init__(self, levels: Sequence[str], settings: WeightSettings) -> None:
        self._settings = settings
        numbers: dict[str, int] = {}
        rows = (numbers.setdefault(level, len(numbers)) for level in levels)
        self._level = np.fromiter(rows, np.int32, len(levels))
        self.names = tuple(numbers)
        self._prompts = DecayedCounts(len(levels), settings.half_life_versions)
        self._levels = DecayedCounts(len(self.names), settings.half_life_versions)

    @property
    def level_numbers(self) -> Int32:
        """`[prompts]` each one's level, as an index into `names`."""
        return self._level

    def level_of(self, prompt: int) -> str:
        """The name of a prompt's level."""
        return self.names[int(self._level[prompt])]

    def observe(self, prompt: int, step: int, successes: int, failures: int) -> None:
        """Enters a group of samples, drawn by the policy of `step`, for its prompt and its level."""
        self._prompts.observe(prompt, step, successes, failures)
        self._levels.observe(int(self._level[prompt]), step, successes, failures)

    def level_rates(self, step: int) -> Float64:
        """`[levels]` p_level at `step`."""
        successes, failures = self._levels.at(slice(None), step)
        return np.asarray((successes + 0.5) / (successes + failures + 1.0))

    def beta(self, prompts: Any, step: int) -> tuple[Float64, Float64]:
        """The parameters a and b of the pass rates of `prompts` (an index or slice) at `step`."""
        prior = self._settings.prior
        rate = self.level_rates(step)[self._level[prompts]]
        successes, failures = self._prompts.at(prompts, step)
        return prior * rate + successes, prior * (1.0 - rate) + failures

    def mixed(self, prompt: int, step: int, samples: int, prior: float) -> float:
        """P(mixed) of so many samples of a prompt at `step`, as a share of the largest there is, in [0, 1].

        With a prior of another strength than `beta`: see `MixedResults`.
        """
        successes, failures = self._levels.of(self._level.item(prompt), step)
        rate = (successes + 0.5) / (successes + failures + 1.0)
        successes, failures = self._prompts.of(prompt, step)
        return mixed_chance(prior * rate + successes, prior * (1.0 - rate) + failures, samples) / most_mixed(samples)

    def weights(self, prompts: Any, step: int) -> Float64:
        """w_q of `prompts` at `step`, not yet normalised, in [w_min, 1]."""
        a, b = self.beta(prompts, step)
        minimum = self._settings.minimum
        expected = expected_weight(a, b, form=self._settings.form, threshold=self._settings.threshold)
        return minimum + (1.0 - minimum) * expected

    def histogram(self, step: int) -> tuple[int, ...]:
        """Visited prompts by expected pass rate at `step`, in ten equal bins."""
        counts = np.zeros(BINS, np.int64)
        for start in range(0, self._level.size, CHUNK_ROWS):
            rows = np.flatnonzero(self._prompts.visited(slice(start, start + CHUNK_ROWS))) + start
            a, b = self.beta(rows, step)
            bins = np.minimum((a / (a + b) * BINS).astype(np.int64), BINS - 1)
            counts += np.bincount(bins, minlength=BINS)
        return tuple(int(count) for count in counts)

    def snapshot(self) -> DifficultySnapshot:
        """A copy of everything learnt."""
        return DifficultySnapshot(prompts=self._prompts.snapshot(), levels=self._levels.snapshot(), names=self.names)

    def restore(self, snapshot: DifficultySnapshot) -> None:
        """Takes over a snapshot.

        Raises:
            CheckpointDamaged: it belongs to other prompts.
        """
        if snapshot.names != self.names:
            raise CheckpointDamaged(
                f"the controller's snapshot knows the levels {list(snapshot.names)}, the run has {list(self.names)}: "
                "resume with the tasks the run was started with"
            )
        self._prompts.restore(snapshot.prompts)
        self._levels.restore(snapshot.levels)
