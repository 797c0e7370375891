"""Evaluations on an actor: they share its engine with the leases, under one unchanging version."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

import msgspec

from entrostat.actors.evaluation import Evaluation, Progress
from entrostat.actors.group import responses
from entrostat.actors.seams import Verifiers
from entrostat.protocol.errors import EntrostatError, Stalled
from entrostat.protocol.messages import (
    FINISHED_LENGTH,
    EvaluationRequest,
    EvaluationResult,
    Prompt,
    Verdict,
)
from entrostat.protocol.ports import Completion, Engine, SampleRequest, Tokenizer

EVALUATION_SECONDS = 900.0  # at most for one that a run makes; it keeps new weights waiting


class EvaluationTicket(msgspec.Struct, frozen=True):
    """One sample of an evaluation, in the verifiers' hands."""

    serial: int
    number: int
    index: int
    text: str
    tokens: int
    truncated: bool


# Is told of each sample once it is judged.
Told = Callable[[Prompt, EvaluationTicket, Verdict], None]


class Evaluations:
    """The evaluations asked for, one under way at a time. `ask` and `abandon` may be called by any thread.

    Args:
        engine, verifiers, tokenizer: what samples are made with.
        sequences: how many samples of an evaluation are in the engine at once, at the least while there are any left.
        max_tokens: of a response.
        seconds: what one may take.
        told: of each sample, once it is judged.
    """

    def __init__(
        self,
        engine: Engine,
        verifiers: Verifiers,
        tokenizer: Tokenizer,
        sequences: int,
        max_tokens: int,
        *,
        seconds: float = EVALUATION_SECONDS,
        told: Told | None = None,
    ) -> None:
        self._engine, self._verifiers, self._tokenizer = engine, verifiers, tokenizer
        self._sequences = sequences
        self._max_tokens = max_tokens
        self._seconds = seconds
        self._told = told
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
    def progress(self) -> Progress | None:
        """How far the one under way has come."""
        return None if self._current is None else self._current.progress

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
        width = -(-self._sequences // evaluation.request.samples)
        while len(self._requests) < width and (found := evaluation.next_prompt()):
            self._submit(evaluation.request, *found)
        seconds = now - self._began_at
        if evaluation.complete:
            self._current = None
            evaluation.answer.set_result(evaluation.result(self._engine.version, seconds))
        elif seconds > self._seconds:
            self._engine.abort(list(self._requests))
            self._requests.clear()
            self._current = None
            evaluation.answer.set_exception(
                Stalled(
                    f"an evaluation of {len(evaluation.request.prompts)} prompts was not done after "
                    f"{self._seconds:.0f} s: evaluate on fewer prompts or samples"
                )
            )

    def take(self, completion: Completion) -> bool:
        """Passes samples of the evaluation on to the verifiers; False when they are not of one."""
        number = self._requests.pop(completion.id, None)
        if number is None or self._current is None:
            return False
        samples = completion.samples
        self._current.sampled(number, samples)
        prompt = self._current.request.prompts[number]
        for index, tokens in enumerate(responses(samples)):
            text = self._tokenizer.decode(tokens)
            truncated = bool(samples.finish[index] == FINISHED_LENGTH)
            ticket = EvaluationTicket(self._serial, number, index, text, len(tokens), truncated)
            self._verifiers.submit(ticket, prompt, text)
        return True

    def judged(self, ticket: EvaluationTicket, verdict: Verdict) -> None:
        """Keeps a verdict, unless its evaluation is over."""
        if self._current is None or ticket.serial != self._serial:
            return
        self._current.judged(ticket.number, ticket.index, verdict)
        if self._told is not None:
            self._told(self._current.request.prompts[ticket.number], ticket, verdict)

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
        self._engine.submit(
            SampleRequest(
                id=name,
                prompt_tokens=self._tokenizer.encode(prompt.text),
                samples=request.samples,
                temperature=request.temperature,
                max_tokens=self._max_tokens,
                seed=request.seed + number,
                reproducible=request.reproducible,
                prompt=prompt,
            )
        )
        self._requests[name] = number
