"""The life of a rollout actor, over fakes of everything around it and a clock set by hand."""

import threading
from collections.abc import Sequence

import numpy as np
import pytest

from entrostat.actors import evaluation, pulses, updates
from entrostat.actors.rollout import LeaseTicket, RolloutWorker
from entrostat.actors.seams import Seams
from entrostat.protocol.arrays import Float32, Int32
from entrostat.protocol.errors import Stalled, StationLost, WeightsRefused
from entrostat.protocol.messages import (
    FINISHED_LENGTH,
    FINISHED_STOP,
    EvaluationRequest,
    Group,
    Lease,
    PolicyVersion,
    Probe,
    Prompt,
    Pulse,
    PulseReply,
    Samples,
    SharedFile,
    Verdict,
    WeightsManifest,
)
from entrostat.protocol.metrics import Metric
from entrostat.protocol.ports import Completion, SampleRequest
from entrostat.protocol.settings import RolloutSettings

SAMPLES = 3
SETTINGS = RolloutSettings(samples_per_prompt=SAMPLES, groups_in_flight=3, lease_seconds=10.0, max_response_tokens=9)
PROMPTS = tuple(
    Prompt(id=i, name=f"p{i}", level="easy", task=0, text=f"{i}?", answer=str(i), entry="") for i in range(20)
)


def version(step: int, branch: int = 0) -> PolicyVersion:
    return PolicyVersion(branch=branch, step=step)


def manifest(step: int, branch: int = 0) -> WeightsManifest:
    nothing = np.zeros(1, np.float32)
    probe = Probe(
        tokens=np.zeros(2, np.int32),
        lengths=np.full(1, 2, np.int32),
        logprobs=nothing,
        previous=nothing,
        tolerance=1.0,
    )
    location = SharedFile(host="here", path="nowhere")
    return WeightsManifest(
        version=version(step, branch), tensors=(), bytes=0, checksum=0, location=location, probe=probe
    )


def lease(id: int, step: int = 0, prompt_id: int | None = None) -> Lease:
    prompt_id = id if prompt_id is None else prompt_id
    return Lease(id=id, prompt_id=prompt_id, samples=SAMPLES, version=version(step), seed=id, deadline_seconds=10.0)


class FakeEngine:
    """Finishes a request when told to, with its prompt's number as the answer of every sample."""

    def __init__(self) -> None:
        self.submitted: dict[str, SampleRequest] = {}
        self.order: list[str] = []
        self.aborted: list[str] = []
        self.loaded: list[PolicyVersion] = []
        self.refuse: set[PolicyVersion] = set()
        self.ready: set[str] = set()
        self.steps = 0

    @property
    def version(self) -> PolicyVersion:
        return self.loaded[-1]

    @property
    def mismatch(self) -> float:
        return 1e-6 * self.version.step

    @property
    def unfinished(self) -> int:
        return len(self.submitted)

    def submit(self, request: SampleRequest) -> None:
        self.submitted[request.id] = request
        self.order.append(request.id)

    def abort(self, ids: Sequence[str]) -> None:
        for id in ids:
            self.aborted.append(id)
            del self.submitted[id]

    def step(self) -> list[Completion]:
        self.steps += 1
        done = [id for id in self.submitted if id in self.ready]
        return [Completion(id=id, samples=answers(self.submitted.pop(id))) for id in done]

    def load(self, manifest: WeightsManifest) -> None:
        if manifest.version in self.refuse:
            raise WeightsRefused(f"{manifest.version} is wrong")
        self.loaded.append(manifest.version)

    def score(self, sequences: Sequence[Int32]) -> list[Float32]:
        raise NotImplementedError

    def close(self) -> None:
        pass

    def finish(self, *ids: str) -> None:
        self.ready |= set(ids)


def answers(request: SampleRequest) -> Samples:
    tokens = Letters().encode(request.prompt.answer)
    count = request.samples
    return Samples(
        tokens=np.tile(tokens, count),
        logprobs=np.full(count * len(tokens), -0.5, np.float32),
        lengths=np.full(count, len(tokens), np.int32),
        finish=np.asarray([FINISHED_LENGTH] + [FINISHED_STOP] * (count - 1), np.uint8),
        spans=np.zeros((count, 4), np.int32),
    )


class Letters:
    """One token a character."""

    def encode(self, text: str) -> Int32:
        return np.asarray([ord(letter) for letter in text], np.int32)

    def decode(self, tokens: Int32) -> str:
        return "".join(chr(token) for token in tokens)


