"""One problem as its source gives it, before a template makes a prompt of it."""

from typing import Literal

import msgspec


class Turn(msgspec.Struct, frozen=True):
    """One message of a conversation before the question."""

    role: Literal["user", "assistant"]
    text: str


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """What every kind of task yields. `name` says where it came from and is the same in every run."""

    name: str
    level: str
    question: str
    answer: str
    entry: str = ""  # JSON: what the task's own scorer needs besides
    system: str = ""  # of its own; a task's system text goes before it
    turns: tuple[Turn, ...] = ()  # said before the question

    @property
    def asked(self) -> str:
        """What is asked, with all that was said before: problems where it is equal are the same problem."""
        if not self.turns:
            return self.question
        return "\n".join([*(f"{turn.role}: {turn.text}" for turn in self.turns), self.question])
