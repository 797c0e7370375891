"""What a run of TRL's trainer is asked for, and what comes out of it."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from entrostat.protocol.errors import ConfigError, ModelError
from entrostat.protocol.ranges import Count, CountOrZero, NonNegative, OpenShare, Positive, Settings
from entrostat.protocol.task_settings import TaskSettings


class AdaptiveEntropy(Settings, frozen=True, kw_only=True):
    """TRL's law; the defaults are TRL's."""

    target: Positive  # H*, nats
    delta: Positive = 0.005  # δ
    initial: NonNegative = 0.0  # c_1
    floor: NonNegative = 0.0  # c_min
    ceiling: Positive = 1.0  # c_max

    def __post_init__(self) -> None:
        if not self.floor <= self.initial <= self.ceiling:
            raise ValueError(
                f"initial = {self.initial} is outside the box floor = {self.floor} … ceiling = {self.ceiling}"
            )


class TrlConfig(Settings, frozen=True, kw_only=True):
    """One run. Tasks are written as in a run's TOML; names that a run has too mean the same."""

    model: str  # a folder in Hugging Face form
    tasks: tuple[TaskSettings, ...]
    seed: CountOrZero
    steps: Count
    prompts: Count  # per step
    lr: Positive
    samples: Annotated[int, Meta(ge=2)] = 16  # per prompt
    max_response_tokens: Count = 80
    temperature: Positive = 1.0
    betas: tuple[OpenShare, OpenShare] = (0.9, 0.95)
    gradient_clip: Positive = 1.0
    truncated: Literal["mask", "keep"] = "mask"
    entropy: AdaptiveEntropy | None = None  # none: GRPO without a bonus
    microbatch_samples: CountOrZero = 0  # in one forward pass; 0: the whole batch
    threads: Count = 1
    save: str = ""  # a folder for the last policy

    def __post_init__(self) -> None:
        batch = self.prompts * self.samples
        if self.microbatch_samples and batch % self.microbatch_samples:
            raise ValueError(f"microbatch_samples = {self.microbatch_samples} does not divide the batch of {batch}")


class TrlStep(msgspec.Struct, frozen=True, kw_only=True):
    """One optimizer step, as TRL logs it."""

    step: int  # from 1
    entropy_nats: float  # H_k
    bonus: float  # β_k, the coefficient that acted
    coefficient: float  # c_{k+1}
    reward: float  # mean of the batch
    response_tokens: float  # mean
    truncated_share: float
    seconds: float  # sampling, verdicts, forward and backward


class TrlResult(msgspec.Struct, frozen=True, kw_only=True):
    """One run."""

    trl: str  # version
    config: TrlConfig
    steps: tuple[TrlStep, ...]
    seconds: float  # of all steps, the optimizer's share and TRL's bookkeeping included
    failed_verdicts: int  # scorers that raised: rewards of 0


def read_config(path: Path) -> TrlConfig:
    """The configuration in a JSON file.

    Raises:
        ConfigError: it can't be read, is not JSON, or has an unknown key or a value out of range.
        ModelError: the model's folder isn't there.
    """
    try:
        config = msgspec.json.decode(path.read_bytes(), type=TrlConfig)
    except OSError as error:
        raise ConfigError(f"{path} can't be read ({error.strerror}): expected the JSON of a TrlConfig") from error
    except msgspec.DecodeError as error:  # a ValidationError is one, too
        raise ConfigError(
            f"{path}: {error}; expected the JSON of a TrlConfig, see benchmarks/trl_request.py"
        ) from error
    if not (Path(config.model) / "config.json").is_file():
        raise ModelError(f"{path}: model = {config.model!r} has no config.json: expected a folder in Hugging Face form")
    return config
