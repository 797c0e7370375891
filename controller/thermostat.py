"""The flagship's law: it foresees where the entropy will be once all that is under way has acted, and steers by that.

An order's coefficient acts late: `lag` orders after the measurement it answers, and then for as long as the optimizer's
momentum remembers it. A law that answers what it measures answers the same error again and again meanwhile. This one
keeps the coefficients it has sent and a belief of how the policy answers them (`response.py`), and adds up what they
will still do.
"""

import math

import msgspec
from msgspec.structs import replace

from entrostat.controller.measurement import RESOLUTION_NATS, Intake
from entrostat.controller.response import Calibration, Response, correct, first_response, increment, predict
from entrostat.protocol.entropy_settings import ThermostatLaw
from entrostat.protocol.messages import PolicyVersion

LARGEST_ERROR = 0.25  # of −f, that is answered: several times its balance makes a policy's entropy explode
ENGAGE_BELOW = 0.25  # of the believed x: near enough to the target for the brake to mean something
REACHED_BELOW = 0.05  # of the believed x: the target was reached, and what rises from there may be pressed down
BRAKE_ABOVE = math.log(1.5)  # of x, or …
BRAKE_MARGIN = 0.1  # … this far above the initial entropy
LONGEST_GAP = 100  # orders that are caught up with at most, if so many measurements were refused


