"""Made-up messages between the controller and its stations, and a small run to send them in."""

from collections.abc import Callable

import numpy as np
from msgspec.structs import replace

from entrostat.controller.events import (
    Command,
    Discard,
    Event,
    Order,
    OrderRequested,
    Published,
    Pulsed,
    Reply,
    Rewound,
    StepReported,
)
from entrostat.controller.snapshot import ControllerState
from entrostat.controller.state import Controller
from entrostat.protocol import wire
from entrostat.protocol.entropy_settings import EntropySettings, LawSettings, ThermostatLaw, WeightSettings
from entrostat.protocol.learner_settings import LearnerSettings
from entrostat.protocol.messages import (
    GroupReport,
    Lease,
    LeaseCounts,
    LevelEntropy,
    PhaseSeconds,
    PolicyVersion,
    Probe,
    Pulse,
    SharedFile,
    Status,
    StepReport,
    TrainOrder,
    WeightsManifest,
)
from entrostat.protocol.moments import Moments
from entrostat.protocol.settings import (
    BatchSettings,
    ModelSettings,
    RolloutSettings,
    SimulatedSettings,
    Stations,
    VerifierSettings,
)

LEASE_SECONDS = 10.0
THERMOSTAT = ThermostatLaw(balance=0.1, drift=0.01)
UNCHANGED = WeightSettings()


def run_of(
    *,
    batch: int = 2,
    staleness: int = 1,
    lease_seconds: float = LEASE_SECONDS,
    law: LawSettings = THERMOSTAT,
    weight: WeightSettings = UNCHANGED,
    deterministic: bool = False,
    checkpoint_every: int = 10,
    refill: float = 0.0,
    directory: str = "/nowhere",
    port: int = 0,
) -> Stations:
    """The settings of a small simulated run, with four samples a prompt; `refill` switches the filter on."""
    return Stations(
        run="test",
        directory=directory,
        seed=5,
        total_steps=1000,
        deterministic=deterministic,
        checkpoint_every=checkpoint_every,
        stall_seconds=600.0,
        model=ModelSettings(path="none"),
        tasks=(),
        evaluation_tasks=(),
        batch=BatchSettings(prompts=batch, filter="zero_variance", refill=refill)
        if refill
        else BatchSettings(prompts=batch),
        rollout=RolloutSettings(
            engine=SimulatedSettings(), samples_per_prompt=4, max_staleness=staleness, lease_seconds=lease_seconds
        ),
        verifier=VerifierSettings(),
        entropy=EntropySettings(law=law, weight=weight),
        learner=LearnerSettings(),
        metrics_host="127.0.0.1",
        metrics_port=port,
        samples_per_step=0,
    )


def version(step: int, branch: int = 0) -> PolicyVersion:
    """A policy version."""
    return PolicyVersion(branch=branch, step=step)


def probe() -> Probe:
    """One sequence of two tokens, of which nobody looks at the log-probs."""
    nothing = np.zeros(1, np.float32)
    return Probe(
        tokens=np.zeros(2, np.int32),
        lengths=np.full(1, 2, np.int32),
        logprobs=nothing,
        previous=nothing,
        tolerance=1.0,
    )


def manifest(step: int, branch: int = 0) -> WeightsManifest:
    """Published weights without tensors, for an engine that reads none."""
    location = SharedFile(host="here", path="/nowhere")
    return WeightsManifest(
        version=version(step, branch), tensors=(), bytes=0, checksum=0, location=location, probe=probe()
    )


def group_of(
    lease: Lease, *, slot: int = 0, incarnation: int = 1, started: int | None = None, correct: int = 2
) -> GroupReport:
    """The report of a lease's group: its first `correct` samples right, started at the lease's version by default."""
    statuses: list[Status] = ["correct"] * correct
    statuses += ["wrong"] * (lease.samples - correct)
    return GroupReport(
        lease_id=lease.id,
        prompt_id=lease.prompt_id,
        slot=slot,
        incarnation=incarnation,
        started=lease.version if started is None else version(started, lease.version.branch),
        rewards=tuple(float(status == "correct") for status in statuses),
        statuses=tuple(statuses),
        lengths=(3,) * lease.samples,
        surprise=Moments(count=3 * lease.samples, mean=0.2),
        truncated=1,
    )


def step_of(
    order: TrainOrder,
    *,
    entropy: float = 0.3,
    clamped: float = 0.2,
    sampled: float = 0.3,
    levels: tuple[LevelEntropy, ...] | None = None,
) -> StepReport:
    """The report of the step that trained an order; entropies in nats."""
    plain = plain_report(entropy=entropy, clamped=clamped, sampled=sampled)
    return replace(
        plain,
        measured=order.version,
        version=version(order.version.step + 1, order.version.branch),
        levels=plain.levels if levels is None else levels,
    )


