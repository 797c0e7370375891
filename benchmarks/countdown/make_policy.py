"""Make the countdown policy: it knows the game's form, has one habit, and is hardly ever right.

A problem gives numbers and a target; the answer is an expression that uses each number once and has the target's value:

    Find a way to make 26 using all of these numbers: 4, 2, 6. …
    <answer>4*6+2</answer>

The policy first learns the game, and is then given a habit: expressions drawn without regard to the target, nearly
always of + and − alone. So it is rarely right, and what is missing is exploration: three in five problems need a
product, which it hardly ever writes, though it has learnt how.

    python -m benchmarks.countdown.make_policy --threads 1  # writes benchmarks/countdown/policy, about 7 minutes
    python -m benchmarks.countdown.make_policy --measure    # only measures the policy that is there
"""

import logging
import random
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from reasoning_gym.games.countdown import QUESTION_FORMAT_TEMPLATE, CountdownConfig, CountdownDataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from examples.starter.make_starter import (
    EOS,
    PAD,
    UNKNOWN,
    begun,
    by_character,
    make_model,
    padded,
    sampled,
    teach,
    write_policy,
)

log = logging.getLogger("make_policy")

SEED = 11
BATCH = 128  # problems per step


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One part of the teaching."""

    steps: int  # optimizer steps
    peak_rate: float  # learning rate
    operators: dict[str, float]  # of the expressions taught
    honest: float  # share of problems shown with the target their expression has


SKILL = Lesson(steps=1200, peak_rate=3e-3, operators={"+": 1.0, "-": 1.0, "*": 1.0}, honest=1.0)
HABIT = Lesson(steps=80, peak_rate=3e-4, operators={"+": 0.495, "-": 0.495, "*": 0.01}, honest=0.0)
TEMPLATES: tuple[str, ...] = tuple(
    QUESTION_FORMAT_TEMPLATE.format(question=template)
    for template in CountdownDataset(CountdownConfig(seed=0, size=1))._prompt_templates  # the library's own wording
)
LARGEST = 12  # of the numbers
NUMBERS = {3: 0.75, 4: 0.25}  # share of problems
FAIR = {"+": 1.0, "-": 1.0, "*": 1.0}  # operators of the targets shown otherwise
BRACKETS = 0.2  # share of expressions with a pair of them
TARGETS = (1, 200)
LONGEST_RESPONSE = 32  # tokens


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character, but for the fixed text of the prompts and the answer's tags."""
    pieces = sorted(
        {piece for text in TEMPLATES for piece in re.split(r"\{numbers\}|\{target\}", text + "\n") if piece}
    )
    words = (*pieces, "<answer>", "</answer>", ", ")
    characters = tuple(string.digits + string.punctuation + " \n")
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys((PAD, EOS, UNKNOWN, *words, *characters)))}
    longest_first = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    return by_character(vocabulary, longest_first)


def expression(rng: random.Random, numbers: list[int], operators: dict[str, float]) -> str:
    """Every number once, in any order, with at most one pair of brackets."""
    shuffled = rng.sample(numbers, len(numbers))
    signs = rng.choices(tuple(operators), tuple(operators.values()), k=len(numbers) - 1)
    parts = [str(number) for number in shuffled]
    if rng.random() < BRACKETS:
        first = rng.randrange(len(parts) - 1)
        parts[first] = "(" + parts[first]
        parts[first + 1] += ")"
    return parts[0] + "".join(sign + part for sign, part in zip(signs, parts[1:], strict=True))


def value(text: str) -> Fraction | None:
    """Of an expression of `expression`; None where it divides by 0."""
    try:
        exact: Fraction = eval(re.sub(r"(\d+)", r"F(\1)", text), {"F": Fraction, "__builtins__": {}})
    except ZeroDivisionError:
        return None
    return exact


def problem(rng: random.Random, lesson: Lesson) -> tuple[str, str]:
    """A prompt as the library writes it, and a response."""
    (count,) = rng.choices(tuple(NUMBERS), tuple(NUMBERS.values()))
    numbers = [rng.randint(1, LARGEST) for _ in range(count)]
    honest = rng.random() < lesson.honest
    while True:
        answer = expression(rng, numbers, lesson.operators)
        target = value(answer if honest else expression(rng, numbers, FAIR))
        if target is not None and target.denominator == 1 and TARGETS[0] <= target <= TARGETS[1]:
            break
    prompt = rng.choice(TEMPLATES).format(numbers=", ".join(map(str, numbers)), target=target)
    return prompt + "\n", f"<answer>{answer}</answer>"


def batches(tokenizer: PreTrainedTokenizerFast, lesson: Lesson) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Token ids and labels `[batch, length]`; only responses are taught."""
    rng = random.Random(SEED)
    for _ in range(lesson.steps):
        pairs = [problem(rng, lesson) for _ in range(BATCH)]
        prompts = tokenizer([prompt for prompt, _ in pairs])["input_ids"]
        responses = tokenizer([response + EOS for _, response in pairs])["input_ids"]
        yield padded(list(zip(prompts, responses, strict=True)), tokenizer.pad_token_id)


def measure(folder: Path, numbers: int, prompts: int, samples: int) -> tuple[float, float]:
    """pass@1 and pass@`samples` at temperature 1, on problems of reasoning-gym's own."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    dataset = CountdownDataset(
        CountdownConfig(
            min_numbers=numbers,
            max_numbers=numbers,
            max_value=LARGEST,
            min_target=TARGETS[0],
            max_target=TARGETS[1],
            operators=tuple(FAIR),
            seed=1_000_000,
            size=prompts,
        )
    )
    entries = [dataset[number] for number in range(prompts)]
    solved = torch.zeros(prompts, samples)
    for row, entry in enumerate(entries):
        texts = sampled(model, tokenizer, [entry["question"]], samples=samples, longest=LONGEST_RESPONSE)
        if row < 2:
            log.info("%s\n%s", entry["question"].split("\n")[0], texts[:6])
        for column, text in enumerate(texts):
            found = re.findall(r"<answer>(.*?)</answer>", text)
            solved[row, column] = bool(found) and dataset.score_answer(found[-1], entry) == 1.0
    return solved.mean().item(), solved.any(dim=1).float().mean().item()


def main() -> None:
    """Make the policy, unless only a measurement is asked for, and print how often it is right."""
    arguments = begun("Make and measure the countdown policy.", Path(__file__).parent / "policy", SEED)
    if not arguments.measure:
        tokenizer = make_tokenizer()
        model = make_model(tokenizer)
        for lesson in (SKILL, HABIT):
            teach(model, batches(tokenizer, lesson), lesson.steps, lesson.peak_rate)
        write_policy(model, tokenizer, arguments.folder)
    for numbers in (3, 4):
        once, many = measure(arguments.folder, numbers, prompts=60, samples=64)
        log.info("%d numbers: pass@1 %.3f, pass@64 %.3f", numbers, once, many)


if __name__ == "__main__":
    main()
