"""Cells of a benchmark's table: each is one JSON file, keyed by its configuration and by the code that made it.

A benchmark that was stopped goes on where it stopped, and a cell whose code or configuration changed is computed again.
Formatting, comments and docstrings are no change of code.
"""

import ast
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
KEY_DIGITS = 12
DRAWS = 10_000


def cell(
    benchmark: str, name: str, config: dict[str, Any], code: Sequence[str], compute: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """The cell's result: read where its file is there, else computed and written, whole or not at all.

    Args:
        benchmark: the folder under `benchmarks/results`.
        name: what people call the cell; the file is `NAME-KEY.json`.
        config: everything the result depends on besides the code; JSON.
        code: source files the result depends on, seen from the project's root.
        compute: makes the result; JSON.
    """
    path = place(benchmark, name, config, code)
    if path.is_file():
        result: dict[str, Any] = json.loads(path.read_bytes())["result"]
        return result
    began = time.perf_counter()
    result = compute()
    content = {
        "name": name,
        "config": config,
        "machine": machine(),
        "seconds": round(time.perf_counter() - began, 1),
        "result": result,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(content, allow_nan=True) + "\n")
    partial.replace(path)
    return result


def place(benchmark: str, name: str, config: dict[str, Any], code: Sequence[str]) -> Path:
    """Where the cell's file is, or will be."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for file in sorted(code):
        digest.update(_meaning((ROOT / file).read_text()).encode())
    return RESULTS / benchmark / f"{name}-{digest.hexdigest()[:KEY_DIGITS]}.json"


def machine() -> str:
    """What the numbers were made on."""
    cores = len(os.sched_getaffinity(0))
    return f"{platform.machine()}, {cores} cores, Python {platform.python_version()}"


def interval(values: Sequence[float], *, level: float = 0.95, seed: int = 0) -> tuple[float, float, float]:
    """The mean and its percentile bootstrap interval; NaN bounds for a single value."""
    data = np.asarray(values, np.float64)
    if data.size < 2:
        return float(data.mean()), float("nan"), float("nan")
    drawn: NDArray[np.float64] = np.random.default_rng(seed).choice(data, (DRAWS, data.size)).mean(axis=1)
    tail = 50.0 * (1.0 - level)
    low, high = np.percentile(drawn, [tail, 100.0 - tail])
    return float(data.mean()), float(low), float(high)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _meaning(source: str) -> str:
    """A module's syntax tree without docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:]
    return ast.dump(tree)
