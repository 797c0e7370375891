"""What a calibration proposes: control laws made for one policy, each number with its reason, as TOML to paste."""

from collections.abc import Iterator

import msgspec

from entrostat import toml
from entrostat.calibration import DRIFT_FLOOR, ENOUGH, EXPLOSION, Balance, Confirmation, Drift, Estimate
from entrostat.protocol.entropy_settings import (
    AnchoredLaw,
    BandLaw,
    BangBangLaw,
    FixedLaw,
    LawSettings,
    ThermostatLaw,
)

MARK = "# Proposed by entrostat calibrate"  # how a proposal begins: a file that does may be replaced by another
BAND_SHARE = 0.1  # of the target, to either side
BOX = (0.01, 10.0)  # of ĉ, for laws that take their box in units of the coefficient
DIGITS = 3  # that a proposal claims
COMMENT_WIDTH = 100

Reason = tuple[str, str, str]  # what · its value · why


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """All that two runs of one policy have shown."""

    initial_entropy: float  # H_0, nats
    drift: Drift
    noise: float  # of one order's ln H
    balance: Balance
    confirmation: Confirmation | None  # None: was not asked for

    @property
    def coefficient(self) -> float:
        """ĉ as it is proposed."""
        return self.balance.proposed * (1.0 if self.confirmation is None else self.confirmation.factor)


def anchor(law: LawSettings, initial: float) -> float:
    """The target as a share of H_0: the configuration's own, from its nats where it names those; else the default."""
    match law:
        case FixedLaw() | BandLaw():
            return ThermostatLaw().anchor
        case ThermostatLaw() | AnchoredLaw():
            return law.anchor
        case _:
            return _rounded(law.target / initial) if law.target > 0.0 else law.anchor


def thermostat(findings: Findings, law: LawSettings) -> ThermostatLaw:
    """The law that is proposed; what is no property of the policy stays as the configuration's thermostat has it."""
    kept = law if isinstance(law, ThermostatLaw) else ThermostatLaw()
    return msgspec.structs.replace(
        kept,
        anchor=anchor(law, findings.initial_entropy),
        balance=_rounded(findings.coefficient),
        drift=_rounded(findings.drift.proposed),
        noise=_rounded(findings.noise),
    )


def alternatives(law: ThermostatLaw, initial: float) -> Iterator[tuple[str, LawSettings]]:
    """The published laws, scaled to the policy, each after the reason for its step.

    `1/â` orders is the time in which the entropy falls by a factor e without control: in that time each law moves its
    coefficient by ĉ, for the error named.

    Args:
        law: the thermostat that is proposed.
        initial: H_0, nats.
    """
    target, floor, ceiling = law.anchor * initial, BOX[0] * law.balance, BOX[1] * law.balance
    pace = law.balance * law.drift  # of the coefficient, per order
    band = BandLaw(
        initial=law.balance,
        floor=_rounded(floor),
        ceiling=_rounded(ceiling),
        low=_rounded((1.0 - BAND_SHARE) * target),
        high=_rounded((1.0 + BAND_SHARE) * target),
        rate=_rounded(pace / (BAND_SHARE * target)),
    )
    swung = BangBangLaw(target=_rounded(target), anchor=law.anchor, delta=_rounded(pace), ceiling=_rounded(ceiling))
    anchored = AnchoredLaw(anchor=law.anchor, rate=_rounded(pace / target), ceiling=_rounded(ceiling))
    yield (
        f"AEnt's band: ±{BAND_SHARE:.0%} of the target. Half a band's width outside of it, the coefficient moves by "
        "its balance within 1/drift orders.",
        band,
    )
    yield "Skywork-OR1's bang-bang: delta = balance · drift, so that 1/drift orders make the balance.", swung
    yield (
        "AER's integral: a whole target short, the coefficient moves by its balance within 1/drift orders.",
        anchored,
    )


