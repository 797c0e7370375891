"""The controller's shell: frames in and out, waits that end, discards that are sent, metrics that are served."""

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from entrostat.controller.remote import ControllerActor
from entrostat.controller.snapshot import ControllerState
from entrostat.protocol import wire
from entrostat.protocol.arrays import UInt8
from entrostat.protocol.entropy_settings import FixedLaw, LawSettings, ThermostatLaw
from entrostat.protocol.errors import CheckpointDamaged, ResourceError, StationLost, TaskError, WireError
from entrostat.protocol.messages import (
    ControllerView,
    GroupReport,
    GroupsMissing,
    Pulse,
    PulseReply,
    Stacks,
    Standing,
    TrainOrder,
    Waits,
)
from tests.made_messages import group_of, manifest, run_of, step_of, version

START = version(0)
FIXED = FixedLaw()
TOKEN = "known to the run's owner"
Made = Callable[..., Awaitable[ControllerActor]]


class Discards:
    """A sample buffer's handle that remembers what it was told to forget."""

    def __init__(self) -> None:
        self.leases: list[int] = []
        self.discard = self.retain = self

    def remote(self, leases: list[int]) -> None:
        self.leases += leases


def run_frame(directory: Path, *, lease_seconds: float = 60.0, port: int = 0, law: LawSettings = FIXED) -> UInt8:
    """The settings as they reach the controller, of a run directory in its first life."""
    directory.mkdir(exist_ok=True)
    (directory / "branch").write_text("0\n")
    return wire.encode(run_of(directory=str(directory), lease_seconds=lease_seconds, port=port, law=law))


@pytest.fixture
def made(tmp_path: Path, logs: None) -> Iterator[Made]:
    actors: list[ControllerActor] = []

    async def make(buffer: Discards | None = None, *, lease_seconds: float = 60.0) -> ControllerActor:
        settings = run_frame(tmp_path, lease_seconds=lease_seconds)
        (tmp_path / "token").write_text(TOKEN)
        actors.append(ControllerActor(settings))
        await actors[-1].start(["easy"] * 10, buffer or Discards())
        return actors[-1]

    yield make
    for actor in actors:
        actor._running().exporter.close()


def pulse(room: int = 0, reports: tuple[GroupReport, ...] = ()) -> UInt8:
    return wire.encode(Pulse(slot=0, incarnation=1, version=START, room=room, running=(), reports=reports))


async def replied(answer: Awaitable[UInt8]) -> PulseReply:
    return wire.decode(await answer, PulseReply)


