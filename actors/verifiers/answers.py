r"""Where in a response its answer stands: what the verifiers that read answers look at, in their order of trust.

What follows the last `</think>` is read, if anything does. There the answer is, in this order,

1. inside the last `<answer>…</answer>`;
2. the last of these marks: a closed `\boxed{…}`, what follows `####` on its line, what a "final answer is" says;
3. what an "answer is", "answer:" or a line "Answer" says, up to the end of its sentence.

Boxes with nothing but a comma, "and" or "or" between them, and "x =", are one answer of several parts.
"""

import re
from collections import deque
from collections.abc import Iterator
from typing import Literal, NamedTuple

LONGEST = 2_000  # characters of one answer
ENDS = ("</s>", "<|im_end|>", "<|eot_id|>", "<|endoftext|>", "<eos>", "<end_of_turn>", "<｜end▁of▁sentence｜>")
MARKS = 32  # of each kind, looked at from the end: text that has thousands must not cost a scan for each

_TAG = re.compile(rf"<answer>((?:(?!<answer>).){{0,{LONGEST}}}?)</answer>", re.DOTALL)
_BOX = re.compile(r"\\f?box(?:ed)?\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BETWEEN_BOXES = re.compile(
    r"(?:\$|\\\)|\\\])?\s*(?:,|;|,?\s*(?:and|or))\s*(?:\$|\\\(|\\\[)?\s*(?:[A-Za-z](?:_\{?\w\}?)?\s*=\s*)?"
)
_HASHES = re.compile(r"####[^\S\n]*([^\n]+)")
_SAID = re.compile(
    r"(?P<final>\bfinal\s+)?\banswer\b(?:\s+(?:choice|option))?(?:\s+(?:to|for|of)\b[^.:\n]{0,80}?)?"
    r"[\s*_]{0,8}(?:[:=]|\bis\b\s*:?|\n)[\s*_]{0,8}(?:(?<=\n)[-•]\s+)?(?=\S)",
    re.IGNORECASE,
)
_CLAUSE_END = re.compile(
    r",\s+(?!(?:and|or)\b)(?=[A-Za-z])|[;:]\s|\s(?=(?:because|since|as|so|which|when|if|but|not|for|in|from|at|on|with)\b)"
    r"|\s[—–-]\s(?=[A-Za-z])|\s\((?![^()]*\)\s*[-+*/=×÷])"
)
# What says that the number after or before it is not what is meant.
_DENIED = re.compile(
    r"[\s*_$]*(?:(?:not|either|neither)\b"
    r"|[-+]?[\d,.]*\d[\s*_$]+(?:and[\s*_$]+a[\s*_$]+half\b"
    r"|(?:times|mod|plus|minus|(?:divided|multiplied)\s+by|(?:more|less|fewer)\s+than)[\s*_$]+[-+]?\d)"
    r"|\\(?:[lg]eq?|[lg]t|neq?)\b|[≤≥≠]|[-+]?\d+\s*(?:\\mid\b|&\s*[-+]?\d))",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?][*_\"'”’)]*(?=\s|$)")


class Part(NamedTuple):
    """A piece of a response that stands where an answer stands."""

    text: str  # without blanks at its ends, never empty
    mark: Literal["tag", "box", "hashes", "said"]


def after_thinking(text: str) -> str:
    """What follows the last `</think>`, the whole text where nothing does; without the tokens that end a text."""
    while (bare := text.rstrip()).endswith(ENDS):
        text = bare[: bare.rindex("<")]
    _, end, rest = text.rpartition("</think>")
    return rest if end and rest.strip() else text


def expected_answer(text: str) -> str:
    """A prompt's own answer without the solution before it, as GSM8K has it: what follows the last `####`."""
    return text.rpartition("####")[2].strip()


def marked(text: str) -> Iterator[Part]:
    """Each piece of `text` that is marked as an answer, the most trusted first; none where nothing is marked."""
    inner = ""
    for found in _TAG.finditer(text):
        inner = found[1].strip() or inner
    if inner:
        yield from _of_marks(inner)
        yield Part(inner, "tag")
    yield from _of_marks(text)


def _of_marks(text: str) -> Iterator[Part]:
    strong: list[tuple[int, Part]] = []
    weak: list[Part] = []
    if (box := last_box(text)) is not None:
        strong.append((box[0], Part(box[1], "box")))
    for found in deque(_HASHES.finditer(text), maxlen=MARKS):
        if words := found[1].strip():
            strong.append((found.start(), Part(words, "hashes")))
    for found in deque(_SAID.finditer(text), maxlen=MARKS):
        if words := _sentence(text[found.end() : found.end() + LONGEST].partition("\n")[0]):
            # A box counts by what is in it, not by the words before it.
            final = found["final"] and "\\boxed" not in words
            strong.append((found.start(), Part(words, "said"))) if final else weak.append(Part(words, "said"))
    yield from (part for _, part in sorted(strong, key=lambda each: each[0], reverse=True))
    yield from reversed(weak)


def first_clause(text: str) -> str:
    """What a sentence begins with, where a reason or a remark follows; empty where none does."""
    end = _CLAUSE_END.search(text)
    return text[: end.start()] if end else ""


def denied(text: str) -> bool:
    """Whether a marked answer says "not 72", "6 times 7" or "≥ 6": its number alone is not what it says."""
    return bool(_DENIED.match(text))


def overlong(text: str) -> bool:
    """Whether the last box that is opened holds more than any answer does."""
    last = deque(_BOX.finditer(text), maxlen=1)
    return bool(last) and len(text) - last[0].end() > LONGEST and _closing(text, last[0].end()) is None


def last_box(text: str) -> tuple[int, str] | None:
    """Where the last closed box that isn't empty begins, and what is in it and in those joined to it."""
    begin, parts = -1, list[str]()
    for found in reversed(deque(_BOX.finditer(text), maxlen=MARKS)):
        start, inside = found.span()
        end = _closing(text, inside)
        if end is None:
            continue
        if parts and not _BETWEEN_BOXES.fullmatch(text, end + 1, begin):
            break
        if content := text[inside:end].strip():
            begin = start
            parts += [content] if content not in parts else []
    return (begin, ", ".join(reversed(parts))) if parts else None


def _closing(text: str, inside: int) -> int | None:
    """Where the brace that was opened right before `inside` is closed."""
    depth = 1
    for found in _BRACE.finditer(text, inside, inside + LONGEST):
        depth += {"{": 1, "}": -1}.get(found[0], 0)
        if not depth:
            return found.start()
    return None


def _sentence(line: str) -> str:
    """The first sentence of a line; decimal points end none, and emphasis that began before it is left out."""
    end = _SENTENCE_END.search(line)
    words = (line[: end.start()] if end else line)[:LONGEST].strip()
    return words if words.startswith(("*", "_")) else words.rstrip("*_ ")
