"""The policy: any Hugging Face causal language model, and the few things the learner asks of it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.functional import linear
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.core_model_loading import revert_weight_conversion

from entrostat.learner import dropout, packing
from entrostat.learner.ranks import ALONE, Ranks
from entrostat.learner.shared_prompt import SharedPrompts, go_on, objection, read_prompts
from entrostat.protocol.arrays import Float32, Int32
from entrostat.protocol.errors import ModelError
from entrostat.protocol.learner_settings import Packing
from entrostat.protocol.settings import ModelSettings

log = logging.getLogger(__name__)

CHECKED_TOKENS = 8
# Between the model's own logits and hidden · headᵀ, relative to the largest logit.
HEAD_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A low-rank adapter beside one of the model's linear layers (adapters.py)."""

    path: str  # of the layer, in the model
    layer: Any  # peft.tuners.lora.LoraLayer


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A causal language model, split into its decoder and its head so that logits are made only where they are read."""

    model: Any  # transformers.PreTrainedModel
    tokenizer: Any
    shares_prompts: bool = False  # proven: samples may go on from a prompt that is computed once
    packs: bool = False  # proven: whole samples may stand in one row, one after another
    ranks: Ranks = ALONE  # over which its weights are laid out (sharding.py)
    adapters: tuple[Adapter, ...] = ()  # where there are any, they alone are trained
    plain: bool = False  # computes without them: the model as it was before they were trained

    @property
    def decoder(self) -> Any:
        """Token ids → states before the head."""
        found = self.model.get_decoder() if self.ranks.alone else self.model.states
        return partial(_without, self.adapters, found) if self.plain else found

    @property
    def head_weight(self) -> Tensor:
        """`[V, D]`; with several ranks whole only between a call of the decoder and the end of a backward pass."""
        return self.model.get_output_embeddings().weight

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.head_weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self.head_weight.dtype

    def hidden(self, tokens: Tensor) -> Tensor:
        """`[B, L] int64 → [B, L, D]`, the states before the head. Rows are right-padded: see microbatch.py."""
        return self.decoder(input_ids=tokens, use_cache=False).last_hidden_state

    def hidden_packed(self, tokens: Tensor, sequences: packing.Sequences) -> Tensor:
        """`[1, L] int64 → [1, L, D]`: a row of several sequences."""
        return packing.read_packed(self.decoder, tokens, sequences)

    def prompts(self, prompts: Sequence[Int32]) -> SharedPrompts:
        """What samples of these prompts can go on from; its `backward` is due when all of them are done."""
        return read_prompts(self.decoder, prompts, self.device)

    def hidden_after(self, shared: SharedPrompts, prompt: Tensor, tokens: Tensor) -> Tensor:
        """`prompt [B]`, `tokens [B, L − 1] int64 → [B, L, D]`: the prompt's last state and those of the row after."""
        if not self.ranks.alone and not tokens.shape[1]:
            # The decoder would not be asked, and other ranks would wait for its weights: a token that nobody reads.
            return go_on(self.decoder, shared, prompt, tokens.new_zeros(len(tokens), 1))[:, :1]
        return go_on(self.decoder, shared, prompt, tokens)

    def named_tensors(self) -> dict[str, Tensor]:
        """Every weight under its name in a Hugging Face checkpoint, tied ones under each of their names."""
        return self.as_saved(dict(self.model.state_dict()))

    def as_saved(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights, named as in the model, in the form and under the names of a Hugging Face checkpoint.

        transformers holds some weights in another form than their checkpoint (the experts of a layer as one tensor);
        engines expect the checkpoint's.
        """
        found: dict[str, Tensor] = revert_weight_conversion(self.model, weights)
        return found


def score(policy: Policy, sequences: Sequence[Int32]) -> list[Float32]:
    """Log-probs `[n − 1]` of each sequence `[n]`'s tokens after its first, without temperature, in nats."""
    width = max(len(sequence) for sequence in sequences)
    tokens = np.zeros((len(sequences), width), np.int64)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)] = sequence
    ids = torch.from_numpy(tokens).to(policy.device)
    with torch.no_grad():
        logits = linear(policy.hidden(ids[:, :-1]), policy.head_weight).float()
        drawn = logits.gather(-1, ids[:, 1:, None]).squeeze(-1) - logits.logsumexp(-1)
    values = drawn.cpu().numpy()
    return [values[row, : len(sequence) - 1] for row, sequence in enumerate(sequences)]


