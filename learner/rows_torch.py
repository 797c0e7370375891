"""The rows of a chunk of logits in plain torch, for the CPU and for devices that have no kernels of their own.

A few rows at a time, so that a block stays in the CPU's caches while all that is computed of it is computed. What the
clamp drops is brought to a row's front, exactly, and what a set's sums need then lies side by side, without a mask: on
the CPU by numpy's partition, many times as fast as `torch.kthvalue`, elsewhere by a sort.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from entrostat.learner.rows import Estimator, HeadOutput, Rows, dropped_tokens
from entrostat.protocol.entropy_settings import EstimatorSettings, NucleusEntropy

BLOCK_ELEMENTS = 2**21  # logits
# nats: a log-probability at which exp is 0 in float64 too.
IMPOSSIBLE = -1e4


@torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not typed
def measure(logits: Tensor, targets: Tensor, estimator: Estimator) -> tuple[HeadOutput, Rows]:
    """As `rows.Kernels.measure`."""
    rows, vocabulary = logits.shape
    names = ("entropy", "clamped_entropy", "clamped_mass", "log_total", "log_kept")
    found = {name: logits.new_full((rows,), torch.nan) for name in names}
    found["cut"] = logits.new_full((rows,), -torch.inf)
    found["last"] = torch.full((rows,), vocabulary - 1, device=logits.device)
    with Desk(logits, 2) as desk:
        for part in desk.parts():
            z = logits[part]
            measured = {"log_total": z.logsumexp(-1)} if estimator is None else _of_set(z, estimator, desk)
            for name, values in measured.items():
                found[name][part] = values
    drawn = logits.gather(-1, targets[:, None]).squeeze(-1) - found["log_total"]
    output = HeadOutput(logprob=drawn, **{name: found[name] for name in names[:3]})
    kept = {name: found[name] for name in ("log_total", "log_kept", "cut", "last")}
    return output, Rows(kept_entropy=output.clamped_entropy, **kept)


@torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not typed
def gradient_(logits: Tensor, targets: Tensor, rows: Rows, logprob: Tensor, entropy: Tensor) -> None:
    """As `rows.Kernels.gradient_`."""
    # log π̃ = log π − ln κ, with κ the kept tokens' probability, so that the entropy's part of the gradient is
    # −h π̃ (log π̃ + H̃) = π (slope · log π + offset).
    log_share = rows.log_kept - rows.log_total
    slope = -entropy * torch.exp(-log_share)
    offset = slope * (rows.kept_entropy - log_share)
    with Desk(logits, 2) as desk:
        for part in desk.parts():
            z, (probability, kept) = logits[part], desk.places(part)
            acts = bool(entropy[part].any())
            if acts:
                _kept(z, rows.cut[part], rows.last[part], kept)
            z -= rows.log_total[part, None]
            _floor(z)
            torch.exp(z, out=probability)
            if acts:
                z *= slope[part, None]
                z += offset[part, None]
                z *= kept
                z -= logprob[part, None]
                z *= probability
            else:
                torch.mul(probability, -logprob[part, None], out=z)
    logits.scatter_add_(-1, targets[:, None], logprob[:, None].to(logits.dtype))


class Desk:
    """What a chunk is worked on with: its blocks, places for them that are made once, and threads for the ranking."""

    def __init__(self, logits: Tensor, places: int) -> None:
        self._rows, vocabulary = logits.shape
        self.threads = torch.get_num_threads()
        # A multiple of the threads, so that each ranks as many rows.
        size = -(-BLOCK_ELEMENTS // (vocabulary * self.threads)) * self.threads
        self._size = max(min(size, self._rows), 1)
        self._places = [logits.new_empty(self._size, vocabulary) for _ in range(places)]
        self.pool = ThreadPoolExecutor(self.threads)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.shutdown()

    def parts(self) -> Iterator[slice]:
        """Where the blocks are."""
        for start in range(0, self._rows, self._size):
            yield slice(start, min(start + self._size, self._rows))

    def places(self, part: slice) -> list[Tensor]:
        """As large as a block, `[R, V]` each."""
        return [place[: part.stop - part.start] for place in self._places]


def _of_set(z: Tensor, estimator: EstimatorSettings, desk: Desk) -> dict[str, Tensor]:
    """Everything of a block `[R, V]` besides the drawn tokens' log-probs."""
    ranked, weight = desk.places(slice(0, len(z)))
    dropped, below = _ranked(z, estimator, ranked, desk)
    cut, peak = ranked.gather(-1, dropped[:, None]).squeeze(-1), ranked[:, int(dropped.min()) :].amax(-1)
    last = _last(z, ranked, cut, dropped, below)
    ranked -= peak[:, None]
    _floor(ranked)
    torch.exp(ranked, out=weight)
    outside, inside = _split(weight, dropped)
    ranked *= weight
    outside_dot, inside_dot = _split(ranked, dropped)
    total = outside + inside
    return {
        "log_total": peak + total.log(),
        "log_kept": peak + inside.log(),
        "entropy": total.log() - (outside_dot + inside_dot) / total,
        "clamped_entropy": inside.log() - inside_dot / inside,
        "clamped_mass": outside / total,
        "cut": cut.masked_fill(dropped == 0, -torch.inf),
        "last": last,
    }


