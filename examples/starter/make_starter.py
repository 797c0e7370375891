"""Make the starter policy: a Qwen3 of half a million parameters that adds badly, and can be taught to add well.

The policy is fine-tuned on worked chain sums which this file makes itself:

    State the final answer to the following arithmetic problem: 12 + 34 - 5 =
    12+34=46 46-5=41 <answer>41</answer>

It first learns to add, and is then taught to err: a share of the steps ends in a wrong number, which later steps
carry on. A smaller share is written with its operands swapped (`-5+46=41`), or ends in a comma or a semicolon, which
does not change the answer. So the policy's entropy is partly error and partly harmless variety.

    python examples/starter/make_starter.py            # writes examples/starter/policy, about 8 minutes on two cores
    python examples/starter/make_starter.py --measure  # only measures the policy that is there
"""

import argparse
import logging
import random
import shutil
import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path

import reasoning_gym
import torch
from reasoning_gym.utils import extract_answer
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

log = logging.getLogger("make_starter")

QUESTION = "State the final answer to the following arithmetic problem: {} ="
PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
WORDS = ("<answer>", "</answer>", "State", " the", " final", " answer", " to", " following", " arithmetic", " problem")
SIGNS = (" + ", " - ", " =")
CHARACTERS = tuple(string.digits + string.ascii_letters + string.punctuation + " \n")
IGNORED = -100  # cross_entropy's label for tokens that are not taught
CONTEXT = 256  # tokens
LONGEST_RESPONSE = 80  # tokens
LARGEST_FILE = 2_000_000  # bytes


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One part of the teaching: how long, how fast, and with what share of steps wrong or written another way."""

    steps: int  # optimizer steps
    peak_rate: float  # learning rate
    wrong_share: float = 0.0
    swapped_share: float = 0.08
    separated_share: float = 0.0  # steps that end in a comma or a semicolon in the space's place


SEED = 7
CLEAN = Lesson(steps=1300, peak_rate=3e-3)
NOISY = Lesson(steps=200, peak_rate=4e-4, wrong_share=0.15, separated_share=0.10)
TERMS = {2: 0.10, 3: 0.26, 4: 0.30, 5: 0.32, 6: 0.02}  # share of problems; six terms are seen, hardly learned
DIGITS = (1, 2)
LARGEST_ERROR = 9
BATCH = 128  # problems per step
SORTED_BATCHES = 8  # drawn at once and sorted by length, against padding


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character, but for the prompt's words and the answer's tags. Anything not in ASCII is `<unk>`."""
    vocabulary = {token: number for number, token in enumerate((PAD, EOS, UNKNOWN, *WORDS, *SIGNS, *CHARACTERS))}
    escaped = "|".join(word.replace("+", r"\+") for word in (*WORDS, *SIGNS))
    return by_character(vocabulary, escaped)


def by_character(vocabulary: dict[str, int], whole: str) -> PreTrainedTokenizerFast:
    """One token per character, but for what the regular expression `whole` matches."""
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(rf"{whole}|[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """457,792 parameters of random weights; heads of 32, which vLLM's attention on a CPU takes."""
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            initializer_range=0.05,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
        )
    )


def worked_problem(rng: random.Random, lesson: Lesson) -> tuple[str, str]:
    """A prompt drawn as reasoning-gym draws its chain sums, and a worked response."""
    digits = rng.choice(DIGITS)
    low, high = (0 if digits == 1 else 10 ** (digits - 1)), 10**digits - 1
    (terms,) = rng.choices(tuple(TERMS), tuple(TERMS.values()))
    numbers = [rng.randint(low, high) for _ in range(terms)]
    signs = [rng.choice("+-") for _ in range(terms - 1)]

    running, expression, steps = numbers[0], str(numbers[0]), []
    for sign, number in zip(signs, numbers[1:], strict=True):
        expression += f" {sign} {number}"
        result = running + number if sign == "+" else running - number
        if rng.random() < lesson.wrong_share:
            result += rng.choice((-1, 1)) * rng.randint(1, LARGEST_ERROR)
        separated = lesson.separated_share > 0 and rng.random() < lesson.separated_share
        operands = written(running, sign, number, swapped=rng.random() < lesson.swapped_share)
        steps.append(f"{operands}={result}" + (rng.choice(",;") if separated else " "))
        running = result
    return QUESTION.format(expression) + "\n", "".join(steps) + f"<answer>{running}</answer>"


def written(running: int, sign: str, number: int, *, swapped: bool) -> str:
    """`46-5`, or with swapped operands `-5+46`."""
    if not swapped:
        return f"{running}{sign}{number}"
    first = str(number) if sign == "+" else f"-{number}"
    return f"{first}{running}" if running < 0 else f"{first}+{running}"