class FakeController:
    """Answers when a reply was laid out for it."""

    def __init__(self) -> None:
        self.pulses: list[Pulse] = []
        self.reply: PulseReply | StationLost | None = None
        self.waiting = False

    def send(self, pulse: Pulse) -> None:
        assert not self.waiting, "two pulses under way"
        self.waiting = True
        self.pulses.append(pulse)

    def receive(self) -> PulseReply | None:
        if not self.waiting or self.reply is None:
            return None
        self.waiting = False
        reply, self.reply = self.reply, None
        if isinstance(reply, StationLost):
            raise reply
        return reply

    def answer(
        self,
        *leases: Lease,
        ended: tuple[int, ...] = (),
        manifest: WeightsManifest | None = None,
        fenced: bool = False,
    ) -> None:
        self.reply = PulseReply(leases=leases, ended=ended, manifest=manifest, fenced=fenced)


class FakeBuffer:
    """Confirms when told to."""

    def __init__(self) -> None:
        self.groups: dict[int, Group] = {}
        self.confirmed: list[int] = []
        self.quick = True

    def send(self, group: Group) -> None:
        self.groups[group.rollout.lease.id] = group
        if self.quick:
            self.confirmed.append(group.rollout.lease.id)

    def stored(self) -> list[int]:
        confirmed, self.confirmed = self.confirmed, []
        return confirmed


class FakeVerifiers:
    """Right if the text is the prompt's answer; hands out verdicts in reverse, when allowed."""

    def __init__(self) -> None:
        self.judged: list[tuple[object, Verdict]] = []
        self.failing = False
        self.open = True

    def submit(self, ticket: object, prompt: Prompt, text: str) -> None:
        if self.failing:
            verdict = Verdict(reward=0.0, status="timeout", seconds=9.0)
        elif text == prompt.answer:
            verdict = Verdict(reward=1.0, status="correct", seconds=0.1)
        else:
            verdict = Verdict(reward=0.0, status="wrong", seconds=0.1)
        self.judged.insert(0, (ticket, verdict))

    def collect(self) -> list[tuple[object, Verdict]]:
        if not self.open:
            return []
        judged, self.judged = self.judged, []
        return judged


class FakeMeter:
    def __init__(self) -> None:
        self.counts: dict[tuple[str, ...], float] = {}

    def add(self, metric: Metric, amount: float = 1.0, **labels: str) -> None:
        key = (metric.name, *labels.values())
        self.counts[key] = self.counts.get(key, 0.0) + amount

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        pass

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        pass


class World:
    """An actor and everything around it."""

    def __init__(self, settings: RolloutSettings = SETTINGS) -> None:
        self.now = 0.0
        self.engine, self.controller, self.buffer = FakeEngine(), FakeController(), FakeBuffer()
        self.verifiers, self.meter = FakeVerifiers(), FakeMeter()
        seams = Seams(
            engine=self.engine,
            controller=self.controller,
            buffer=self.buffer,
            verifiers=self.verifiers,
            tokenizer=Letters(),
            meter=self.meter,
            clock=lambda: self.now,
        )
        self.worker = RolloutWorker(settings, PROMPTS, 4, 2, seams, manifest(0))

    def turn(self, count: int = 1, seconds: float = 0.0) -> None:
        for _ in range(count):
            self.now += seconds
            self.worker.turn()

    def granted(self, *leases: Lease, manifest: WeightsManifest | None = None) -> None:
        """Lets the actor pulse and gives it these leases."""
        self.turn(2, seconds=1.0)
        assert self.controller.waiting
        self.controller.answer(*leases, manifest=manifest)
        self.turn()


def test_a_lease_becomes_a_group_in_the_buffer_and_then_a_report() -> None:
    world = World()
    world.granted(lease(7))
    world.engine.finish("lease-7")
    world.controller.answer()
    world.turn(3)
    group = world.buffer.groups[7]
    assert group.rollout.lease == lease(7)
    assert (group.rollout.slot, group.rollout.incarnation) == (4, 2)
    assert group.rollout.started == version(0)
    assert [verdict.status for verdict in group.verdicts] == ["correct"] * SAMPLES
    report = next(report for pulse in world.controller.pulses for report in pulse.reports)
    assert (report.lease_id, report.prompt_id, report.rewards) == (7, 7, (1.0,) * SAMPLES)
    assert (report.lengths, report.truncated) == ((1,) * SAMPLES, 1)
    assert report.surprise.mean == pytest.approx(0.5)
    assert report.surprise.count == SAMPLES


