"""The benchmark's quick countdown scorer against the library's own."""

import random

from reasoning_gym.games.countdown import CountdownConfig, CountdownDataset

from benchmarks.countdown.score import plain_score

NUMBERS = [3, 10, 4]
LIBRARY = CountdownDataset(CountdownConfig(seed=0, size=1))


def library(answer: str, target: int) -> float:
    return float(LIBRARY.score_answer(answer, {"metadata": {"numbers": NUMBERS, "target": target}}))


def test_plain_expressions_score_as_the_library_scores_them() -> None:
    draw = random.Random(0)
    right = 0
    for _ in range(400):
        parts = [str(number) for number in draw.sample(NUMBERS, draw.choice((2, 3, 3, 3)))]
        answer = parts[0] + "".join(draw.choice("+-*") + part for part in parts[1:])
        if draw.random() < 0.3:
            answer = f"({answer})" if draw.random() < 0.5 else answer.replace(parts[0], f"(-{parts[0]})", 1)
        target = draw.choice((17, -3, 34, 43, 70, 22))
        score = plain_score(answer, NUMBERS, target)
        assert score == library(answer, target), answer
        right += score == 1.0
    assert right > 10


def test_what_is_not_plain_is_left_to_the_library() -> None:
    for answer in ("", "3+", "(3+4", "3**4", "3/4", "3 + 4", "03+4", "3(4)", "x+1", "3+4=7", "__import__('os')"):
        assert plain_score(answer, NUMBERS, 7) is None, answer
