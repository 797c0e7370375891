"""A whole run in one process and in turn: the product's actor, controller and learner, without Ray, threads or a clock.

The same stations as in `entrostat train`, joined by direct calls, so that a run depends on its configuration and seed
alone and many of them fit on a small machine.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.countdown.score import QuickJudge
from benchmarks.torch_engine import TorchEngine
from entrostat import config as configs
from entrostat.actors.rollout import RolloutWorker
from entrostat.actors.seams import Seams
from entrostat.actors.tasks.load import load_prompts
from entrostat.actors.tokenizer import HuggingFaceTokenizer
from entrostat.config import RunConfig
from entrostat.controller.coefficient import Reading
from entrostat.controller.events import Discard, Order, OrderRequested, Published, Pulsed, Reply, StepReported
from entrostat.controller.state import Controller
from entrostat.learner.trainer import Trainer
from entrostat.protocol.errors import ConfigError
from entrostat.protocol.messages import (
    EvaluationRequest,
    EvaluationResult,
    Group,
    PolicyVersion,
    Prompt,
    PromptSet,
    Pulse,
    PulseReply,
    StepReport,
    TrainOrder,
    Verdict,
    WeightsManifest,
)
from entrostat.protocol.metrics import Metric

IDLE_TURNS = 10_000  # rounds without an order after which the loop is stuck
TICK_SECONDS = 0.02
REMEMBERED_VERDICTS = 1 << 18


class Stuck(Exception):
    """No order came although the actor had every chance."""


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One optimizer step, as a benchmark remembers it."""

    entropy: float  # what the law was to hold: the bonus estimator's, nats
    coefficient: float
    target: float | None  # H* it was held against, nats
    reward: float  # mean over the samples of the order


class Stations:
    """Controller, buffer and verifiers as one actor sees them: every call is answered at once."""

    def __init__(self, config: RunConfig, levels: list[str], directory: Path) -> None:
        self.controller = Controller(configs.stations(config, directory), levels)
        self.groups: dict[int, Group] = {}
        self._judge = QuickJudge((*config.tasks, *config.evaluation.tasks))
        self._remembered = lru_cache(REMEMBERED_VERDICTS)(self._judged)
        self._prompts: dict[int, Prompt] = {}
        self._verdicts: list[tuple[object, Verdict]] = []
        self._stored: list[int] = []
        self._reply: PulseReply | None = None
        self.manifest: WeightsManifest | None = None  # the newest
        self._turns = 0

    # As a controller.

    def send(self, message: Pulse | Group) -> None:
        """Takes a pulse, or a group."""
        if isinstance(message, Group):
            self.groups[message.rollout.lease.id] = message
            self._stored.append(message.rollout.lease.id)
            return
        for command in self.apply(Pulsed(pulse=message, at=self.clock())):
            if isinstance(command, Reply):
                manifest = self.manifest if command.offer is not None else None
                self._reply = PulseReply(
                    leases=command.leases, ended=command.ended, manifest=manifest, fenced=command.fenced
                )

    def receive(self) -> PulseReply | None:
        """The answer to the last pulse."""
        reply, self._reply = self._reply, None
        return reply

    # As a buffer.

    def stored(self) -> list[int]:
        """Groups that came since the last call."""
        stored, self._stored = self._stored, []
        return stored

    # As verifiers.

    def submit(self, ticket: object, prompt: Prompt, text: str) -> None:
        """Judges a response; the same response to the same prompt is judged once."""
        self._prompts[prompt.id] = prompt
        self._verdicts.append((ticket, self._remembered(prompt.id, text)))

    def collect(self) -> list[tuple[object, Verdict]]:
        """Verdicts since the last call."""
        verdicts, self._verdicts = self._verdicts, []
        return verdicts

    def _judged(self, prompt: int, text: str) -> Verdict:
        return self._judge.verify(self._prompts[prompt], text)

    # As a meter, and as a clock that counts.

    def add(self, metric: Metric, amount: float = 1.0, **labels: str) -> None:
        """Nobody looks."""

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """Nobody looks."""

    observe = set

    def clock(self) -> float:
        """A clock that is read: each time soon enough for any deadline, and late enough for the next pulse."""
        self._turns += 1
        return self._turns * TICK_SECONDS

    def apply(self, event: Any) -> tuple[Any, ...]:
        """Passes an event to the controller and forgets the groups it discards."""
        commands = self.controller.apply(event)
        for command in commands:
            if isinstance(command, Discard):
                for lease in command.lease_ids:
                    self.groups.pop(lease, None)
        return commands