def test_verdicts_keep_the_order_of_the_samples() -> None:
    world = World()
    world.verifiers.open = False
    world.granted(lease(1))
    world.engine.finish("lease-1")
    world.turn()
    judged = world.verifiers.judged
    world.verifiers.judged = [
        (ticket, Verdict(reward=float(ticket.index), status="correct", seconds=0))
        for ticket, _ in judged
        if isinstance(ticket, LeaseTicket)
    ]
    world.verifiers.open = True
    world.turn()
    assert [verdict.reward for verdict in world.buffer.groups[1].verdicts] == [0.0, 1.0, 2.0]


def test_a_failed_verdict_is_a_reward_of_zero_and_a_status_and_counted() -> None:
    world = World()
    world.verifiers.failing = True
    world.granted(lease(1))
    world.engine.finish("lease-1")
    world.controller.answer()
    world.turn(3)
    (report,) = world.controller.pulses[-1].reports
    assert report.rewards == (0.0,) * SAMPLES
    assert report.statuses == ("timeout",) * SAMPLES
    assert world.meter.counts["entrostat_rollout_samples_total", "timeout"] == SAMPLES


def test_nothing_is_reported_before_the_buffer_has_it() -> None:
    world = World()
    world.buffer.quick = False
    world.granted(lease(1))
    world.engine.finish("lease-1")
    world.controller.answer()
    world.turn(4)
    assert 1 in world.controller.pulses[-1].running
    assert not any(pulse.reports for pulse in world.controller.pulses)
    world.buffer.confirmed = [1]
    world.controller.answer()
    world.turn(2, seconds=1.0)
    assert [report.lease_id for report in world.controller.pulses[-1].reports] == [1]
    assert 1 not in world.controller.pulses[-1].running


def test_room_is_what_is_missing_to_the_groups_in_flight() -> None:
    world = World()
    world.turn()
    assert world.controller.pulses[0].room == 3
    world.granted(lease(1), lease(2))
    world.controller.answer()
    world.turn(3, seconds=1.0)
    assert world.controller.pulses[-1].room == 1
    assert set(world.controller.pulses[-1].running) == {1, 2}


def test_groups_that_wait_for_verdicts_make_room_but_not_without_bound() -> None:
    world = World()
    world.verifiers.open = False
    for first in (0, 3):
        world.granted(*(lease(first + i) for i in range(3)))
        world.engine.finish(*(f"lease-{first + i}" for i in range(3)))
        world.turn()
    world.controller.answer()
    world.turn(3, seconds=1.0)
    assert len(world.controller.pulses[-1].running) == 6
    assert world.controller.pulses[-1].room == 0


def test_pulses_renew_at_least_every_tenth_of_a_lease_even_without_news() -> None:
    settings = RolloutSettings(groups_in_flight=1, lease_seconds=1.0)
    world = World(settings)
    world.granted(lease(1))
    sent = len(world.controller.pulses)
    for _ in range(100):
        world.controller.answer()
        world.turn(seconds=0.01)
    renewals = world.controller.pulses[sent:]
    assert 8 <= len(renewals) <= 12
    assert all(1 in pulse.running for pulse in renewals)


def test_a_hungry_actor_does_not_flood_the_controller() -> None:
    world = World()
    for _ in range(100):
        world.controller.answer()
        world.turn(seconds=0.01)
    assert 10 <= len(world.controller.pulses) <= 1.0 / pulses.HUNGRY_SECONDS + 2


def test_an_ended_lease_is_forgotten_wherever_it_stands() -> None:
    world = World()
    world.verifiers.open = False
    world.granted(lease(1), lease(2), lease(3, step=9))
    world.engine.finish("lease-1")
    world.controller.answer(ended=(1, 2, 3))
    world.turn(3, seconds=1.0)
    assert world.engine.aborted == ["lease-2"]
    world.verifiers.open = True
    world.controller.answer()
    world.turn(3, seconds=1.0)
    assert world.worker.idle
    assert not world.buffer.groups
    assert world.controller.pulses[-1].running == ()


def test_a_new_version_is_loaded_between_two_steps_while_requests_go_on() -> None:
    world = World()
    world.granted(lease(1))
    world.controller.answer(manifest=manifest(1))
    world.turn(2, seconds=1.0)
    assert world.engine.loaded == [version(0), version(1)]
    assert "lease-1" in world.engine.submitted
    world.engine.finish("lease-1")
    world.turn(2)
    assert world.buffer.groups[1].rollout.started == version(0)
    assert world.worker.view(engine_seconds=1.0, metrics_port=1).max_mismatch == pytest.approx(1e-6)