def plain_report(*, entropy: float = 0.3, clamped: float = 0.2, sampled: float = 0.3) -> StepReport:
    """The report of a run's first step, of 24 tokens of one level."""
    level = LevelEntropy(level="a", tokens=24, entropy=entropy, clamped_entropy=clamped, sampled_entropy=sampled)
    return StepReport(
        measured=version(0),
        version=version(1),
        entropy=entropy,
        clamped_entropy=clamped,
        sampled_entropy=sampled,
        clamped_mass=0.0,
        levels=(level,),
        ages=(clamped,),
        response_tokens=24,
        policy_tokens=24,
        loss=0.0,
        policy_loss=0.0,
        entropy_bonus=0.0,
        kl_nats=0.0,
        gradient_norm=1.0,
        learning_rate=1e-4,
        clip_share=0.0,
        truncated_weight_share=0.0,
        masked_share=0.0,
        optimizer_steps=1,
        balance=None,
        drift_mean=0.0,
        drift_max=0.0,
        drift_kl=0.0,
        fresh=None,
        padding_share=0.0,
        phases=PhaseSeconds(wait=0.0, fetch=0.0, forward_backward=0.0, optimizer=0.0, publish=0.0),
    )


class Scene:
    """A controller, its clock, and one actor that can do everything right."""

    def __init__(self, controller: Controller, *, branch: int = 0, step: int = 0) -> None:
        self.controller = controller
        self.branch = branch
        self.serves = step
        self.at = 0.0
        self.discarded: list[int] = []

    def apply(self, event: Event) -> tuple[Command, ...]:
        """What the controller commands; what it discards is kept."""
        commands = self.controller.apply(event)
        self.discarded += [i for command in commands if isinstance(command, Discard) for i in command.lease_ids]
        return commands

    def pulse(
        self,
        *,
        room: int = 0,
        running: tuple[int, ...] = (),
        reports: tuple[GroupReport, ...] = (),
        slot: int = 0,
        incarnation: int = 1,
        serves: int | None = None,
    ) -> Reply:
        """One pulse of an actor, and its reply."""
        pulse = Pulse(
            slot=slot,
            incarnation=incarnation,
            version=version(self.serves if serves is None else serves, self.branch),
            room=room,
            running=running,
            reports=reports,
        )
        (reply,) = [c for c in self.apply(Pulsed(pulse=pulse, at=self.at)) if isinstance(c, Reply)]
        return reply

    def order(self) -> TrainOrder | None:
        """The order under way, if the controller gives one."""
        orders = [c.order for c in self.apply(OrderRequested(at=self.at)) if isinstance(c, Order)]
        return orders[0] if orders else None

    def step(
        self,
        *,
        entropy: float = 0.3,
        clamped: float = 0.2,
        sampled: float = 0.3,
        levels: tuple[LevelEntropy, ...] | None = None,
        correct: Callable[[int], int] = lambda prompt: 1 + prompt % 3,
    ) -> TrainOrder:
        """One round as it should go: sample what there is room for, order, train, publish, load."""
        leases = self.pulse(room=99).leases
        self.pulse(reports=tuple(group_of(x, started=self.serves, correct=correct(x.prompt_id)) for x in leases))
        order = self.order()
        assert order is not None
        report = step_of(order, entropy=entropy, clamped=clamped, sampled=sampled, levels=levels)
        self.apply(StepReported(report=report, at=self.at))
        self.serves = order.version.step + 1
        self.apply(published(self.serves, self.branch))
        return order


def scene(
    prompts: int = 10, batch: int = 2, staleness: int = 1, *, law: LawSettings = THERMOSTAT, refill: float = 0.0
) -> Scene:
    """A scene at the start of a run; every second prompt is of the level "hard"."""
    run = run_of(batch=batch, staleness=staleness, law=law, refill=refill)
    return Scene(Controller(run, ["easy", "hard"] * (prompts // 2)))


def published(step: int, branch: int = 0) -> Published:
    """The event of a version's publication."""
    return Published(version=version(step, branch), checksum=step)


def resumed(settings: Stations, levels: list[str], state: ControllerState | None, branch: int, step: int) -> Controller:
    """A controller that goes on from a checkpoint's state on a branch of its own."""
    controller = Controller(settings, levels)
    controller.apply(Rewound(branch=branch, step=step, state=state, at=0.0))
    return controller


def owed(controller: Controller, settings: Stations, levels: list[str]) -> set[int]:
    """The prompts that a later branch would lease before it goes on in its epoch."""
    at = controller.version
    later = resumed(settings, levels, controller.state(), at.branch + 1, at.step)
    return set(later.state().position.returned.tolist())


def frame(controller: Controller) -> bytes:
    """Everything a controller would save."""
    return wire.encode(controller.state()).tobytes()


def sums_up(counts: LeaseCounts) -> bool:
    """Whether every lease granted is under way or ended in exactly one way."""
    ends = (
        counts.trained
        + counts.filtered
        + counts.expired
        + counts.returned
        + counts.stale
        + counts.lost
        + counts.rewound
    )
    return counts.granted == counts.running + counts.ready + counts.ordered + ends


def sample(s: Scene, corrects: list[int]) -> list[Lease]:
    """Takes a lease for each group and finishes it with so many right of four."""
    leases = []
    for correct in corrects:
        (lease,) = s.pulse(room=1).leases
        s.pulse(reports=(group_of(lease, correct=correct),))
        leases.append(lease)
    return leases
