"""Every setting a station obeys, with its range. `entrostat/config.py` composes them into one `RunConfig`.

Ranges stand at the field; what only several fields together can say wrong is checked where they meet.
"""

from typing import Annotated, Literal

from msgspec import Meta

from entrostat.protocol.entropy_settings import EntropySettings
from entrostat.protocol.learner_settings import LearnerSettings
from entrostat.protocol.ranges import (
    Count,
    CountOrZero,
    NonNegative,
    Port,
    Positive,
    Seconds,
    Settings,
    Share,
    Temperature,
    Threads,
)
from entrostat.protocol.task_settings import TaskSettings

# ── model ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class ModelSettings(Settings, frozen=True, kw_only=True):
    """Which policy to start from: a folder in Hugging Face form, or a hub name."""

    path: str
    dtype: Literal["float32", "bfloat16"] = "float32"
    trust_remote_code: bool = False


# ── verifiers ────────────────────────────────────────────────────────────────────────────────────────────────────────


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
    threads: Threads = 1  # on a CPU
    own_process: bool = False  # the engine's core apart from the actor
    enforce_eager: bool = False
    max_model_tokens: CountOrZero = 0  # prompt and response together; 0 takes the model's


class SimulatedSettings(Settings, frozen=True, kw_only=True, tag_field="kind", tag="simulated"):
    """An engine that draws plausible answers by seed: the loop without a model's cost.

    Like a GPU it draws a token of every running sample in `step_seconds`, however few they are, and in more where that
    would be faster than `tokens_per_second`.
    """

    tokens_per_second: Positive = 200_000.0
    step_seconds: NonNegative = 0.0  # the least that a token of all running samples takes
    median_tokens: CountOrZero = 0  # of a heavy-tailed (lognormal) thought before the answer; 0: 1 to 23, evenly
    spread: NonNegative = 0.5  # of such thoughts: the standard deviation of their lengths' logarithm
    skill: Share = 0.3  # share of correct answers of the first version
    learning: NonNegative = 0.01  # how much each version adds to the skill
    update_seconds: NonNegative = 0.0


EngineSettings = VllmSettings | SimulatedSettings


class RolloutSettings(Settings, frozen=True, kw_only=True):
    """How samples are drawn."""

    engine: EngineSettings = VllmSettings()
    actors: Count = 1
    max_actors: Count = 1024  # that `entrostat scale` may ask for
    drain_seconds: Seconds = 30.0  # an actor that is to go finishes what it began; then it hands back what is left
    samples_per_prompt: Annotated[int, Meta(ge=2)] = 8
    max_response_tokens: Count = 1024
    temperature: Temperature = 1.0
    max_staleness: CountOrZero = 1  # versions; 0 is on-policy
    groups_in_flight: Count = 32  # per actor
    reproducible: bool = False  # draw each lease by its own seed; vLLM is a fifth slower then
    lease_seconds: Seconds = 120.0  # without a pulse a lease ends; a living actor renews it
    gpus: NonNegative = 1.0  # of Ray's GPUs for one actor, where there are any
    tolerance: NonNegative = 0.0  # of the weights' probe, nats; 0: 1e-4 in float32, 5e-2 in bfloat16


class Uniform(Settings, frozen=True, kw_only=True, tag_field="kind", tag="uniform"):
    """Every prompt is drawn when its turn in the epoch comes."""


class MixedResults(Settings, frozen=True, kw_only=True, tag_field="kind", tag="mixed_results"):
    """Prompts are drawn by how likely their samples differ in reward, as the controller estimates it.

    A prompt whose turn comes is drawn with probability `floor + (1 − floor)·P(mixed)/max P(mixed)`, else passed over
    until its next turn. P(mixed) is that of `samples_per_prompt` samples being neither all right nor all wrong, over
    the prompt's decayed Beta estimate of its pass rate; the estimate lags, see `half_life_versions`.
    """

    prior: Positive = 0.5  # samples that the level's pass rate counts for; fewer trust a prompt's own groups sooner
    floor: Annotated[float, Meta(ge=0.01, le=1)] = 0.1  # no prompt is drawn less often than this share of its turns


SamplingSettings = Uniform | MixedResults


class BatchSettings(Settings, frozen=True, kw_only=True):
    """What one optimizer step consumes."""

    prompts: Count = 32
    shuffle: bool = True
    filter: Literal["none", "zero_variance"] = "none"  # leave out groups whose rewards are all equal, and sample others
    refill: Annotated[float, Meta(ge=1)] = 3.0  # with a filter: at most so many times `prompts` groups for one order
    sampling: SamplingSettings = Uniform()


class Stations(Settings, frozen=True, kw_only=True):
    """driver → every station. The settings of the run; the same for all, and for all of its life."""

    run: str  # its name
    directory: str  # absolute path of the run directory
    seed: int
    total_steps: int
    deterministic: bool  # what is sampled and trained follows from the seed alone, whatever dies meanwhile
    checkpoint_every: int  # steps; a deterministic run's samples never come from before the last of these
    stall_seconds: Seconds  # the longest a station may take over one answer
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
    record_samples: bool = False  # an order's groups are kept before it is trained
