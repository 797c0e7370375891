"""How well each control law brings a simulated policy's entropy to its target and holds it there, at every lag.

`python -m benchmarks.step_response` writes `results/step_response/table.md` and `docs/step_response.png`; with its
cells at hand it only puts them together. One core, less than two minutes. The policy is fitted to recorded runs
(`plant_fit.py`).
"""

from typing import Any

import numpy as np

from benchmarks import step_response_figure, step_response_tables
from benchmarks.cells import RESULTS, ROOT, cell
from benchmarks.closed_loop import Course, drive, overshoot, ringing, settling, swing
from benchmarks.contenders import CONTENDERS, RISING, LogProportionalIntegral, Maker, Setting, thermostat
from benchmarks.plant import Plant
from benchmarks.plant_fit import fit

NAME = "step_response"
LOOP_CODE = (
    "benchmarks/plant.py",
    "benchmarks/closed_loop.py",
    "benchmarks/contenders.py",
    "benchmarks/step_response.py",
)
LAW_CODE = (
    "controller/coefficient.py",
    "controller/measurement.py",
    "controller/response.py",
    "controller/thermostat.py",
    "controller/updates.py",
    "protocol/entropy_settings.py",
)
FIT_CODE = ("benchmarks/plant.py", "benchmarks/plant_fit.py")

SEEDS = 20
LAGS = (0, 1, 2, 3, 4, 5, 6, 7, 8)
FEW_LAGS = (1, 4, 8)
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
ORDERS = 400
TRANSIENT = 150  # orders that no mean error counts
REACHABLE = 20  # orders the drift alone takes from H_0 to the target: from then on a law can track it
SWING = 0.5  # of the drift, there and back in 200 orders …
SLOW_PERIOD = 400.0  # … or from end to end
SWINGING_ORDERS = 550  # transient, and two of the short periods or one of the long
RISES = (0.5, 1.5)  # of â: how fast ln H comes to rise by itself at the target; the thermostat's cooling holds 1
RISING_ORDERS = 550  # transient, after which the drift turns within 100, and 300 more
QUICKSTART_ORDERS = 100
QUICKSTART_TRANSIENT = 30
QUICKSTART = (0.03, 0.06)  # what the quickstart's thermostat is told: â, ĉ
PERCENT = 100.0

CONSTANT = Plant().constant
SWINGING = CONSTANT._replace(swing=SWING)
Answer = dict[str, Any]


def main() -> None:
    """Computes what is missing, and writes table and figure."""
    responses = {
        law: {variant: response(law, variant, make) for variant, make in variants.items()}
        for law, variants in CONTENDERS.items()
    }
    text = step_response_tables.render(
        fitted=cell(NAME, "fit", {}, FIT_CODE, fit),
        responses=responses,
        wrong={"thermostat": wrong("thermostat", thermostat), "log-space PI": wrong("log", LogProportionalIntegral)},
        rising=rising(),
        conditions=conditions(),
        quickstart=quickstart(),
        axes=step_response_tables.Axes(lags=LAGS, few_lags=FEW_LAGS, factors=FACTORS, rises=RISES, seeds=SEEDS),
    )
    folder = RESULTS / NAME
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(text)
    step_response_figure.draw(ROOT / "docs" / "step_response.png", CONSTANT, step_response_tables.best(responses))


def response(law: str, variant: str, make: Maker) -> Answer:
    """A law at every lag: at constant and at swinging drift, and without any noise."""
    config = {"law": law, "variant": variant, "plant": CONSTANT._asdict(), "swing": SWING, "seeds": SEEDS}

    def compute() -> Answer:
        return {
            "constant": [steady(make, Setting(CONSTANT, lag)) for lag in LAGS],
            "swinging": [steady(make, Setting(SWINGING, lag), SWINGING_ORDERS) for lag in LAGS],
            "still": [at_rest(make, Setting(CONSTANT.still, lag)) for lag in LAGS],
        }

    number = list(CONTENDERS[law]).index(variant)
    return cell(NAME, f"{law.replace(' ', '-')}-{number}", config, (*LOOP_CODE, *LAW_CODE), compute)


def wrong(name: str, make: Maker) -> Answer:
    """A law whose â and ĉ are wrong by each pair of factors: `â factor,ĉ factor` → per lag, as `steady`."""
    config = {"law": name, "plant": CONSTANT._asdict(), "factors": FACTORS, "seeds": SEEDS}

    def compute() -> Answer:
        return {
            f"{drift:g},{balance:g}": [steady(make, Setting(CONSTANT, lag, drift, balance)) for lag in FEW_LAGS]
            for drift in FACTORS
            for balance in FACTORS
        }

    return cell(NAME, f"wrong-{name}", config, (*LOOP_CODE, *LAW_CODE), compute)


