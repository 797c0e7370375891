r"""Numbers as people and language models write them, read strictly: a text is one number, or it is none.

Read are `18`, `-5`, `− 5`, `1,234`, `1{,}234`, `1\,234`, `18.00`, `.5`, `3/4`, `\frac34`, `3 1/2`, `3\frac{1}{2}`,
`2e3`, `2 \times 10^3`, `3 million`, each with a currency sign in front, a percent sign, a degree sign or the words of
a unit behind, `x =` before it, and whatever LaTeX or Markdown puts around it.
"""

import re
from collections import deque
from fractions import Fraction
from typing import NamedTuple

LONGEST = 160  # characters
LARGEST_EXPONENT = 400

_SPACES = re.compile(r"\\[,;: ]|\\q?quad(?![a-zA-Z])|~|[\u00a0\u2009\u202f]")
_NOTHING = re.compile(r"\\!|\\(?:left|right|displaystyle)(?![a-z])")
_COMMA = re.compile(r"\{\s*,\s*\}")
_MINUS = re.compile(r"[−–]")
_ESCAPED = re.compile(r"\\([%$€£])")
_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{\s*(-?\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))")
_WRAPPERS = (
    re.compile(r"()\*{1,3}([^*]+)\*{1,3}"),
    re.compile(r"(__?|`{1,3}|\"|'|\$\$?)([^_`\"$]+)\1"),
    re.compile(r"()\\\((.+)\\\)"),
    re.compile(r"()\\\[(.+)\\\]"),
    re.compile(r"()\\(?:text|textbf|textit|mathrm|mathbf|mbox|boldsymbol|boxed|fbox)\s*\{([^{}]+)\}"),
    re.compile(r"()\(([^()]+)\)"),
    re.compile(r"()\{([^{}]+)\}"),
    re.compile(r"(“)([^“”]+)”"),
)
_CURRENCY = r"(?:US\$|USD\s|[$€£¥₹])"
_WHOLE = r"(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d+)(?!\d)"
_TIMES_TEN = r"\s?(?:\\times|\\cdot|×|·|\*)\s?10\s?\^\s?"
_NUMBER = re.compile(
    rf"(?:(?P<name>[A-Za-z](?:_\{{?\w{{1,4}}\}}?)?)\s*=\s*)?(?P<sign>[-+]\s*)?{_CURRENCY}?\s?(?P<inner_sign>-)?"
    rf"(?:(?:(?P<whole>\d+)\s+)?(?P<upper>{_WHOLE})\s?/\s?(?P<lower>{_WHOLE})"
    rf"|(?P<digits>{_WHOLE}(?:\.\d*)?|\.\d+)"
    rf"(?:[eE](?P<power>[-+]?\d{{1,4}})|{_TIMES_TEN}(?:\{{(?P<braced>[-+]?\d{{1,4}})\}}|(?P<bare>-?\d{{1,4}})))?)"
    r"(?P<rest>(?!\d).*)",
    re.DOTALL,
)
_PERCENT = re.compile(r"\s*(?:%|percent|per cent|pct)(?=$|\W)")
_DEGREE = re.compile(r"\s*(?:°|\^\s?\\circ|\^\{\s?\\circ\s?\})")
_UNIT = re.compile(r"\s*[€₹]|\s*\\(?:text|mathrm|mbox)\s*\{(?P<text>[^{}]*)\}(?:\^\{?[23]\}?)?|\s(?P<words>[^\\{}]*)")
_WORD = r"(?:[A-Za-z]{2,}(?:\^[23])?|[A-Za-z]{1,3}/[A-Za-z]{1,3})"
_WORDS = re.compile(rf"{_WORD}(?:[\s-]+(?:{_WORD}|a))*")
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
# Before one of these a number is not all that is said.
_NO_UNITS = re.compile(
    "and|or|to|times|plus|minus|over|divided|multiplied|by|hal(?:f|ves)|(?:third|fourth|quarter|fifth|sixth|eighth|tenth)s?"
    "|(?:hundred|thousand)ths?|point|pi|sqrt|squared|cubed|factorial|mod|if|when|but|n?or|not|versus|vs|ln|log|sin|cos|tan"
    "|is|equals|dozens?|pairs?"
)
# In a text: a sign belongs to the number unless something stands before it, as in 5-3.
_TOKEN = re.compile(
    rf"(?<![A-Za-z0-9_.^/])(?:[-−–](?=[\d.$€£¥\\]))?(?:\\?{_CURRENCY}\s?)?(?<![A-Za-z0-9_.])"
    r"(?:(?:\d+\s?)?\\[dtc]?frac\s*(?:\{\d+\}|\d)\s*(?:\{\d+\}|\d)|\d+\s+\d+/\d+|\d+/\d+"
    r"|(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?!\d)"
    r"(?:[eE][-+]?\d{1,4}|\s?(?:\\times|×|\*)\s?10\^(?:\{-?\d{1,4}\}|-?\d{1,4}))?"
    r"(?:\s?\\?%|\s(?:percent|hundred|thousand|million|billion|trillion)\b)?"
)
_ODD = re.compile(r"\d\s+\d+/|10\^|\s(?:hundred|thousand|[mbtr]+illion)|\\[$€£¥₹]")


