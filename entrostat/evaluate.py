"""`entrostat eval`: scores a model on fixed prompts in this process: vLLM and the verifiers, no Ray and no learner."""

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
from rich.console import Console

from entrostat.actors.evaluation import Progress
from entrostat.actors.evaluations import Evaluations, EvaluationTicket, Told
from entrostat.actors.seams import Verifiers
from entrostat.actors.tokenizer import HuggingFaceTokenizer
from entrostat.actors.verifiers.pool import VerifierPool
from entrostat.config import RunConfig
from entrostat.evaluated import evaluated, show, warnings
from entrostat.evaluation_job import Asked, prepare
from entrostat.progress import Watch
from entrostat.protocol.errors import ConfigError, Stalled
from entrostat.protocol.messages import EvaluationRequest, EvaluationResult, PolicyVersion, Prompt, Verdict
from entrostat.protocol.ports import Engine, Tokenizer
from entrostat.protocol.settings import SimulatedSettings
from entrostat.rows import evaluation_row
from entrostat.scores import tries

# Samples asked for at once, as a multiple of those decoded at once: whoever ends leaves its place to one that waits.
AHEAD = 2
IDLE_SECONDS = 0.005


def run(asked: Asked, *, as_json: bool, out: Path | None) -> int:
    """Scores a model, and prints a table or one JSON object (an `Evaluated`).

    Returns:
        The exit code: 1 where every single verdict is a failure of the verifier.

    Raises:
        BadInput: the model, the tasks or the settings won't do.
    """
    with contextlib.ExitStack() as closing:
        job = prepare(asked)
        records = closing.enter_context(_records(out))
        watch = Watch()
        closing.callback(watch.close)
        for note in job.notes:
            watch.say(f"note: {note}")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # its warnings are about defaults that we chose
        with _stdout_kept():
            watch.say(f"loading {job.model} into vLLM; {len(job.prompts)} prompts, {job.samples} samples of each")
            result = measure(job.config, job.prompts, job.samples, version=job.version, watch=watch, told=records)
    settings = job.config.evaluation
    row = evaluation_row(result, job.trained_levels, tries(job.samples, settings.k))
    found = evaluated(job, row, int(result.lengths.sum()))
    if as_json:
        print(msgspec.json.encode(found).decode())
    else:
        show(Console(), found)
    told = warnings(found, job.config.verifier.alarm_share)
    for text in told.lines:
        print(f"entrostat: warning: {text}", file=sys.stderr)
    return 1 if told.worthless else 0


def measure(
    config: RunConfig,
    prompts: Sequence[Prompt],
    samples: int,
    *,
    version: PolicyVersion = PolicyVersion(branch=0, step=0),  # noqa: B008 - immutable
    watch: Watch | None = None,
    told: Told | None = None,
) -> EvaluationResult:
    """Has vLLM load the model's folder by itself, and samples every prompt.

    Raises:
        ModelError: vLLM can't build an engine for the model.
        ConfigError: the engine is a simulated one.
        Stalled: neither a token nor a verdict came for `run.stall_seconds`.
    """
    if isinstance(config.rollout.engine, SimulatedSettings):
        raise ConfigError("the simulated engine makes its answers up: evaluate with --set rollout.engine.kind=vllm")
    from entrostat.actors.engine import VllmEngine  # vLLM takes seconds to import

    request = EvaluationRequest(
        prompts=tuple(prompts),
        samples=samples,
        temperature=config.evaluation.temperature,
        seed=config.run.seed,
        reproducible=config.evaluation.reproducible,
    )
    with contextlib.ExitStack() as closing:
        tokenizer = HuggingFaceTokenizer(config.model.path, trust_remote_code=config.model.trust_remote_code)
        verifiers = VerifierPool(config.verifier, (*config.tasks, *config.evaluation.tasks))
        closing.callback(verifiers.close)
        engine = VllmEngine(config.model, config.rollout.engine, config.run.seed)
        closing.callback(engine.close)
        engine.serve_own(version)
        if watch is not None:
            watch.begin()
        return sample(
            engine,
            verifiers,
            tokenizer,
            request,
            sequences=AHEAD * config.rollout.engine.max_sequences,
            max_tokens=config.rollout.max_response_tokens,
            stall_seconds=config.run.stall_seconds,
            watch=None if watch is None else watch.told,
            told=told,
        )


def sample(
    engine: Engine,
    verifiers: Verifiers,
    tokenizer: Tokenizer,
    request: EvaluationRequest,
    *,
    sequences: int,
    max_tokens: int,
    stall_seconds: float,
    watch: Callable[[Progress], None] | None = None,
    told: Told | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> EvaluationResult:
    """Samples and judges one evaluation with at least `sequences` samples in the engine while there are any left.

    Raises:
        Stalled: neither a token nor a verdict came for `stall_seconds`.
    """
    evaluations = Evaluations(engine, verifiers, tokenizer, sequences, max_tokens, seconds=math.inf, told=told)
    answer = evaluations.ask(request)
    moved = clock()
    while True:
        evaluations.advance(clock())
        if answer.done():
            return answer.result()
        drawing = bool(engine.unfinished)
        for completion in engine.step() if drawing else ():
            evaluations.take(completion)
        verdicts = verifiers.collect()
        for ticket, verdict in verdicts:
            assert isinstance(ticket, EvaluationTicket)
            evaluations.judged(ticket, verdict)
        progress = evaluations.progress
        if watch is not None and progress is not None:
            watch(progress)
        if drawing or verdicts:
            moved = clock()
        elif clock() - moved > stall_seconds:
            raise Stalled(
                f"no verdict came for {stall_seconds:.0f} s (run.stall_seconds); the engine had nothing to do"
            )
        else:
            time.sleep(IDLE_SECONDS)


@contextlib.contextmanager
def _records(out: Path | None) -> Iterator[Told | None]:
    """Writes a line of JSON for each sample as it is judged.

    Raises:
        OSError: the file can't be written.
    """
    if out is None:
        yield None
        return
    with out.open("wb") as file:

        def told(prompt: Prompt, sampled: EvaluationTicket, verdict: Verdict) -> None:
            record = {
                "prompt": prompt.name,
                "level": prompt.level,
                "sample": sampled.index,
                "text": prompt.text,
                "expected": prompt.answer,
                "response": sampled.text,
                "tokens": sampled.tokens,
                "truncated": sampled.truncated,
                "reward": verdict.reward,
                "status": verdict.status,
                "answer": verdict.answer,
                "detail": verdict.detail,
            }
            file.write(msgspec.json.encode(record) + b"\n")

        yield told


@contextlib.contextmanager
def _stdout_kept() -> Iterator[None]:
    """Whatever libraries print meanwhile, in whatever process, goes to stderr: stdout is for the result."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
