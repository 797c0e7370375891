from fractions import Fraction

import math_verify
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from entrostat.actors.verifiers.math import MathVerifier, equal_numbers
from entrostat.actors.verifiers.numbers import read_number
from entrostat.protocol.messages import Prompt, Verdict
from tests.written_forms import FORMS, OF_ANY_NUMBER, perturbed, written

VERIFIER = MathVerifier()


def judged(answer: str, text: str) -> Verdict:
    prompt = Prompt(id=0, name="p:1", level="", task=0, text="", answer=answer, entry="")
    return VERIFIER.verify(prompt, text)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("1/2", "\\boxed{\\frac12}"),
        ("\\frac12", "0.5"),
        ("3.5", "The answer is 3 1/2."),
        ("1/3", "\\boxed{0.333333}"),
        ("50\\%", "1/2"),
        ("0.5", "50%"),
        ("12.5", "\\boxed{12.5\\%}"),
        ("(1,2)", "The answer is (1, 2)."),
        ("[0,1)", "[0,1)"),
        ("\\{1,2\\}", "\\{2,1\\}"),
        ("1, 2", "\\boxed{1} and \\boxed{2}"),
        ("[0, \\infty)", "\\boxed{[0, ∞)}"),
        ("x^2-1", "The answer is (x-1)(x+1)."),
        ("y = 2x+1", "\\boxed{y=1+2x}"),
        ("\\sqrt{8}", "\\boxed{2√2}"),
        ("2\\pi", "2π"),
        ("300", "3 × 10^2"),
        ("18", "She makes $9 * 2 = $<<9*2=18>>18 every day.\n#### 18"),
        ("solution\n#### 1,080", "\\boxed{1080}"),
        ("18", "\\boxed{12345} wait \\boxed{18}"),
        ("18", "<think>\\boxed{3}</think>18"),
        ("4", "There is $4 million to manage public spaces."),
        ("4000000", "\\boxed{4 \\text{ million}}"),
        ("4 million", "4,000,000"),
        ("72", "Final answer: 72 ✅"),
        ("72", "🎉 The answer is **72** 🎉"),
        ("72", "答案是72。"),
        ("72", "Answer: 48 (April) + 24 (May) = 72"),
        ("72", "\\boxed{72~clips}"),
        ("2,3", "$x=\\boxed{2}$ and $x=\\boxed{3}$"),
        ("\\emptyset", "\\boxed{\\varnothing}"),
        ("073", "$d = \\boxed{\\textbf{(073)}}.$"),
    ],
)
def test_equal_answers_are_correct(answer: str, text: str) -> None:
    assert judged(answer, text).status == "correct"


@pytest.mark.parametrize(
    "text",
    [
        *[
            "13",
            "-3",
            "- 3",
            "3.5",
            "30",
            "3/2",
            "3 1/2",
            "3.0000001",
            "3e5",
            "3^2",
            "3, 4",
            "3 or 4",
            "3x",
            "3:2",
            "1,3",
        ],
        *["3 = 4", "x = 3, y = 4", "\\boxed{3 + 1 = 4}", "2 < 3"],
        *["\\boxed{3} then \\boxed{5}", "3 it was, and then the answer is 5", "#### 3\n#### 5", "(3, 3)", "[3, 4]"],
        *["<answer>5</answer> 3", "3</think>5", "\\boxed{3!}", "-\\frac{3}{1}"],
    ],
)
def test_an_answer_of_three_is_nothing_else(text: str) -> None:
    assert judged("3", text).status == "wrong"


@pytest.mark.parametrize(
    ("answer", "text"), [("3 million", "3 thousand"), ("300%", "3%"), ("18%", "1800%"), ("3%", "3 million")]
)
def test_two_second_meanings_are_not_compared(answer: str, text: str) -> None:
    assert judged(answer, text).status == "wrong"


@pytest.mark.parametrize("text", ["", " ", "I don't know.", "\\boxed{}", "\x00", "<answer></answer>"])
def test_no_answer_is_unparsable(text: str) -> None:
    verdict = judged("3", text)
    assert (verdict.status, verdict.reward, verdict.answer) == ("unparsable", 0.0, "")


@pytest.mark.parametrize(
    "texts",
    [
        ("1/2", "0.5", "\\boxed{\\frac12}", "$\\dfrac{1}{2}$", "The answer is \\( .50 \\).", "50/100"),
        ("18", "\\$18", "18.00", "x = 18", "#### 18", "\\boxed{18 \\text{ cm}}", "18%"),
        ("x + 1", "\\boxed{1 + x}", "$x+1$"),
    ],
)
def test_equal_answers_are_one_vote(texts: tuple[str, ...]) -> None:
    assert len({judged("7", text).answer for text in texts}) == 1


def test_all_correct_answers_are_one_vote_however_they_are_written() -> None:
    assert judged("x^2-1", "$(x-1)(x+1)$").answer == judged("x^2-1", "$x^2-1$").answer != ""


def test_the_vote_is_short_whatever_the_answer() -> None:
    assert len(judged("3", f"\\boxed{{{'x+' * 500}1}}").answer) <= 200


@pytest.mark.parametrize("answer", ["", " ", "#### "])
def test_an_expected_answer_that_cannot_be_read_is_an_error(answer: str) -> None:
    with pytest.raises(ValueError, match="the answer of p:1 can't be read"):
        judged(answer, "3")


