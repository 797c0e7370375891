"""Tasks → prompts: what every station calls by the same dense ids."""

import logging
import math
from collections.abc import Sequence, Set

import msgspec

from entrostat.actors.tasks import reasoning_gym, table
from entrostat.actors.tasks.problem import Problem
from entrostat.actors.tasks.render import ChatFormat, render
from entrostat.protocol.errors import TaskError
from entrostat.protocol.messages import Prompt, PromptSet
from entrostat.protocol.ports import Tokenizer
from entrostat.protocol.task_settings import HuggingFace, ReasoningGym, TaskSettings

log = logging.getLogger(__name__)

SHOWN = 3  # prompts that are named in an error


def load_prompts(
    tasks: Sequence[TaskSettings],
    first_task: int = 0,
    *,
    tokenizer: Tokenizer | None = None,
    chat: ChatFormat | None = None,
    context_tokens: int | None = None,
    unlike: Sequence[TaskSettings] = (),
) -> PromptSet:
    """Every problem of the tasks as a prompt, with ids from 0 in the tasks' order.

    Args:
        tasks: where the problems come from.
        first_task: what the first of them is called in `Prompt.task`.
        tokenizer: counts a prompt's tokens, of which there must be some; needed for `context_tokens`.
        chat: formats the prompts of tasks with `chat = true`.
        context_tokens: what the policy can hold, prompt and response together.
        unlike: tasks whose questions must not appear again, so that an evaluation sees unseen problems only.

    Raises:
        TaskError: a task can't be read, is empty, or has a prompt without tokens or without room for a response.
    """
    taken = {problem.asked for task in unlike for problem in _problems(task, frozenset(), quiet=True)}
    prompts: list[Prompt] = []
    for number, task in enumerate(tasks, start=first_task):
        for problem in _problems(task, taken):
            prompts.append(
                Prompt(
                    id=len(prompts),
                    name=problem.name,
                    level=problem.level,
                    task=number,
                    text=render(task, problem, chat),
                    answer=problem.answer,
                    entry=problem.entry,
                )
            )
    if not prompts:
        raise TaskError("no task was given: expected at least one [[tasks]] section")
    _check_names(prompts)
    if tokenizer is not None:
        lengths = [len(tokenizer.encode(prompt.text)) for prompt in prompts]
        skipping = {number for number, task in enumerate(tasks, first_task) if _skips(task)}
        prompts = _readable(prompts, lengths, context_tokens, skipping)
    return PromptSet(prompts=tuple(prompts))


def _problems(task: TaskSettings, unlike: Set[str], *, quiet: bool = False) -> list[Problem]:
    if isinstance(task, ReasoningGym):
        return reasoning_gym.generate(task, unlike)
    problems = table.read(task, quiet=quiet)
    known = {_plain(asked) for asked in unlike}
    kept = [problem for problem in problems if _plain(problem.asked) not in known]
    where = task.dataset if isinstance(task, HuggingFace) else task.path
    if not kept:
        raise TaskError(f"every problem of {where} is in training too: evaluate on another table or part")
    if len(kept) < len(problems):
        log.warning("%s: %d problems are in training too and are left out", where, len(problems) - len(kept))
    return kept


def _plain(asked: str) -> str:
    """The same question with other blanks is no other question, in a table of text."""
    return " ".join(asked.split())


def _check_names(prompts: Sequence[Prompt]) -> None:
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        other = first.setdefault(prompt.name, prompt)
        if other is not prompt:
            raise TaskError(
                f"two prompts are called {prompt.name!r}, of tasks {other.task} and {prompt.task}: "
                "give the tasks different levels and seeds, or different files or a name (a table's setting)"
            )


def _skips(task: TaskSettings) -> bool:
    return not isinstance(task, ReasoningGym) and task.bad_rows == "skip"


def _readable(
    prompts: Sequence[Prompt], lengths: Sequence[int], context_tokens: int | None, skipping: Set[int]
) -> list[Prompt]:
    """Those with tokens, and with room for one more in the context; ids are dense again.

    Raises:
        TaskError: there are others of tasks that are not `skipping` them, or one of these has none left.
    """
    most = math.inf if context_tokens is None else context_tokens - 1
    pairs = list(zip(prompts, lengths, strict=True))
    kept = [(prompt, length) for prompt, length in pairs if 0 < length <= most or prompt.task not in skipping]
    _check_lengths(kept, context_tokens)
    if len(kept) == len(pairs):
        return list(prompts)
    out = [f"{prompt.name} ({length} tokens)" for prompt, length in pairs if not 0 < length <= most]
    what = f"prompts have no tokens, or no room for a response in the policy's context ({context_tokens} tokens)"
    if emptied := skipping - {prompt.task for prompt, _ in kept}:
        raise TaskError(f"all {what} in task {min(emptied)}: {_named(out)}; take others, or raise the context")
    log.warning("%d of %d %s and are left out: %s", len(out), len(pairs), what, _named(out))
    return [msgspec.structs.replace(prompt, id=number) for number, (prompt, _) in enumerate(kept)]


def _check_lengths(pairs: Sequence[tuple[Prompt, int]], context_tokens: int | None) -> None:
    empty = [prompt.name for prompt, length in pairs if not length]
    if empty:
        raise TaskError(
            f"{len(empty)} of {len(pairs)} prompts have no tokens: {_named(empty)}; a response needs at least one to "
            "go on from. Leave them out, or put words around the question with template or system"
        )
    if context_tokens is None:
        return
    # One token at least must be left for the response.
    long = [f"{prompt.name} ({length} tokens)" for prompt, length in pairs if length >= context_tokens]
    if long:
        raise TaskError(
            f"{len(long)} of {len(pairs)} prompts are longer than the policy's context of {context_tokens} tokens "
            f"leaves room for ({context_tokens - 1} and one for the response): {_named(long)}; leave them out "
            '(a table\'s bad_rows = "skip" does) or raise the context'
        )


def _named(names: Sequence[str]) -> str:
    return f"{', '.join(names[:SHOWN])}{' and others' if len(names) > SHOWN else ''}"
