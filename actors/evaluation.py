"""One evaluation: its prompts are handed out, and what comes of their samples is gathered, small enough to be sent."""

from collections.abc import Sequence
from concurrent.futures import Future

import msgspec
import numpy as np
import xxhash

from entrostat.actors.group import Verdicts, surprise
from entrostat.protocol.arrays import Int32, UInt8
from entrostat.protocol.messages import (
    NO_ANSWERS,
    NO_VOTE,
    STATUSES,
    EvaluationRequest,
    EvaluationResult,
    PolicyVersion,
    Prompt,
    Samples,
    Verdict,
)
from entrostat.protocol.moments import Moments


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far an evaluation has come."""

    prompts: int
    sampled: int  # prompts
    judged: int  # samples
    correct: int  # samples
    failed: int  # samples whose verifier failed: timeout and error
    tokens: int


class _Drawn(msgspec.Struct, frozen=True):
    """A prompt's samples without their tokens: thousands of prompts are gathered."""

    lengths: Int32  # [samples]
    finish: UInt8  # [samples]
    surprise: Moments


class Evaluation:
    """Hands out its prompts one by one, and gathers samples and verdicts until all are judged."""

    def __init__(self, request: EvaluationRequest) -> None:
        self.request = request
        self.answer: Future[EvaluationResult] = Future()
        self._next = 0
        self._drawn: dict[int, _Drawn] = {}
        self._verdicts = [Verdicts(request.samples) for _ in request.prompts]
        self._complete = self._judged = self._correct = self._failed = self._tokens = 0

    @property
    def complete(self) -> bool:
        """Every sample of every prompt has been judged."""
        return self._complete == len(self._verdicts)

    @property
    def progress(self) -> Progress:
        """How far it has come."""
        return Progress(
            prompts=len(self._verdicts),
            sampled=len(self._drawn),
            judged=self._judged,
            correct=self._correct,
            failed=self._failed,
            tokens=self._tokens,
        )

    def next_prompt(self) -> tuple[int, Prompt] | None:
        """The next prompt and its number; None when all were handed out."""
        if self._next == len(self.request.prompts):
            return None
        self._next += 1
        return self._next - 1, self.request.prompts[self._next - 1]

    def sampled(self, number: int, samples: Samples) -> None:
        """Keeps what counts of the samples of prompt `number`."""
        self._tokens += int(samples.lengths.sum())
        self._drawn[number] = _Drawn(samples.lengths, samples.finish, surprise([samples]))

    def judged(self, number: int, index: int, verdict: Verdict) -> None:
        """Keeps the verdict on one sample."""
        verdicts = self._verdicts[number]
        before = verdicts.complete
        verdicts.enter(index, verdict)
        self._complete += verdicts.complete and not before
        self._judged += 1
        self._correct += verdict.status == "correct"
        self._failed += verdict.status in ("timeout", "error")

    def result(self, version: PolicyVersion, seconds: float) -> EvaluationResult:
        """What came of it."""
        prompts, samples = self.request.prompts, self.request.samples
        verdicts = [found.all() for found in self._verdicts]
        drawn = [self._drawn[number] for number in range(len(prompts))]
        silent = _silent(prompts, verdicts)
        votes = [
            [NO_ANSWERS] * samples if prompt.task in silent else votes_of(found)
            for prompt, found in zip(prompts, verdicts, strict=True)
        ]
        shape = (len(prompts), samples)
        statuses = [[STATUSES.index(verdict.status) for verdict in found] for found in verdicts]
        return EvaluationResult(
            version=version,
            prompts=_digest(prompts),
            levels=tuple(prompt.level for prompt in prompts),
            samples=samples,
            statuses=np.array(statuses, np.uint8).reshape(shape),
            rewards=np.array([[verdict.reward for verdict in found] for found in verdicts], np.float32).reshape(shape),
            votes=np.array(votes, np.int32).reshape(shape),
            lengths=np.array([one.lengths for one in drawn], np.int32).reshape(shape),
            finish=np.array([one.finish for one in drawn], np.uint8).reshape(shape),
            surprise=tuple(one.surprise for one in drawn),
            seconds=seconds,
        )


def _silent(prompts: Sequence[Prompt], verdicts: Sequence[Sequence[Verdict]]) -> set[int]:
    """The tasks whose verifiers judge answers without naming them; where nothing could be read none was to be named."""
    read = [
        (prompt.task, verdict.answer)
        for prompt, found in zip(prompts, verdicts, strict=True)
        for verdict in found
        if verdict.status in ("correct", "wrong")
    ]
    return {task for task, _ in read} - {task for task, answer in read if answer}


def _digest(prompts: Sequence[Prompt]) -> str:
    """Of all that is asked and what counts as right; names alone stay when a table's rows change."""
    asked = [(one.name, one.text, one.answer, one.entry) for one in prompts]
    return xxhash.xxh3_64_hexdigest(msgspec.msgpack.encode(asked))


def votes_of(verdicts: Sequence[Verdict]) -> list[int]:
    """What each sample of a prompt votes for: correct ones for 0, wrong ones for their answer, others for nothing."""
    numbers: dict[str, int] = {}
    return [
        0
        if verdict.status == "correct"
        else numbers.setdefault(verdict.answer, len(numbers) + 1)
        if verdict.answer
        else NO_VOTE
        for verdict in verdicts
    ]
