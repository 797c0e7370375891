"""What `benchmarks/collapse.py` compares: two tasks, and for each the same rows.

No control, the fixed coefficient and the flagship are tuned on their own seed, each as often as the others (`TRIES`);
the published laws are set once, by hand. The learning rate that suits no control is for all.
"""

from typing import Any

import msgspec

TUNING_SEED = 101
SEEDS = (1, 2, 3)
PAIRED_SEEDS = (1, 2, 3, 4, 5, 6, 7, 8)
PAIRED = ("none", "fixed", "flagship")
TRACKED = "sums"  # the task of the second half, and of the frontier
TRACKING_SEEDS = (1, 2, 3)
FRONTIER_SEEDS = (1, 2)
ANCHORS = (0.3, 0.45, 0.8, 1.0)  # of the frontier, beside the task's
COEFFICIENTS = {"2x": 2.0, "3x": 3.0}  # of the frontier: factors on the task's, and what they are called
BAND = (0.9, 1.1)  # of H*: the band law's edges
LAGS = (1, 4, 8)
DELTAS = (0.3, 1.0, 3.0)  # of bang-bang, times the task's δ
TRL_DELTAS = (0.005, 0.01, 0.02)
SAMPLES = 64  # of each unseen prompt: n of pass@k


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """A task, and what its rows are set to."""

    name: str
    toml: str
    overrides: tuple[str, ...]  # of its TOML
    steps: int
    trained: tuple[str, ...]  # levels
    harder: str  # the level that is not trained on
    anchor: float  # of the flagship: target = anchor · H_0
    initial_entropy: float  # nats, of the starting policy: for the laws whose targets are nats
    balance: float  # ĉ
    drift: float  # â
    release: tuple[int, int, float]  # of the flagship's target: after so many orders, over so many, to this anchor
    lr: float  # the TOML's
    fixed: float  # the constant coefficient
    delta: float  # of bang-bang
    band_rate: float
    anchored_rate: float

    @property
    def target(self) -> float:
        """H*, nats."""
        return self.anchor * self.initial_entropy


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One method."""

    name: str
    title: str
    overrides: tuple[str, ...] = ()  # of the task's TOML
    lag: int = 1
    scored: bool = True  # with pass@k afterwards
    trl_delta: float = 0.0  # above 0: TRL's trainer, with this δ
    band: tuple[float, float] | None = None  # nats, of a law that has edges instead of a target


def rows(task: Task) -> tuple[Row, ...]:
    """The methods, then the flagship's ablations, then other ways to keep entropy."""
    held = _law("thermostat", anchor=task.anchor, balance=task.balance, drift=task.drift)
    after, orders, final = task.release
    released = {"release_after": after, "release_orders": orders, "final_anchor": final}
    flagship = _law("thermostat", anchor=task.anchor, balance=task.balance, drift=task.drift, **released)
    half = released | {"final_anchor": 0.5 * task.anchor}
    deep = _law("thermostat", anchor=task.anchor, balance=task.balance, drift=task.drift, **half)
    low, high = (edge * task.target for edge in BAND)
    band = _law(
        "band",
        initial=task.balance,
        floor=0.01 * task.balance,
        ceiling=10 * task.balance,
        low=low,
        high=high,
        rate=task.band_rate,
    )
    return (
        Row(name="none", title="no control", overrides=(_law("fixed", coefficient=0.0),)),
        Row(name="fixed", title="fixed", overrides=(_law("fixed", coefficient=task.fixed), *PLAIN)),
        Row(
            name="bang_bang",
            title="bang-bang (Skywork-OR1)",
            overrides=(
                _law("bang_bang", anchor=task.anchor, delta=task.delta, ceiling=10 * task.balance),
                FULL,
                *PLAIN,
            ),
        ),
        Row(name="band", title="band (AEnt)", overrides=(band, *PLAIN), band=(low, high)),
        Row(
            name="anchored",
            title="anchored (AER)",
            overrides=(
                _law("anchored", anchor=task.anchor, rate=task.anchored_rate, ceiling=10 * task.balance),
                FULL,
                'entropy.weight.difficulty="group"',
                "entropy.weight.minimum=0.0",
                "entropy.weight.normalise=false",
                "entropy.weight.all_wrong_share=1.0",
                "entropy.weight.entropy_ratio=1e9",
            ),
        ),
        Row(name="flagship", title="thermostat (flagship)", overrides=(flagship,)),
        Row(name="held", title="flagship, never released", overrides=(held,)),
        *(
            [Row(name="deep", title="flagship, released to half its anchor", overrides=(deep,))]
            if deep != flagship
            else []
        ),
        Row(name="without_difficulty", title="flagship, uniform weights", overrides=(flagship, *PLAIN)),
        Row(name="without_clamp", title="flagship, full entropy", overrides=(flagship, FULL)),
        Row(
            name="without_law",
            title="never released, bang-bang for its law",
            overrides=(_law("bang_bang", anchor=task.anchor, delta=task.delta, ceiling=10 * task.balance),),
        ),
        Row(
            name="temperature",
            title="no control, T = 1.2",
            overrides=(_law("fixed", coefficient=0.0), "rollout.temperature=1.2"),
        ),
        Row(
            name="clip_higher",
            title="no control, clip-higher 0.28, 2 minibatches",
            overrides=(
                _law("fixed", coefficient=0.0),
                'learner.loss={kind="ppo_clip", clip_high=0.28}',
                "learner.minibatches=2",
            ),
        ),
        Row(
            name="clip_even",
            title="no control, clip 0.2, 2 minibatches",
            overrides=(_law("fixed", coefficient=0.0), "learner.minibatches=2"),
        ),
    )