class Written(NamedTuple):
    """A number, and how it was written."""

    value: Fraction  # of a percentage, what stands before the sign
    decimals: int = 0  # digits after the point
    percent: bool = False
    scale: int = 1  # 1,000,000 of 3 million
    name: str = ""  # `x` where `x = 5` was written

    @property
    def values(self) -> tuple[Fraction, ...]:
        """What it stands for, then what else it may: 18 % is 0.18, and where per cent are asked for, 18.

        So 3 million is 3 where millions are asked for. Less than 1 % is only itself.
        """
        if self.percent:
            share = self.value / 100
            return (share, self.value) if abs(self.value) >= 1 else (share,)
        return (self.value,) if self.scale == 1 else (self.value, self.value / self.scale)

    def pairs(self, other: "Written") -> list[tuple[Fraction, Fraction]]:
        """What may be compared: the second meaning of one only with the first of the other."""
        ours, theirs = self.values, other.values
        if len(ours) == len(theirs):
            return [(ours[0], theirs[0])]
        return [(one, another) for one in ours for another in theirs]


def read_number(text: str) -> Written | None:
    """The number that `text` is; None where it is none, or is more than that."""
    if len(text) > LONGEST or not any(character.isdigit() for character in text):
        return None
    if text.isascii() and text.isdigit():
        return Written(Fraction(int(text)))
    return _read(_unwrapped(_plain(text)))


def last_number(text: str, *, odd: bool = False) -> Written | None:
    """The last piece of `text` that is a number, whatever stands around it.

    With `odd`, None unless it is a mixed number, a power of ten, has a word such as million, or a dollar sign that is
    escaped: what software that looks for numbers takes a part of.
    """
    last = deque(_TOKEN.finditer(text), maxlen=1)
    return read_number(last[0][0]) if last and (not odd or _ODD.search(last[0][0])) else None


def _plain(text: str) -> str:
    """Spaces, signs and fractions of LaTeX in plain characters; others as they are."""
    text = _MINUS.sub("-", text)
    if text.isascii() and not any(mark in text for mark in "\\{~"):
        return text
    text = _COMMA.sub(",", _NOTHING.sub("", _SPACES.sub(" ", text)))
    # A blank in front: with a whole number before it, it is a mixed number.
    text = _FRACTION.sub(lambda found: f" {found[1] or found[2]}/{found[3] or found[4]}", text)
    return _ESCAPED.sub(r"\1", text)


def _unwrapped(text: str) -> str:
    """Without what stands around it: dollars, emphasis, quotes, brackets, a full stop."""
    before = None
    while text != before:
        before, text = text, text.strip().rstrip(".,;:").strip()
        for wrapper in _WRAPPERS:
            if found := wrapper.fullmatch(text):
                text = found[2]
    return text


def _read(text: str) -> Written | None:
    found = _NUMBER.fullmatch(text)
    if found is None or (found["sign"] and found["inner_sign"]):
        return None
    decimals = 0
    if found["digits"]:
        digits, power = _bare(found["digits"]), int(found["power"] or found["braced"] or found["bare"] or 0)
        if abs(power) > LARGEST_EXPONENT:
            return None
        value = Fraction(digits) * Fraction(10) ** power
        decimals = max(0, len(digits.partition(".")[2]) - power)
    else:
        lower = int(_bare(found["lower"]))
        if not lower:
            return None
        value = int(found["whole"] or 0) + Fraction(int(_bare(found["upper"])), lower)
    if "-" in (found["sign"] or found["inner_sign"] or ""):
        value = -value
    return _with_rest(Written(value, decimals, name=found["name"] or ""), found["rest"])


def _bare(digits: str) -> str:
    return digits.replace(",", "").replace(" ", "")


def _with_rest(number: Written, rest: str) -> Written | None:
    """The number with its unit read; None where what follows is no unit."""
    if found := _PERCENT.match(rest):
        number, rest = number._replace(percent=True), rest[found.end() :]
    elif found := _DEGREE.match(rest):
        rest = rest[found.end() :]
    if not rest.strip():
        return number
    found = _UNIT.fullmatch(rest)
    if found is None:
        return None
    words = (found["text"] or found["words"] or "").strip().rstrip(".").lower()
    if not words:
        return number
    if not _WORDS.fullmatch(words):
        return None
    first, *others = re.split(r"[\s-]+", words)
    if first in _SCALES:
        number = number._replace(value=number.value * _SCALES[first], decimals=0, scale=_SCALES[first])
        first, others = (others or [""])[0], others[1:]
    # Only the first word, and the one behind it, can go on with the number: 18 dollars or more.
    if any(_NO_UNITS.fullmatch(word) for word in (first, *others[:1])) or _SCALES.keys() & {first, *others}:
        return None
    return number