class Loop:
    """One run; `train` makes its steps, `evaluate` scores the newest policy.

    Args:
        config: of a synchronous run; samples are drawn by `TorchEngine`, whatever engine it names.
        directory: where the learner may write; only its name is used.
        lag: orders between a measurement and the law's hearing of it; 1 is what a synchronous run has.
    """

    def __init__(self, config: RunConfig, directory: Path, lag: int = 1) -> None:
        if config.rollout.max_staleness:
            raise ConfigError(
                f"rollout.max_staleness = {config.rollout.max_staleness}; the loop is synchronous and needs 0"
            )
        tokenizer = HuggingFaceTokenizer(Path(config.model.path), trust_remote_code=False)
        training = load_prompts(config.tasks).prompts
        unseen = load_prompts(config.evaluation.tasks, len(config.tasks), unlike=config.tasks).prompts
        self.unseen = tuple(msgspec.structs.replace(prompt, id=len(training) + prompt.id) for prompt in unseen)
        prompts = PromptSet(prompts=(*training, *self.unseen))
        self._config = config
        self._stations = Stations(config, [prompt.level for prompt in training], directory)
        start = PolicyVersion(branch=0, step=0)
        self._trainer = Trainer(configs.stations(config, directory), prompts, start)
        first = self._trainer.publish_first()
        policy = self._trainer.policy
        engine = TorchEngine(policy.model, policy.tokenizer.eos_token_id, config.run.seed)
        seams = Seams(
            engine=engine,
            controller=self._stations,
            buffer=self._stations,
            verifiers=self._stations,
            tokenizer=tokenizer,
            meter=self._stations,
            clock=self._stations.clock,
        )
        self._worker = RolloutWorker(config.rollout, prompts.prompts, 0, 1, seams, first)
        self._publish(first)
        self._late: deque[StepReport] = deque(maxlen=lag)

    def train(self, steps: int) -> Iterable[Step]:
        """The next `steps` optimizer steps."""
        for _ in range(steps):
            order = self._next_order()
            groups = [self._stations.groups.pop(group.lease_id) for group in order.groups]
            outcome = self._trainer.train(order, groups, wait=0.0, fetch=0.0)
            reward = sum(verdict.reward for group in groups for verdict in group.verdicts)
            self._stations.apply(StepReported(report=self._heard(outcome.report), at=self._stations.clock()))
            self._publish(outcome.manifest)
            yield Step(
                entropy=outcome.report.clamped_entropy,
                coefficient=order.coefficient,
                target=self.reading.target,
                reward=reward / sum(len(group.verdicts) for group in groups),
            )

    def evaluate(self, samples: int, seed: int) -> EvaluationResult:
        """Scores the newest policy on the unseen prompts."""
        settings = self._config.evaluation
        request = EvaluationRequest(prompts=self.unseen, samples=samples, temperature=settings.temperature, seed=seed)
        while self._worker.view(engine_seconds=0.0, metrics_port=0).version != self._stations.controller.version:
            self._worker.turn()
        answer = self._worker.evaluate(request)
        self._turn_until(answer.done)
        return answer.result()

    @property
    def reading(self) -> Reading:
        """What the law says now."""
        return self._stations.controller.reading

    def close(self) -> None:
        """Frees the shared memory."""
        self._trainer.close()

    def _next_order(self) -> TrainOrder:
        found: list[TrainOrder] = []

        def asked() -> bool:
            commands = self._stations.apply(OrderRequested(at=self._stations.clock()))
            found.extend(command.order for command in commands if isinstance(command, Order))
            return bool(found)

        self._turn_until(asked)
        return found[0]

    def _turn_until(self, done: Callable[[], bool]) -> None:
        for _ in range(IDLE_TURNS * (1 + len(self.unseen))):
            if done():
                return
            self._worker.turn()
        raise Stuck("the actor worked on and on, and no batch came of it")

    def _publish(self, manifest: WeightsManifest) -> None:
        self._stations.manifest = manifest
        self._stations.apply(Published(version=manifest.version, checksum=manifest.checksum))

    def _heard(self, report: StepReport) -> StepReport:
        """The report with the entropies of `lag − 1` orders before; the law hears of nothing until there are any."""
        self._late.append(report)
        if len(self._late) < (self._late.maxlen or 1):
            nothing = math.nan
            return msgspec.structs.replace(
                report, entropy=nothing, clamped_entropy=nothing, sampled_entropy=nothing, levels=()
            )
        old = self._late[0]
        return msgspec.structs.replace(
            report,
            entropy=old.entropy,
            clamped_entropy=old.clamped_entropy,
            sampled_entropy=old.sampled_entropy,
            levels=old.levels,
        )
