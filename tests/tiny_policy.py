"""A policy of a few thousand random weights, and orders to train it on, made in a moment."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from entrostat.learner.policy import Policy, load_policy
from entrostat.protocol.entropy_settings import EntropySettings
from entrostat.protocol.learner_settings import LearnerSettings, Packing
from entrostat.protocol.messages import (
    Group,
    Lease,
    OrderedGroup,
    PolicyVersion,
    Prompt,
    PromptSet,
    Rollout,
    Samples,
    TrainOrder,
    Verdict,
)
from entrostat.protocol.settings import BatchSettings, ModelSettings, RolloutSettings, Stations, VerifierSettings

WORDS = ("<pad>", "<eos>", "<unk>", *"0123456789+-=", *"abcdefghijklmnop")
PROMPTS = ("1 + 2 =", "3 + 4 =", "5 - 1 + 2 =", "9 - 8 =")


def make_policy(
    folder: Path,
    *,
    words: Sequence[str] = WORDS,
    width: int = 32,
    context: int = 128,
    spread: float = 0.3,
    dtype: torch.dtype = torch.float32,
    tied: bool = True,
) -> Path:
    """A Qwen3 of two layers with a tokenizer of single words, saved in Hugging Face form.

    The first three words pad, end and stand for the unknown; `spread` is the standard deviation of the weights.
    """
    torch.manual_seed(1)
    config = Qwen3Config(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=3 * width // 2,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=width // 2,
        max_position_embeddings=context,
        tie_word_embeddings=tied,
        initializer_range=spread,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
    )
    Qwen3ForCausalLM(config).to(dtype).save_pretrained(folder)
    _save_tokenizer(folder, words)
    return folder


def make_one_layer(folder: Path, architecture: Any, **changes: object) -> Path:
    """One narrow layer of another architecture with the same tokenizer, saved in Hugging Face form."""
    torch.manual_seed(0)
    sizes: dict[str, object] = {
        "vocab_size": len(WORDS),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 16,
    }
    architecture(architecture.config_class(**(sizes | changes))).save_pretrained(folder)
    _save_tokenizer(folder, WORDS)
    return folder


def _save_tokenizer(folder: Path, words: Sequence[str]) -> None:
    pad, eos, unk = words[:3]
    known = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=unk))
    known.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=known, pad_token=pad, eos_token=eos, unk_token=unk).save_pretrained(folder)


def loaded(
    folder: Path, *, dtype: str = "float32", gradient_checkpointing: bool = False, packed: Packing = "off"
) -> Policy:
    """The policy in `folder` as the learner loads it, on the CPU; `float64` makes it exact once it is loaded."""
    settings = ModelSettings(path=str(folder), dtype="bfloat16" if dtype == "bfloat16" else "float32")
    device = torch.device("cpu")
    policy = load_policy(
        settings, source=str(folder), device=device, gradient_checkpointing=gradient_checkpointing, packed=packed
    )
    if dtype == "float64":
        policy.model.double()
    return policy


def in_float64(policy: Policy) -> Policy:
    """The policy in float64 throughout: transformers' own norm computes in float32 whatever it is given."""
    policy.model.double()
    for parent in list(policy.model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ == "Qwen3RMSNorm":
                norm = nn.RMSNorm(child.weight.shape[0], eps=child.variance_epsilon, dtype=torch.float64)
                norm.weight = child.weight
                setattr(parent, name, norm)
    return policy


def moved(policy: Policy, size: float, seed: int = 9) -> Policy:
    """The policy itself, each weight moved by a random number of this standard deviation."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight += size * torch.randn_like(weight)
    return policy


def make_prompts() -> PromptSet:
    """As many prompts as `PROMPTS`."""
    return PromptSet(
        prompts=tuple(
            Prompt(id=i, name=f"sum/{i}", level="2", task=0, text=text, answer="3", entry="{}")
            for i, text in enumerate(PROMPTS)
        )
    )


def make_group(
    lease_id: int,
    *,
    rewards: tuple[float, ...] = (1.0, 0.0, 0.0, 1.0),
    truncated: int = 0,
    seed: int = 0,
    started: int = 0,
) -> Group:
    """Random tokens; the first `truncated` samples were cut by the length limit; version 0.`started` began them."""
    draw = np.random.default_rng((seed, lease_id))
    lengths = draw.integers(3, 12, len(rewards)).astype(np.int32)
    tokens = draw.integers(3, len(WORDS), int(lengths.sum())).astype(np.int32)
    samples = Samples(
        tokens=tokens,
        logprobs=(-draw.random(len(tokens)) - 2.5).astype(np.float32),
        lengths=lengths,
        finish=(np.arange(len(rewards)) < truncated).astype(np.uint8),
        spans=np.array([[i, 0, 0, 0] for i in range(len(rewards))], np.int32),
    )
    version = PolicyVersion(branch=0, step=started)
    prompt_id = lease_id % len(PROMPTS)
    lease = Lease(
        id=lease_id, prompt_id=prompt_id, samples=len(rewards), version=version, seed=seed, deadline_seconds=9.0
    )
    return Group(
        rollout=Rollout(
            lease=lease,
            slot=0,
            incarnation=1,
            started=version,
            prompt_tokens=np.array([WORDS.index(word) for word in PROMPTS[prompt_id].split()], np.int32),
            samples=samples,
            seconds=0.1,
        ),
        verdicts=tuple(
            Verdict(reward=reward, status="correct" if reward else "wrong", seconds=0.0) for reward in rewards
        ),
    )


def make_order(
    groups: list[Group],
    version: PolicyVersion,
    coefficient: float = 0.1,
    *,
    weights: Sequence[float] = (),
    bonus_alone: Sequence[int] = (),
    levels: Sequence[str] = (),
    **changes: Any,
) -> TrainOrder:
    """An order for these groups, by default each with the same weight; those in `bonus_alone` have no policy term."""
    order = TrainOrder(
        version=version,
        groups=tuple(
            OrderedGroup(
                lease_id=group.rollout.lease.id,
                prompt_id=group.rollout.lease.prompt_id,
                level=levels[i] if levels else "2",
                in_policy=i not in bonus_alone,
                weight=weights[i] if weights else 1.0,
                coefficient=coefficient * (weights[i] if weights else 1.0),
            )
            for i, group in enumerate(groups)
        ),
        coefficient=coefficient,
        sample_balance=0.0,
        usual_entropy=float("nan"),
        seed=0,
    )
    return msgspec.structs.replace(order, **changes)


def make_stations(
    model: Path,
    directory: Path,
    *,
    learner: LearnerSettings | None = None,
    entropy: EntropySettings | None = None,
    rollout: RolloutSettings | None = None,
    dtype: str = "float32",
    samples_per_step: int = 0,
) -> Stations:
    """The settings of a run on the tiny policy; everything not given as it is by default."""
    return Stations(
        run="tiny",
        directory=str(directory),
        seed=0,
        total_steps=10,
        deterministic=False,
        checkpoint_every=1000,
        stall_seconds=600.0,
        model=ModelSettings(path=str(model), dtype="bfloat16" if dtype == "bfloat16" else "float32"),
        tasks=(),
        evaluation_tasks=(),
        batch=BatchSettings(),
        rollout=RolloutSettings() if rollout is None else rollout,
        verifier=VerifierSettings(),
        entropy=EntropySettings() if entropy is None else entropy,
        learner=LearnerSettings(lr=1e-3, threads=1) if learner is None else learner,
        metrics_host="127.0.0.1",
        metrics_port=0,
        samples_per_step=samples_per_step,
    )
