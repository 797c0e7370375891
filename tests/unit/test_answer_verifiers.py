"""The verifiers other than `math`, by the judge that a verifier's process runs."""

from pathlib import Path

import pytest

from entrostat.actors.verifiers.custom import check_functions
from entrostat.actors.verifiers.judge import Judge
from entrostat.protocol.errors import TaskError
from entrostat.protocol.messages import Prompt, Verdict
from entrostat.protocol.task_settings import Jsonl
from entrostat.protocol.verifier_settings import (
    AnyVerifier,
    Choice,
    Custom,
    Exact,
    Format,
    Math,
    Numeric,
    Part,
    Weighted,
)


def judged(verifier: AnyVerifier, answer: str, text: str) -> Verdict:
    prompt = Prompt(id=0, name="p:1", level="", task=0, text="", answer=answer, entry="")
    return Judge([Jsonl(path="not read", verifier=verifier)]).verify(prompt, text)


# ── numeric ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("answer", "text", "status"),
    [
        ("3.14", "about 3.1400000001", "correct"),
        ("3.14", "about 3.1415", "wrong"),
        ("1,234", "first 5, then 1234 eggs", "correct"),
        ("0.5", "1/2", "correct"),
        ("50%", "0.5", "correct"),
        ("2000", "2 \\times 10^3", "correct"),
        ("2000", "it is 2e3 in all", "correct"),
        ("5", "The answer is 5 because 3 of 4 are left.", "correct"),
        ("5", "The answer is 5, not 6.", "correct"),
        ("6", "The answer is not 6.", "unparsable"),
        ("5", "\\boxed{5} of 7", "correct"),
        ("5", "#### 5\nand 7", "correct"),
        ("-5", "−5", "correct"),
        ("0", "0.0", "correct"),
        ("0", "1e-9", "wrong"),
        ("5", "none", "unparsable"),
        ("5", "1e999999999", "unparsable"),
        ("five", "5", "error"),
    ],
)
def test_the_last_number_counts(answer: str, text: str, status: str) -> None:
    assert judged(Numeric(), answer, text).status == status


def test_near_enough_is_within_the_larger_tolerance() -> None:
    assert judged(Numeric(relative_tolerance=0.01), "200", "202").status == "correct"
    assert judged(Numeric(relative_tolerance=0.01), "200", "202.1").status == "wrong"
    assert judged(Numeric(relative_tolerance=0.0, absolute_tolerance=0.5), "-3", "-3.5").status == "correct"
    assert judged(Numeric(relative_tolerance=0.0, absolute_tolerance=0.5), "0", "0.51").status == "wrong"


# ── exact ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (" São Paulo\n", "correct"),
        ("<answer> São Paulo </answer>", "correct"),
        ("\\boxed{São Paulo}", "correct"),
        ('The answer is "São Paulo". It is large.', "correct"),
        ("**Answer:** São Paulo", "correct"),
        ("Sa\u0303o Paulo", "correct"),
        ("são paulo", "wrong"),
        ("It is São Paulo", "wrong"),
        ("<answer>Rio</answer> São Paulo", "wrong"),
        (" ", "unparsable"),
    ],
)
def test_exact_is_the_same_text(text: str, status: str) -> None:
    assert judged(Exact(), "São Paulo", text).status == status


def test_case_counts_unless_told_otherwise() -> None:
    assert judged(Exact(ignore_case=True), "São Paulo", "SÃO PAULO").status == "correct"


def test_an_expected_answer_may_look_like_a_mark_itself() -> None:
    assert (
        judged(Exact(), "the answer is blowing in the wind.", "the answer is blowing in the wind.").status == "correct"
    )


# ── choice ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "text",
    [
        *["(B)", "B", "b", "B.", "B)", "(b)", "**B**", "**B.** Rome", "\\boxed{B}", "\\boxed{\\text{(B)}}", "$B$"],
        *["The answer is (B)", "The answer is B.", "The answer is B Rome", "Answer: B) Rome", "**Answer: B**"],
        *[
            "The correct answer is option B.",
            "<answer>B</answer>",
            "**(B) Rome**",
            "(A) is out.\nSo it must be (B) Rome.",
        ],
        *["B is the correct answer.", "So the correct option is B.", "Since A is wrong, **B** is correct."],
        *["A) x\nB) y\n\nIt is (B), since A is wrong.", "I choose option B", "Answer:\nB", "B, because Rome is large"],
    ],
)
def test_a_choice_is_read_in_every_form(text: str) -> None:
    verdict = judged(Choice(), "B", text)
    assert (verdict.status, verdict.answer) == ("correct", "B")
    assert judged(Choice(), "(a)", text).status == "wrong"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A dog is large",
        "The answer is A large dog",
        "A or B",
        "The answer is (A) or (B)",
        "AB",
        "vitamin C is good",
        "A is a letter",
        "E",
    ],
)
def test_an_article_a_word_or_two_letters_are_no_choice(text: str) -> None:
    assert judged(Choice(), "A", text).status == "unparsable"


def test_an_expected_answer_that_is_no_choice_is_an_error() -> None:
    assert judged(Choice(), "E", "B").status == "error"
    assert judged(Choice(choices="ABCDE"), "E", "(E)").status == "correct"


