"""The benchmark for GPUs: honest without one, and its measuring code runs wherever torch does."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.cells import ROOT
from benchmarks.gpu_head import (
    LIGER,
    NOT_INSTALLED,
    OUT_OF_MEMORY,
    Found,
    ceilings,
    chunk_kernels,
    heads,
    in_turn,
    selections,
)
from benchmarks.gpu_step import Shape, steps

CPU = torch.device("cpu")
BARE = ("ray", "vllm", "prometheus_client", "xxhash", "reasoning_gym", "math_verify", "matplotlib")


@pytest.fixture(autouse=True)
def without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def rows_of(document: str) -> list[list[str]]:
    """The cells of all rows of all tables."""
    lines = [line for line in document.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("| ---")]


def test_without_a_gpu_it_says_so_and_every_figure_stays_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu.main(tmp_path)
    assert "torch sees no GPU here" in capsys.readouterr().out
    written = (tmp_path / "table.md").read_text()
    rows = [row for row in rows_of(written) if row[0] != gpu.HEADER[0]]
    assert len(rows) == 2 + 12 * len(gpu.HEAD_WAYS) + 3 + 4 + 3
    assert all(not any(row[1:]) for row in rows)
    assert "No figure is guessed" in written
    assert not (tmp_path / "measured.json").exists()


def test_without_a_gpu_what_was_measured_before_stays(tmp_path: Path) -> None:
    found = Found(seconds=(1e-3, 2e-3, 3e-3), peak_bytes=1 << 29, work={"flop": 4e9})
    gpu.write(tmp_path / "measured.json", {"head, D = 1024, T = 8192": {"unfused": found}}, "a GPU of ours")
    gpu.main(tmp_path)
    written = (tmp_path / "table.md").read_text()
    assert "Measured on a GPU of ours." in written
    told = [row for row in rows_of(written) if row[0] == "unfused" and row[1]]
    assert told == [["unfused", "2 [1.5, 2.5]", "", "2", "", "", "", "0.50"]]


def test_it_needs_neither_ray_nor_vllm() -> None:
    code = f"import sys, benchmarks.gpu, benchmarks.gpu_step; print([m for m in {BARE} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_every_head_is_measured_and_held_against_its_goal() -> None:
    found = heads(12, 8, 40, torch.float32, CPU, chunk=5, repeats=2)
    assert set(found) == set(gpu.HEAD_WAYS)
    assert found[LIGER].note in ("", NOT_INSTALLED)
    assert all(len(one.seconds) == 2 for name, one in found.items() if name != LIGER)
    assert found["unfused"].work["flop"] == 6 * 12 * 8 * 40
    measured = {"head, D = 1024, T = 8192": found, "ceilings": ceilings(8, torch.float32, 64, CPU, 2)}
    rows = {row[0]: row for row in rows_of(gpu.document(measured, "a CPU")) if row[1]}
    assert "(≤ 1.25) inside, log-prob only" in rows["inside, clamped"][2]
    assert rows["unfused"][3].endswith("%)")
    assert rows["copy"][4]


def test_kernels_and_selections_are_measured() -> None:
    moved = chunk_kernels(3, 40, CPU, 2)
    assert set(moved) == set(gpu.KERNELS)
    assert moved["gradient, in place"].work["bytes"] == 2 * moved["log-prob alone"].work["bytes"] == 2 * 3 * 40 * 4
    found = selections(3, 40, CPU, 2)
    assert set(found) == set(gpu.SELECTIONS)
    twice = {**found, "ours": Found(seconds=tuple(0.5 * one for one in found["torch.sort"].seconds))}
    rows = {row[0]: row for row in rows_of(gpu.document({"selection": twice}, "a CPU")) if row[1]}
    assert rows["torch.sort"][2] == "× 2.0 (≥ 5) ours"


def test_a_step_is_measured_packed_and_padded() -> None:
    tiny = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
    shape = Shape(
        config={**tiny, "num_attention_heads": 2, "num_key_value_heads": 1},
        groups=2,
        samples=3,
        prompt=4,
        responses=(6, 12),
        spread=0.5,
        budget=64,
    )
    found = steps(shape, torch.float32, CPU, 2)
    assert set(found) == set(gpu.STEPS)
    assert found["packed"].work["padding"] == 0.0
    assert found["padded, whole samples"].work["padding"] > 0
    assert len({one.work["tokens"] for one in found.values()}) == 1
    rows = {row[0]: row for row in rows_of(gpu.document({"step": found}, "a CPU")) if row[1]}
    assert rows["packed"][6] == "0%"


def test_a_way_that_needs_too_much_memory_says_so_and_the_others_go_on() -> None:
    def too_much() -> None:
        raise torch.OutOfMemoryError

    found = in_turn({"large": too_much, "small": lambda: None}, CPU, 3, {})
    assert (found["large"].note, found["large"].seconds) == (OUT_OF_MEMORY, ())
    assert len(found["small"].seconds) == 3
    rows = rows_of(gpu.document({"step": {"packed": found["large"]}}, "a CPU"))
    assert ["packed", OUT_OF_MEMORY, *[""] * 6] in rows