def test_a_version_that_is_served_or_wanted_already_is_not_loaded_again() -> None:
    world = World()
    for _ in range(3):
        world.granted(manifest=manifest(1))
    assert world.engine.loaded == [version(0), version(1)]


def test_a_refused_version_is_counted_and_tried_again_later() -> None:
    world = World()
    world.engine.refuse.add(version(1))
    world.granted(manifest=manifest(1))
    world.turn(5)
    view = world.worker.view(engine_seconds=1.0, metrics_port=1)
    assert (view.version, view.refused_updates) == (version(0), 1)
    assert world.meter.counts["entrostat_rollout_weight_updates_total", "refused"] == 1
    world.engine.refuse.clear()
    world.turn(seconds=2 * updates.FIRST_RETRY_SECONDS)
    assert world.engine.version == version(1)


def test_a_version_refused_again_and_again_stops_the_actor_by_name() -> None:
    world = World()
    world.engine.refuse.add(version(1))

    def hear_of_it_again_and_again() -> None:
        for _ in range(20):
            world.controller.answer(manifest=manifest(1))
            world.turn(seconds=100.0)

    with pytest.raises(WeightsRefused, match="refused 6 times"):
        hear_of_it_again_and_again()


def test_a_newer_version_takes_the_place_of_a_refused_one() -> None:
    world = World()
    world.engine.refuse.add(version(1))
    world.granted(manifest=manifest(1))
    world.granted(manifest=manifest(2))
    assert world.engine.version == version(2)


def test_a_lease_waits_for_the_version_it_was_granted_under() -> None:
    world = World()
    world.engine.refuse.add(version(1))
    world.granted(lease(1, step=1), manifest=manifest(1))
    assert world.engine.order == []
    world.engine.refuse.clear()
    world.turn(seconds=10.0)
    assert world.engine.order == ["lease-1"]
    world.engine.finish("lease-1")
    world.turn()
    assert world.buffer.groups[1].rollout.started == version(1)


def test_a_version_of_an_earlier_branch_never_passes_for_a_later_one() -> None:
    world = World()
    world.granted(manifest=manifest(8))
    late = Lease(id=1, prompt_id=1, samples=SAMPLES, version=version(5, branch=1), seed=1, deadline_seconds=10.0)
    world.granted(late)
    assert world.engine.order == []
    world.granted(manifest=manifest(5, branch=1))
    assert world.engine.order == ["lease-1"]


def test_a_fenced_actor_stops_by_name() -> None:
    world = World()
    world.turn()
    world.controller.answer(fenced=True)
    with pytest.raises(StationLost, match="newer incarnation"):
        world.turn()


def test_reports_survive_a_controller_that_did_not_answer() -> None:
    world = World()
    world.granted(lease(1))
    world.engine.finish("lease-1")
    world.controller.answer()
    world.turn(2)
    assert world.controller.pulses[-1].reports
    sent = len(world.controller.pulses)
    world.controller.reply = StationLost("no answer")
    world.turn(2, seconds=0.1)
    assert len(world.controller.pulses) == sent, "it backs off"
    world.turn(seconds=pulses.FIRST_RETRY_SECONDS)
    assert [report.lease_id for report in world.controller.pulses[-1].reports] == [1]
    world.controller.answer()
    world.turn(2, seconds=1.0)
    assert not world.controller.pulses[-1].reports


def test_a_group_that_is_done_while_a_pulse_is_under_way_is_reported_in_the_next() -> None:
    world = World()
    world.granted(lease(1), lease(2))
    world.controller.answer()
    world.engine.finish("lease-1")
    world.turn(2)
    assert world.controller.waiting
    world.engine.finish("lease-2")
    world.turn(2)
    world.controller.answer()
    world.turn(3, seconds=1.0)
    reported = [[report.lease_id for report in pulse.reports] for pulse in world.controller.pulses if pulse.reports]
    assert reported == [[1], [2]]


def test_a_controller_that_stays_silent_stops_the_actor_by_name() -> None:
    world = World()

    def silence() -> None:
        for _ in range(40):
            if world.controller.waiting:
                world.controller.reply = StationLost("no answer")
            world.turn(seconds=20.0)

    with pytest.raises(StationLost, match="6 times in a row"):
        silence()


def test_a_draining_actor_finishes_what_it_has_and_asks_for_nothing() -> None:
    world = World()
    world.granted(lease(1))
    world.worker.drain()
    world.controller.answer()
    world.turn(3, seconds=1.0)
    assert world.controller.pulses[-1].room == 0
    assert not world.worker.idle
    world.engine.finish("lease-1")
    for _ in range(3):
        world.controller.answer()
        world.turn(2, seconds=1.0)
    assert world.worker.idle