def tuning_rows(task: Task) -> tuple[Row, ...]:
    """The methods that are tuned, at everything that is tried."""
    found: list[Row] = []
    for name, tries in TRIES[task.name].items():
        for changes in tries:
            row = _named(name, changed := msgspec.structs.replace(task, **changes))
            values = [value[-1] if isinstance(value, tuple) else value for value in changes.values()]
            tried = [f"{field} = {value:g}" for field, value in zip(changes, values, strict=True)]
            found.append(
                msgspec.structs.replace(
                    row,
                    name="-".join(["tune", name, *(f"{value:g}" for value in values)]),
                    title=f"{row.title}: {', '.join(tried)}",
                    overrides=(*row.overrides, f"learner.lr={changed.lr:.6g}"),
                )
            )
    return tuple(found)


def frontier(task: Task) -> dict[str, tuple[Row, ...]]:
    """What reward is got at what entropy, each way from little to much; a row that `rows` has too is where it belongs.

    Of the first task alone: the flagship never released, at several anchors, and several constants.
    """
    if task.name != TRACKED:
        return {}
    anchors = {anchor: f"frontier-{anchor:g}" for anchor in ANCHORS} | {task.anchor: "held"}
    constants = {factor * task.fixed: f"fixed-{name}" for name, factor in COEFFICIENTS.items()} | {task.fixed: "fixed"}

    def way(field: str, original: str, names: dict[float, str], what: str) -> tuple[Row, ...]:
        changed = {value: msgspec.structs.replace(task, **{field: value}) for value in sorted(names)}
        return tuple(
            msgspec.structs.replace(_named(original, other), name=names[value], title=f"{what} {value:.3g}")
            for value, other in changed.items()
        )

    return {
        "thermostat, never released": way("anchor", "held", anchors, "anchor"),
        "fixed": way("fixed", "fixed", constants, "coefficient"),
    }


def frontier_rows(task: Task) -> tuple[Row, ...]:
    """The frontier's rows that are no methods."""
    methods = {row.name for row in rows(task)}
    return tuple(row for way in frontier(task).values() for row in way if row.name not in methods)


