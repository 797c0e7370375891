"""The head, its kernels and its selection on a device, beside others': seconds in turn, and peaks of memory."""

import importlib.util
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from benchmarks.head_ways import CLAMPED, DROP_FRACTION, Inputs, Way, inputs, ways
from entrostat.learner import rows_torch
from entrostat.learner.head import kernels

PRODUCTS = 3  # one forward and two backward, the least that a head's gradient takes
OUT_OF_MEMORY, NOT_INSTALLED = "out of memory", "not installed"
LIGER = "liger-kernel, cross-entropy"


@dataclass(frozen=True, kw_only=True)
class Found:
    """What was measured of one way."""

    seconds: tuple[float, ...] = ()  # one a round, ways in turn
    peak_bytes: int = 0  # beyond what was there; 0: not known on this device
    note: str = ""  # why there are no numbers
    work: Mapping[str, float] = field(default_factory=dict)  # of one round: FLOP, bytes, tokens, …


def in_turn(
    named: Mapping[str, Callable[[], object]], device: torch.device, repeats: int, work: Mapping[str, float]
) -> dict[str, Found]:
    """Each way once a round; a first round, which compiles, tells of memory only. One that needs too much is left."""
    peaks: dict[str, int] = {}
    notes: dict[str, str] = {}
    seconds: dict[str, list[float]] = {name: [] for name in named}
    for turn in range(repeats + 2):
        for name, way in named.items():
            if name in notes:
                continue
            try:
                if turn == 1:
                    peaks[name] = peak_bytes(way, device)
                else:
                    taken = timed(way, device)
                    seconds[name] += [taken] if turn else []
            except torch.OutOfMemoryError:
                notes[name] = OUT_OF_MEMORY
                if device.type == "cuda":
                    torch.cuda.empty_cache()
    return {
        name: Found(note=notes[name], work=work)
        if name in notes
        else Found(seconds=tuple(seconds[name]), peak_bytes=peaks[name], work=work)
        for name in named
    }


def timed(way: Callable[[], object], device: torch.device) -> float:
    """Seconds until the device is done."""
    finish(device)
    began = time.perf_counter()
    way()
    finish(device)
    return time.perf_counter() - began


def peak_bytes(way: Callable[[], object], device: torch.device) -> int:
    """What the device's allocator gives out at most beyond what it gave before; 0 on a CPU, which has none."""
    if device.type != "cuda":
        way()
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    way()
    finish(device)
    return int(torch.cuda.max_memory_allocated(device) - before)


def finish(device: torch.device) -> None:
    """Waits for what was asked of the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def heads(
    tokens: int, width: int, vocabulary: int, dtype: torch.dtype, device: torch.device, *, chunk: int, repeats: int
) -> dict[str, Found]:
    """Every way of the head's table, a plain cross-entropy, and liger-kernel's where it is installed."""
    made = placed(inputs(tokens, width, vocabulary, dtype), device)
    all_ways = ways(chunk) | {"unfused, cross-entropy": _cross_entropy}
    liger = _liger()
    if liger is not None:
        all_ways[LIGER] = liger

    def run(way: Way) -> Callable[[], None]:
        def once() -> None:
            way(*made)
            made[0].grad = made[1].grad = None  # now, for the next way's peak of memory

        return once

    work = {"flop": 2.0 * PRODUCTS * tokens * width * vocabulary, "tokens": float(tokens)}
    found = in_turn({name: run(way) for name, way in all_ways.items()}, device, repeats, work)
    return found if liger is not None else found | {LIGER: Found(note=NOT_INSTALLED)}


def placed(made: Inputs, device: torch.device) -> Inputs:
    """The inputs there, leaves that want a gradient as before."""
    hidden, weight, targets, weights = (one.detach().to(device) for one in made)
    return hidden.requires_grad_(), weight.requires_grad_(), targets, weights


def chunk_kernels(rows: int, vocabulary: int, device: torch.device, repeats: int) -> dict[str, Found]:
    """What happens to a chunk of logits between its products; its work is what must be read and written at least."""
    logits, targets = _logits(rows, vocabulary, device)
    of_device, ones = kernels(logits), logits.new_ones(rows)
    once = float(logits.numel() * logits.element_size())
    _, kept = of_device.measure(logits, targets, CLAMPED)
    reads = {
        "log-prob alone": lambda: of_device.measure(logits, targets, None),
        "log-prob and clamped entropy": lambda: of_device.measure(logits, targets, CLAMPED),
    }
    found = in_turn(reads, device, repeats, {"bytes": once})
    scratch = logits.clone()
    writes = {"gradient, in place": lambda: of_device.gradient_(scratch, targets, kept, ones, ones)}
    return found | in_turn(writes, device, repeats, {"bytes": 2 * once})


def selections(rows: int, vocabulary: int, device: torch.device, repeats: int) -> dict[str, Found]:
    """Where the clamped set ends in each row of logits: ours, and torch's ways."""
    logits, _ = _logits(rows, vocabulary, device)
    dropped = int(DROP_FRACTION * vocabulary)
    named: dict[str, Callable[[], object]] = {
        "ours": _selection(logits, dropped),
        "torch.topk": lambda: logits.topk(vocabulary - dropped, -1, sorted=False),
        "torch.kthvalue": lambda: logits.kthvalue(dropped + 1, -1),
        "torch.sort": lambda: logits.sort(-1),
    }
    return in_turn(named, device, repeats, {"bytes": float(logits.numel() * logits.element_size())})


def _selection(logits: Tensor, dropped: int) -> Callable[[], object]:
    if logits.is_cuda:
        from entrostat.learner.cuts_cuda import select  # triton is not there without a GPU

        return lambda: select(logits, dropped)

    def ranked() -> None:
        with rows_torch.Desk(logits, 1) as desk:
            for part in desk.parts():
                rows_torch.rank(logits[part], CLAMPED, desk.places(part)[0], desk)

    return ranked


def ceilings(side: int, dtype: torch.dtype, size: int, device: torch.device, repeats: int) -> dict[str, Found]:
    """What the device does at best: a large product of square matrices, and a copy of `size` bytes."""
    left = torch.randn(side, side, device=device).to(dtype)
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product = in_turn({"product": lambda: left @ left}, device, repeats, {"flop": 2.0 * side**3})
    return product | in_turn({"copy": lambda: target.copy_(source)}, device, repeats, {"bytes": 2.0 * size})


def _logits(rows: int, vocabulary: int, device: torch.device) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    logits = 2.0 * torch.randn(rows, vocabulary, generator=random)
    return logits.to(device), torch.randint(vocabulary, (rows,), generator=random).to(device)


def _cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, _weights: Tensor) -> None:
    cross_entropy(linear(hidden, weight).float(), targets, reduction="sum").backward()


def _liger() -> Way | None:
    if importlib.util.find_spec("liger_kernel") is None:
        return None
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(reduction="sum")

    def way(hidden: Tensor, weight: Tensor, targets: Tensor, _weights: Tensor) -> None:
        loss(weight, hidden, targets).backward()

    return way
