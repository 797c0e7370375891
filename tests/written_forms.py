"""How an answer is written: by one who knows it, and by one who is near it and wrong."""

from fractions import Fraction

# A response with {n} for the answer, which is a whole number.
FORMS: dict[str, str] = {
    "bare": "{n}",
    "boxed": "So we get \\boxed{{{n}}}.",
    "boxed in dollars": "Therefore $x = \\boxed{{{n}}}$.",
    "dollars": "The answer is ${n}$.",
    "parentheses": "The answer is \\( {n} \\).",
    "display": "Adding both sides,\n\\[ {n} \\]",
    "the answer is": "3 + 4 = 7, so the answer is {n}.",
    "answer with a colon": "**Answer:** {n}",
    "final answer": "The final answer is $\\boxed{{{n}}}$. I hope it is correct.",
    "hashes": "First 2 * 3 = 6.\n#### {n}",
    "tags": "<think>1 + 1 = 2</think><answer> {n} </answer>",
    "bold": "That makes **{n}**",
    "unit in words": "\\boxed{{{n} \\text{{ dollars}}}}",
    "unit with LaTeX's spacing": "\\boxed{{{n}\\,\\text{{cm}}^2}}",
    "spacing": "\\boxed{{\\!\\, {n} \\;}}",
    "decimal": "The answer is {n}.00",
    "fraction": "\\boxed{{\\frac{{{twice}}}{{2}}}}",
    "fraction in short": "The answer is \\dfrac{{{twice}}}{{2}}.",
    "currency": "She pays \\${n} in the end",
    "variable": "\\boxed{{x = {n}}}",
    "trailing text": "The answer is {n} because 12 of the 40 eggs broke.",
    "trailing sentences": "\\boxed{{{n}}}\n\nCheck: 2 + 2 = 4, and 99 is not it.",
    "thousands": "Answer: {grouped}",
    "thousands in LaTeX": "\\boxed{{{latex_grouped}}}",
    "plain unit": "The answer is {n} apples per day.",
}


def written(form: str, number: int) -> str:
    """`number` in one of the forms."""
    grouped = f"{number:,}"
    return FORMS[form].format(n=number, twice=2 * number, grouped=grouped, latex_grouped=grouped.replace(",", "{,}"))


def perturbed(number: int) -> list[str]:
    """Numbers near `number`, or made of its digits, that are others."""
    digits = str(abs(number))
    near = [
        number + 1,
        number - 1,
        -number,
        number * 10,
        number * 100,
        number + 10,
        int(f"1{digits}"),
        int(f"{digits}3"),
    ]
    near += [int(digits[:-1])] if len(digits) > 1 else []
    near += [int(digits[::-1])] if len(digits) > 1 else []
    others = [f"{other}" for other in near if other != number]
    halves = [Fraction(number, 2), Fraction(number, 3), number + Fraction(1, 2), number + Fraction(1, 100)]
    others += [
        f"{float(other)}" if other.denominator in (1, 2, 100) else f"{other}" for other in halves if other != number
    ]
    return list(dict.fromkeys(others))


# The forms that any number can be put into.
OF_ANY_NUMBER = tuple(
    form for form, text in FORMS.items() if "{twice}" not in text and "grouped" not in text and form != "decimal"
)
