"""Prompts that are computed once, however many samples go on from them.

The decoder reads each prompt of a block and keeps its keys and values. Rows of responses go on from a copy of their
prompt's. Between the two the graph is cut: the rows' backward passes add up what the prompts' keys, values and last
states are owed, and one backward pass through the prompts follows when all rows are done. By the chain rule that is
the gradient of whole rows; the prompts cost one pass forward and one backward, whatever the number of micro-batches.

Not every model's cache can be taken apart like this, so a model has to prove itself before it is trusted: `objection`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from entrostat.learner.proof import REFUSALS, UNPROVEN, Proof, compared_weights, difference, flat, proof_of, weighted
from entrostat.protocol.arrays import Int32

PADDING_ID = 0  # any token will do: nothing reads what comes of it

# What the proof is made of: prompts of these lengths, rows that go on from them, and so many response tokens each.
PROOF_PROMPTS, PROOF_ROWS, PROOF_TOKENS = (5, 3), (0, 1, 1), 4

# How configurations tell of attention to a part of the tokens: of each layer, or as a width.
LAYER_KINDS = ("layer_types", "attention_layers", "block_types", "layers_block_type")
PARTIAL = ("local", "sliding", "chunked")
WINDOWS = ("sliding_window", "attention_window_size", "attention_window", "attention_chunk_size", "window_size")


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedPrompts:
    """What `g` prompts leave to the rows that go on from them.

    `left` holds the keys and values `[g, heads, P, d]` of each layer in turn and then the last token's states `[g, D]`.
    Rows read `left`, which is cut off from `made`, the same tensors with their graph.
    """

    made: tuple[Tensor, ...]
    left: tuple[Tensor, ...]
    lengths: Tensor  # [g] int64; a prompt shorter than P is padded on the right
    padded: bool

    def backward(self) -> None:
        """Carries the gradient that the rows left here on through the prompts; to be called once, after all rows."""
        owed = [(made, left.grad) for made, left in zip(self.made, self.left, strict=True) if left.grad is not None]
        if owed:
            torch.autograd.backward([made for made, _ in owed], [gradient.to(made.dtype) for made, gradient in owed])


def read_prompts(decoder: Any, prompts: Sequence[Int32], device: torch.device) -> SharedPrompts:
    """Computes the prompts, with their graph unless gradients are switched off."""
    lengths = np.array([len(prompt) for prompt in prompts])
    tokens = np.full((len(prompts), lengths.max()), PADDING_ID, np.int64)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    ends = torch.from_numpy(lengths).to(device)
    out = decoder(input_ids=torch.from_numpy(tokens).to(device), use_cache=True)
    last = out.last_hidden_state[torch.arange(len(prompts), device=device), ends - 1]
    made = (*(tensor for layer in out.past_key_values.layers for tensor in (layer.keys, layer.values)), last)
    return SharedPrompts(
        made=made, left=tuple(map(_cut_off, made)), lengths=ends, padded=bool((lengths < lengths.max()).any())
    )


def go_on(decoder: Any, shared: SharedPrompts, prompt: Tensor, tokens: Tensor) -> Tensor:
    """States before each of a row's `L` response tokens: `prompt [B]`, `tokens [B, L − 1] int64 → [B, L, D]`.

    `prompt` says which prompt a row goes on from; `tokens` are its response without the last, right-padded.
    """
    *cached, last = (
        left.index_select(0, prompt).to(made.dtype) for made, left in zip(shared.made, shared.left, strict=True)
    )
    if not tokens.shape[1]:
        return last[:, None]
    width = cached[0].shape[-2]
    placed: dict[str, Tensor] = {}
    if shared.padded:
        starts = shared.lengths.index_select(0, prompt)[:, None]
        places = torch.arange(width + tokens.shape[1], device=tokens.device)
        placed["attention_mask"] = ((places < starts) | (places >= width)).long()
        placed["position_ids"] = starts + places[: tokens.shape[1]]
    cache = _cache(cached)
    states = decoder(input_ids=tokens, past_key_values=cache, use_cache=True, **placed).last_hidden_state
    return torch.cat([last[:, None], states], 1)


def objection(decoder: Any, device: torch.device, vocabulary: int) -> str | None:
    """Why prompts can't be shared under this decoder; None when states and a gradient are those of whole rows."""
    try:
        return _compared(decoder, device, vocabulary)
    except REFUSALS as error:
        return f"its cache can't be used so: {type(error).__name__}: {error}"