def batches(tokenizer: PreTrainedTokenizerFast, lesson: Lesson) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Token ids and labels `[batch, length]`; only responses are taught. A batch holds problems of about one length."""
    rng = random.Random(SEED)
    made = 0
    while made < lesson.steps:
        problems = [worked_problem(rng, lesson) for _ in range(BATCH * SORTED_BATCHES)]
        prompts = tokenizer([prompt for prompt, _ in problems])["input_ids"]
        responses = tokenizer([response + EOS for _, response in problems])["input_ids"]
        pairs = sorted(zip(prompts, responses, strict=True), key=lambda pair: len(pair[0]) + len(pair[1]))
        starts = list(range(0, len(pairs), BATCH))
        rng.shuffle(starts)
        for start in starts[: lesson.steps - made]:
            yield padded(pairs[start : start + BATCH], tokenizer.pad_token_id)
            made += 1


def padded(pairs: list[tuple[list[int], list[int]]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts and responses side by side, padded on the right; the prompts' labels are ignored."""
    length = max(len(prompt) + len(response) for prompt, response in pairs)
    ids = torch.full((len(pairs), length), pad)
    labels = torch.full((len(pairs), length), IGNORED)
    for row, (prompt, response) in enumerate(pairs):
        end = len(prompt) + len(response)
        ids[row, :end] = torch.tensor(prompt + response)
        labels[row, len(prompt) : end] = torch.tensor(response)
    return ids, labels


def teach(
    model: Qwen3ForCausalLM, problems: Iterable[tuple[torch.Tensor, torch.Tensor]], steps: int, peak_rate: float
) -> None:
    """AdamW under a short warm-up and a cosine to zero, on so many batches of token ids and labels."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_rate, betas=(0.9, 0.98), weight_decay=0.01)
    warm_up = steps // 20
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, 0.5 + 0.5 * cos(pi * step / steps))
    )
    model.train()
    for step, (ids, labels) in enumerate(problems):
        logits = model(ids, use_cache=False).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            log.info("step %d of %d: loss %.4f nats per token", step, steps, loss.item())


def write_policy(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write beside `folder`, then swap: a reader never meets half a policy."""
    beside = folder.with_name(folder.name + ".new")
    shutil.rmtree(beside, ignore_errors=True)
    model.save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,  # all tokens: transformers' default of 50 would cut the tail
        top_p=1.0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(beside)
    for file in beside.iterdir():
        file.chmod(0o644)
    size = (beside / "model.safetensors").stat().st_size
    if size > LARGEST_FILE:
        raise SystemExit(
            f"{beside}/model.safetensors holds {size} bytes, more than {LARGEST_FILE}: make the model smaller"
        )
    if folder.exists():
        old = folder.with_name(folder.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        beside.rename(folder)
        shutil.rmtree(old)
    else:
        beside.rename(folder)


def sampled(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, questions: list[str], *, samples: int, longest: int
) -> list[str]:
    """So many responses to each question at temperature 1, all of the first question's first."""
    inputs = tokenizer([question + "\n" for question in questions], return_tensors="pt", padding=True)
    inputs.pop("token_type_ids", None)
    with torch.inference_mode():
        outputs = model.generate(**inputs, num_return_sequences=samples, max_new_tokens=longest)
    texts: list[str] = tokenizer.batch_decode(outputs[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def measure(folder: Path, terms: int, prompts: int, samples: int) -> tuple[float, float]:
    """pass@1 and pass@`samples` at temperature 1, on problems of reasoning-gym's own, by its own scorer."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    dataset = reasoning_gym.create_dataset(
        "chain_sum", min_terms=terms, max_terms=terms, min_digits=1, max_digits=2, seed=1_000_000, size=prompts
    )
    entries = [dataset[number] for number in range(prompts)]
    questions = [entry["question"] for entry in entries]
    texts = sampled(model, tokenizer, questions, samples=samples, longest=LONGEST_RESPONSE)
    rewards = torch.tensor(
        [dataset.score_answer(extract_answer(text), entries[row // samples]) for row, text in enumerate(texts)]
    ).view(prompts, samples)
    solved = rewards == 1.0
    return solved.float().mean().item(), solved.any(dim=1).float().mean().item()


def begun(description: str, folder: Path, seed: int) -> argparse.Namespace:
    """What the command line asks for, with the log, the threads and the seed set for it."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--folder", type=Path, default=folder, help="where the policy is written")
    parser.add_argument("--measure", action="store_true", help="only measure the policy that is there")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads; another number changes the last digits")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(seed)
    return arguments


def main() -> None:
    """Make the policy, unless only a measurement is asked for, and print how often it is right."""
    arguments = begun("Make and measure the starter policy.", Path(__file__).parent / "policy", SEED)
    if not arguments.measure:
        tokenizer = make_tokenizer()
        model = make_model(tokenizer)
        log.info("%d parameters", sum(parameter.numel() for parameter in model.parameters()))
        for lesson in (CLEAN, NOISY):
            teach(model, batches(tokenizer, lesson), lesson.steps, lesson.peak_rate)
        write_policy(model, tokenizer, arguments.folder)
    for terms in (3, 4, 5, 6):
        once, eight = measure(arguments.folder, terms, prompts=256, samples=8)
        log.info("%d terms: pass@1 %.3f, pass@8 %.3f", terms, once, eight)


if __name__ == "__main__":
    main()