def rising() -> Answer:
    """Laws that are told the drift there was before it turned: law → variant → per rise and lag, as `steady`."""
    setting = Setting(CONSTANT, 0)
    plants = [CONSTANT._replace(lift=(1.0 + rise) * setting.drift, lift_after=TRANSIENT) for rise in RISES]
    config = {
        "plants": [plant._asdict() for plant in plants],
        "laws": {law: list(variants) for law, variants in RISING.items()},
        "lags": FEW_LAGS,
        "seeds": SEEDS,
    }

    def compute() -> Answer:
        return {
            law: {
                variant: [[steady(make, Setting(plant, lag), RISING_ORDERS) for lag in FEW_LAGS] for plant in plants]
                for variant, make in variants.items()
            }
            for law, variants in RISING.items()
        }

    return cell(NAME, "rising", config, (*LOOP_CODE, *LAW_CODE), compute)


def conditions() -> Answer:
    """The calibrated thermostat where the policy is not what it believes: condition → per lag, as `steady`."""
    plants = {
        "as fitted": CONSTANT,
        "noise of 2 %": CONSTANT._replace(noise=0.02),
        "noise of 26 %": CONSTANT._replace(noise=0.26),
        "no momentum": CONSTANT._replace(momentum=0.0),
        "momentum of 0.95": CONSTANT._replace(momentum=0.95),
        "states 8 versions old, shifting ln H by 30 % of what it moved": CONSTANT._replace(
            stale_share=0.3, stale_orders=8
        ),
        "a push that grows with H²": CONSTANT._replace(gain_power=2.0),
        "drift ±50 %, from end to end in 200 orders": SWINGING._replace(period=SLOW_PERIOD),
    }
    lags = {"told a lag of 0": (0, 0, 0), "told half the lag": (0, 2, 4), "told 3 orders too many": (4, 7, 11)}
    config = {"plants": {name: plant._asdict() for name, plant in plants.items()}, "lags": lags, "seeds": SEEDS}

    def compute() -> Answer:
        # The gains, and the momentum, are those of the policy that was calibrated.
        believing = {
            name: [steady(_believing(lag, lag), Setting(plant, lag), SWINGING_ORDERS) for lag in FEW_LAGS]
            for name, plant in plants.items()
        }
        misled = {
            name: [
                steady(_believing(lag, told), Setting(CONSTANT, lag), SWINGING_ORDERS)
                for lag, told in zip(FEW_LAGS, wrong_lags, strict=True)
            ]
            for name, wrong_lags in lags.items()
        }
        return {**believing, **misled}

    return cell(NAME, "conditions", config, (*LOOP_CODE, *LAW_CODE), compute)


def _believing(lag: int, told: int) -> Maker:
    return lambda _: thermostat(Setting(CONSTANT, lag), told)


def quickstart() -> Answer:
    """The fitted policy with its fast early drift, for as long as the quickstart runs, told what that tells."""
    plant = Plant()
    config = {"plant": plant._asdict(), "told": QUICKSTART, "seeds": SEEDS}
    makers: dict[str, Maker] = {"log-space PI": LogProportionalIntegral, "thermostat": thermostat}

    def compute() -> Answer:
        return {
            name: [steady(make, _told(plant, lag), QUICKSTART_ORDERS, QUICKSTART_TRANSIENT) for lag in FEW_LAGS]
            for name, make in makers.items()
        }

    return cell(NAME, "quickstart", config, (*LOOP_CODE, *LAW_CODE), compute)


def _told(plant: Plant, lag: int) -> Setting:
    truth = Setting(plant, lag)
    return Setting(plant, lag, QUICKSTART[0] / truth.drift, QUICKSTART[1] / truth.balance)


def steady(make: Maker, setting: Setting, orders: int = ORDERS, transient: int = TRANSIENT) -> Answer:
    """Per seed, percent: mean |ln(H/H*)| and mean ln(H/H*) after the transient, the former with it; and the ringing."""
    courses = [course(make, setting, orders, seed).errors for seed in range(SEEDS)]
    late = [errors[transient:] for errors in courses]
    return {
        "error": [round(PERCENT * float(np.abs(errors).mean()), 3) for errors in late],
        "bias": [round(PERCENT * float(errors.mean()), 3) for errors in late],
        "tracking": [round(PERCENT * float(np.abs(errors[REACHABLE:]).mean()), 3) for errors in courses],
        "ringing": [round(ringing(errors), 3) for errors in late],
    }


def at_rest(make: Maker, setting: Setting) -> Answer:
    """Without noise: orders until settled, percent of overshoot, and the amplitude of the course's end in percent."""
    errors = course(make, setting, ORDERS, seed=0).errors
    return {"settling": settling(errors), "overshoot": overshoot(errors), "swing": swing(errors[-TRANSIENT:])}


def course(make: Maker, setting: Setting, orders: int, seed: int) -> Course:
    """One run of a law that is told `setting`."""
    return drive(make(setting), setting.plant, lag=setting.lag, orders=orders, seed=seed, target=setting.target)


if __name__ == "__main__":
    main()
