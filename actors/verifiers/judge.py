"""The right verifier for each prompt, and a verdict whatever it does: what a worker process runs."""

import time
from collections.abc import Sequence
from pathlib import Path

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
    parts_of,
)

DETAIL_CHARACTERS = 300


class Judge:
    """Picks the verifier by `Prompt.task`; a failure of it is a reward of 0 and the status `error`, with its reason."""

    def __init__(self, tasks: Sequence[TaskSettings], scratch: Path | None = None) -> None:
        """Makes one verifier per task and imports what they need.

        Args:
            tasks: a prompt's `task` counts through them.
            scratch: a private, empty folder for verifiers that write files; it is removed with the process.

        Raises:
            TaskError: a task's library doesn't know it.
        """
        self._tasks = tuple(tasks)
        self._verifiers = tuple(verifier_of(task, scratch) for task in tasks)

    def within(self, scratch: Path) -> "Judge":
        """The same judge with a scratch folder: made anew only where a verifier writes files."""
        return Judge(self._tasks, scratch) if Code in kinds_of(self._tasks) else self

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


def kinds_of(tasks: Sequence[TaskSettings]) -> set[type]:
    """The kinds of verifiers that these tasks use, those inside weighted sums too."""
    return {type(one) for task in tasks for one in parts_of(task.verifier)}


def verifier_of(task: TaskSettings, scratch: Path | None = None) -> Verifier:
    """The verifier of a task; imports its library only where it is used.

    Raises:
        TaskError: the task can't be judged that way.
    """
    return _verifier(task.verifier, task, scratch)


def _verifier(settings: AnyVerifier, task: TaskSettings, scratch: Path | None) -> Verifier:
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
            return WeightedVerifier(
                [
                    (name_of(part.verifier), part.weight, _verifier(part.verifier, task, scratch))
                    for part in settings.parts
                ]
            )
        case Code():
            from entrostat.actors.verifiers.code import CodeVerifier

            return CodeVerifier(settings, scratch)


def name_of(settings: AnyVerifier) -> str:
    """What a verifier is called where it is shown: its kind, or the user's function."""
    return settings.function if isinstance(settings, Custom) else str(settings.__struct_config__.tag)


def failed(detail: str) -> Verdict:
    """A verifier's failure."""
    return Verdict(reward=0.0, status="error", seconds=0.0, detail=detail[:DETAIL_CHARACTERS])
