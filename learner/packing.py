"""Whole samples one after another in one row, without padding, and attention that keeps them apart.

Positions restart with each sample. transformers' models hand what they are told of sequences, and don't use
themselves, on to their attention function; the one here reads it. On a GPU in half precision that is torch's own
variable-length attention, a kernel that never sees two samples together; elsewhere each sample has its own attention in
turn, which gives the same. Told of no sequences, it attends as the model did before.

A layer with another memory than keys and values would carry one sample's into the next, and a window that only the
mask tells of would be lost: a model has to prove itself before it is packed, `objection`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from entrostat.learner.proof import REFUSALS, UNPROVEN, Proof, compared_weights, difference, proof_of

NAME, REPLACED = "entrostat_packed", "sdpa"
KERNEL_DTYPES = (torch.bfloat16, torch.float16)
KERNEL_CAPABILITY = (8, 0)  # of the GPU, at least
PROOF_LENGTHS = (5, 1, 3, 4)
KEYS_ALONE = DynamicLayer.__name__
CAUSAL = (-1, 0)  # tokens that are seen behind and ahead: all, and none


@dataclass(frozen=True, kw_only=True, slots=True)
class Sequences:
    """The sequences of one row of `L` tokens."""

    positions: Tensor  # [1, L] int64, from 0 in each
    edges: Tensor  # [n + 1] int32: where each begins, and where the last one ends
    longest: int  # tokens


def sequences_of(lengths: Sequence[int], device: torch.device) -> Sequences:
    """Sequences of these lengths, one after another."""
    edges = torch.tensor([0, *lengths]).cumsum(0)
    positions = torch.arange(int(edges[-1])) - edges[:-1].repeat_interleave(torch.tensor(lengths))
    return Sequences(positions=positions[None].to(device), edges=edges.int().to(device), longest=max(lengths))


def has_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether packed samples are attended to by one kernel there."""
    if device.type != "cuda" or dtype not in KERNEL_DTYPES:
        return False
    return bool(torch.cuda.get_device_capability(device) >= KERNEL_CAPABILITY)


def read_packed(decoder: Any, tokens: Tensor, sequences: Sequences) -> Tensor:
    """`[1, L] int64 → [1, L, D]`; each token sees those of its own sequence."""
    # A mask of four axes is handed on as it is: without it transformers would make one of L × L.
    unread = torch.empty(1, 1, 1, 0, dtype=torch.bool, device=tokens.device)
    out = decoder(
        input_ids=tokens,
        position_ids=sequences.positions,
        attention_mask=unread,
        use_cache=False,
        cu_seq_lens_q=sequences.edges,
        cu_seq_lens_k=sequences.edges,
        max_length_q=sequences.longest,
        max_length_k=sequences.longest,
    )
    states: Tensor = out.last_hidden_state
    return states


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int = 0,
    **others: Any,
) -> tuple[Tensor, None]:
    """What a model's layer calls: `query [B, H, L, d]`, `key`, `value [B, H_kv, L, d] → [B, L, H, d]`."""
    if cu_seq_lens_q is None:
        whole: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **others
        )
        return whole
    if has_kernel(query.device, query.dtype):
        edges, longest = cu_seq_lens_q, max_length_q
        queries, keys, values = query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1)
        grouped = query.shape[1] != key.shape[1]
        mixed: Any = varlen_attn(
            *(queries, keys, values, edges, edges, longest, longest),
            scale=scaling,
            window_size=CAUSAL,
            enable_gqa=grouped,
        )
        return mixed[None], None
    sizes = cu_seq_lens_q.diff().tolist()
    apart = zip(query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2), strict=True)
    return torch.cat([sdpa_attention_forward(module, q, k, v, None, scaling=scaling)[0] for q, k, v in apart], 1), None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


def objection(model: Any, device: torch.device, vocabulary: int) -> str | None:
    """Why samples can't be packed for this model; None when they can, and its attention is ready for it."""
    used = model.config._attn_implementation
    if used != REPLACED:
        return f"its attention is {used!r}, expected {REPLACED!r}"
    decoder = model.get_decoder()
    try:
        others = sorted({type(one).__name__ for one in DynamicCache(config=decoder.config).layers} - {KEYS_ALONE})
        if others:
            return f"its layers keep {', '.join(others)}"
        model.set_attn_implementation(NAME)
        if model.config._attn_implementation != NAME:
            return "its attention can't be replaced"
        reason = _compared(decoder, device, vocabulary)
    except REFUSALS as error:
        reason = f"it can't be told of sequences: {type(error).__name__}: {error}"
    if reason is not None:
        model.set_attn_implementation(REPLACED)
    return reason


def _compared(decoder: Any, device: torch.device, vocabulary: int) -> str | None:
    weights = compared_weights(decoder)
    if not weights:
        return UNPROVEN
    tokens = (torch.arange(sum(PROOF_LENGTHS), device=device)[None] * 3 + 2) % vocabulary
    packed = read_packed(decoder, tokens, sequences_of(PROOF_LENGTHS, device))
    rows = [decoder(input_ids=row, use_cache=False).last_hidden_state for row in tokens.split(PROOF_LENGTHS, 1)]
    found: Proof = proof_of(packed, weights)
    return difference(found, proof_of(torch.cat(rows, 1), weights))
