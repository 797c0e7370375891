"""`samples/step-N.jsonl`: what the policy wrote in a step, for people to read."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from entrostat.protocol.arrays import Int32
from entrostat.protocol.errors import ResourceError
from entrostat.protocol.messages import FINISHED_LENGTH, Group, OrderedGroup, Prompt, Status

if TYPE_CHECKING:
    from entrostat.learner.measures import PerSample


class SampleRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One line: one response."""

    name: str  # of the prompt
    level: str
    prompt: str
    response: str  # special tokens left out
    reward: float
    status: Status
    detail: str
    entropy_nats: float  # mean H over the response's tokens, before the step
    drift_nats: float  # mean |log π − log μ| over them
    coefficient: float  # λ_q
    prompt_tokens: int
    tokens: int  # of the response
    truncated: bool
    version: str  # branch.step of the policy that began it


def chosen_samples(sizes: Sequence[int], count: int) -> list[tuple[int, int]]:
    """`count` pairs (group, sample), spread over the groups: every group's first sample comes before any second one.

    With fewer samples than groups the groups are evenly spaced. `sizes` is each group's number of samples.
    """
    rounds = [[(group, sample) for group, size in enumerate(sizes) if sample < size] for sample in range(max(sizes))]
    chosen: list[tuple[int, int]] = []
    for pairs in rounds:
        wanted = min(count - len(chosen), len(pairs))
        chosen += [pairs[i * len(pairs) // wanted] for i in range(wanted)]
    return sorted(chosen)


def sample_records(
    ordered: Sequence[OrderedGroup],
    groups: Sequence[Group],
    measured: "PerSample",
    prompts: Mapping[int, Prompt],
    decode: Callable[[Int32], str],
    count: int,
) -> list[SampleRecord]:
    """Records of `count` of the order's samples."""
    sizes = [len(group.rollout.samples.lengths) for group in groups]
    first = np.concatenate([[0], np.cumsum(sizes)])
    records = []
    for g, i in chosen_samples(sizes, count):
        rollout, verdict, prompt = groups[g].rollout, groups[g].verdicts[i], prompts[ordered[g].prompt_id]
        start = int(rollout.samples.lengths[:i].sum())
        length = int(rollout.samples.lengths[i])
        records.append(
            SampleRecord(
                name=prompt.name,
                level=prompt.level,
                prompt=prompt.text,
                response=decode(rollout.samples.tokens[start : start + length]),
                reward=verdict.reward,
                status=verdict.status,
                detail=verdict.detail,
                entropy_nats=float(measured.entropy[first[g] + i]) if length else 0.0,
                drift_nats=float(measured.drift[first[g] + i]) if length else 0.0,
                coefficient=ordered[g].coefficient,
                prompt_tokens=len(rollout.prompt_tokens),
                tokens=length,
                truncated=bool(rollout.samples.finish[i] == FINISHED_LENGTH),
                version=str(rollout.started),
            )
        )
    return records


def write_samples(path: Path, records: Sequence[SampleRecord]) -> None:
    """Writes the file whole or not at all.

    Raises:
        ResourceError: the disk is full, or can't be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(msgspec.json.Encoder().encode_lines(records))
        partial.replace(path)
    except OSError as error:
        raise ResourceError(
            f"the samples of a step can't be written to {path} ({error.strerror}): free some of the disk, or go on "
            "with report.samples_per_step = 0"
        ) from error
