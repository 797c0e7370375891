"""The published coefficient updates, bare: a coefficient and an entropy in, the next coefficient out.

Each leaves everything as it is for an entropy that is not finite. Entropies and targets are in nats per response token.
"""

import math

from entrostat.protocol.errors import ConfigError


def band_step(
    coefficient: float,
    entropy: float,
    *,
    low: float,
    high: float,
    rate: float,
    floor: float,
    ceiling: float,
    initial: float | None = None,
    pull: float = 0.0,
) -> float:
    """AEnt (arXiv 2509.03493): hold inside the band, push back outside it, stay in the box.

    `λ ← clip(λ − β·[min(0, H̃ − low) + max(0, H̃ − high) + pull·(λ − λ0)], floor, ceiling)`, β the rate, λ0 `initial`.
    An entropy that is not finite leaves λ as it is.

    Raises:
        ConfigError: the band or the box is empty, there is a pull and nothing to pull to, or a number is not finite.
    """
    _check("band", coefficient=coefficient, rate=rate, pull=pull, initial=initial or 0.0)
    if not low < high or not floor <= ceiling:
        raise ConfigError(
            f"a band needs low < high and floor <= ceiling; got low = {low}, high = {high}, "
            f"floor = {floor}, ceiling = {ceiling}"
        )
    if pull != 0.0 and initial is None:
        raise ConfigError(f"pull = {pull} needs the coefficient it pulls to: give initial")
    if not math.isfinite(entropy):
        return coefficient
    back = pull * (coefficient - initial) if initial is not None else 0.0
    error = min(0.0, entropy - low) + max(0.0, entropy - high) + back
    return min(max(coefficient - rate * error, floor), ceiling)


def anchored_step(
    coefficient: float, entropy: float, *, target: float, rate: float, ceiling: float | None = None
) -> float:
    """AER (arXiv 2510.10959): `α ← max(0, α + η·(H* − H))`, η the rate; the ceiling is ours.

    An entropy that is not finite leaves α as it is.

    Raises:
        ConfigError: the ceiling is negative or not a number, or another number is not finite.
    """
    _check("anchored", coefficient=coefficient, rate=rate)
    if not math.isfinite(target) or (ceiling is not None and not ceiling >= 0.0):
        raise ConfigError(f"an anchored law needs a finite target and a ceiling of at least 0; got {target}, {ceiling}")
    if not math.isfinite(entropy):
        return coefficient
    moved = max(0.0, coefficient + rate * (target - entropy))
    return moved if ceiling is None else min(moved, ceiling)


def bang_bang_step(
    coefficient: float, entropy: float, *, target: float, delta: float, floor: float, ceiling: float
) -> float:
    """Skywork-OR1 (arXiv 2505.22312): `α ← clip(α + δ if H < H* else α − δ, floor, ceiling)`, δ `delta`.

    An entropy that is not finite leaves α as it is. That the bonus acts only while H < H* is for the caller.

    Raises:
        ConfigError: a number is not finite, the step not positive, or the box empty.
    """
    _check("bang-bang", coefficient=coefficient, delta=delta)
    if not math.isfinite(target) or not delta > 0.0 or not floor <= ceiling:
        raise ConfigError(
            f"a bang-bang law needs a finite target, delta > 0 and floor <= ceiling; got target = {target}, "
            f"delta = {delta}, floor = {floor}, ceiling = {ceiling}"
        )
    if not math.isfinite(entropy):
        return coefficient
    return min(max(coefficient + (delta if entropy < target else -delta), floor), ceiling)


