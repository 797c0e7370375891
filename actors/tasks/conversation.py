"""A question that is written as chat messages: `[{"role": …, "content": …}, …]`, the form of verl and TRL.

A first message of the system goes into the prompt where the task sets no system text; the last one, the user's, is the
question; those between are kept as what was said before it.
"""

from typing import Any

import msgspec

from entrostat.actors.tasks.problem import Turn
from entrostat.actors.tasks.row import BadRow

SYSTEM = ("system", "developer")
SPOKEN = ("user", "assistant")


class Conversation(msgspec.Struct, frozen=True):
    """A question and what comes before it."""

    system: str
    turns: tuple[Turn, ...]
    question: str


def conversation(messages: list[Any], field: str) -> Conversation:
    """The messages apart.

    Raises:
        BadRow: one is no message, has a role that can't be sampled from, or the last is not the user's.
    """
    turns = [_turn(message, f"{field}.{number}") for number, message in enumerate(messages)]
    system = turns.pop(0)[1] if turns and turns[0][0] in SYSTEM else ""
    for role, _ in turns:
        if role not in SPOKEN:
            raise BadRow(f"{field!r} has a message of {role!r}; expected system (first), user and assistant")
    if not turns or turns[-1][0] != "user":
        last = f"the last is of {turns[-1][0]!r}" if turns else "there is none"
        raise BadRow(f"{field!r} must end with a message of 'user', which is the question; {last}")
    spoken = tuple(Turn("user" if role == "user" else "assistant", text) for role, text in turns[:-1])
    return Conversation(system, spoken, turns[-1][1])


def _turn(message: Any, place: str) -> tuple[str, str]:
    if not isinstance(message, dict) or "role" not in message or "content" not in message:
        raise BadRow(f"{place!r} is no chat message; expected an object with role and content")
    role, content = message["role"], message["content"]
    if not isinstance(role, str) or not isinstance(content, str) or not content.strip():
        raise BadRow(f"{place!r} is a message without text; expected role and content as text")
    return role, content