def request(count: int, samples: int = SAMPLES) -> EvaluationRequest:
    return EvaluationRequest(prompts=PROMPTS[:count], samples=samples, temperature=1.0, seed=5)


def test_an_evaluation_shares_the_engine_and_answers_per_prompt() -> None:
    world = World()
    world.granted(lease(15))
    answer = world.worker.evaluate(request(5))
    world.turn()
    names = [f"evaluation-1-{number}" for number in range(5)]
    assert world.engine.order == ["lease-15", *names[:3]], "no more at once than leases may be"
    for name in names:
        world.engine.finish(name)
        world.turn()
    world.turn(2)
    result = answer.result(0)
    assert result.version == version(0)
    assert result.correct == (SAMPLES,) * 5
    assert result.levels == ("easy",) * 5
    assert result.statuses == (5 * SAMPLES, 0, 0, 0, 0)
    assert result.mean_tokens == 1.0
    assert "lease-15" in world.engine.submitted


def test_no_weights_are_loaded_while_an_evaluation_runs() -> None:
    world = World()
    answer = world.worker.evaluate(request(1))
    world.turn()
    world.granted(lease(3, step=1), manifest=manifest(1))
    assert world.engine.version == version(0)
    assert world.engine.order == ["evaluation-1-0"], "a lease of the new version waits"
    world.engine.finish("evaluation-1-0")
    world.turn(3)
    assert answer.result(0).version == version(0)
    assert world.engine.version == version(1)
    assert world.engine.order[-1] == "lease-3"


def test_evaluations_follow_one_another() -> None:
    world = World()
    answers = [world.worker.evaluate(request(2)) for _ in range(2)]
    world.engine.finish(*(f"evaluation-{serial}-{number}" for serial in (1, 2) for number in (0, 1)))
    world.turn(10)
    assert all(answer.result(0).correct == (SAMPLES, SAMPLES) for answer in answers)


def test_an_evaluation_that_never_ends_is_given_up_by_name() -> None:
    world = World()
    answer = world.worker.evaluate(request(1))
    world.turn()
    world.turn(seconds=evaluation.EVALUATION_SECONDS + 1)
    with pytest.raises(Stalled, match="1 prompts"):
        answer.result(0)
    assert world.engine.aborted == ["evaluation-1-0"]
    assert world.worker.idle


def test_a_late_verdict_of_an_evaluation_that_was_given_up_counts_nowhere() -> None:
    world = World()
    world.verifiers.open = False
    given_up = world.worker.evaluate(request(1))
    world.engine.finish("evaluation-1-0")
    world.turn(2)
    late, world.verifiers.judged = world.verifiers.judged, []
    world.turn(seconds=evaluation.EVALUATION_SECONDS + 1)
    assert given_up.exception(0) is not None
    answer = world.worker.evaluate(request(1))
    world.turn()
    world.verifiers.judged = late
    world.verifiers.open = True
    world.turn(3)
    assert not answer.done()
    world.engine.finish("evaluation-2-0")
    world.turn(3)
    assert answer.result(0).statuses[0] == SAMPLES


def test_whoever_waits_for_an_evaluation_hears_why_the_actor_stopped() -> None:
    world = World()
    answer = world.worker.evaluate(request(1))
    world.turn()
    waiting = world.worker.evaluate(request(1))
    world.worker.abandon(StationLost("fenced"))
    for asked in (answer, waiting, world.worker.evaluate(request(1))):
        with pytest.raises(StationLost, match="fenced"):
            asked.result(0)


def test_an_evaluation_wakes_an_idle_actor() -> None:
    world = World()
    asked = threading.Timer(0.02, lambda: world.worker.evaluate(request(1)))
    asked.start()
    world.turn(20)
    asked.join()
    world.turn()
    assert world.engine.order == ["evaluation-1-0"]


def test_a_first_version_that_is_refused_is_an_error() -> None:
    engine = FakeEngine()
    engine.refuse.add(version(0))
    seams = Seams(
        engine=engine,
        controller=FakeController(),
        buffer=FakeBuffer(),
        verifiers=FakeVerifiers(),
        tokenizer=Letters(),
        meter=FakeMeter(),
    )
    with pytest.raises(WeightsRefused):
        RolloutWorker(SETTINGS, PROMPTS, 0, 1, seams, manifest(0))
