"""The head and the learner's step on a GPU, against what the device does at best, torch and liger-kernel.

`python -m benchmarks.gpu` writes `results/gpu/measured.json` and `table.md` beside it. It asks for torch, transformers,
triton and msgspec alone. Without a GPU it says so and measures nothing: what was measured before stays, and what never
was stays empty. Times are medians with quartiles of ways in turn; memory is the allocator's peak beyond the inputs.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cells import RESULTS, table
from benchmarks.gpu_head import LIGER, Found, ceilings, chunk_kernels, heads, selections
from benchmarks.head_ways import ways

FOLDER = RESULTS / "gpu"
VOCABULARY, WIDTHS, TOKENS = 151_936, (1024, 2048, 4096), (8192, 16_384, 32_768, 65_536)
CHUNK, REPEATS = 4096, 7
SIDE, COPIED = 8192, 1 << 30  # of the ceilings' product, and bytes of their copy
GIB = 1 << 30
QUARTILES = (25, 50, 75)
HEAD_WAYS = (*ways(CHUNK), "unfused, cross-entropy", LIGER)
KERNELS = ("log-prob alone", "log-prob and clamped entropy", "gradient, in place")
SELECTIONS = ("ours", "torch.topk", "torch.kthvalue", "torch.sort")
STEPS = ("packed", "padded, whole samples", "padded, prompts once")
# What each of these may take at most of the other's time, and memory.
GOALS = {
    "inside, clamped": ("inside, log-prob only", 1.25, 1.1),
    "plain, clamped": ("plain, log-prob only", 1.25, 1.1),
}
SELECTION_GOAL = 5.0  # times as fast as each of torch's, at least

Section = dict[str, Found]
Measured = dict[str, Section]


def sections() -> Iterator[tuple[str, Sequence[str]]]:
    """Every part of the table, and its rows."""
    yield "ceilings", ("product", "copy")
    for width in WIDTHS:
        for tokens in TOKENS:
            yield f"head, D = {width}, T = {tokens}", HEAD_WAYS
    yield "kernels", KERNELS
    yield "selection", SELECTIONS
    yield "step", STEPS


def measure(device: torch.device, keep: Callable[[str, Section], None]) -> None:
    """Hands on each part as soon as it is there."""
    half = torch.bfloat16
    keep("ceilings", ceilings(SIDE, half, COPIED, device, REPEATS))
    for width in WIDTHS:
        for tokens in TOKENS:
            found = heads(tokens, width, VOCABULARY, half, device, chunk=CHUNK, repeats=REPEATS)
            keep(f"head, D = {width}, T = {tokens}", found)
    keep("kernels", chunk_kernels(CHUNK, VOCABULARY, device, REPEATS))
    keep("selection", selections(CHUNK, VOCABULARY, device, REPEATS))
    from benchmarks.gpu_step import QWEN3_600M, steps  # what is above needs no transformers

    keep("step", steps(QWEN3_600M, half, device, REPEATS))


def document(measured: Measured, device: str) -> str:
    """The tables, every row of them, empty where nothing was measured."""
    told = f"Measured on {device}." if measured else "Nothing was measured yet: there was no GPU. No figure is guessed."
    parts = [f"# On a GPU\n\n{told} V = {VOCABULARY}, bfloat16, chunks of {CHUNK} tokens."]
    ceiling = measured.get("ceilings", {})
    for name, rows in sections():
        found = measured.get(name, {})
        lines = [(row, *_columns(row, found, ceiling)) for row in rows]
        parts.append(f"## {name}\n\n{table(HEADER, lines)}")
    return "\n\n".join(parts) + "\n"


HEADER = ("row", "ms", "against", "TFLOP/s", "GB/s", "tokens/s", "padding", "memory, GiB")


def _columns(row: str, found: Section, ceiling: Section) -> tuple[str, ...]:
    one = found.get(row)
    if one is None or not one.seconds:
        return ("" if one is None else one.note, *[""] * (len(HEADER) - 2))
    low, middle, high = np.percentile(one.seconds, QUARTILES) * 1e3
    padding = f"{one.work['padding']:.0%}" if "padding" in one.work else ""
    return (
        f"{middle:.3g} [{low:.3g}, {high:.3g}]",
        _against(row, found),
        _rate(one, "flop", 1e12, ceiling.get("product")),
        _rate(one, "bytes", 1e9, ceiling.get("copy")),
        _rate(one, "tokens", 1.0, None),
        padding,
        f"{one.peak_bytes / GIB:.2f}" if one.peak_bytes else "",
    )


def _rate(one: Found, what: str, unit: float, ceiling: Found | None) -> str:
    """Work a second, and its share of the ceiling's."""
    if what not in one.work:
        return ""
    rate = one.work[what] / float(np.median(one.seconds))
    if ceiling is None or not ceiling.seconds or ceiling is one:
        return f"{rate / unit:,.4g}"
    return f"{rate / unit:,.4g} ({rate * float(np.median(ceiling.seconds)) / ceiling.work[what]:.0%})"


def _against(row: str, found: Section) -> str:
    """Time, and memory where there is a goal, of what the row is held against; round by round."""
    if row in GOALS:
        other, time_goal, memory_goal = GOALS[row]
        if not found[other].seconds:
            return ""
        ratio = np.median(np.array(found[row].seconds) / np.array(found[other].seconds))
        memory = found[row].peak_bytes / found[other].peak_bytes if found[other].peak_bytes else 0.0
        shown = f", memory × {memory:.2f} (≤ {memory_goal:g})" if memory else ""
        return f"× {ratio:.2f} (≤ {time_goal:g}) {other}{shown}"
    ours = found.get("ours")
    if row in SELECTIONS and row != "ours" and ours is not None and ours.seconds:
        ratio = np.median(np.array(found[row].seconds) / np.array(ours.seconds))
        return f"× {ratio:.1f} (≥ {SELECTION_GOAL:g}) ours"
    return ""


def read(path: Path) -> tuple[Measured, str]:
    """What was measured before, and on what; nothing where there is no file."""
    if not path.is_file():
        return {}, ""
    told: dict[str, Any] = json.loads(path.read_bytes())
    return {name: {row: Found(**one) for row, one in rows.items()} for name, rows in told["parts"].items()}, told["on"]


def write(path: Path, measured: Measured, on: str) -> None:
    """Writes the file whole or not at all."""
    parts = {name: {row: asdict(one) for row, one in rows.items()} for name, rows in measured.items()}
    partial = path.with_name(f".{path.name}")
    partial.write_text(json.dumps({"on": on, "parts": parts}) + "\n")
    partial.replace(path)


def main(folder: Path = FOLDER) -> None:
    """Measures where there is a GPU, and writes the table."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "measured.json"
    measured, on = read(file)
    if torch.cuda.is_available():
        device = torch.device("cuda")
        on, measured = f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}", {}

        def keep(name: str, section: Section) -> None:
            measured[name] = section
            write(file, measured, on)
            print(f"{name}: done", flush=True)

        measure(device, keep)
    else:
        print("torch sees no GPU here: nothing is measured, and what was not measured elsewhere stays empty")
    (folder / "table.md").write_text(document(measured, on))
    print(f"the table is {folder / 'table.md'}")


if __name__ == "__main__":
    main()