def reasons(findings: Findings, law: ThermostatLaw) -> Iterator[Reason]:
    """Each number with its reason."""
    initial, box = findings.initial_entropy, (law.floor_ratio * law.balance, law.ceiling_ratio * law.balance)
    yield "H_0", f"{initial:.4g} nats", f"the token mean of the first {law.anchor_orders} orders, before control acts"
    yield (
        "anchor",
        f"{law.anchor:g}",
        f"the target is {law.anchor * initial:.4g} nats; a choice between reward and entropy, not a measurement",
    )
    yield "balance", f"{law.balance:g}", " ".join(_balance(findings))
    yield "drift", f"{law.drift:g}", _drift(findings.drift)
    yield (
        "lag",
        f"{law.lag}",
        "orders from a measurement to the step it steers: a run makes one after the report of the one before",
    )
    yield (
        "box",
        f"{box[0]:.3g} … {box[1]:.3g}",
        f"{law.floor_ratio:g} and {law.ceiling_ratio:g} times the balance: beyond, more is wrong than the drift",
    )
    yield "noise", f"{law.noise:g}", "standard deviation of one order's ln H about its course, by second differences"
    yield (
        "pace",
        f"{law.pace:g}",
        f"of a foreseen error closed by one order, as in the configuration: with the drift a gain of "
        f"{law.pace / law.drift:.3g}",
    )


def fragment(findings: Findings, law: ThermostatLaw, name: str) -> str:
    """The proposal as TOML to put in place of [entropy.law]: reasons as comments, other laws commented out."""
    lines = [f"{MARK} for the policy and tasks of {name}: put it in place of [entropy.law].", "#"]
    for what, value, why in reasons(findings, law):
        lines += _wrapped(f"{what} = {value}: {why}")
    lines += ["", *_table(law)]
    for why, other in alternatives(law, findings.initial_entropy):
        lines += ["", *_wrapped(why), *(f"# {line}" for line in _table(other))]
    return "\n".join(lines) + "\n"


def _balance(findings: Findings) -> Iterator[str]:
    found, checked = findings.balance, findings.confirmation
    ratio = found.ratio
    measured = f"{ratio.value:.3g} ({_interval(ratio)}) from the gradients of {found.batches} batches."
    if ratio.value > 0.0:
        yield f"policy term and bonus cancel at {measured}"
        if not ratio.distinct:
            yield "That can't be told from 0: measure more --steps."
    else:
        yield f"the policy term does not push the entropy down: policy term and bonus cancel at {measured}"
        yield f"{found.proposed:.3g} is the most that this run can't tell from nothing."
    if checked is None:
        yield "Not confirmed by a run at it."
        return
    left = f"held, ln H moves by {_slope(checked.slope)}"
    removed = "" if checked.removed is None else f", {checked.removed:.0%} of the drift removed"
    far = f"; it rose to {checked.highest:.2g} H_0, more than {EXPLOSION:g}" if checked.exploded else ""
    yield f"At {checked.coefficient:.3g} {left}{removed}{far}."
    if checked.factor != 1.0:
        yield f"So it is corrected by a factor of {checked.factor:.2g}, a secant step that no run has confirmed."
    elif checked.removed is None:
        yield "That confirms little: without control H does not fall either."
    elif abs(1.0 - checked.removed) > ENOUGH:
        yield "That slope can't be told from 0: neither confirmed nor corrected."
    else:
        yield f"Confirmed; a line through both runs meets no drift at {checked.coefficient / checked.removed:.2g}."


def _drift(found: Drift) -> str:
    if found.falls:
        return f"without control ln H falls by this per step ({_interval(found.slope, -1.0)})"
    if found.slope.low > 0.0:
        how, why = "rises", f"{DRIFT_FLOOR:g} is a floor"
    else:
        how, why = "does not fall distinguishably", "this is the steepest fall not ruled out, or a floor"
    return (
        f"without control ln H {how} ({_slope(found.slope)}): {why}, as a drift set too small makes the law push too "
        "hard; calibrate again with more --steps"
    )


def _slope(slope: Estimate) -> str:
    return f"{slope.value:+.2g} a step ({_interval(slope)})"


def _interval(estimate: Estimate, sign: float = 1.0) -> str:
    low, high = sorted((sign * estimate.low, sign * estimate.high))
    return f"95 % {low:.3g} … {high:.3g}"


def _table(law: LawSettings) -> list[str]:
    return ["[entropy.law]", *toml.write(msgspec.to_builtins(law)).strip().splitlines()]


def _wrapped(text: str) -> list[str]:
    """Words as comment lines."""
    lines: list[str] = []
    line = "#"
    for word in text.split():
        if len(line) + 1 + len(word) > COMMENT_WIDTH:
            lines.append(line)
            line = "#  "
        line += f" {word}"
    return [*lines, line]


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
