"""Every setting a station obeys, with its range. `entrostat/config.py` composes them into one `RunConfig`.

Ranges stand at the field; what only several fields together can say wrong is checked where they meet.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Positive = Annotated[float, Meta(gt=0)]
NonNegative = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
OpenShare = Annotated[float, Meta(ge=0, lt=1)]
MOST = 2**48  # of anything that is counted
Count = Annotated[int, Meta(ge=1, le=MOST)]
CountOrZero = Annotated[int, Meta(ge=0, le=MOST)]
Seconds = Annotated[float, Meta(gt=0)]
Port = Annotated[int, Meta(ge=0, le=65535)]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The shape of every section: frozen, by keyword, and without room for a misspelt key."""


# ── model ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class ModelSettings(Settings, frozen=True, kw_only=True):
    """Which policy to start from: a folder in Hugging Face form, or a hub name."""

    path: str
    dtype: Literal["float32", "bfloat16"] = "float32"
    trust_remote_code: bool = False


# ── tasks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class ReasoningGym(Settings, frozen=True, kw_only=True, tag_field="kind", tag="reasoning_gym"):
    """Generated problems of the `reasoning-gym` library, judged by the library's own scorer.

    The answer is read from the last `<answer>…</answer>` of the response.
    """

    dataset: str
    size: Annotated[int, Meta(ge=1, le=10_000_000)]
    seed: CountOrZero = 0
    level: str = ""  # default: the dataset's name
    parameters: dict[str, int | float | str | bool | list[int | float | str]] = {}
    template: str = "{question}"
    system: str = ""
    chat: bool = False  # format with the tokenizer's chat template


class Jsonl(Settings, frozen=True, kw_only=True, tag_field="kind", tag="jsonl"):
    """A file with one problem a line, judged by `math-verify`."""

    path: str
    question: str = "question"
    answer: str = "answer"
    answer_after: str = ""  # the answer is what follows the last occurrence of this mark, as "####" in GSM8K
    level: str = ""  # a field's name; default: one level for the whole file
    limit: CountOrZero = 0  # use the first so many rows; 0 uses all
    template: str = "{question}"
    system: str = ""
    chat: bool = False


TaskSettings = ReasoningGym | Jsonl


class VerifierSettings(Settings, frozen=True, kw_only=True):
    """How responses are judged: in processes of their own that are killed at the deadline."""

    processes: Count = 1
    deadline_seconds: Seconds = 10.0
    alarm_share: Share = 0.5  # of timeout, error and unparsable verdicts in a batch: above it a warning is logged


# ── rollout ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class VllmSettings(Settings, frozen=True, kw_only=True, tag_field="kind", tag="vllm"):
    """The real engine."""

    max_sequences: Count = 256  # decoded at once
    memory_share: Share = 0.9  # of a GPU's memory
    kv_cache_gib: Count = 1  # on a CPU
    tensor_parallel: Count = 1
    threads: Count = 1  # on a CPU
    own_process: bool = False  # the engine's core apart from the actor
    enforce_eager: bool = False
    max_model_tokens: CountOrZero = 0  # prompt and response together; 0 takes the model's


class SimulatedSettings(Settings, frozen=True, kw_only=True, tag_field="kind", tag="simulated"):
    """An engine that draws plausible answers by seed: the loop without a model's cost."""

    tokens_per_second: Positive = 200_000.0
    skill: Share = 0.3  # share of correct answers of the first version
    learning: NonNegative = 0.01  # how much each version adds to the skill
    update_seconds: NonNegative = 0.0


EngineSettings = VllmSettings | SimulatedSettings


class RolloutSettings(Settings, frozen=True, kw_only=True):
    """How samples are drawn."""

    engine: EngineSettings = VllmSettings()
    actors: Count = 1
    samples_per_prompt: Annotated[int, Meta(ge=2)] = 8
    max_response_tokens: Count = 1024
    temperature: Annotated[float, Meta(gt=0, le=2)] = 1.0  # vLLM allows no more
    max_staleness: CountOrZero = 1  # versions; 0 is on-policy
    groups_in_flight: Count = 32  # per actor
    reproducible: bool = False  # draw each lease by its own seed; vLLM is a fifth slower then
    lease_seconds: Seconds = 120.0  # without a pulse a lease ends; a living actor renews it
    gpus: NonNegative = 1.0  # of Ray's GPUs for one actor, where there are any
    tolerance: NonNegative = 0.0  # of the weights' probe, nats; 0: 1e-4 in float32, 5e-2 in bfloat16


# ── entropy ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class FullEntropy(Settings, frozen=True, kw_only=True, tag_field="kind", tag="full"):
    """H over the whole vocabulary."""


class ClampedEntropy(Settings, frozen=True, kw_only=True, tag_field="kind", tag="clamped"):
    """H̃ of the policy renormalised without the `drop_fraction` of the vocabulary with the smallest logits (AEnt)."""

    drop_fraction: OpenShare = 0.25


EstimatorSettings = ClampedEntropy | FullEntropy