class ThermostatState(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """State of the flagship: everything it needs to go on after a restart."""

    intake: Intake
    coefficient: float
    drift: float  # â
    balance: float  # ĉ
    momentum: float  # β1 of the learner's optimizer
    version: PolicyVersion | None = None  # that was measured last …
    response: Response | None = None  # … and what is believed of it; None until H_0 is known
    push: float = 0.0  # m: the coefficient behind the momentum, of the step that made that version
    under_way: tuple[float, ...] = ()  # [lag] coefficients of the orders from that version on, up to the next one
    foreseen: float = 0.0  # f: x once all this has acted
    engaged: bool = False
    reached: bool = False  # the target, once
    steps: int = 0  # measurements controlled, H_0 known
    brake: bool = False
    ceiling_orders: int = 0  # how many in a row the coefficient has stood at its ceiling


def thermostat_step(
    law: ThermostatLaw, state: ThermostatState, entropy: float, initial: float, share: float = 1.0
) -> ThermostatState:
    """The state after the entropy of `state.intake.last_version` was measured.

    `x = ln(H̃/H*)` · x̂, A, G: believed after it · `f = x̂ + Σ_under way â(e^G·m/ĉ − A) + β1/(1 − β1)·â(e^G·m/ĉ − A)` ·
    `α = ĉ·clip(e^−G·(A − κ·f/â), box)`, κ `law.pace`. While A is above 0 it is `ĉ·e^I·(1 − Kp·f)` with `I = ln A − G`,
    `Kp = κ/(âA)`; below 0 the entropy rises by itself. An f below −0.25 counts as −0.25.

    f answers each coefficient at once and in full, `f ← f + â(e^G·α/ĉ − A)`: whatever the lag, it closes by the share κ
    an order. While the target falls, f is against the target of the time when all that has acted, `lag + β1/(1 − β1)`
    orders ahead, and α leaves the fall φ of an order to the drift: `A − (φ + κ·f)/â`. What the box cuts off is known to
    the belief, which is told what share of a coefficient acted, so nothing winds up. Engaged from the first x̂ < 0.25
    on, or after 1/â steps. The box is [floor_ratio, ceiling_ratio]; once x̂ < 0.05 was believed it begins at
    −cooling_ratio: entropy that rises by itself, where it costs no reward, comes down by nothing else. Brake, an alarm:
    engaged and `x > max(ln 1.5, ln(H_0/H*) + 0.1)`; α is at the box's lower end, or 0.
    """
    calibration = Calibration(drift=state.drift, noise=law.noise)
    aim = anchor(law, state.steps)
    x = math.log(max(entropy, RESOLUTION_NATS) / max(aim * initial, RESOLUTION_NATS))
    state = _lowered(law, _caught_up(law, state, calibration, share))
    believed = first_response(x, calibration) if state.response is None else correct(state.response, x, calibration)
    ahead = state.steps + law.lag + _memory(state)  # when all that is under way has acted
    foreseen = _foreseen(state, believed, calibration) + math.log(aim / anchor(law, ahead))
    fall = math.log(aim / anchor(law, state.steps + 1))  # of ln H*, in the order to come
    error = max(foreseen, -LARGEST_ERROR)
    wanted = math.exp(-believed.gain) * (believed.drift - (fall + law.pace * error) / state.drift)
    engaged = state.engaged or believed.level < ENGAGE_BELOW or state.steps >= 1.0 / state.drift
    brake = engaged and x > max(BRAKE_ABOVE, BRAKE_MARGIN - math.log(aim))
    reached = state.reached or believed.level < REACHED_BELOW
    lowest = -law.cooling_ratio if reached and law.cooling_ratio else law.floor_ratio
    ratio = min(lowest, 0.0) if brake else min(max(wanted, lowest), law.ceiling_ratio)
    return replace(
        state,
        coefficient=state.balance * ratio,
        version=state.intake.last_version,
        response=believed,
        foreseen=foreseen,
        engaged=engaged,
        reached=reached,
        steps=state.steps + 1,
        brake=brake,
        ceiling_orders=state.ceiling_orders + 1 if wanted >= law.ceiling_ratio and not brake else 0,
    )


def anchor(law: ThermostatLaw, orders: float) -> float:
    """H*/H_0 for the measurement after so many `orders` were controlled."""
    if not law.release_after:
        return law.anchor
    gone = min(max((orders - law.release_after) / law.release_orders, 0.0), 1.0)
    fallen = gone * math.log(law.anchor / law.final_anchor)
    return law.anchor * math.exp(-fallen)


def _lowered(law: ThermostatLaw, state: ThermostatState) -> ThermostatState:
    """The state after the target's own fall since the measurement before: x counts from the target."""
    if state.response is None:
        return state
    fall = math.log(anchor(law, state.steps - 1) / anchor(law, state.steps))
    return replace(state, response=replace(state.response, level=state.response.level + fall)) if fall else state


def _caught_up(law: ThermostatLaw, state: ThermostatState, calibration: Calibration, share: float) -> ThermostatState:
    """The state as it was expected just before this measurement.

    The last order's coefficient acted by its `share`; orders whose measurement was refused went out with the
    coefficient as it stood, and count in full. A branch counts on from the step of its checkpoint, where the state was
    made.
    """
    if state.response is None:
        return replace(state, under_way=(state.coefficient,) * law.lag)
    response, push, under_way = state.response, state.push, state.under_way
    orders = _orders_since(state)
    for order in range(orders):
        sent = state.coefficient * (share if order == orders - 1 else 1.0)
        now, *later = (*under_way, sent)
        push = state.momentum * push + (1.0 - state.momentum) * now
        response, under_way = predict(response, push / state.balance, calibration), tuple(later)
    return replace(state, response=response, push=push, under_way=under_way)


def _orders_since(state: ThermostatState) -> int:
    """Orders between the version measured last and this one."""
    last, this = state.version, state.intake.last_version
    gap = 1 if last is None or this is None else this.step - last.step
    return min(max(gap, 1), LONGEST_GAP)


def _foreseen(state: ThermostatState, believed: Response, calibration: Calibration) -> float:
    """f: x once the orders under way have acted, and the momentum they leave behind, against the drift meanwhile."""
    level, push = believed.level, state.push
    for coefficient in state.under_way:
        push = state.momentum * push + (1.0 - state.momentum) * coefficient
        level += increment(believed, push / state.balance, calibration)
    return level + _memory(state) * increment(believed, push / state.balance, calibration)


def _memory(state: ThermostatState) -> float:
    """Orders that what is behind the momentum still counts for: `β1/(1 − β1)`."""
    return state.momentum / (1.0 - state.momentum)
