"""One optimizer step: policy loss, baselines, corrections, and how it is computed."""

from typing import Annotated, Literal

from msgspec import Meta

from entrostat.protocol.ranges import (
    LARGEST,
    Count,
    CountOrZero,
    NonNegative,
    OpenShare,
    Positive,
    Settings,
    Share,
    ThreadsOrZero,
)


class PpoClip(Settings, frozen=True, kw_only=True, tag_field="kind", tag="ppo_clip"):
    """PPO's clipped ratio; `clip_high` above `clip_low` is DAPO's clip-higher."""

    clip_low: OpenShare = 0.2
    clip_high: Positive = 0.2
    dual_clip: Annotated[float, Meta(ge=0)] = 0.0  # a loss of at most so many |A| where A < 0; above 1, or 0: off

    def __post_init__(self) -> None:
        if 0 < self.dual_clip <= 1:
            raise ValueError(f"dual_clip = {self.dual_clip} is not above 1; 0 switches it off")


class Gspo(Settings, frozen=True, kw_only=True, tag_field="kind", tag="gspo"):
    """One ratio for a whole sequence, the geometric mean of its tokens'."""

    clip_low: OpenShare = 3e-4
    clip_high: Positive = 4e-4


class Cispo(Settings, frozen=True, kw_only=True, tag_field="kind", tag="cispo"):
    """Clips the ratio as a weight, not the gradient."""

    clip_low: Share = 1.0  # 1: no lower bound, as its authors recommend
    clip_high: Positive = 0.28


class ClipCov(Settings, frozen=True, kw_only=True, tag_field="kind", tag="clip_cov"):
    """PPO-clip without the gradient of a random `share` of tokens, drawn among those of high covariance."""

    clip_low: OpenShare = 0.2
    clip_high: Positive = 0.2
    share: Annotated[float, Meta(gt=0, le=1)] = 2e-4
    covariance_low: float = 1.0
    covariance_high: float = 5.0

    def __post_init__(self) -> None:
        if not self.covariance_low < self.covariance_high:
            raise ValueError(
                f"covariance_low = {self.covariance_low} is not below covariance_high = {self.covariance_high}"
            )


class KlCov(Settings, frozen=True, kw_only=True, tag_field="kind", tag="kl_cov"):
    """The plain ratio, with a KL penalty on the `share` of tokens with the highest covariance."""

    share: Annotated[float, Meta(gt=0, le=1)] = 2e-3
    strength: Positive = 1.0  # β


Packing = Literal["auto", "on", "off"]
PolicyLoss = PpoClip | Gspo | Cispo | ClipCov | KlCov

NOT_ADAPTED = ("lm_head", "embed_tokens", "wte", "embed_out")  # heads and embeddings, as most families name them


class AllWeights(Settings, frozen=True, kw_only=True, tag_field="kind", tag="all"):
    """Every weight of the policy is trained."""


class Lora(Settings, frozen=True, kw_only=True, tag_field="kind", tag="lora"):
    """Low-rank adapters are trained beside frozen weights: W + (α/r)·B·A.

    There is no dropout: the log-probs of a step must be those of the policy that is published.
    """

    rank: Annotated[int, Meta(ge=1, le=512)] = 16  # r; 512 is the most vLLM holds
    alpha: Count = 32  # α
    targets: Literal["all-linear"] | Annotated[tuple[Annotated[str, Meta(min_length=1)], ...], Meta(min_length=1)] = (
        "all-linear"  # every linear layer but the head, or the last parts of their names: ["q_proj", "v_proj"]
    )
    publish: Literal["merged", "adapter"] = "merged"  # whole weights, or A and B alone for vLLM to compute with

    def __post_init__(self) -> None:
        named = () if isinstance(self.targets, str) else self.targets
        for target in named:
            if target == "all-linear":
                raise ValueError('targets names "all-linear" in a list: write targets = "all-linear", or name layers')
            if target.rpartition(".")[2] in NOT_ADAPTED:
                raise ValueError(
                    f"targets names {target}: head and embeddings are not adapted, because the learner multiplies by "
                    "the head's own weight. Leave it out"
                )


TrainedWeights = AllWeights | Lora


class LearnerSettings(Settings, frozen=True, kw_only=True):
    """One optimizer step."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: ThreadsOrZero = 0  # on a CPU; 0 takes the cores the actors leave
    gpus: NonNegative = 1.0  # of Ray's GPUs for each rank, where there are any
    # Processes that make each step together, each with its part of the weights.
    ranks: Annotated[int, Meta(ge=1, le=1024)] = 1
    rank_seconds: Annotated[float, Meta(ge=1, le=86_400)] = 300.0  # the longest one rank waits for another
    weights: TrainedWeights = AllWeights()  # which are trained
    lr: Positive = 1e-6
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: CountOrZero = 0
    final_lr_ratio: Share = 0.0  # of lr, at the last step of a linear or cosine schedule
    betas: tuple[OpenShare, OpenShare] = (0.9, 0.999)
    epsilon: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    gradient_clip: Positive = 1.0
    loss: PolicyLoss = PpoClip()
    advantages: Literal["normalised", "centred", "leave_one_out"] = "normalised"  # GRPO · Dr.GRPO · RLOO
    aggregation: Literal["token_mean", "sequence_mean", "fixed_length"] = "token_mean"  # of the policy term
    policy_tokens: Annotated[float, Meta(gt=0, le=1)] = 1.0  # share of tokens, by entropy, with a policy gradient
    entropy_advantage: NonNegative = 0.0  # α: advantages gain min(α·H, |A|/κ); 0 is off
    entropy_advantage_bound: Annotated[float, Meta(gt=1, le=LARGEST)] = 2.0  # κ: above 1 no advantage changes its sign
    minibatches: Count = 1  # optimizer steps in which an order is taken
    epochs: Count = 1  # times over
    proximal: Literal["learner", "behaviour"] = "learner"  # whose log-probs the ratio is against
    importance_cap: NonNegative = 2.0  # of π_prox / μ; 0 leaves the weight out
    sequence_mask: NonNegative = 0.0  # reject samples whose mean |log π_prox − log μ| exceeds it, nats; 0 is off
    truncated: Literal["mask", "penalise", "keep"] = "mask"  # responses cut by the length limit
    truncation_penalty: NonNegative = 0.5  # taken off the reward, with truncated = "penalise"
    kl_coefficient: NonNegative = 0.0  # to the policy the run started from; 0 keeps no reference
    microbatch_tokens: Count = 16_384  # prompts, each counted once, and responses, padding included
    packing: Packing = "auto"  # rows of whole samples without padding; auto: with a GPU's kernel, where it saves tokens
    head_chunk_tokens: CountOrZero = 0  # rows of logits held at once; 0: 128 MiB of them on a CPU, 1 GiB on a GPU
    gradient_checkpointing: bool = False
    probe_sequences: Annotated[int, Meta(ge=1, le=4096)] = 4  # scored at once, before and after each step
    drift_alarm: Positive = 0.1  # warn above this mean |log π − log μ| of the sampled tokens, nats …
    drift_stop: NonNegative = 1.0  # … and stop above this one; 0 never stops
    measure_balance: bool = False  # gradients of policy term and bonus apart, for calibration; twice the time
    transport: Literal["shared_memory", "ipc", "nccl"] = "shared_memory"
