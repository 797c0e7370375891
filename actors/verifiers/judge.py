"""The right verifier for each prompt, and a verdict whatever it does: what a worker process runs."""

import time
from collections.abc import Sequence

import msgspec

from entrostat.actors.verifiers.choice import ChoiceVerifier
from entrostat.actors.verifiers.custom import CustomVerifier
from entrostat.actors.verifiers.exact import ExactVerifier
from entrostat.actors.verifiers.format import FormatVerifier
from entrostat.actors.verifiers.numeric import NumericVerifier
from entrostat.actors.verifiers.weighted import WeightedVerifier
from entrostat.protocol.errors import TaskError
from entrostat.protocol.messages import Prompt, Verdict
from entrostat.protocol.ports import Verifier
from entrostat.protocol.task_settings import ReasoningGym, TaskSettings
from entrostat.protocol.verifier_settings import (
    AnyVerifier,
    Choice,
    Code,
    Custom,
    Exact,
    Format,
    GymScorer,
    Math,
    Numeric,
    Weighted,
)

DETAIL_CHARACTERS = 300


class Judge:
    """Picks the verifier by `Prompt.task`; a failure of it is a reward of 0 and the status `error`, with its reason."""

    def __init__(self, tasks: Sequence[TaskSettings]) -> None:
        """Makes one verifier per task and imports what they need.

        Raises:
            TaskError: a task's library doesn't know it.
        """
        self._verifiers = tuple(verifier_of(task) for task in tasks)

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        """What `text` is worth, and how long it took to say so."""
        start = time.perf_counter()
        verdict = self._verdict(prompt, text)
        return msgspec.structs.replace(verdict, seconds=time.perf_counter() - start)

    def _verdict(self, prompt: Prompt, text: str) -> Verdict:
        if not 0 <= prompt.task < len(self._verifiers):
            return failed(f"{prompt.name} belongs to task {prompt.task}; this run has {len(self._verifiers)} tasks")
        try:
            return self._verifiers[prompt.task].verify(prompt, text)
        except Exception as error:  # noqa: BLE001 — a scorer fed with untrusted text raises anything; it costs this item
            return failed(f"{type(error).__name__}: {error}")


def verifier_of(task: TaskSettings) -> Verifier:
    """The verifier of a task; imports its library only where it is used.

    Raises:
        TaskError: the task can't be judged that way.
    """
    return _verifier(task.verifier, task)


def _verifier(settings: AnyVerifier, task: TaskSettings) -> Verifier:
    match settings:
        case GymScorer():
            from entrostat.actors.verifiers.reasoning_gym import ReasoningGymVerifier

            if not isinstance(task, ReasoningGym):
                raise TaskError("the reasoning_gym verifier scores what the library generated: name another one")
            return ReasoningGymVerifier(task)
        case Math():
            from entrostat.actors.verifiers.math import MathVerifier

            return MathVerifier()
        case Numeric():
            return NumericVerifier(settings)
        case Exact():
            return ExactVerifier(settings)
        case Choice():
            return ChoiceVerifier(settings)
        case Format():
            return FormatVerifier(settings)
        case Custom():
            return CustomVerifier(settings)
        case Weighted():
            parts = [(name_of(part.verifier), part.weight, _verifier(part.verifier, task)) for part in settings.parts]
            return WeightedVerifier(parts)
        case Code():
            raise TaskError(f"no verifier {type(settings).__name__} yet")


def name_of(settings: AnyVerifier) -> str:
    """What a verifier is called where it is shown: its kind, or the user's function."""
    return settings.function if isinstance(settings, Custom) else str(settings.__struct_config__.tag)


def failed(detail: str) -> Verdict:
    """A verifier's failure."""
    return Verdict(reward=0.0, status="error", seconds=0.0, detail=detail[:DETAIL_CHARACTERS])
