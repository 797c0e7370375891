"""Evaluations on an actor: they share its engine with the leases, under one unchanging version."""

import threading
from collections import Counter, deque
from concurrent.futures import Future

import msgspec

from entrostat.actors.group import Verdicts, responses, surprise
from entrostat.actors.seams import Seams
from entrostat.protocol.errors import EntrostatError, Stalled
from entrostat.protocol.messages import (
    STATUSES,
    EvaluationRequest,
    EvaluationResult,
    PolicyVersion,
    Prompt,
    Samples,
    Verdict,
)
from entrostat.protocol.ports import Completion, SampleRequest

EVALUATION_SECONDS = 900.0  # at most for one; it keeps new weights waiting


class EvaluationTicket(msgspec.Struct, frozen=True):
    """One sample of an evaluation, in the verifiers' hands."""

    serial: int
    number: int
    index: int


class Evaluation:
    """Hands out its prompts one by one, and gathers samples and verdicts until all are judged."""

    def __init__(self, request: EvaluationRequest) -> None:
        self.request = request
        self.answer: Future[EvaluationResult] = Future()
        self._next = 0
        self._samples: dict[int, Samples] = {}
        self._verdicts = [Verdicts(request.samples) for _ in request.prompts]
        self._judged = 0

    @property
    def sampling(self) -> int:
        """Prompts handed out whose samples have not come back."""
        return self._next - len(self._samples)

    @property
    def complete(self) -> bool:
        """Every sample of every prompt has been judged."""
        return self._judged == len(self._verdicts)

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

    def result(self, version: PolicyVersion, seconds: float) -> EvaluationResult:
        """What came of it."""
        verdicts = [found.all() for found in self._verdicts]
        counts = Counter(verdict.status for found in verdicts for verdict in found)
        correct, wrong, unparsable, timeout, error = (counts[status] for status in STATUSES)
        tokens = sum(int(samples.lengths.sum()) for samples in self._samples.values())
        return EvaluationResult(
            version=version,
            levels=tuple(prompt.level for prompt in self.request.prompts),
            correct=tuple(sum(verdict.status == "correct" for verdict in found) for found in verdicts),
            samples=self.request.samples,
            mean_tokens=tokens / max(1, len(self._samples) * self.request.samples),
            surprise=surprise(list(self._samples.values())),
            statuses=(correct, wrong, unparsable, timeout, error),
            seconds=seconds,
        )


class Evaluations:
    """The evaluations asked for, one under way at a time. `ask` and `abandon` may be called by any thread.

    Args:
        seams: what the actor works with.
        width: how many prompts of an evaluation are in the engine at once.
        max_tokens: of a response.
    """

    def __init__(self, seams: Seams, width: int, max_tokens: int) -> None:
        self._seams = seams
        self._width = width
        self._max_tokens = max_tokens
        self._changed = threading.Condition()
        self._asked: deque[Evaluation] = deque()
        self._current: Evaluation | None = None
        self._stopped: EntrostatError | None = None
        self._serial = 0
        self._began_at = 0.0
        self._requests: dict[str, int] = {}  # request → number of its prompt

    @property
    def running(self) -> bool:
        """One is under way: the version must not change."""
        return self._current is not None

    @property
    def idle(self) -> bool:
        """None is under way or waits."""
        return self._current is None and not self._asked

    def ask(self, request: EvaluationRequest) -> Future[EvaluationResult]:
        """Queues an evaluation; of an actor that stopped, the answer is why."""
        evaluation = Evaluation(request)
        with self._changed:
            if self._stopped is not None:
                evaluation.answer.set_exception(self._stopped)
                return evaluation.answer
            self._asked.append(evaluation)
            self._changed.notify()
        return evaluation.answer

    def wait(self, seconds: float) -> None:
        """Sleeps, but not on when an evaluation is asked for."""
        with self._changed:
            if not self._asked:
                self._changed.wait(seconds)

    def abandon(self, error: EntrostatError) -> None:
        """The actor stops: whoever waits is told why."""
        with self._changed:
            waiting = [*self._asked, *([self._current] if self._current else [])]
            self._asked.clear()
            self._current = None
            self._stopped = error
        for evaluation in waiting:
            evaluation.answer.set_exception(error)

    def advance(self, now: float) -> None:
        """Begins the next one, keeps the engine supplied with its prompts, and ends it."""
        if self._current is None and not self._begin(now):
            return
        evaluation = self._current
        assert evaluation is not None
        while len(self._requests) < self._width and (found := evaluation.next_prompt()):
            self._submit(evaluation.request, *found)
        seconds = now - self._began_at
        if evaluation.complete:
            self._current = None
            evaluation.answer.set_result(evaluation.result(self._seams.engine.version, seconds))
        elif seconds > EVALUATION_SECONDS:
            self._seams.engine.abort(list(self._requests))
            self._requests.clear()
            self._current = None
            evaluation.answer.set_exception(
                Stalled(
                    f"an evaluation of {len(evaluation.request.prompts)} prompts was not done after "
                    f"{EVALUATION_SECONDS:.0f} s: evaluate on fewer prompts or samples"
                )
            )

    def take(self, completion: Completion) -> bool:
        """Passes samples of the evaluation on to the verifiers; False when they are not of one."""
        number = self._requests.pop(completion.id, None)
        if number is None or self._current is None:
            return False
        self._current.sampled(number, completion.samples)
        prompt = self._current.request.prompts[number]
        for index, tokens in enumerate(responses(completion.samples)):
            ticket = EvaluationTicket(self._serial, number, index)
            self._seams.verifiers.submit(ticket, prompt, self._seams.tokenizer.decode(tokens))
        return True

    def judged(self, ticket: EvaluationTicket, verdict: Verdict) -> None:
        """Keeps a verdict, unless its evaluation is over."""
        if self._current is not None and ticket.serial == self._serial:
            self._current.judged(ticket.number, ticket.index, verdict)

    def _begin(self, now: float) -> bool:
        with self._changed:
            if not self._asked:
                return False
            self._current = self._asked.popleft()
        self._serial += 1
        self._began_at = now
        return True

    def _submit(self, request: EvaluationRequest, number: int, prompt: Prompt) -> None:
        name = f"evaluation-{self._serial}-{number}"
        self._seams.engine.submit(
            SampleRequest(
                id=name,
                prompt_tokens=self._seams.tokenizer.encode(prompt.text),
                samples=request.samples,
                temperature=request.temperature,
                max_tokens=self._max_tokens,
                seed=request.seed + number,
                prompt=prompt,
            )
        )
        self._requests[name] = number
