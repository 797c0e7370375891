"""The controller as a whole: driven by events, checked after each of them."""

import random
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from entrostat.controller.events import (
    Command,
    Discard,
    Event,
    Missing,
    Order,
    OrderRequested,
    Published,
    Pulsed,
    Reply,
    StepReported,
    Ticked,
)
from entrostat.controller.state import Controller, ControllerSnapshot
from entrostat.controller.summary import summarise
from entrostat.protocol import wire
from entrostat.protocol.errors import CheckpointDamaged, TaskError
from entrostat.protocol.messages import (
    GroupReport,
    GroupsMissing,
    Lease,
    LeaseCounts,
    PhaseSeconds,
    PolicyVersion,
    Probe,
    Pulse,
    PulseReply,
    SharedFile,
    Status,
    StepReport,
    TrainOrder,
    WeightsManifest,
)
from entrostat.protocol.moments import Moments
from entrostat.protocol.settings import (
    BatchSettings,
    EntropySettings,
    FixedLaw,
    FullEntropy,
    LawSettings,
    LearnerSettings,
    ModelSettings,
    RolloutSettings,
    SimulatedSettings,
    Stations,
    ThermostatLaw,
    VerifierSettings,
)

LEASE_SECONDS = 10.0
THERMOSTAT = ThermostatLaw(balance=0.1, drift=0.01)


def run_of(*, batch: int = 2, staleness: int = 1, law: LawSettings = THERMOSTAT, steps: int = 1000) -> Stations:
    return Stations(
        run="test",
        directory="/nowhere",
        seed=5,
        total_steps=steps,
        model=ModelSettings(path="none"),
        tasks=(),
        evaluation_tasks=(),
        batch=BatchSettings(prompts=batch),
        rollout=RolloutSettings(
            engine=SimulatedSettings(), samples_per_prompt=4, max_staleness=staleness, lease_seconds=LEASE_SECONDS
        ),
        verifier=VerifierSettings(),
        entropy=EntropySettings(law=law),
        learner=LearnerSettings(),
        metrics_host="127.0.0.1",
        metrics_port=0,
        samples_per_step=0,
    )


def version(step: int, branch: int = 0) -> PolicyVersion:
    return PolicyVersion(branch=branch, step=step)


def manifest(step: int, branch: int = 0) -> WeightsManifest:
    nothing = Probe(
        tokens=np.zeros(0, np.int32),
        lengths=np.zeros(0, np.int32),
        logprobs=np.zeros(0, np.float32),
        previous=np.zeros(0, np.float32),
        tolerance=1e-4,
    )
    location = SharedFile(host="here", path="/nowhere")
    return WeightsManifest(
        version=version(step, branch), tensors=(), bytes=0, checksum=0, location=location, probe=nothing
    )


def group_of(lease: Lease, *, slot: int = 0, incarnation: int = 1, started: int = 0, correct: int = 2) -> GroupReport:
    statuses: list[Status] = ["correct"] * correct
    statuses += ["wrong"] * (lease.samples - correct)
    return GroupReport(
        lease_id=lease.id,
        prompt_id=lease.prompt_id,
        slot=slot,
        incarnation=incarnation,
        started=version(started, lease.version.branch),
        rewards=tuple(float(status == "correct") for status in statuses),
        statuses=tuple(statuses),
        lengths=(3,) * lease.samples,
        surprise=Moments(count=3 * lease.samples, mean=0.2),
        truncated=1,
    )


