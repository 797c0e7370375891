"""The next token of many sequences of a small Qwen3 policy, with little else than its matrix products.

On a CPU half of transformers' time goes into copying: keys of each step to the end of the last step's, and once more
for every query head that shares them. Here they stay where they are, turned as the product wants them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm, silu
from transformers import DynamicCache


class Decoder:
    """Goes on from prompts that were read; a row is a sequence.

    Args:
        model: a `Qwen3ForCausalLM`.
        cache: of the prompts, `[R, heads, P, D]` a layer.
        mask: `[R, P]` 1 where a prompt is, which ends at the right.
        count: rows of each prompt.
        limit: tokens a row can be given at most.
    """

    def __init__(self, model: Any, cache: DynamicCache, mask: Tensor, count: int, limit: int) -> None:
        self._model, self._layers = model, model.model.layers
        self._epsilon = model.config.rms_norm_eps
        self._filled = mask.shape[1]
        self._places = mask.sum(1).repeat_interleave(count)  # [B] of the next token
        unseen = torch.zeros(len(mask), self._filled + limit)
        unseen[:, : self._filled].masked_fill_(mask == 0, -torch.inf)
        self._unseen = unseen.repeat_interleave(count, 0)[:, None, None]  # added to scores
        self._keys = [_with_room(layer.keys, count, limit).mT.contiguous() for layer in cache.layers]
        self._values = [_with_room(layer.values, count, limit) for layer in cache.layers]
        attention = [layer.self_attn for layer in self._layers]
        self._into = [torch.cat([one.q_proj.weight, one.k_proj.weight, one.v_proj.weight]) for one in attention]

    def keep(self, rows: Tensor) -> None:
        """Forgets all rows but these `[n]`."""
        self._places, self._unseen = self._places[rows], self._unseen[rows]
        self._keys = [keys[rows] for keys in self._keys]
        self._values = [values[rows] for values in self._values]

    def next(self, tokens: Tensor) -> Tensor:
        """Takes each row's token `[B]`; returns the logits of the one after it, `[B, V]` float32."""
        inner = self._model.model
        hidden = inner.embed_tokens(tokens)
        turn = inner.rotary_emb(hidden, self._places[:, None])
        self._filled += 1
        for number, layer in enumerate(self._layers):
            mixed = self._attend(number, self._normed(hidden, layer.input_layernorm), turn)
            hidden = hidden + linear(mixed, layer.self_attn.o_proj.weight)
            wide, mlp = self._normed(hidden, layer.post_attention_layernorm), layer.mlp
            gated = silu(linear(wide, mlp.gate_proj.weight)) * linear(wide, mlp.up_proj.weight)
            hidden = hidden + linear(gated, mlp.down_proj.weight)
        self._places = self._places + 1
        logits: Tensor = self._model.lm_head(self._normed(hidden, inner.norm))
        return logits.float()

    def _attend(self, number: int, hidden: Tensor, turn: Sequence[Tensor]) -> Tensor:
        """`[B, heads · D]`: the query heads that share keys are the queries of one attention over them."""
        attention, keys, values = self._layers[number].self_attn, self._keys[number], self._values[number]
        rows, shared, size, _ = keys.shape
        heads = linear(hidden, self._into[number]).view(rows, -1, size)
        query, key, value = heads.split([heads.shape[1] - 2 * shared, shared, shared], 1)
        query = _turned(self._normed(query, attention.q_norm), *turn) * attention.scaling
        keys[..., self._filled - 1] = _turned(self._normed(key, attention.k_norm), *turn)
        values[:, :, self._filled - 1] = value
        scores = query.reshape(rows, shared, -1, size) @ keys[..., : self._filled] + self._unseen[..., : self._filled]
        return (scores.softmax(-1) @ values[:, :, : self._filled]).reshape(rows, -1)

    def _normed(self, hidden: Tensor, norm: Any) -> Tensor:
        return rms_norm(hidden, hidden.shape[-1:], norm.weight, self._epsilon)


def _turned(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions on `[B, heads, D]`."""
    first, second = heads.chunk(2, -1)
    return heads * cosine + torch.cat([-second, first], -1) * sine


def _with_room(states: Tensor, count: int, limit: int) -> Tensor:
    """`[R, H, P, D]` → `[R · count, H, P + limit, D]`."""
    rows, heads, width, size = states.shape
    wider = states.new_zeros(rows, count, heads, width + limit, size)
    wider[:, :, :, :width] = states[:, None]
    return wider.flatten(0, 1)
