"""One problem as its source gives it, before a template makes a prompt of it."""

import msgspec


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """What every kind of task yields. `name` says where it came from and is the same in every run."""

    name: str
    level: str
    question: str
    answer: str
    entry: str = ""  # JSON: what the task's own scorer needs besides