def _named(name: str, task: Task) -> Row:
    return next(row for row in rows(task) if row.name == name)


def tracking_rows(task: Task) -> tuple[Row, ...]:
    """The flagship, bang-bang and TRL against the target, at several delays."""
    found = [
        Row(name=f"trl-{delta:g}", title=f"TRL, δ = {delta:g}", scored=False, trl_delta=delta) for delta in TRL_DELTAS
    ]
    for lag in LAGS:
        flagship = _law("thermostat", anchor=task.anchor, balance=task.balance, drift=task.drift, lag=lag)
        found.append(Row(name=f"flagship-lag{lag}", title="thermostat", overrides=(flagship,), lag=lag, scored=False))
        for delta in DELTAS:
            bang = _law("bang_bang", anchor=task.anchor, delta=delta * task.delta, ceiling=10 * task.balance)
            found.append(
                Row(
                    name=f"bang_bang-{delta:g}-lag{lag}",
                    title=f"bang-bang, δ = {delta * task.delta:g}",
                    overrides=(bang, FULL, *PLAIN),
                    lag=lag,
                    scored=False,
                )
            )
    return tuple(found)


FULL = 'entropy.estimator={kind="full"}'
PLAIN = ('entropy.weight.form="uniform"', "entropy.weight.all_wrong_share=1.0", "entropy.weight.entropy_ratio=1e9")


def _law(kind: str, **numbers: float) -> str:
    inside = ", ".join([f'kind="{kind}"', *(f"{name}={number:.6g}" for name, number in numbers.items())])
    return f"entropy.law={{{inside}}}"


TASKS = {
    "sums": Task(
        name="sums",
        toml="deploy/runs/quickstart.toml",
        overrides=(
            "batch.prompts=16",
            "rollout.max_staleness=0",
            "rollout.groups_in_flight=16",
            "evaluation.tasks.0.size=134",
            "evaluation.tasks.1.size=133",
            "evaluation.tasks.2.size=133",
        ),
        steps=100,
        trained=("3 terms", "4 terms", "5 terms"),
        harder="6 terms",
        anchor=0.6,
        initial_entropy=0.225,
        balance=0.06,
        drift=0.03,
        release=(55, 35, 0.3),
        fixed=0.02,
        delta=0.01,
        band_rate=0.1,
        anchored_rate=0.1,
        lr=1.2e-4,
    ),
    "countdown": Task(
        name="countdown",
        toml="benchmarks/countdown/countdown.toml",
        overrides=(),
        steps=320,
        trained=("3 numbers",),
        harder="4 numbers",
        anchor=0.7,
        initial_entropy=0.42,
        balance=0.05,
        drift=0.008,
        release=(200, 110, 0.525),
        fixed=0.09,
        delta=0.005,
        band_rate=0.04,
        anchored_rate=0.04,
        lr=2e-4,
    ),
}

# What of each method is tried, by task: its fields, changed.
TRIES: dict[str, dict[str, tuple[dict[str, Any], ...]]] = {
    "sums": {
        "none": tuple({"lr": lr} for lr in (6e-5, 1.2e-4, 2.4e-4)),
        "fixed": tuple({"fixed": coefficient} for coefficient in (0.02, 0.06, 0.18)),
        "flagship": tuple({"anchor": anchor} for anchor in (0.42, 0.6, 0.72)),
    },
    "countdown": {
        "none": tuple({"lr": lr} for lr in (1e-4, 1.4e-4, 2e-4, 2.8e-4, 4e-4)),
        "fixed": tuple({"fixed": coefficient} for coefficient in (0.01, 0.03, 0.06, 0.09, 0.15)),
        "flagship": (
            *({"anchor": anchor, "release": (200, 110, 0.35)} for anchor in (0.49, 0.7, 0.84)),
            *({"anchor": 0.7, "release": (200, 110, final)} for final in (0.525, 0.7)),
        ),
    },
}