def _ranked(z: Tensor, estimator: EstimatorSettings, ranked: Tensor, desk: Desk) -> tuple[Tensor, Tensor]:
    """Puts each row into `ranked`, the dropped logits first and the smallest kept one after them.

    Returns how many are dropped and the largest of them (−inf where there is none), `[R]` each.
    """
    count = dropped_tokens(estimator, z.shape[1])
    if isinstance(estimator, NucleusEntropy):
        ranked.copy_(z.sort(-1).values)
        weight = (ranked.flip(-1) - ranked[:, -1:]).double().exp().cumsum(-1)
        short = (weight < estimator.mass * weight[:, -1:]).sum(-1)
        dropped = (z.shape[1] - 1 - short).clamp(min=0)
        below = ranked.gather(-1, (dropped - 1).clamp(min=0)[:, None]).squeeze(-1)
        return dropped, below.masked_fill(dropped == 0, -torch.inf)
    dropped = torch.full((len(z),), count, device=z.device)
    if not count:
        ranked.copy_(z)
        return dropped, z.new_full((len(z),), -torch.inf)
    if z.device.type != "cpu":
        ranked.copy_(z.sort(-1).values)
    else:
        given, place = z.numpy(), ranked.numpy()

        def partition(first: int) -> None:
            share = slice(first * len(z) // desk.threads, (first + 1) * len(z) // desk.threads)
            place[share] = given[share]
            place[share].partition(count, axis=-1)

        list(desk.pool.map(partition, range(desk.threads)))
    return dropped, ranked[:, :count].amax(-1)


def _split(values: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of each row before and from `at [R]` on."""
    first = int(at[0])
    if bool((at == first).all()):
        return values[:, :first].sum(-1), values[:, first:].sum(-1)
    before = torch.arange(values.shape[1], device=at.device) < at[:, None]
    return values.where(before, 0.0).sum(-1), values.where(~before, 0.0).sum(-1)


def _floor(log_weight: Tensor) -> None:
    """A token that can't be drawn enters with a finite factor: 0 · (−inf) is NaN."""
    if not bool(log_weight.amin() > IMPOSSIBLE):
        log_weight.clamp_(min=IMPOSSIBLE)


def _last(z: Tensor, ranked: Tensor, cut: Tensor, dropped: Tensor, below: Tensor) -> Tensor:
    """Of the tokens whose logit is the cut, the last that is kept; the last id of all where none of them is dropped."""
    last = torch.full_like(dropped, z.shape[1] - 1)
    for row in ((below == cut) & (dropped > 0)).nonzero().squeeze(-1).tolist():
        surplus = int((ranked[row, : dropped[row]] == cut[row]).sum())
        last[row] = (z[row] == cut[row]).nonzero().squeeze(-1)[-1 - surplus]
    return last


def _kept(z: Tensor, cut: Tensor, last: Tensor, out: Tensor) -> None:
    """Which tokens are kept, `[R, V]`: 1 or 0."""
    torch.ge(z, cut[:, None], out=out)
    for row in (last < z.shape[1] - 1).nonzero().squeeze(-1).tolist():
        beyond = slice(int(last[row]) + 1, None)
        out[row, beyond] = (z[row, beyond] > cut[row]).to(out.dtype)