def step_of(order: TrainOrder, *, entropy: float = 0.3, clamped: float = 0.2) -> StepReport:
    return StepReport(
        measured=order.version,
        version=version(order.version.step + 1, order.version.branch),
        entropy=entropy,
        clamped_entropy=clamped,
        clamped_mass=0.0,
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
        drift_mean=0.0,
        drift_max=0.0,
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
    ) -> PulseReply:
        pulse = Pulse(
            slot=slot,
            incarnation=incarnation,
            version=version(self.serves if serves is None else serves, self.branch),
            room=room,
            running=running,
            reports=reports,
        )
        (reply,) = [c.reply for c in self.apply(Pulsed(pulse=pulse, at=self.at)) if isinstance(c, Reply)]
        return reply

    def order(self) -> TrainOrder | None:
        orders = [c.order for c in self.apply(OrderRequested(at=self.at)) if isinstance(c, Order)]
        return orders[0] if orders else None

    def step(
        self,
        *,
        entropy: float = 0.3,
        clamped: float = 0.2,
        correct: Callable[[int], int] = lambda prompt: 1 + prompt % 3,
    ) -> TrainOrder:
        """One round as it should go: sample what there is room for, order, train, publish, load."""
        leases = self.pulse(room=99).leases
        self.pulse(reports=tuple(group_of(x, started=self.serves, correct=correct(x.prompt_id)) for x in leases))
        order = self.order()
        assert order is not None
        self.apply(StepReported(report=step_of(order, entropy=entropy, clamped=clamped), at=self.at))
        self.serves = order.version.step + 1
        self.apply(Published(manifest=manifest(self.serves, self.branch)))
        return order