@given(st.sampled_from(sorted(FORMS)), st.integers(-(10**9), 10**9))
def test_a_number_is_right_in_every_form(form: str, number: int) -> None:
    assert judged(str(number), written(form, number)).status == "correct"


@given(st.sampled_from(sorted(FORMS)), st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6).filter(bool))
def test_another_number_is_wrong_in_every_form(form: str, number: int, difference: int) -> None:
    assert judged(str(number + difference), written(form, number)).status == "wrong"


@given(st.sampled_from(OF_ANY_NUMBER), st.integers(-(10**6), 10**6))
def test_a_number_that_is_nearly_right_is_wrong_in_every_form(form: str, number: int) -> None:
    for other in perturbed(number):
        assert judged(str(number), FORMS[form].format(n=other)).status == "wrong", other


# ── beside the library ───────────────────────────────────────────────────────────────────────────────────────────────

WHOLE = st.integers(-(10**7), 10**7).map(str)
DECIMAL = st.tuples(st.integers(-(10**4), 10**4), st.text("0123456789", min_size=1, max_size=7)).map(
    lambda pair: f"{pair[0]}.{pair[1]}"
)
FRACTION = st.tuples(st.integers(-(10**4), 10**4), st.integers(1, 60)).map(
    lambda pair: f"\\frac{{{pair[0]}}}{{{pair[1]}}}"
)
NUMBER = st.one_of(WHOLE, DECIMAL, FRACTION)


def near(text: str) -> "st.SearchStrategy[str]":
    """The same number in other forms, and numbers next to it."""
    number = read_number(text)
    assert number is not None
    value = number.value
    return st.sampled_from(
        [
            text,
            f"{value.numerator}/{value.denominator}",
            *(f"{float(value):.{places}f}" for places in range(9)),
            f"{float(value) + 1e-6:.7f}",
            f"{value.numerator + 1}/{value.denominator}",
        ]
    )


@settings(max_examples=150)
@given(st.data())
def test_comparing_fractions_gives_what_the_library_gives(data: st.DataObject) -> None:
    """The fast path: both texts are one number. Percentages are apart, see below."""
    one = data.draw(NUMBER)
    other = data.draw(st.one_of(NUMBER, near(one)))
    expected, found = read_number(one), read_number(other)
    assert expected is not None
    assert found is not None
    gap = abs(expected.value - found.value)
    # On the edge between two roundings the library's floats fall to either side.
    assume(gap == 0 or abs(gap - Fraction(1, 10**6)) > Fraction(1, 10**7) or gap > Fraction(1, 10**5))
    assert equal_numbers(expected, found) == library(one, other)


def library(answer: str, text: str) -> bool:
    parse = math_verify.parse
    return bool(
        math_verify.verify(
            parse(f"\\boxed{{{answer}}}", parsing_timeout=0),
            parse(f"\\boxed{{{text}}}", parsing_timeout=0),
            timeout_seconds=0,
        )
    )


def test_the_library_takes_some_percentages_for_others_and_some_numbers_for_parts_of_them() -> None:
    """What it is not followed in: each of these it gets wrong."""
    wrong = {
        ("-5", "\\boxed{-5\\%}"): False,
        ("12.5", "\\boxed{12.5\\%}"): False,
        ("7/2", "The answer is 3 1/2."): False,
        ("18", "\\$18"): False,
        ("265", "That makes **265/3**"): True,
        ("3", "- 3"): True,
        ("18", "<answer>18</answer>"): False,
    }
    for (answer, text), verdict in wrong.items():
        gold = math_verify.parse(f"\\boxed{{{answer}}}", parsing_timeout=0)
        found = math_verify.parse(text, parsing_timeout=0)
        assert math_verify.verify(gold, found, timeout_seconds=0) is verdict, (answer, text)
        assert (judged(answer, text).status == "correct") is not verdict, (answer, text)


def test_digits_of_other_scripts_are_digits() -> None:
    assert judged("18", "\\boxed{١٨}").status == "correct"
    assert judged("\\sqrt{18}", "\\boxed{\\sqrt{１８}}").status == "correct"


@pytest.mark.parametrize("text", ["7" * 100_000, f"\\boxed{{{'7' * 1500}}}"])
def test_more_digits_than_an_answer_can_have_are_none(text: str) -> None:
    assert judged("7", text).status == "unparsable"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("72", "The answer is not 72, it is 96."),
        ("6", "The answer is 6 and a half."),
        ("6", "The answer is 6 times 7."),
        ("6", "Answer: either 6 or 7"),
        ("6", "\\boxed{\\geq 6}"),
        ("7", "\\boxed{6 \\mid 7}"),
        ("7", "\\boxed{6 & 7}"),
        ("2", "\\boxed{" + "x^2-" * 2000 + "1}"),
    ],
)
def test_a_number_that_is_not_what_the_answer_says_is_none(answer: str, text: str) -> None:
    assert judged(answer, text).status in ("wrong", "unparsable")


@pytest.mark.parametrize(
    "text",
    [
        "The answer is 5 times.",
        "She has 5 dozens; the answer is 5 dozens.",
        "The answer is 5 more than Tom.",
        "So the final answer is 5 & done",
        "\\boxed{" + "5",
    ],
)
def test_a_number_with_words_of_the_question_behind_it_is_the_answer(text: str) -> None:
    assert judged("5", text).status == "correct"
