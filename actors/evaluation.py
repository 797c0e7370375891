"""One evaluation under way on an actor: which requests are next, and what came of them."""

from collections import Counter
from concurrent.futures import Future
from typing import get_args

from entrostat.actors.group import Verdicts, surprise
from entrostat.protocol.messages import (
    EvaluationRequest,
    EvaluationResult,
    PolicyVersion,
    Prompt,
    Samples,
    Status,
    Verdict,
)


class Evaluation:
    """Hands out its prompts one by one, and gathers samples and verdicts until all are judged."""

    def __init__(self, request: EvaluationRequest) -> None:
        self.request = request
        self.answer: Future[EvaluationResult] = Future()
        self.version: PolicyVersion | None = None  # what it is pinned to, once begun
        self.began_at = 0.0
        self._next = 0
        self._samples: dict[int, Samples] = {}
        self._verdicts = [Verdicts(request.samples) for _ in request.prompts]
        self._judged = 0

    @property
    def sampling(self) -> int:
        """Prompts handed out whose samples have not come back."""
        return self._next - len(self._samples)

    def next_prompt(self) -> tuple[int, Prompt] | None:
        """The next prompt and its number; None when all were handed out."""
        if self._next == len(self.request.prompts):
            return None
        self._next += 1
        return self._next - 1, self.request.prompts[self._next - 1]

    def sampled(self, number: int, samples: Samples) -> None:
        """Keeps the samples of prompt `number`."""
        self._samples[number] = samples

    def judged(self, number: int, index: int, verdict: Verdict) -> None:
        """Keeps the verdict on one sample."""
        verdicts = self._verdicts[number]
        before = verdicts.complete
        verdicts.enter(index, verdict)
        self._judged += verdicts.complete and not before

    @property
    def complete(self) -> bool:
        """Every sample of every prompt has been judged."""
        return self._judged == len(self._verdicts)

    def result(self, version: PolicyVersion, seconds: float) -> EvaluationResult:
        """What came of it."""
        verdicts = [found.all() for found in self._verdicts]
        counts = Counter(verdict.status for found in verdicts for verdict in found)
        correct, wrong, unparsable, timeout, error = (counts[status] for status in get_args(Status))
        lengths = [int(samples.lengths.sum()) for samples in self._samples.values()]
        return EvaluationResult(
            version=version,
            levels=tuple(prompt.level for prompt in self.request.prompts),
            correct=tuple(sum(verdict.status == "correct" for verdict in found) for found in verdicts),
            samples=self.request.samples,
            mean_tokens=sum(lengths) / max(1, len(lengths) * self.request.samples),
            surprise=surprise(list(self._samples.values())),
            statuses=(correct, wrong, unparsable, timeout, error),
            seconds=seconds,
        )
