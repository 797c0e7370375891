import time

import pytest

from entrostat.actors.verifiers.answers import after_thinking, expected_answer, last_box, marked


def first(text: str) -> str | None:
    return next((part.text for part in marked(text)), None)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\boxed{1} … no: \\boxed{2}", "2"),
        ("\\boxed{1} and $\\boxed{2}$", "1, 2"),
        ("\\boxed{1} or \\boxed{1}", "1"),
        ("\\boxed {\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{\\boxed{5}}", "5"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\fbox{7}", "7"),
        ("I write \\boxed{} around it: the answer is 3.", "3"),
        ("\\boxed{18} is cut \\boxed{1", "18"),
        ("#### 1\n#### 2", "2"),
        ("#### 1 and then \\boxed{2}", "2"),
        ("\\boxed{2}. The final answer is 3.", "3"),
        ("\\boxed{2}. The answer is 3.", "2"),
        ("The answer is 1. No, the answer is 3.50. So there.", "3.50"),
        ("**Answer: 18**", "18"),
        ("Answer:\n- 18 eggs", "18 eggs"),
        ("Answer: - 18", "- 18"),
        ("x = \\boxed{1} or x = \\boxed{2}", "1, 2"),
        ("$x_1 = \\boxed{1}$ and $x_2 = \\boxed{2}$", "1, 2"),
        ("April: \\boxed{1}, May: \\boxed{2}", "2"),
        ("**Final Answer**\n\n18", "18"),
        ("The correct answer to the question is: B", "B"),
        ("<answer>1</answer><answer> 2 </answer>", "2"),
        ("<answer>The answer is \\boxed{4}</answer> \\boxed{5}", "4"),
        ("no mark at all 18", None),
        ("\\boxed{18", None),
        ("", None),
    ],
)
def test_the_most_trusted_mark_counts_and_of_these_the_last(text: str, answer: str | None) -> None:
    assert first(text) == answer


def test_what_was_thought_is_not_what_was_answered() -> None:
    assert after_thinking("<think>\\boxed{1}</think> it is 2") == " it is 2"
    assert after_thinking("<think>\\boxed{1}</think> \n") == "<think>\\boxed{1}</think> \n"


@pytest.mark.parametrize("end", ["</s>", "<|im_end|>", "<|eot_id|>\n", "<eos> <eos>", "<｜end▁of▁sentence｜>"])
def test_what_ends_a_models_text_is_no_part_of_it(end: str) -> None:
    assert after_thinking(f"it is 2{end}") == "it is 2"


def test_of_a_solution_the_answer_is_what_follows_the_hashes() -> None:
    assert expected_answer("16 - 3 = 13\n#### 18 ") == "18"
    assert expected_answer(" 18") == "18"


@pytest.mark.parametrize("text", ["\\boxed{" * 100_000, "<answer>" * 50_000, "answer is " * 50_000, "#### " * 100_000])
def test_marks_without_end_are_searched_in_passing(text: str) -> None:
    start = time.perf_counter()
    list(marked(text))
    assert last_box(text) is None
    assert time.perf_counter() - start < 2.0
