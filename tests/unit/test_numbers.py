from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrostat.actors.verifiers.numbers import last_number, read_number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("18", 18),
        ("18.", 18),
        ("18.00", 18),
        ("-5", -5),
        ("- 5", -5),
        ("−5", -5),
        ("-$5", -5),
        ("$-5", -5),
        ("+7", 7),
        (".5", Fraction(1, 2)),
        ("1,234,567.5", Fraction(2469135, 2)),
        ("1{,}234", 1234),
        ("1\\,234", 1234),
        ("1 234", 1234),
        ("3/4", Fraction(3, 4)),
        ("\\frac34", Fraction(3, 4)),
        ("-\\dfrac{3}{4}", Fraction(-3, 4)),
        ("3 1/2", Fraction(7, 2)),
        ("-3\\frac{1}{2}", Fraction(-7, 2)),
        ("2e3", 2000),
        ("2 \\times 10^{-3}", Fraction(2, 1000)),
        ("3 × 10^2", 300),
        ("$3 million", 3_000_000),
        ("3\\text{ thousand}", 3000),
        ("\\$18", 18),
        ("€18", 18),
        ("18 €", 18),
        ("90^\\circ", 90),
        ("18 \\text{ cm}^2", 18),
        ("18 km/h", 18),
        ("18 eggs per day", 18),
        ("x = 5", 5),
        ("\\left(18\\right)", 18),
        ("**$18$**", 18),
        ("\\( 18 \\)", 18),
        ("$$18$$", 18),
        ('"18"', 18),
        ("\\textbf{18}", 18),
    ],
)
def test_a_number_is_read_as_it_is_meant(text: str, value: Fraction | int) -> None:
    number = read_number(text)
    assert number is not None
    assert number.value == value
    assert not number.percent


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "3x",
        "3 x",
        "3!",
        "3^2",
        "3-4",
        "3 - 4",
        "3:2",
        "3, 4",
        "3 and 4",
        "3 or so",
        "3 halves",
        "3 times",
        "3 dozen",
        "18 dollars and 50 cents",
        "1,23",
        "12 34",
        "1.2.3",
        "--5",
        "5-",
        "1/0",
        "3/2/1",
        "x=3, y=4",
        "2^\\frac12",
        "\\frac{1}{2}\\frac{1}{3}",
        "5/\\frac12",
        "1e999999",
        "٣²",
        "9" * 1000,
        "\\frac{" * 100,
    ],
)
def test_what_is_more_or_less_than_one_number_is_none(text: str) -> None:
    assert read_number(text) is None


def test_a_percentage_is_its_share_and_where_that_is_asked_for_the_number_before_the_sign() -> None:
    for text in ("18%", "18\\%", "18 percent", "$18\\%$"):
        number = read_number(text)
        assert number is not None
        assert set(number.values) == {Fraction(18, 100), Fraction(18)}
    small = read_number("0.5%")
    assert small is not None
    assert small.values == (Fraction(5, 1000),)


@given(st.integers(-(10**15), 10**15), st.integers(0, 6))
def test_every_decimal_is_read_exactly(digits: int, places: int) -> None:
    value = Fraction(digits, 10**places)
    text = f"{'-' if digits < 0 else ''}{abs(digits) // 10**places:,}"
    text += f".{abs(digits) % 10**places:0{places}}" if places else ""
    number = read_number(text)
    assert number is not None
    assert (number.value, number.decimals) == (value, places)


@given(st.text(alphabet="0123456789.,/ -+e%$\\{}()xfrac*^=", max_size=30))
def test_reading_never_fails_and_what_is_read_reads_the_same_again(text: str) -> None:
    number = read_number(text)
    if number is not None:
        again = read_number(str(number.value))
        assert again is not None
        assert again.value == number.value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("from 3 to -4 degrees", -4),
        ("5-3", 3),
        ("\\$18 every day", 18),
        ("in 1,234.5 days.", Fraction(2469, 2)),
        ("it takes 3 1/2 hours", Fraction(7, 2)),
        ("**18**", 18),
        ("x = 18.", 18),
    ],
)
def test_the_last_number_of_a_text_is_found(text: str, value: Fraction | int) -> None:
    number = last_number(text)
    assert number is not None
    assert number.value == value


def test_digits_of_a_word_are_no_number() -> None:
    assert last_number("see x2 and v1.18") is None