class FixedLaw(Settings, frozen=True, kw_only=True, tag_field="kind", tag="fixed"):
    """A constant coefficient; 0 switches entropy control off."""

    coefficient: NonNegative = 0.0


class BandLaw(Settings, frozen=True, kw_only=True, tag_field="kind", tag="band"):
    """AEnt: the coefficient moves only while the entropy is outside `[low, high]` nats."""

    initial: NonNegative
    floor: NonNegative
    ceiling: Positive
    low: NonNegative
    high: Positive
    rate: Positive
    pull: NonNegative = 0.0
    warmup_steps: CountOrZero = 0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low = {self.low} is not below high = {self.high}")
        if not self.floor <= self.initial <= self.ceiling:
            raise ValueError(
                f"initial = {self.initial} is outside the box floor = {self.floor} … ceiling = {self.ceiling}"
            )


class AnchoredLaw(Settings, frozen=True, kw_only=True, tag_field="kind", tag="anchored"):
    """AER: an integral law towards `anchor · H_0`, never negative."""

    anchor: Positive = 0.4
    rate: Positive = 0.01
    ceiling: Positive = 1.0


class ThermostatLaw(Settings, frozen=True, kw_only=True, tag_field="kind", tag="thermostat"):
    """The flagship: proportional and integral action in log space around a calibrated balance coefficient."""

    anchor: Positive = 0.7  # target = anchor · H_0
    balance: Positive = 1e-3  # ĉ: the coefficient that holds the entropy still at the start
    drift: Positive = 0.01  # â: how fast ln H falls without control, per optimizer step
    anchor_orders: Count = 3
    lag: Count = 1  # orders between a measurement and the step it steers
    floor_ratio: Positive = 0.01  # of ĉ
    ceiling_ratio: Positive = 10.0  # of ĉ


LawSettings = ThermostatLaw | BandLaw | AnchoredLaw | FixedLaw


class WeightSettings(Settings, frozen=True, kw_only=True):
    """How strongly each prompt shares in the bonus."""

    normalise: bool = True  # token-weighted mean 1 over the order; False keeps the raw weights, as AER does
    form: Literal["uniform", "hinge", "indicator", "linear"] = "hinge"
    threshold: Annotated[float, Meta(gt=0, le=1)] = 0.5  # ρ
    minimum: Share = 0.25  # w_min
    cap: Positive = 4.0
    half_life_versions: Positive = 50.0
    prior: Positive = 4.0  # m0, samples
    all_wrong_share: Share = 0.25  # of the bonus tokens at most
    entropy_ratio: Positive = 2.0  # no bonus for a group whose own entropy exceeds this many H_0


class EntropySettings(Settings, frozen=True, kw_only=True):
    """What holds the policy's entropy."""

    estimator: EstimatorSettings = ClampedEntropy()
    law: LawSettings = ThermostatLaw()
    weight: WeightSettings = WeightSettings()


# ── learner ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class LearnerSettings(Settings, frozen=True, kw_only=True):
    """One optimizer step."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: CountOrZero = 0  # on a CPU; 0 takes the cores the actors leave
    gpus: NonNegative = 1.0  # of Ray's GPUs, where there are any
    lr: Positive = 1e-6
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: CountOrZero = 0
    final_lr_ratio: Share = 0.0  # of lr, at the last step of a linear or cosine schedule
    betas: tuple[OpenShare, OpenShare] = (0.9, 0.999)
    epsilon: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    gradient_clip: Positive = 1.0
    clip_low: OpenShare = 0.2
    clip_high: Positive = 0.2
    importance_cap: Positive = 2.0  # of π_prox / μ
    normalise_advantages: bool = True  # by the group's standard deviation
    truncated: Literal["mask", "penalise", "keep"] = "mask"  # responses cut by the length limit
    truncation_penalty: NonNegative = 0.5  # taken off the reward, with truncated = "penalise"
    kl_coefficient: NonNegative = 0.0  # to the policy the run started from; 0 keeps no reference
    microbatch_tokens: Count = 16_384  # prompts, each counted once, and responses, padding included
    head_chunk_tokens: Count = 4_096  # rows of logits held at once
    gradient_checkpointing: bool = False
    probe_sequences: Count = 4
    transport: Literal["shared_memory", "ipc"] = "shared_memory"


class BatchSettings(Settings, frozen=True, kw_only=True):
    """What one optimizer step consumes."""

    prompts: Count = 32
    shuffle: bool = True


class Stations(Settings, frozen=True, kw_only=True):
    """driver → every station. The settings of the run; the same for all, and for all of its life."""

    run: str  # its name
    directory: str  # absolute path of the run directory
    seed: int
    total_steps: int
    model: ModelSettings
    tasks: tuple[TaskSettings, ...]  # a prompt's `task` counts through these …
    evaluation_tasks: tuple[TaskSettings, ...]  # … and on through these
    batch: BatchSettings
    rollout: RolloutSettings
    verifier: VerifierSettings
    entropy: EntropySettings
    learner: LearnerSettings
    metrics_host: str
    metrics_port: Port
    samples_per_step: int  # written down for people to read