# ── format ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("<think>1 < 2</think>\n<answer>3</answer>\n", ""),
        ("<think></think><answer></answer>", ""),
        ("<think>a<b>c</b></think><answer>3</answer>", ""),
        ("so <think>1</think><answer>3</answer>", "text before <think>"),
        ("<think>1</think> so <answer>3</answer>", "text before <answer>"),
        ("<think>1</think><answer>3</answer>.", "text after </answer>"),
        ("<answer>3</answer><think>1</think>", "<answer> where <think> was expected"),
        ("<think>1<think>2</think><answer>3</answer>", "<think> where </think> was expected"),
        ("<think>1</think><answer>3</answer><answer>3</answer>", "<answer> where the end was expected"),
        ("<think>1</think><answer>3", "no </answer>"),
        ("", "no <think>"),
    ],
)
def test_each_tag_once_in_order_and_nothing_outside(text: str, fault: str) -> None:
    verdict = judged(Format(), "", text)
    assert (verdict.status, verdict.reward) == (("wrong", 0.0) if fault else ("correct", 1.0))
    assert verdict.detail == fault


def test_a_prompt_may_have_opened_the_first_tag() -> None:
    opened = Format(opened=True)
    assert judged(opened, "", "1</think><answer>3</answer>").status == "correct"
    assert judged(opened, "", "<think>1</think><answer>3</answer>").status == "wrong"
    assert judged(Format(tags=("a.c",)), "", "<abc>1</abc>").status == "wrong"


# ── weighted ─────────────────────────────────────────────────────────────────────────────────────────────────────────

BOTH = Weighted(parts=(Part(weight=1.0, verifier=Math()), Part(weight=0.25, verifier=Format())))


@pytest.mark.parametrize(
    ("text", "reward", "status"),
    [
        ("<think>x</think><answer>3</answer>", 1.25, "correct"),
        ("<answer>3</answer>", 1.0, "correct"),
        ("<think>x</think><answer>4</answer>", 0.25, "wrong"),
        ("nothing", 0.0, "unparsable"),
    ],
)
def test_rewards_add_up_by_weight_and_the_first_part_says_the_status(text: str, reward: float, status: str) -> None:
    verdict = judged(BOTH, "3", text)
    assert (verdict.reward, verdict.status) == (reward, status)


def test_what_each_part_gave_is_said_and_the_vote_is_the_first_ones() -> None:
    verdict = judged(BOTH, "3", "<answer>3.0</answer>")
    assert verdict.answer == "3"
    assert verdict.detail == "math 1 × 1 correct; format 0.25 × 0 wrong (<answer> where <think> was expected)"


def test_a_part_that_fails_fails_the_sum() -> None:
    parts = (Part(weight=1.0, verifier=Format()), Part(weight=1.0, verifier=Math()))
    verdict = judged(Weighted(parts=parts), " ", "<think>x</think><answer>3</answer>")
    assert (verdict.reward, verdict.status) == (0.0, "error")
    assert "math 1 × 0 error (ValueError: the answer of p:1 can't be read" in verdict.detail


# ── a user's own ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current directory has the module `own_rewards`."""
    (tmp_path / "own_rewards.py").write_text(
        """
from entrostat.protocol.messages import Verdict

GIVES = {"true": True, "half": 0.5, "one": 1, "none": None, "two": 2.0, "nan": float("nan"), "text": "1"}
not_a_function = 3

def gives(prompt, text):
    return GIVES[text]

def says(prompt, text):
    return Verdict(reward=0.3, status=text, seconds=0.0, answer=prompt.answer)
"""
    )
    (tmp_path / "own_broken.py").write_text("print('hello')\nraise OSError('no model\\nhere')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("text", "reward", "status", "detail"),
    [
        ("true", 1.0, "correct", ""),
        ("one", 1.0, "correct", ""),
        ("half", 0.5, "wrong", ""),
        ("none", 0.0, "error", "own_rewards:gives returned None; expected a Verdict, a number from 0 to 1, or a bool"),
        ("text", 0.0, "error", "own_rewards:gives returned '1'"),
        ("two", 0.0, "error", "own_rewards:gives returned 2"),
        ("nan", 0.0, "error", "own_rewards:gives returned nan"),
        ("else", 0.0, "error", "KeyError: 'else'"),
    ],
)
def test_a_users_function_gives_a_reward(text: str, reward: float, status: str, detail: str) -> None:
    verdict = judged(Custom(function="own_rewards:gives"), "3", text)
    assert (verdict.reward, verdict.status) == (reward, status)
    assert detail in verdict.detail


@pytest.mark.usefixtures("own")
def test_a_users_function_may_give_a_whole_verdict_if_it_is_one() -> None:
    verdict = judged(Custom(function="own_rewards:says"), "3", "unparsable")
    assert (verdict.reward, verdict.status, verdict.answer) == (0.3, "unparsable", "3")
    assert judged(Custom(function="own_rewards:says"), "3", "great").status == "error"


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("nowhere:f", "No module named 'nowhere'"),
        ("own_rewards:give", "has no function give; it has gives, says"),
        ("own_rewards:not_a_function", "has no function not_a_function"),
        ("own_broken:f", "OSError: no model here"),
    ],
)
def test_a_function_that_is_not_there_is_refused_before_a_run_begins(function: str, said: str) -> None:
    weighted = Weighted(parts=(Part(weight=1.0, verifier=Math()), Part(weight=1.0, verifier=Custom(function=function))))
    with pytest.raises(TaskError, match=said.replace("(", "\\(")):
        check_functions([Jsonl(path="not read", verifier=weighted)])


@pytest.mark.usefixtures("own")
def test_functions_that_are_there_pass() -> None:
    check_functions([Jsonl(path="not read", verifier=Custom(function="own_rewards:gives")), Jsonl(path="not read")])