def read(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        return str(answer.read().decode())


def test_a_step_goes_through_as_frames(made: Made) -> None:
    buffer = Discards()

    async def play() -> None:
        actor = await made(buffer)
        leases = (await replied(actor.pulse(pulse(room=2)))).leases
        await actor.pulse(pulse(reports=tuple(group_of(lease) for lease in leases)))
        frame = await actor.order(5.0)
        assert frame is not None
        order = wire.decode(frame, TrainOrder)
        told = await actor.report(wire.encode(step_of(order)))
        view = wire.decode(told, ControllerView)
        assert (view.version.step, view.leases.trained, view.reward) == (1, 2, 0.5)
        assert sorted(buffer.leases) == sorted(lease.id for lease in leases)
        assert (await actor.view()).tobytes() == told.tobytes()
        assert wire.decode(await actor.checkpoint(), ControllerState).version == view.version

    asyncio.run(play())


def test_an_order_is_given_the_moment_its_last_group_is_reported(made: Made) -> None:
    async def play() -> None:
        actor = await made()
        leases = (await replied(actor.pulse(pulse(room=2)))).leases
        waiting = asyncio.create_task(actor.order(30.0))
        for lease in leases:
            await asyncio.sleep(0.02)
            assert not waiting.done()
            await actor.pulse(pulse(reports=(group_of(lease),)))
        assert await asyncio.wait_for(waiting, 0.3) is not None

    asyncio.run(play())


def test_a_wait_for_an_order_ends_at_its_deadline(made: Made) -> None:
    async def play() -> None:
        actor = await made()
        started = time.monotonic()
        assert await actor.order(0.1) is None
        assert 0.09 < time.monotonic() - started < 1.0

    asyncio.run(play())


def test_leases_expire_though_nobody_calls(made: Made) -> None:
    buffer = Discards()

    async def play() -> None:
        actor = await made(buffer, lease_seconds=0.2)
        leases = (await replied(actor.pulse(pulse(room=2)))).leases
        await asyncio.sleep(0.8)
        assert buffer.leases == [lease.id for lease in leases]

    asyncio.run(play())


def test_a_ticker_that_failed_fails_the_next_call(made: Made) -> None:
    class Broken(Discards):
        def remote(self, leases: list[int]) -> None:
            raise OSError("the buffer's handle is gone")

    async def play() -> None:
        actor = await made(Broken(), lease_seconds=0.2)
        await actor.pulse(pulse(room=1))
        await asyncio.sleep(0.8)
        with pytest.raises(OSError, match="handle is gone"):
            await actor.pulse(pulse())

    asyncio.run(play())


def test_published_weights_are_offered_and_lost_groups_give_the_order_up(made: Made) -> None:
    async def play() -> None:
        actor = await made()
        await actor.publish(wire.encode(manifest(1)))
        reply = await replied(actor.pulse(pulse(room=2)))
        assert reply.manifest is not None
        assert reply.manifest.version.step == 1
        await actor.pulse(pulse(reports=tuple(group_of(lease) for lease in reply.leases)))
        assert await actor.order(1.0) is not None
        lost = GroupsMissing(version=START, lease_ids=tuple(lease.id for lease in reply.leases))
        await actor.missing(wire.encode(lost))
        assert await actor.order(0.05) is None
        assert wire.decode(await actor.view(), ControllerView).leases.lost == 2

    asyncio.run(play())


def test_bytes_that_are_no_message_are_refused_and_change_nothing(made: Made) -> None:
    async def play() -> None:
        actor = await made()
        before = (await actor.checkpoint()).tobytes()
        for junk in (np.zeros(100, np.uint8), wire.encode(GroupsMissing(version=START, lease_ids=()))):
            with pytest.raises(WireError):
                await actor.pulse(junk)
        assert (await actor.checkpoint()).tobytes() == before

    asyncio.run(play())


def test_metrics_and_targets_are_served(made: Made) -> None:
    async def play() -> None:
        actor = await made()
        port = await actor.endpoint()
        await actor.set_targets([{"targets": ["127.0.0.1:1"], "labels": {"station": "learner"}}])
        leases = (await replied(actor.pulse(pulse(room=2)))).leases
        await actor.pulse(pulse(reports=(*(group_of(lease) for lease in leases), group_of(leases[0]))))
        frame = await actor.order(1.0)
        assert frame is not None
        await actor.report(wire.encode(step_of(wire.decode(frame, TrainOrder), sampled=0.4)))
        lines = (await asyncio.to_thread(read, port, "/metrics")).splitlines()
        for line in (
            "entrostat_leases_granted_total 2.0",
            'entrostat_leases_ended_total{outcome="trained"} 2.0',
            'entrostat_leases_ended_total{outcome="expired"} 0.0',
            "entrostat_late_reports_total 1.0",
            "entrostat_actors 1.0",
            "entrostat_reward 0.5",
            "entrostat_staleness_versions_count 2.0",
            'entrostat_entropy_nats{estimator="full",policy="current"} 0.3',
            'entrostat_entropy_nats{estimator="clamped",policy="current"} 0.2',
            'entrostat_entropy_nats{estimator="sampled",policy="current"} 0.4',
            'entrostat_entropy_nats{estimator="sampled",policy="behaviour"} 0.2',
            'entrostat_measured_entropy_nats{estimator="clamped"} 0.2',
            "entrostat_sample_balance 0.0",
            "entrostat_target_entropy_nats NaN",
        ):
            assert line in lines
        assert json.loads(await asyncio.to_thread(read, port, "/targets"))[0]["targets"] == ["127.0.0.1:1"]

    asyncio.run(play())


def test_what_can_fail_fails_in_start_and_with_its_name(made: Made, tmp_path: Path) -> None:
    async def play() -> None:
        actor = await made()
        taken = run_frame(tmp_path / "taken", port=await actor.endpoint())
        other = run_frame(tmp_path / "other", law=ThermostatLaw(balance=0.01, drift=0.05))
        squatter = ControllerActor(taken)
        idle = ControllerActor(run_frame(tmp_path / "idle"))
        stranger = ControllerActor(other, 1, 0)
        (tmp_path / "other/branch").write_text("1\n")
        state = await actor.checkpoint()
        with pytest.raises(ResourceError, match=r"monitor\.port"):
            await squatter.start(["easy"], Discards())
        with pytest.raises(TaskError, match="no prompts"):
            await idle.start([], Discards())
        with pytest.raises(CheckpointDamaged, match="FixedState"):
            await stranger.start(["easy"] * 10, Discards(), state)

    asyncio.run(play())


def test_a_controller_that_was_not_started_says_so(tmp_path: Path) -> None:
    async def play() -> None:
        actor = ControllerActor(run_frame(tmp_path))
        missing = wire.encode(GroupsMissing(version=START, lease_ids=()))
        calls = (actor.pulse(pulse()), actor.order(0.1), actor.missing(missing), actor.view(), actor.checkpoint())
        for call in (*calls, actor.endpoint(), actor.set_targets([])):
            with pytest.raises(StationLost, match="call start first"):
                await call

    asyncio.run(play())


def test_leases_that_end_untrained_are_in_the_log(made: Made, tmp_path: Path) -> None:
    async def play() -> None:
        actor = await made(lease_seconds=0.2)
        leases = (await replied(actor.pulse(pulse(room=2)))).leases
        await asyncio.sleep(0.8)
        told = [line for line in (tmp_path / "logs/controller.log").read_text().splitlines() if "WARNING" in line]
        assert len(told) == 1
        prompts = [lease.prompt_id for lease in leases]
        assert told[0].endswith(f"2 leases ended as expired; their prompts are leased again: {prompts}")

    asyncio.run(play())


def test_a_request_to_scale_is_taken_in_by_the_loop_that_serves_the_calls(made: Made) -> None:
    def ask(port: int, token: str) -> bytes:
        url, headers = f"http://127.0.0.1:{port}/scale", {"Authorization": f"Bearer {token}"}
        request = urllib.request.Request(url, data=b'{"actors": 4}', headers=headers)
        with urllib.request.urlopen(request, timeout=5) as answer:
            content: bytes = answer.read()
        return content

    async def play() -> None:
        actor = await made()
        port = await actor.endpoint()
        with pytest.raises(urllib.error.HTTPError, match="403"):
            await asyncio.to_thread(ask, port, "guessed")
        assert await actor.wanted_actors() == 1
        assert await asyncio.to_thread(ask, port, TOKEN) == b'{"before":1,"actors":4}'
        assert await actor.wanted_actors() == 4
        assert wire.decode(await actor.view(), ControllerView).wanted_actors == 4
        scraped = read(port, "/metrics")
        assert "entrostat_wanted_actors 4.0" in scraped
        assert 'entrostat_http_refused_total{reason="wrong_token"} 1.0' in scraped
        assert TOKEN not in scraped + read(port, "/targets")

    asyncio.run(play())


def test_a_wait_for_an_order_is_counted_by_its_cause_while_it_lasts(made: Made) -> None:
    async def play() -> str:
        actor = await made()
        assert await actor.order(0.05) is None  # nobody was heard from
        await actor.pulse(pulse(room=2))
        assert await actor.order(0.05) is None  # leases are under way
        waits = wire.decode(await actor.waits(wire.encode(Waits(checkpoint=2.0))), Waits)
        assert waits.no_actors >= 0.03
        assert waits.sampling >= 0.03
        assert (waits.checkpoint, waits.verifying, waits.weights) == (2.0, 0.0, 0.0)
        found = wire.decode(await actor.standing(), Standing)
        assert [lease.slot for lease in found.running] == [0, 0]
        assert "in stacks" in wire.decode(await actor.stacks(), Stacks).text
        await asyncio.sleep(0.6)  # a tick
        return await asyncio.to_thread(read, await actor.endpoint(), "/metrics")

    page = asyncio.run(play())
    assert 'learner_waiting_seconds_total{cause="checkpoint"} 2.0' in page
    assert "entrostat_stall_limit_seconds 600.0" in page
    assert float(page.split("\nentrostat_step_age_seconds ")[1].split()[0]) > 0.5