def load_policy(
    settings: ModelSettings,
    *,
    source: str,
    device: torch.device,
    gradient_checkpointing: bool = False,
    packed: Packing = "off",
) -> Policy:
    """The policy in the folder (or under the hub name) `source`, ready to be trained on `device`.

    Dropout is switched off: the log-probs of a step must be those of the policy that is published.

    Raises:
        ModelError: it can't be read, lacks weights, its logits are not a plain product with its head, or its samples
            must be packed and can't be; or it computes at random.
    """
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=getattr(torch, settings.dtype),
            trust_remote_code=settings.trust_remote_code,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=settings.trust_remote_code)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"no causal language model can be loaded from {source!r} ({error}): model.path must be a folder in "
            "Hugging Face form with config.json, weights and tokenizer, or a hub name that can be reached"
        ) from error
    model, found = loaded
    absent = sorted(found["missing_keys"])
    if absent:
        raise ModelError(
            f"the model in {source!r} lacks {len(absent)} weights, {absent[0]} first: they would start as noise. "
            "Use a complete checkpoint of a causal language model"
        )
    policy = Policy(model=model.to(device).eval(), tokenizer=tokenizer)
    _settle_mode(policy, source, gradient_checkpointing)
    _check_head(policy, source)
    if gradient_checkpointing:
        reason: str | None = "gradient checkpointing keeps no cache"
    else:
        reason = objection(model.get_decoder(), policy.device, policy.head_weight.shape[0])
    if reason:
        log.info("each sample computes its prompt again, which costs time: %s in %s", reason, source)
    return replace(policy, shares_prompts=reason is None, packs=_packs(policy, packed, source))


def _packs(policy: Policy, packed: Packing, source: str) -> bool:
    if packed == "off" or (packed == "auto" and not packing.has_kernel(policy.device, policy.dtype)):
        return False
    reason = packing.objection(policy.model, policy.device, policy.head_weight.shape[0])
    if reason and packed == "on":
        raise ModelError(
            f'samples can\'t be packed for the model in {source!r}, but learner.packing is "on": {reason}. Use "auto", '
            "which pads them"
        )
    if reason:
        log.info("samples are padded instead of packed, which costs time: %s in %s", reason, source)
    return reason is None


def _without(adapters: Sequence[Adapter], decoder: Any, **given: Any) -> Any:
    """The decoder's answer, its adapters left out."""
    try:
        for adapter in adapters:
            # peft's own switch takes the gradient of A and B off as well, which steps under way still need.
            adapter.layer._disable_adapters = True
        return decoder(**given)
    finally:
        for adapter in adapters:
            adapter.layer._disable_adapters = False


def freeze(policy: Policy) -> Policy:
    """The same policy as a reference: nothing in it has a gradient."""
    policy.model.requires_grad_(False)
    policy.model.eval()
    return policy


def _settle_mode(policy: Policy, source: str, gradient_checkpointing: bool) -> None:
    """Puts the model into the mode that is trained in, and sees that it computes what evaluation does."""
    ids = _some_tokens(policy)
    with torch.no_grad():
        expected = policy.hidden(ids)
    if gradient_checkpointing:
        dropout.checkpointed(policy.model)
    gap = dropout.randomness(policy.hidden, expected, ids)
    if gap is not None:
        raise ModelError(
            f"the model in {source!r} computes something else where it is trained than where it is evaluated (its "
            f"states differ by {gap:.2g} of their norm): it drops or draws at random, and a step's log-probs would "
            "not be those of the policy that is published. Set every dropout in its config.json to 0"
            f"{', or learner.gradient_checkpointing = false' if gradient_checkpointing else ''}"
        )


def _some_tokens(policy: Policy) -> Tensor:
    return torch.arange(CHECKED_TOKENS, device=policy.device)[None] % policy.head_weight.shape[0]


def _check_head(policy: Policy, source: str) -> None:
    """Some families cap, scale or shift logits after the head: trained without that, they would be another policy."""
    ids = _some_tokens(policy)
    with torch.no_grad():
        own = policy.model(input_ids=ids, use_cache=False).logits.float()
        plain = linear(policy.hidden(ids), policy.head_weight).float()
    if own.shape != plain.shape:
        raise ModelError(f"the model in {source!r} gives logits {tuple(own.shape)}; expected {tuple(plain.shape)}")
    gap = float((own - plain).abs().max() / own.abs().max().clamp(min=1.0))
    if not gap <= HEAD_TOLERANCE[policy.dtype]:
        raise ModelError(
            f"the logits of {source!r} are not its hidden states times its head (relative difference {gap:.2g}): "
            "the architecture caps, scales or shifts them, which the learner does not support. Use another model"
        )
