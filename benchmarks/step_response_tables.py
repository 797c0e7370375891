"""The step response's numbers as Markdown."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.cells import interval, table

NOWHERE = "never"
OSCILLATES_ABOVE = 0.5  # ringing; noise alone through a damped loop leaves about 0.2–0.3

Answer = dict[str, Any]


class Axes(NamedTuple):
    """What the numbers run over."""

    lags: tuple[int, ...]
    few_lags: tuple[int, ...]
    factors: tuple[float, ...]
    rises: tuple[float, ...]
    seeds: int


def best(responses: dict[str, dict[str, Answer]]) -> dict[str, list[str]]:
    """Law → per lag, its variant with the smallest mean error at constant drift."""

    def error(answer: Answer, lag: int) -> float:
        return float(np.mean(answer["constant"][lag]["error"]))

    return {
        law: [
            min(variants, key=lambda name: error(variants[name], lag))
            for lag in range(len(next(iter(variants.values()))["constant"]))
        ]
        for law, variants in responses.items()
    }


def render(
    *,
    fitted: Answer,
    responses: dict[str, dict[str, Answer]],
    wrong: dict[str, Answer],
    rising: Answer,
    conditions: Answer,
    quickstart: Answer,
    axes: Axes,
) -> str:
    """The whole fragment."""
    chosen = {law: [responses[law][variant] for variant in variants] for law, variants in best(responses).items()}
    spread = f"mean and 95 % bootstrap interval over {axes.seeds} seeds"
    by_lag = ["law", *(f"lag {lag}" for lag in axes.lags)]
    by_few = [f"lag {lag}" for lag in axes.few_lags]
    few = " / ".join(map(str, axes.few_lags))
    parts = [
        f"**Mean |ln(H/H\\*)| of the true entropy at constant drift**, percent, {spread}. Published "
        "laws: at each lag the best of three rates.",
        _errors(by_lag, chosen, "constant", "error"),
        "**The same with the way there**: from order 20 on, when drift alone has brought the entropy to its target.",
        _errors(by_lag, chosen, "constant", "tracking"),
        "**The same as the first while the drift swings by ±50 %**, there and back in 200 orders.",
        _errors(by_lag, chosen, "swinging", "error"),
        "**Without noise**, constant drift: orders until |ln(H/H\\*)| stays below 10 % · undershoot in percent · "
        "amplitude of what goes on at the end in percent. **With noise**: ringing, the autocorrelation's first peak "
        f"after its first trough; above {OSCILLATES_ABOVE:g} (bold) the course oscillates by itself.",
        _rest(by_lag, chosen),
        f"**Gains wrong**: mean |ln(H/H\\*)| in percent at lags {few}, {axes.seeds} seeds.",
        *(_wrong(law, answer, axes.factors) for law, answer in wrong.items()),
        "**The drift turns upward**: constant until order 150, then lifted within 100 orders until ln H rises by "
        "itself, at the target by as much an order as stands above, in units of the â by which it fell. Laws are told "
        "of the fall alone. Orders 150–550, percent: mean |ln(H/H\\*)|; mean ln(H/H\\*). Published laws: in each "
        "column the best of three rates.",
        _rising(rising, axes),
        "**The policy is not what the thermostat believes**: the first table's error, percent.",
        table(["condition", *by_few], [[name, *map(_spread, rows)] for name, rows in conditions.items()]),
        "**The quickstart simulated**: its fast early drift, its settings (â = 0.03, ĉ = 0.06), orders 30–100, "
        "percent: mean |ln(H/H\\*)|; mean ln(H/H\\*).",
        table(["law", *by_few], [[name, *map(_signed, rows)] for name, rows in quickstart.items()]),
        "**The simulated policy's fit**: parameters with standard errors, and residuals ln(measured/simulated).",
        _fit(fitted),
    ]
    return "\n\n".join(parts) + "\n"


def _mean(row: Answer, key: str) -> float:
    return float(np.mean(row[key]))


def _spread(row: Answer, key: str = "error") -> str:
    mean, low, high = interval(row[key])
    return f"{mean:.1f} ({low:.1f}–{high:.1f})"


def _signed(row: Answer) -> str:
    return f"{_spread(row)}; {_mean(row, 'bias'):+.1f}"


def _errors(header: Sequence[str], chosen: dict[str, list[Answer]], drift: str, key: str) -> str:
    rows = [
        [law, *(_spread(answer[drift][lag], key) for lag, answer in enumerate(answers))]
        for law, answers in chosen.items()
    ]
    return table(header, rows)


def _rest(header: Sequence[str], chosen: dict[str, list[Answer]]) -> str:
    def one(row: Answer, lag: int) -> str:
        still, rings = row["still"][lag], _mean(row["constant"][lag], "ringing")
        settled = NOWHERE if still["settling"] is None else str(still["settling"])
        ringing = f"**{rings:.2f}**" if rings > OSCILLATES_ABOVE else f"{rings:.2f}"
        return f"{settled} · {still['overshoot']:.0f} · {still['swing']:.1f}; {ringing}"

    return table(header, [[law, *(one(row, lag) for lag, row in enumerate(rows))] for law, rows in chosen.items()])


def _rising(rising: Answer, axes: Axes) -> str:
    header = ["law", *(f"rises by {rise:g} â, lag {lag}" for rise in axes.rises for lag in axes.few_lags)]
    rows: list[list[str]] = []
    for law, variants in rising.items():
        columns = zip(*([one for rise in answer for one in rise] for answer in variants.values()), strict=True)
        rows.append([law, *(_signed(min(column, key=lambda one: _mean(one, "error"))) for column in columns)])
    return table(header, rows)


def _wrong(law: str, answer: Answer, factors: Sequence[float]) -> str:
    header = [f"{law}: told â ×", *(f"told ĉ × {balance:g}" for balance in factors)]
    return table(
        header,
        [
            [
                f"{drift:g}",
                *(
                    " / ".join(f"{_mean(row, 'error'):.1f}" for row in answer[f"{drift:g},{balance:g}"])
                    for balance in factors
                ),
            ]
            for drift in factors
        ],
    )


def _fit(fitted: Answer) -> str:
    values = [[name, f"{value:.3g} ± {fitted['errors'][name]:.2g}"] for name, value in fitted["values"].items()]
    runs = [
        [
            name,
            f"{run['deviation']:.3f}",
            " ".join(f"{block:+.2f}" for block in run["blocks"]),
            f"{run['autocorrelation']:.2f}",
        ]
        for name, run in fitted["runs"].items()
    ]
    points = [[name, f"{left:+.2f}"] for name, left in fitted["prototype"].items()]
    return "\n\n".join(
        [
            table(["parameter", "value"], values),
            table(["run", "standard deviation", "means of 20 orders each", "autocorrelation, next order"], runs),
            table(["prototype: coefficient and order", "residual"], points),
        ]
    )
