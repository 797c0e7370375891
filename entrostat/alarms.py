"""What a person should look at: said when it begins, not at every step."""

from collections.abc import Sequence
from pathlib import Path

from entrostat.protocol.messages import ControllerView

CEILING_ORDERS = 10  # in a row: then a person should know


class Alarms:
    """Warnings about a run's last step.

    Args:
        run: its directory, where samples can be read.
        alarm_share: of unparsable, timeout and error verdicts in a step; above it they are warned about.
        frozen: measurements that the control law had refused before the run went on.
    """

    def __init__(self, run: Path, alarm_share: float, frozen: int = 0) -> None:
        self._run = run
        self._alarm_share = alarm_share
        self._frozen = frozen
        self._standing: frozenset[str] = frozenset()

    def begun(self, view: ControllerView, samples: int, others: Sequence[tuple[str, str | None]] = ()) -> list[str]:
        """The warnings that did not stand after the step before; `view` is of a step with so many samples.

        `others` are names and texts (None: all is well) of what is watched elsewhere.
        """
        warnings = {name: text for name, text in (*self._found(view, samples), *others) if text}
        fresh = [text for name, text in warnings.items() if name not in self._standing]
        self._standing = frozenset(warnings)
        self._frozen = view.frozen_updates
        return fresh

    def _found(self, view: ControllerView, samples: int) -> tuple[tuple[str, str | None], ...]:
        _, _, unparsable, timeouts, errors = view.statuses
        failed = unparsable + timeouts + errors
        verdicts = (
            f"{failed} of {samples} verdicts are unparsable ({unparsable}), timeout ({timeouts}) or error ({errors}), "
            f"more than verifier.alarm_share = {self._alarm_share:g}: see entrostat samples {self._run}"
        )
        ceiling = (
            f"the coefficient has stood at its ceiling for {view.ceiling_orders} orders and the entropy is still below "
            "its target: raise entropy.law.ceiling_ratio or balance"
        )
        return (
            ("verdicts", verdicts if failed > self._alarm_share * samples else None),
            (
                "rewards",
                "every reward of this step is 0: nothing can be learnt from it" if view.reward == 0.0 else None,
            ),
            ("brake", "the entropy is far above its target: the bonus is off until it falls" if view.brake else None),
            ("ceiling", ceiling if view.ceiling_orders >= CEILING_ORDERS else None),
            (
                "frozen",
                "the entropy of this step could not be used; the coefficient stays as it was"
                if view.frozen_updates > self._frozen
                else None,
            ),
        )
