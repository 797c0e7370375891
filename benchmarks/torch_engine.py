"""An engine for benchmarks: draws from the learner's own weights, in its process, a whole batch at a time.

For policies of half a million parameters on a CPU it takes a third of vLLM's time, whose scheduler is made for others.
Weights are shared and not copied, so that a run must be synchronous (`max_staleness = 0`): no sample is under way when
they change.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from benchmarks.decoder import Decoder
from entrostat.protocol.arrays import Float32, Int32
from entrostat.protocol.errors import WeightsRefused
from entrostat.protocol.messages import FINISHED_LENGTH, FINISHED_STOP, PolicyVersion, Samples, WeightsManifest
from entrostat.protocol.ports import Completion, SampleRequest

ROWS = 1024  # sequences drawn at once, at most
SPARSE = 0.6  # share of rows still being drawn below which the others are taken out


class TorchEngine:
    """`ports.Engine` on a transformers model that somebody else trains.

    Args:
        model: a causal language model in evaluation mode.
        end: the token that ends a response.
        seed: of all draws.
    """

    def __init__(self, model: Any, end: int, seed: int) -> None:
        self._model = model
        self._end = end
        self._generator = torch.Generator().manual_seed(seed)
        self._queue: list[SampleRequest] = []
        self._version: PolicyVersion | None = None
        self.mismatch = 0.0

    @property
    def version(self) -> PolicyVersion:
        """The policy it serves.

        Raises:
            WeightsRefused: none yet.
        """
        if self._version is None:
            raise WeightsRefused("the engine serves nothing yet: no version was loaded")
        return self._version

    @property
    def unfinished(self) -> int:
        """Requests submitted and not yet returned."""
        return len(self._queue)

    def submit(self, request: SampleRequest) -> None:
        """Queues a request."""
        self._queue.append(request)

    def abort(self, ids: Sequence[str]) -> None:
        """Forgets requests."""
        self._queue = [request for request in self._queue if request.id not in ids]

    def step(self) -> list[Completion]:
        """Draws the oldest requests of one kind, to their ends."""
        first = self._queue[0]
        kind = (first.samples, first.temperature, first.max_tokens)
        alike = [one for one in self._queue if (one.samples, one.temperature, one.max_tokens) == kind]
        chosen = alike[: max(ROWS // first.samples, 1)]
        names = {request.id for request in chosen}
        self._queue = [request for request in self._queue if request.id not in names]
        with torch.no_grad():
            return self._draw(chosen)

    def load(self, manifest: WeightsManifest) -> None:
        """Takes the learner's weights for this version."""
        self._version = manifest.version

    def score(self, sequences: Sequence[Int32]) -> list[Float32]:
        """Nobody asks: there is no probe where there is no copy."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing to free."""

    def _draw(self, requests: Sequence[SampleRequest]) -> list[Completion]:
        count, temperature, limit = requests[0].samples, requests[0].temperature, requests[0].max_tokens
        logits, mask, cache = self._read([request.prompt_tokens for request in requests])
        logits = logits.repeat_interleave(count, 0)
        decoder = Decoder(self._model, cache, mask, count, limit)
        rows = torch.arange(len(logits))
        tokens = torch.full((len(rows), limit), self._end)
        logprobs = torch.zeros(len(rows), limit)
        lengths = torch.full((len(rows),), limit)
        stopped = torch.zeros(len(rows), dtype=torch.bool)
        for place in range(limit):
            table = (logits / temperature).log_softmax(-1)
            drawn = torch.multinomial(table.exp(), 1, generator=self._generator)
            tokens[rows, place] = drawn[:, 0]
            logprobs[rows, place] = table.gather(1, drawn)[:, 0]
            ended = (drawn[:, 0] == self._end) & ~stopped[rows]
            lengths[rows[ended]] = place + 1
            stopped[rows[ended]] = True
            going = ~stopped[rows]
            if place + 1 == limit or not bool(going.any()):
                break
            if float(going.float().mean()) < SPARSE:
                kept = going.nonzero()[:, 0]
                rows, drawn = rows[kept], drawn[kept]
                decoder.keep(kept)
            logits = decoder.next(drawn[:, 0])
        finish = torch.where(stopped, FINISHED_STOP, FINISHED_LENGTH)
        parts = (one.split(count) for one in (tokens, logprobs, lengths, finish))
        return [
            Completion(id=request.id, samples=self._samples(*some))
            for request, *some in zip(requests, *parts, strict=True)
        ]

    def _read(self, prompts: Sequence[Int32]) -> tuple[Tensor, Tensor, DynamicCache]:
        """Logits after each prompt `[R, V]`, the mask `[R, P]` of left-padded prompts, and keys and values."""
        width = max(len(prompt) for prompt in prompts)
        ids = torch.zeros(len(prompts), width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
            mask[row, width - len(prompt) :] = 1
        cache, places = DynamicCache(), (mask.cumsum(1) - 1).clamp(min=0)
        out = self._model(
            input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache, logits_to_keep=1
        )
        return out.logits[:, -1].float(), mask, cache

    def _samples(self, tokens: Tensor, logprobs: Tensor, lengths: Tensor, finish: Tensor) -> Samples:
        drawn = torch.arange(tokens.shape[1]) < lengths[:, None]
        spans = [[row, 0, self.version.branch, self.version.step] for row in range(len(tokens))]
        return Samples(
            tokens=tokens[drawn].numpy().astype(np.int32),
            logprobs=logprobs[drawn].numpy(),
            lengths=lengths.numpy().astype(np.int32),
            finish=finish.numpy().astype(np.uint8),
            spans=np.asarray(spans, np.int32),
        )