def scene(prompts: int = 10, batch: int = 2, staleness: int = 1) -> Scene:
    return Scene(Controller(run_of(batch=batch, staleness=staleness), ["easy", "hard"] * (prompts // 2)))


def frame(controller: Controller) -> bytes:
    """Everything a controller would save."""
    return wire.encode(controller.snapshot()).tobytes()


def sums_up(counts: LeaseCounts) -> bool:
    ends = counts.trained + counts.expired + counts.stale + counts.lost + counts.rewound
    return counts.granted == counts.running + counts.ready + counts.ordered + ends


# ── one thing at a time ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_round_goes_from_lease_to_the_next_version() -> None:
    s = scene(batch=2, staleness=1)
    order = s.step()
    assert order.version == version(0)
    assert len(order.groups) == 2
    assert s.controller.version == version(1)
    assert s.controller.counts == LeaseCounts(granted=4, ready=2, trained=2)
    assert sorted(s.discarded) == sorted(group.lease_id for group in order.groups)


def test_an_order_stays_the_same_until_its_step_is_reported() -> None:
    s = scene()
    assert s.order() is None
    s.pulse(reports=tuple(group_of(lease) for lease in s.pulse(room=4).leases))
    order = s.order()
    assert order is not None
    assert s.order() is order
    s.apply(StepReported(report=step_of(order), at=0.0))
    after = s.order()
    assert after is not None
    assert after.version == version(1)
    assert {g.lease_id for g in after.groups}.isdisjoint(g.lease_id for g in order.groups)


def test_a_repeated_step_report_changes_nothing() -> None:
    s = scene()
    order = s.step()
    before = frame(s.controller)
    assert s.apply(StepReported(report=step_of(order), at=0.0)) == ()
    assert frame(s.controller) == before


def test_an_actor_gets_the_newest_manifest_until_it_serves_it() -> None:
    s = scene()
    assert s.pulse().manifest is None
    s.apply(Published(manifest=manifest(0)))
    assert s.pulse().manifest is None
    s.apply(Published(manifest=manifest(1)))
    s.apply(Published(manifest=manifest(0)))  # came late
    offered = s.pulse(serves=0).manifest
    assert offered is not None
    assert offered.version == version(1)
    assert s.pulse(serves=1).manifest is None


def test_an_older_life_is_fenced_and_its_leases_run_out_at_once() -> None:
    s = scene()
    mine = s.pulse(room=2).leases
    assert not s.pulse(incarnation=2).fenced
    assert s.discarded == [lease.id for lease in mine]
    reply = s.pulse(incarnation=1, room=9, running=(mine[0].id,), reports=(group_of(mine[1]),))
    assert reply == PulseReply(leases=(), ended=(mine[0].id,), manifest=None, fenced=True)
    view = s.controller.view()
    assert (s.controller.fenced_pulses, view.late_reports, view.leases.expired) == (1, 1, 2)
    again = s.pulse(incarnation=2, room=2).leases
    assert {lease.prompt_id for lease in again} == {lease.prompt_id for lease in mine}


def test_the_group_of_a_late_report_is_discarded_but_never_one_that_is_still_wanted() -> None:
    s = scene()
    late, ready = s.pulse(room=2).leases
    s.pulse(reports=(group_of(ready),))
    s.at = LEASE_SECONDS + 1.0
    s.apply(Ticked(at=s.at))
    s.discarded.clear()
    s.pulse(reports=(group_of(late), group_of(ready)))
    assert s.discarded == [late.id]
    assert s.controller.view().late_reports == 2


def test_groups_that_the_buffer_lost_are_sampled_again_and_the_others_ordered_again() -> None:
    s = scene(batch=2, staleness=0)
    s.pulse(reports=tuple(group_of(lease) for lease in s.pulse(room=2).leases))
    order = s.order()
    assert order is not None
    gone, kept = order.groups
    missing = GroupsMissing(version=order.version, lease_ids=(gone.lease_id,))
    s.apply(Missing(missing=missing, at=0.0))
    assert s.order() is None
    (lease,) = s.pulse(room=9).leases
    assert lease.prompt_id == gone.prompt_id
    s.pulse(reports=(group_of(lease),))
    second = s.order()
    assert second is not None
    assert {group.lease_id for group in second.groups} == {kept.lease_id, lease.id}
    s.apply(Missing(missing=replace(missing, version=version(7)), at=0.0))  # of some other order
    assert s.order() is second


def test_a_straggler_that_comes_too_late_for_its_order_is_never_trained() -> None:
    s = scene(batch=2, staleness=1)
    leases = s.pulse(room=4).leases
    straggler = leases[0]
    s.pulse(running=(straggler.id,), reports=tuple(group_of(lease) for lease in leases[1:]))
    for step in range(2):
        order = s.order()
        if order is None:
            more = s.pulse(running=(straggler.id,), room=1).leases
            s.pulse(running=(straggler.id,), reports=tuple(group_of(lease, started=step) for lease in more))
            order = s.order()
        assert order is not None
        s.apply(StepReported(report=step_of(order), at=0.0))
        s.serves = step + 1
        s.apply(Published(manifest=manifest(s.serves)))
    more = s.pulse(running=(straggler.id,), room=9).leases
    s.discarded.clear()
    s.pulse(reports=(group_of(straggler), *(group_of(lease, started=2) for lease in more)))
    order = s.order()
    assert order is not None
    assert order.version == version(2)
    assert straggler.id not in {group.lease_id for group in order.groups}
    assert s.controller.counts.stale == 1
    assert s.discarded == [straggler.id]
    assert s.pulse(room=1).leases[0].prompt_id == straggler.prompt_id


def test_the_optimizers_momentum_reaches_the_law() -> None:
    def coefficient(momentum: float) -> float:
        run = replace(run_of(), learner=LearnerSettings(betas=(momentum, 0.999)))
        s = Scene(Controller(run, ["a"] * 10))
        for clamped in (0.2, 0.2, 0.2, 0.12, 0.12, 0.12):
            s.step(clamped=clamped)
        return s.controller.view().coefficient

    assert coefficient(0.5) > coefficient(0.9) > coefficient(0.98)


def test_the_law_is_driven_by_the_entropy_of_the_estimator() -> None:
    clamped, full = scene(), Scene(Controller(with_full_entropy(run_of()), ["a"] * 10))
    for s in (clamped, full):
        for _ in range(3):
            s.step(entropy=0.3, clamped=0.2)
    assert clamped.controller.view().initial_entropy == pytest.approx(0.2)
    assert full.controller.view().initial_entropy == pytest.approx(0.3)
    assert clamped.controller.view().target == pytest.approx(0.14)


def with_full_entropy(run: Stations) -> Stations:
    return replace(run, entropy=replace(run.entropy, estimator=FullEntropy()))


def test_each_groups_coefficient_is_the_laws_times_its_weight() -> None:
    s = Scene(Controller(run_of(law=FixedLaw(coefficient=0.02), batch=8), ["easy", "hard"] * 20))
    for _ in range(8):
        order = s.step(correct=lambda prompt: 1 if prompt % 2 else 3)
    assert order.coefficient == 0.02
    assert all(group.coefficient == pytest.approx(0.02 * group.weight) for group in order.groups)
    assert sum(group.weight for group in order.groups) == pytest.approx(8.0)
    by_level = {level: [g.weight for g in order.groups if g.level == level] for level in ("easy", "hard")}
    assert min(by_level["hard"]) > max(by_level["easy"])


def test_an_entropy_that_is_not_a_number_freezes_the_coefficient() -> None:
    s = scene()
    for _ in range(5):
        s.step()
    before = s.controller.view()
    s.step(entropy=float("nan"), clamped=float("nan"))
    after = s.controller.view()
    assert (after.frozen_updates, after.coefficient) == (1, before.coefficient)
    assert after.version == version(6)


def test_the_view_tells_of_the_last_order() -> None:
    s = scene(batch=2, staleness=1)
    s.step(correct=lambda _: 1)
    s.step(correct=lambda _: 1)
    view = s.controller.view()
    assert (view.reward, view.pass_rate, view.statuses) == (0.25, 0.25, (2, 6, 0, 0, 0))
    assert (view.response_tokens, view.truncated) == (24, 2)
    assert view.actor_entropy == pytest.approx(0.2)
    assert view.staleness == (0, 2)  # leased at version 0, ordered at version 1
    assert sum(view.difficulty) == 6
    assert view.actors == 1
    s.at += LEASE_SECONDS + 1.0
    s.apply(Ticked(at=s.at))
    assert s.controller.view().actors == 0


def test_the_view_tells_how_long_the_coefficient_has_stood_at_its_ceiling() -> None:
    s = scene()
    for _ in range(12):
        s.step(entropy=0.5, clamped=0.5)
    assert s.controller.view().ceiling_orders == 0
    for _ in range(12):
        s.step(entropy=1e-4, clamped=1e-4)
    assert s.controller.view().ceiling_orders == s.controller.reading.ceiling_orders > 0


def test_a_group_older_than_allowed_shows_in_the_summary() -> None:
    lease = scene().pulse(room=1).leases[0]
    reports = [group_of(lease, started=step) for step in (5, 4, 2, 2)]
    assert summarise(reports, 5, max_staleness=1).staleness == (1, 1, 0, 2)
    assert summarise(reports[:1], 5, max_staleness=1).staleness == (1, 0)


def test_no_prompts_are_an_error_with_a_name() -> None:
    with pytest.raises(TaskError, match="no prompts"):
        Controller(run_of(), [])


# ── snapshots ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_later_branch_goes_on_from_a_snapshot() -> None:
    s = scene(prompts=40, batch=2, staleness=1)
    for _ in range(6):
        s.step()
    under_way = s.pulse(room=99).leases
    before = s.controller.view()
    snapshot = wire.decode(wire.encode(s.controller.snapshot()), ControllerSnapshot)
    later = Scene(Controller(run_of(), ["easy", "hard"] * 20, 1, 6, snapshot), branch=1, step=6)
    view = later.controller.view()
    assert replace(view, version=before.version, leases=before.leases, actors=1, **last_order(before)) == before
    # 2 were running and 2 more were ready when it was taken.
    assert later.controller.counts == replace(before.leases, running=0, ready=0, rewound=4)
    assert sums_up(later.controller.counts)
    leased = later.pulse(room=99).leases
    assert {lease.prompt_id for lease in under_way} <= {lease.prompt_id for lease in leased}
    assert later.pulse(reports=(group_of(under_way[0], started=6),)).leases == ()
    assert later.controller.view().late_reports == before.late_reports + 1
    assert under_way[0].id in later.discarded


def last_order(view: object) -> dict[str, object]:
    names = ("staleness", "reward", "pass_rate", "statuses", "actor_entropy", "response_tokens", "truncated")
    return {name: getattr(view, name) for name in names}


def test_a_snapshot_that_does_not_fit_is_refused() -> None:
    s = scene()
    s.step()
    snapshot = s.controller.snapshot()
    with pytest.raises(CheckpointDamaged, match="expected step 2"):
        Controller(run_of(), ["easy", "hard"] * 5, 1, 2, snapshot)
    with pytest.raises(CheckpointDamaged, match="branch before 0"):
        Controller(run_of(), ["easy", "hard"] * 5, 0, 1, snapshot)
    with pytest.raises(CheckpointDamaged, match="FixedState"):
        Controller(run_of(law=FixedLaw()), ["easy", "hard"] * 5, 1, 1, snapshot)
    with pytest.raises(CheckpointDamaged, match="rows"):
        Controller(run_of(), ["easy", "hard"] * 6, 1, 1, snapshot)


# ── whatever happens ─────────────────────────────────────────────────────────────────────────────────────────────────

# What makes progress comes more often, so that orders, stragglers and losses are all met.
DEEDS = ["pulse", "pulse", *["finish"] * 4, "round", "order", "train", "publish", "load"]
MISHAPS = ["repeat", "forget", "tick", *["lose"] * 4, "reborn"]


def actions_of(seed: int) -> list[tuple[str, int, int]]:
    """An even mix of 400 actions; lists drawn one by one are too short and too alike to get far."""
    draw = random.Random(seed)
    return [(draw.choice(DEEDS * 4 + MISHAPS), draw.randint(0, 1), draw.randint(0, 6)) for _ in range(400)]


SEEDS = st.integers(0, 2**32)


class Chaos:
    """Two actors, a learner and a network that do whatever a list of actions says; every promise checked each time."""

    def __init__(self, *, batch: int, staleness: int, prompts: int) -> None:
        self.batch, self.staleness, self.prompts = batch, staleness, prompts
        self.s = scene(prompts, batch=batch, staleness=staleness)
        self.lives = [1, 1]
        self.serves = [0, 0]
        self.newest = 0
        self.running: list[list[tuple[Lease, int]]] = [[], []]  # with the step each was started at
        self.reported: list[tuple[Lease, int, int, int]] = []  # lease, slot, life, started
        self.granted: set[int] = set()
        self.order: TrainOrder | None = None
        self.started: dict[int, int] = {}
        self.trained: Counter[int] = Counter()
        self.untrained: dict[int, int] = {}  # prompts by their last lease, unless that was trained

    def do(self, action: str, slot: int, number: int) -> None:
        s = self.s
        if action == "pulse":
            self.pulse(slot, room=number)
        elif action == "finish" and len(self.running[slot]) > (number > 0):
            # Mostly the newest and not the last, so that some lease grows old.
            lease, started = self.running[slot].pop(0 if number == 0 else -1)
            self.started[lease.id] = started
            self.reported.append((lease, slot, self.lives[slot], started))
            self.pulse(slot, reports=(group_of(lease, slot=slot, incarnation=self.lives[slot], started=started),))
        elif action == "repeat" and self.reported:
            lease, other, life, started = self.reported[number % len(self.reported)]
            self.pulse(other, reports=(group_of(lease, slot=other, incarnation=life, started=started),), life=life)
        elif action == "forget":
            self.running[slot].clear()
        elif action == "tick":
            s.at += number / 2
            s.apply(Ticked(at=s.at))
        elif action == "order":
            self.take_order()
        elif action == "round":
            for part in ("order", "train", "publish", "load"):
                self.do(part, slot, number)
        elif action == "train" and self.order is not None:
            s.apply(StepReported(report=step_of(self.order), at=s.at))
            self.trained.update(group.prompt_id for group in self.order.groups)
            done = {group.lease_id for group in self.order.groups}
            self.untrained = {prompt: lease for prompt, lease in self.untrained.items() if lease not in done}
            self.order = None
        elif action == "lose" and self.order is not None:
            gone = tuple(group.lease_id for group in self.order.groups[: number % (self.batch + 1)])
            s.apply(Missing(missing=GroupsMissing(version=self.order.version, lease_ids=gone), at=s.at))
            self.order = None
        elif action == "publish":
            self.newest = s.controller.version.step
            s.apply(Published(manifest=manifest(self.newest)))
        elif action == "load":
            self.serves[slot] = self.newest
        elif action == "reborn":
            self.lives[slot] += 1
            self.running[slot].clear()
        self.check()

    def pulse(
        self, slot: int, *, room: int = 0, reports: tuple[GroupReport, ...] = (), life: int | None = None
    ) -> None:
        mine = self.running[slot] if life in (None, self.lives[slot]) else []
        reply = self.s.pulse(
            slot=slot,
            incarnation=self.lives[slot] if life is None else life,
            serves=self.serves[slot],
            room=room,
            running=tuple(lease.id for lease, _ in mine),
            reports=reports,
        )
        if life is not None and life < self.lives[slot]:
            # A slot's older life may speak before the newer one has: then it is not fenced yet, and gets no leases.
            assert reply.leases == ()
            return
        assert len(reply.leases) <= room
        self.running[slot] = [(lease, at) for lease, at in self.running[slot] if lease.id not in reply.ended]
        for lease in reply.leases:
            assert lease.id not in self.granted
            self.granted.add(lease.id)
            self.untrained[lease.prompt_id] = lease.id
            self.running[slot].append((lease, self.serves[slot]))
        if reply.leases:
            counts = self.s.controller.counts
            outstanding = counts.running + counts.ready + counts.ordered
            assert counts.trained + outstanding <= (self.serves[slot] + self.staleness + 1) * self.batch

    def take_order(self) -> None:
        order = self.s.order()
        if order is None:
            return
        assert self.order is None or order is self.order
        self.order = order
        assert len({group.lease_id for group in order.groups}) == self.batch
        for group in order.groups:
            assert 0 <= order.version.step - self.started[group.lease_id] <= self.staleness
            assert group.lease_id not in self.s.discarded

    def check(self) -> None:
        assert sums_up(self.s.controller.counts)
        assert self.s.controller.counts.granted == len(self.granted)
        assert self.s.controller.counts.trained == sum(self.trained.values())
        # No prompt is lost, neither now nor over a restart.
        assert set(self.untrained) <= set(self.s.controller.snapshot().position.returned.tolist())


@given(SEEDS, st.integers(1, 3), st.integers(0, 2), st.sampled_from([2, 6, 20]))
@settings(max_examples=50, deadline=None)
def test_whatever_happens_leases_add_up_staleness_is_bounded_and_no_prompt_is_lost(
    seed: int, batch: int, staleness: int, prompts: int
) -> None:
    chaos = Chaos(batch=batch, staleness=staleness, prompts=prompts)
    for action in actions_of(seed):
        chaos.do(*action)
    # Then all goes well, and every prompt is trained before long.
    chaos.trained.clear()
    already = chaos.s.controller.counts.trained
    for _ in range(4 * prompts // batch + 8):
        for slot in (0, 1):
            chaos.pulse(slot, room=50)
            for lease, started in list(chaos.running[slot]):
                chaos.started[lease.id] = started
                chaos.pulse(
                    slot,
                    reports=(group_of(lease, slot=slot, incarnation=chaos.lives[slot], started=started),),
                )
            chaos.running[slot].clear()
        chaos.take_order()
        if chaos.order is not None:
            chaos.s.apply(StepReported(report=step_of(chaos.order), at=chaos.s.at))
            chaos.trained.update(group.prompt_id for group in chaos.order.groups)
            chaos.order = None
        chaos.newest = chaos.s.controller.version.step
        chaos.s.apply(Published(manifest=manifest(chaos.newest)))
        chaos.serves = [chaos.newest, chaos.newest]
        chaos.s.at += LEASE_SECONDS / 2
        chaos.s.apply(Ticked(at=chaos.s.at))
    assert set(chaos.trained) == set(range(prompts))
    assert chaos.s.controller.counts.trained == already + sum(chaos.trained.values())


def test_the_random_actions_meet_every_way_a_lease_can_end() -> None:
    met: Counter[str] = Counter()
    for seed in range(40):
        chaos = Chaos(batch=1 + seed % 3, staleness=seed % 2, prompts=20)
        for action in actions_of(seed):
            chaos.do(*action)
        counts = chaos.s.controller.counts
        met.update(end for end in ("trained", "expired", "stale", "lost") if getattr(counts, end))
    assert all(met[end] >= 4 for end in ("trained", "expired", "stale", "lost")), met


@given(SEEDS)
@settings(max_examples=15, deadline=None)
def test_the_same_events_make_the_same_state(seed: int) -> None:
    twins = [Chaos(batch=2, staleness=1, prompts=6) for _ in range(2)]
    for action in actions_of(seed):
        for twin in twins:
            twin.do(*action)
    first, second = (frame(twin.s.controller) for twin in twins)
    assert first == second
