"""The processes that make the learner's steps together, and what they tell each other. Every wait has a deadline."""

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
CPU = torch.device("cpu")
# What torch says, in a plain RuntimeError, when ranks lost each other.
LOST = re.compile(r"gloo|nccl|connection|timed? ?out", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """All ranks of a learner, as one of them sees them. Each makes the same calls in the same order.

    A wait that passes its deadline, or for a rank that died, is a RuntimeError of torch's.
    """

    number: int = 0  # of this one
    count: int = 1
    device: torch.device = CPU

    @property
    def first(self) -> bool:
        """Whether this is the rank that the rest of the system knows: it publishes, reports and writes."""
        return self.number == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other."""
        return self.count == 1

    def total(self, values: Tensor) -> Tensor:
        """The sums over all ranks, of the same shape everywhere; of one rank the values themselves."""
        if self.alone:
            return values
        summed = values.to(self.device, copy=True)
        dist.all_reduce(summed)
        return summed.to(values.device)

    def joined(self, values: Tensor) -> Tensor:
        """`[n]` of each rank, n its own → `[N]`, one rank after another; of one rank the values themselves."""
        if self.alone:
            return values
        sizes = [0] * self.count
        sizes[self.number] = len(values)
        sizes = self.total(torch.tensor(sizes)).tolist()
        padded = torch.zeros(max(sizes), dtype=values.dtype, device=self.device)
        padded[: len(values)] = values.to(self.device)
        pieces = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(pieces, padded)
        return torch.cat([piece[:size] for piece, size in zip(pieces, sizes, strict=True)]).to(values.device)

    def meet(self) -> None:
        """Returns when every rank has come here."""
        self.total(torch.zeros(1))


ALONE = Ranks()


def join(store: Any, number: int, count: int, device: torch.device, seconds: float) -> Ranks:
    """Joins the others at torch's `store`; each later wait for them has a deadline of `seconds`."""
    dist.init_process_group(
        BACKENDS[device.type], store=store, rank=number, world_size=count, timeout=timedelta(seconds=seconds)
    )
    return Ranks(number=number, count=count, device=device)


def is_lost(error: BaseException) -> bool:
    """Whether a rank was waiting for another one in vain."""
    return isinstance(error, RuntimeError) and LOST.search(str(error)) is not None
