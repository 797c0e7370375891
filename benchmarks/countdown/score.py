"""The library's countdown scorer, quickly: sympy takes 2 ms to read an expression, and a run has a hundred thousand.

Only plain expressions are scored here: numbers without leading zeros, + − *, brackets. The library scores the rest.
"""

import re
from collections.abc import Sequence
from fractions import Fraction

from entrostat.actors.tasks.entries import decode_entry
from entrostat.actors.verifiers.judge import Judge
from entrostat.actors.verifiers.reasoning_gym import ANSWER
from entrostat.protocol.messages import Prompt, Verdict
from entrostat.protocol.task_settings import ReasoningGym, TaskSettings

PLAIN = re.compile(r"(?:\(|\)|[+-]|\*(?!\*)|(?<!\d)(?:0|[1-9]\d*)(?!\d))+")
NUMBER = re.compile(r"\d+")
RIGHT, WRONG = 1.0, 0.05  # the library's scores of an expression it can read


class QuickJudge:
    """`Judge`, with a short cut for countdown tasks."""

    def __init__(self, tasks: Sequence[TaskSettings]) -> None:
        self._judge = Judge(tasks)
        self._quick = {i for i, one in enumerate(tasks) if isinstance(one, ReasoningGym) and one.dataset == "countdown"}

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        """What `text` is worth."""
        if prompt.task in self._quick:
            answers = ANSWER.findall(text)
            metadata = decode_entry(prompt.entry)["metadata"]
            score = plain_score(answers[-1].strip(), metadata["numbers"], metadata["target"]) if answers else None
            if score is not None:
                return Verdict(reward=score, status="correct" if score == RIGHT else "wrong", seconds=0.0)
        return self._judge.verify(prompt, text)


def plain_score(answer: str, numbers: Sequence[int], target: int) -> float | None:
    """The library's score of a plain expression; None for what is not one."""
    if not PLAIN.fullmatch(answer):
        return None
    try:
        code = compile(NUMBER.sub(r"F(\g<0>)", answer), "answer", "eval", dont_inherit=True)
        value = eval(code, {"F": Fraction, "__builtins__": {}})
    except (SyntaxError, TypeError):
        return None  # unbalanced, or one number called with another
    used = sorted(int(number) for number in NUMBER.findall(answer))
    return RIGHT if used == sorted(numbers) and value == target else WRONG
