"""Fits the simulated policy to what real ones did: five runs of the quickstart, and a table of an earlier prototype.

`python -m benchmarks.plant_fit` prints the fit. Nonlinear least squares on ln H: a run's coefficients are replayed
through the plant, and every order's measured ln H̃ is compared (standard deviation NOISE). The prototype was another
policy (H_0 = 0.135 nats, uniform weights): it shares the shape (p, q, H_max, β1) and has its own drift and gain; its
seven entropies weigh with the standard deviation POINT.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from benchmarks.plant import Plant, answer

RECORDED = Path(__file__).parent / "recorded_runs.json"
NOISE = 0.13
POINT = 0.1
PROTOTYPE_FIRST = 0.135  # nats
# Constant coefficient → {order: entropy in nats}: what the prototype's policy did.
PROTOTYPE: dict[float, dict[int, float]] = {
    0.0: {90: 0.067, 100: 0.057},
    0.1: {30: 0.117, 60: 0.117, 90: 0.117},
    0.5: {30: 0.79, 60: 2.07},
}
SHARED = ("late", "early", "fade", "drift_power", "gain", "gain_power")
START = (0.04, 0.05, 12.0, 1.0, 0.5, 1.0, 0.016, 0.015, 0.15)  # … and the prototype's late, early and gain
BOUNDS = ((0.0, 0.0, 1.0, -1.0, 0.0, -3.0, 0.0, 0.0, 0.0), (0.3, 0.3, 200.0, 3.0, 5.0, 3.0, 0.3, 0.3, 5.0))
FIRST_BOUNDS = (-3.0, 0.0)  # ln nats, where a run begins


class Run:
    """One recorded run: before each order, the measured H̃ in nats and the coefficient it was trained with."""

    def __init__(self, recorded: dict[str, Any]) -> None:
        self.name: str = recorded["name"]
        self.measured: NDArray[np.float64] = np.log(np.asarray(recorded["entropy_nats"], np.float64))
        self.coefficients: list[float] = recorded["coefficient"]


def recorded_runs() -> list[Run]:
    return [Run(run) for run in json.loads(RECORDED.read_text())["runs"]]


def prototype_residuals(plant: Plant) -> dict[str, float]:
    """The ln of measured over simulated entropy, for each of the table's points."""
    residuals = {}
    for coefficient, points in PROTOTYPE.items():
        course = answer(plant, [coefficient] * (max(points) + 1), PROTOTYPE_FIRST)
        for order, entropy in points.items():
            residuals[f"{coefficient:g} at {order}"] = math.log(entropy) - float(course[order])
    return residuals


def run_residuals(plant: Plant, run: Run, first: float) -> NDArray[np.float64]:
    """The ln of measured over simulated entropy, order by order."""
    return run.measured - answer(plant, run.coefficients, first)


def plants(values: NDArray[np.float64]) -> tuple[Plant, Plant]:
    """The quickstart's policy and the prototype's, of the fit's parameters."""
    shared: dict[str, Any] = dict(zip(SHARED, map(float, values), strict=False))
    policy = Plant()._replace(**shared)
    late, early, gain = map(float, values[len(SHARED) : len(SHARED) + 3])
    return policy, policy._replace(first=PROTOTYPE_FIRST, late=late, early=early, gain=gain)


def fit() -> dict[str, Any]:
    """Parameters with their standard errors, and what is left: JSON."""
    runs = recorded_runs()

    def residuals(values: NDArray[np.float64]) -> NDArray[np.float64]:
        policy, prototype = plants(values)
        firsts = np.exp(values[len(START) :])
        parts = [run_residuals(policy, run, first) / NOISE for run, first in zip(runs, firsts, strict=True)]
        return np.concatenate([*parts, np.asarray(list(prototype_residuals(prototype).values())) / POINT])

    start = [*START, *(run.measured[0] for run in runs)]
    lower = [*BOUNDS[0], *(FIRST_BOUNDS[0] for _ in runs)]
    upper = [*BOUNDS[1], *(FIRST_BOUNDS[1] for _ in runs)]
    found = least_squares(residuals, start, bounds=(lower, upper))
    errors = np.sqrt(np.diag(np.linalg.inv(found.jac.T @ found.jac)))
    policy, prototype = plants(found.x)
    left = [run_residuals(policy, run, first) for run, first in zip(runs, np.exp(found.x[len(START) :]), strict=True)]
    return {
        "values": dict(zip(SHARED, map(float, found.x), strict=False)),
        "errors": dict(zip(SHARED, map(float, errors), strict=False)),
        "runs": {
            run.name: {
                "deviation": float(part.std()),
                "blocks": [float(part[at : at + 20].mean()) for at in range(0, len(part), 20)],
                "autocorrelation": float(np.corrcoef(part[1:], part[:-1])[0, 1]),
            }
            for run, part in zip(runs, left, strict=True)
        },
        "prototype": prototype_residuals(prototype),
    }


if __name__ == "__main__":
    print(json.dumps(fit(), indent=1))
