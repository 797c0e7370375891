"""Responses written to hurt whoever judges them: a thousand, by families, the same in every run."""

import random
from collections.abc import Callable, Iterator

Family = Callable[[random.Random], str]


def _boxed(text: str) -> str:
    return f"\\boxed{{{text}}}"


def _nested(draw: random.Random) -> str:
    opening, closing = draw.choice(
        [("{", "}"), ("(", ")"), ("\\left(", "\\right)"), ("\\sqrt{", "}"), ("\\boxed{", "}"), ("\\text{", "}")]
    )
    depth = draw.choice([100, 1_000, 10_000])
    return f"\\boxed{{{opening * depth}1{closing * (depth - draw.randint(0, 1))}}}"


def _fraction_bomb(draw: random.Random) -> str:
    depth = draw.choice([20, 200, 2_000, 10_000])
    return _boxed("\\frac{1}{1+" * depth + "1" + "}" * depth)


def _wide_fraction_bomb(draw: random.Random) -> str:
    text = "x"
    for _ in range(draw.randint(4, 12)):
        text = f"\\frac{{{text}}}{{{text}}}"
    return f"$${text}$$"


def _power_tower(draw: random.Random) -> str:
    height = draw.choice([3, 4, 50, 1_000])
    return f"\\boxed{{{'9^{' * height}9{'}' * height}}}"


def _huge_exponent(draw: random.Random) -> str:
    base, exponent = draw.randint(2, 99), 10 ** draw.randint(4, 30)
    return draw.choice([f"\\boxed{{{base}^{{{exponent}}}}}", f"\\boxed{{1e{exponent}}}", f"{base}**{exponent}"])


def _factorials(draw: random.Random) -> str:
    return f"\\boxed{{{draw.randint(3, 10**7)}{'!' * draw.randint(1, 50)}}}"


def _binomials(draw: random.Random) -> str:
    return f"\\boxed{{\\binom{{{10 ** draw.randint(3, 12)}}}{{{10 ** draw.randint(2, 9)}}}}}"


def _digits(draw: random.Random) -> str:
    digits = str(draw.randint(1, 9)) * draw.choice([10_000, 300_000, 1_000_000, 3_000_000])
    return draw.choice([f"\\boxed{{{digits}}}", digits, f"\\frac{{{digits}}}{{7}}", f"0.{digits}", f"1,{digits}"])


def _null_bytes(draw: random.Random) -> str:
    return "\0" * draw.randint(1, 100_000) + _boxed("\0" * draw.randint(0, 9) + "2")


def _surrogates(draw: random.Random) -> str:
    broken = b"\xff\xfe\\boxed{\xc3\x28 2}\x80".decode(errors="surrogateescape")
    return broken * draw.randint(1, 500) + chr(draw.randint(0xD800, 0xDFFF)) * draw.randint(1, 9)


def _strange_letters(draw: random.Random) -> str:
    return "".join(chr(draw.choice([0x202E, 0x0301, 0x1F4A9, 0xFF11, 0x0663, 0x2028, 0])) for _ in range(5_000))


def _long_set(draw: random.Random) -> str:
    numbers = ",".join(str(draw.randint(0, 10**6)) for _ in range(draw.choice([100, 1_000, 20_000])))
    return draw.choice([f"\\boxed{{\\{{{numbers}\\}}}}", f"\\boxed{{({numbers})}}", f"\\boxed{{[{numbers}]}}"])


def _intervals(draw: random.Random) -> str:
    count = draw.choice([10, 100, 2_000])
    return _boxed("\\cup".join(f"({2 * n},{2 * n + 1}]" for n in range(count)))


def _matrix(draw: random.Random) -> str:
    side = draw.choice([5, 20, 80])
    rows = "\\\\".join("&".join(str(draw.randint(0, 9)) for _ in range(side)) for _ in range(side))
    power = draw.choice(["", "^{-1}", "^{1000000}"])
    return f"\\boxed{{\\begin{{pmatrix}}{rows}\\end{{pmatrix}}{power}}}"


def _polynomial(draw: random.Random) -> str:
    return f"\\boxed{{(x+y+z+1)^{{{draw.choice([50, 5_000, 10**9])}}}}}"


def _sums(draw: random.Random) -> str:
    return draw.choice(
        [
            f"\\boxed{{\\sum_{{n=1}}^{{{10 ** draw.randint(5, 20)}}}\\frac{{1}}{{n!+n^n}}}}",
            "\\boxed{\\int_0^\\infty e^{-x^{x^{x}}}\\sin(x^{77})dx}",
            f"\\boxed{{\\prod_{{n=1}}^{{{10 ** draw.randint(3, 9)}}}n^n}}",
            "\\boxed{\\lim_{x\\to 0}\\frac{\\sin(\\tan(x))-\\tan(\\sin(x))}{x^{77}}}",
        ]
    )


def _backtracking(draw: random.Random) -> str:
    piece = draw.choice(
        ["a ", "1,", "1 ", "$", "\\", "{", "}{", "<answer>", "<think>", "\\boxed", "**", "= ", "-", "1."]
    )
    return piece * draw.choice([1_000, 30_000, 200_000])


def _many_answers(draw: random.Random) -> str:
    return " ".join(f"\\boxed{{{n}^2}} <answer>{n}</answer> $${n}$$" for n in range(draw.choice([100, 5_000])))


def _plain_expression(draw: random.Random) -> str:
    return _boxed(draw.choice(["1+", "2\\cdot ", "x^2-", "-", "\\sin ", "3/"]) * draw.choice([500, 20_000]) + "1")


# Programs for the `code` verifier would be one more entry of this table.
FAMILIES: dict[str, Family] = {
    "nested": _nested,
    "fraction bomb": _fraction_bomb,
    "wide fraction bomb": _wide_fraction_bomb,
    "power tower": _power_tower,
    "huge exponent": _huge_exponent,
    "factorials": _factorials,
    "binomials": _binomials,
    "digits": _digits,
    "null bytes": _null_bytes,
    "surrogates": _surrogates,
    "strange letters": _strange_letters,
    "long set": _long_set,
    "intervals": _intervals,
    "matrix": _matrix,
    "polynomial": _polynomial,
    "sums": _sums,
    "backtracking": _backtracking,
    "many answers": _many_answers,
    "plain expression": _plain_expression,
}


def hostile_texts(count: int = 1_000, seed: int = 0) -> Iterator[tuple[str, str]]:
    """So many texts, each with its family's name, one family after another in turn."""
    draw, names = random.Random(seed), list(FAMILIES)
    for number in range(count):
        name = names[number % len(names)]
        yield name, FAMILIES[name](draw)
