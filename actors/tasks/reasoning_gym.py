"""Generated problems of the `reasoning-gym` library."""

import re
from collections.abc import Set

from entrostat.actors.tasks.entries import encode_entry
from entrostat.actors.tasks.gym_library import create_dataset
from entrostat.actors.tasks.problem import Problem
from entrostat.protocol.errors import TaskError
from entrostat.protocol.task_settings import ReasoningGym

# A small task repeats itself (one-digit sums): so many draws are made for each problem wanted before giving up.
DRAWS_PER_PROBLEM = 20


def generate(settings: ReasoningGym, unlike: Set[str] = frozenset()) -> list[Problem]:
    """`settings.size` problems with different questions, none of them in `unlike`.

    The problem at index i depends on the seed and i alone, so the same settings give the same problems in every run.

    Raises:
        TaskError: the library doesn't know the dataset or a parameter, or it can't yield so many different problems.
    """
    dataset = create_dataset(settings)
    level = settings.level or settings.dataset
    source = f"{settings.dataset}-{_slug(settings.level)}" if settings.level else settings.dataset
    problems: list[Problem] = []
    seen = set(unlike)
    for index in range(settings.size * DRAWS_PER_PROBLEM):
        try:
            entry = dataset[index]
        except IndexError:
            break  # some datasets are finite
        if entry["question"] in seen:
            continue
        seen.add(entry["question"])
        problems.append(
            Problem(
                name=f"{source}-s{settings.seed}/{index}",
                level=level,
                question=entry["question"],
                answer=_answer_text(entry["answer"]),
                entry=_entry_text(settings.dataset, entry),
            )
        )
        if len(problems) == settings.size:
            return problems
    raise TaskError(
        f"reasoning_gym dataset {settings.dataset!r} with {settings.parameters} yields only {len(problems)} different "
        f"problems of the {settings.size} asked for{' that are not in training' if unlike else ''}: "
        "lower size, or widen its parameters"
    )


def _answer_text(answer: object) -> str:
    """Empty where the dataset has none: where many answers are right, only its scorer can tell."""
    return "" if answer is None else str(answer)


def _entry_text(dataset: str, entry: dict[str, object]) -> str:
    try:
        return encode_entry(entry)
    except TypeError as error:
        raise TaskError(
            f"reasoning_gym dataset {dataset!r} can't be used: its entries can't be sent to a verifier ({error})"
        ) from error


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")
