"""A problem → the text that the policy reads."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from entrostat.actors.tasks.problem import Problem, Turn
from entrostat.protocol.errors import TaskError
from entrostat.protocol.task_settings import TaskSettings


class ChatFormat(Protocol):
    """The tokenizer's chat template."""

    def __call__(
        self, system: str, turns: Sequence[Turn], question: str, options: Mapping[str, bool | int | str]
    ) -> str:
        """What the policy reads when a user asks `question` after `turns`, up to where its response begins.

        No system message if `system` is empty. `options` are the template's own, such as `enable_thinking`.

        Raises:
            TaskError: the template refuses the messages, or doesn't know an option.
        """
        ...


def render(task: TaskSettings, problem: Problem, chat: ChatFormat | None) -> str:
    """System text, solved examples, what was said before, and the question in its template: as a chat, or as text.

    As a chat examples and earlier turns are messages. As text all is put together with empty lines between, an
    example's answer behind its question, after a blank if the template ends without one.

    Raises:
        TaskError: the task wants a chat template, and the tokenizer has none or it refuses.
    """
    system = task.system or problem.system
    question = _asked(task, problem.question)
    if task.chat:
        if chat is None:
            raise TaskError("a task has chat = true, but the policy's tokenizer has no chat template: set chat = false")
        examples = [
            turn
            for example in task.few_shot
            for turn in (Turn("user", _asked(task, example.question)), Turn("assistant", example.answer))
        ]
        return chat(system, [*examples, *problem.turns], question, task.chat_options)
    solved = [_answered(_asked(task, example.question), example.answer) for example in task.few_shot]
    parts = [system, *solved, *(turn.text for turn in problem.turns), question]
    return "\n\n".join(part for part in parts if part)


def _asked(task: TaskSettings, question: str) -> str:
    # Not str.format: templates for mathematics are full of braces.
    return task.template.replace("{question}", question)


def _answered(question: str, answer: str) -> str:
    return f"{question}{'' if question[-1:].isspace() else ' '}{answer}"