def pi_step(
    coefficient: float,
    entropy: float,
    *,
    accumulated: float,
    target: float,
    proportional: float,
    integral: float,
    floor: float,
    ceiling: float,
) -> tuple[float, float]:
    """Proportional and integral action on `e = H* − H`: the next coefficient, and what is accumulated by then.

    With I what is accumulated: `u = Kp·e + I + Ki·e`, `α = clip(u, floor, ceiling)`. Conditional integration: I becomes
    `I + Ki·e` unless u lies beyond that end of the box to which e pushes. So an I that starts in the box stays there.
    An entropy that is not finite leaves both as they are.

    Args:
        coefficient: α as it is.
        entropy: H.
        accumulated: I, in units of α.
        target: H*.
        proportional: Kp, per nat.
        integral: Ki, per nat and order.
        floor: of α.
        ceiling: of α.

    Raises:
        ConfigError: a number is not finite, a gain negative, or the box empty.
    """
    _check("pi", coefficient=coefficient, accumulated=accumulated, proportional=proportional, integral=integral)
    if not math.isfinite(target) or not (proportional >= 0.0 and integral >= 0.0) or not floor <= ceiling:
        raise ConfigError(
            f"a pi law needs a finite target, gains of at least 0 and floor <= ceiling; got target = {target}, "
            f"proportional = {proportional}, integral = {integral}, floor = {floor}, ceiling = {ceiling}"
        )
    if not math.isfinite(entropy):
        return coefficient, accumulated
    return _proportional_integral(target - entropy, accumulated, proportional, integral, floor, ceiling)


def quadratic_coefficient(entropy: float, *, target: float, strength: float) -> float:
    """SIREN (arXiv 2509.25133): `2·c·(H* − H)`, c `strength`, which makes the bonus the gradient of `−c·(H − H*)²`.

    Signed: above its target the entropy is pushed down. Deviations: H is the measurement of one order before, and the
    mean over the global batch.

    Raises:
        ConfigError: the target or the entropy is not finite, or the strength not positive.
    """
    if not math.isfinite(target) or not math.isfinite(entropy) or not strength > 0.0:
        raise ConfigError(
            f"a quadratic law needs a finite target and entropy and strength > 0; got target = {target}, "
            f"entropy = {entropy}, strength = {strength}"
        )
    return 2.0 * strength * (target - entropy)


def sample_balance_step(
    balance: float, entropy: float, *, accumulated: float, target: float, proportional: float, integral: float
) -> tuple[float, float]:
    """EntroPIC: `α = clip(Kp·e + Ki·Σe, −1, 1)`, `e = H − H*`: α and `Ki·Σe` after this order.

    Above the target samples of positive advantage weigh more and those of negative advantage less, which makes the
    policy surer. Ours is that the sum does not wind up: it stands still while α is at that end of its range to which e
    pushes, as in `pi_step`. An entropy that is not finite leaves both as they are.

    Raises:
        ConfigError: a number is not finite, or a gain negative.
    """
    _check("sample-balance", balance=balance, accumulated=accumulated, proportional=proportional, integral=integral)
    if not math.isfinite(target) or not (proportional >= 0.0 and integral >= 0.0):
        raise ConfigError(
            f"a sample-balance law needs a finite target and gains of at least 0; got target = {target}, "
            f"proportional = {proportional}, integral = {integral}"
        )
    if not math.isfinite(entropy):
        return balance, accumulated
    return _proportional_integral(entropy - target, accumulated, proportional, integral, -1.0, 1.0)


def _check(law: str, **numbers: float) -> None:
    """A rate below 0 would push the entropy away from where it should be."""
    for name, value in numbers.items():
        if not math.isfinite(value) or (name in ("rate", "pull") and value < 0.0):
            raise ConfigError(f"a {law} law needs a finite {name}, and no rate below 0; got {name} = {value}")


def _proportional_integral(
    error: float, accumulated: float, proportional: float, integral: float, floor: float, ceiling: float
) -> tuple[float, float]:
    """`clip(Kp·e + I + Ki·e)` and the next I."""
    summed = accumulated + integral * error
    action = proportional * error + summed
    stuck = (action > ceiling and error > 0.0) or (action < floor and error < 0.0)
    return min(max(action, floor), ceiling), accumulated if stuck else summed