def _compared(decoder: Any, device: torch.device, vocabulary: int) -> str | None:
    count = len(PROOF_ROWS) * PROOF_TOKENS
    tokens = (torch.arange(count, device=device).reshape(-1, PROOF_TOKENS) * 3 + 2) % vocabulary
    with torch.no_grad():
        layers = decoder(input_ids=tokens, use_cache=True).past_key_values.layers
    # A sliding window forgets keys, a state of another kind is no keys at all.
    others = sorted({type(layer).__name__ for layer in layers if type(layer) is not DynamicLayer})
    if others:
        return f"its cache holds {', '.join(others)}"
    window = _window(getattr(decoder, "config", None))
    if window is not None:
        return f"its attention sees a window only, {window} in its config.json"
    weights = compared_weights(decoder)
    if not weights:
        return UNPROVEN
    for lengths in (PROOF_PROMPTS, (min(PROOF_PROMPTS),) * len(PROOF_PROMPTS)):  # with padding, and without
        prompts = [np.arange(7 * i + 1, 7 * i + 1 + n, dtype=np.int32) % vocabulary for i, n in enumerate(lengths)]
        reason = difference(_shared(decoder, prompts, tokens, weights), _whole(decoder, prompts, tokens, weights))
        if reason is not None:
            return reason
    return None


def _window(config: Any) -> str | None:
    """What tells of layers that see a part of the tokens before; None where nothing does.

    Some keep all keys nevertheless and count the window from the row's first place, padding included. The proof's few
    tokens lie within any window, so that it can't find them out.
    """
    for name in LAYER_KINDS:
        kinds = {str(kind) for kind in np.ravel(getattr(config, name, None) or [])}
        found = sorted(kind for kind in kinds if kind.startswith(PARTIAL))
        if found:
            return f"{name} = {', '.join(found)}"
        if kinds:
            return None  # it says of each layer that all is seen, whatever a window would be
    for name in WINDOWS:
        size = getattr(config, name, None)
        if size and getattr(config, f"use_{name}", True):
            return f"{name} = {size}"
    return None


def _whole(decoder: Any, prompts: Sequence[Int32], tokens: Tensor, weights: Sequence[Tensor]) -> Proof:
    starts = [torch.from_numpy(prompts[i]).to(tokens) for i in PROOF_ROWS]
    rows = [torch.cat([start, response])[None] for start, response in zip(starts, tokens, strict=True)]
    states = [decoder(input_ids=row, use_cache=False).last_hidden_state[:, -PROOF_TOKENS - 1 :] for row in rows]
    return proof_of(torch.cat(states), weights)


def _shared(decoder: Any, prompts: Sequence[Int32], tokens: Tensor, weights: Sequence[Tensor]) -> Proof:
    """The same by way of shared prompts."""
    shared = read_prompts(decoder, prompts, tokens.device)
    found = go_on(decoder, shared, torch.tensor(PROOF_ROWS, device=tokens.device), tokens)
    direct = torch.autograd.grad(weighted(found), [*weights, *shared.left], materialize_grads=True)
    owed = [gradient.to(made.dtype) for gradient, made in zip(direct[len(weights) :], shared.made, strict=True)]
    through = torch.autograd.grad(shared.made, weights, owed, materialize_grads=True)
    return found, flat(direct[: len(weights)]) + flat(through)


def _cut_off(made: Tensor) -> Tensor:
    # Many rows add to the gradient of one prompt: half precision would lose the small ones.
    left = made.detach()
    left = left.float() if made.dtype in (torch.float16, torch.bfloat16) else left
    return left.requires_grad_(made.requires_grad)


def _cache(tensors: Sequence[Tensor]) -> DynamicCache:
    layers = []
    for keys, values in zip(tensors[::2], tensors[1::2], strict=True):
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values  # in its place `update` would copy both
        layers.append(layer)
    cache = DynamicCache()
    cache.layers, cache.layer_class_to_replicate = layers, None
    return cache
