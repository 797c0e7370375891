"""One round of the learner's loop, with stations that write down what they are asked."""

import pytest

from entrostat.loop import Round, one_round
from entrostat.protocol.messages import ControllerView, GroupsMissing, StepOutcome, TrainOrder
from tests.made_messages import manifest, scene, step_of, version


class Stations:
    """Answers from a real controller that has one order, after some polls."""

    def __init__(self, polls: int, *, lost: bool = False) -> None:
        self.polls, self.lost = polls, lost
        self.asked: list[str] = []
        self.now = 0.0
        self.made = scene()
        self.ordered = self.made.step()

    def next_order(self, wait_seconds: float) -> TrainOrder | None:
        self.asked.append("order")
        self.now += wait_seconds
        self.polls -= 1
        return self.ordered if self.polls < 0 else None

    def train(self, order: TrainOrder, wait_seconds: float) -> StepOutcome | GroupsMissing:
        self.asked.append(f"train after {wait_seconds:g} s")
        if self.lost:
            return GroupsMissing(version=order.version, lease_ids=(1,))
        return StepOutcome(report=step_of(order), manifest=manifest(1))

    def report(self, outcome: StepOutcome) -> ControllerView:
        self.asked.append("report")
        return self.made.controller.view()

    def missing(self, missing: GroupsMissing) -> None:
        self.asked.append("missing")


def lived(stations: Stations) -> tuple[Round | GroupsMissing, list[bool]]:
    """What comes of a round, and what was told between its polls."""
    told: list[bool] = []
    done = one_round(stations, before=lambda: None, after=told.append, clock=lambda: stations.now, poll_seconds=1.0)
    return done, told


def test_a_round_waits_for_an_order_has_it_trained_and_reports_the_step() -> None:
    stations = Stations(polls=2)
    done, told = lived(stations)
    assert isinstance(done, Round)
    assert done.outcome.report.version == version(1)
    assert (done.waited, told) == (3.0, [False, False, True])
    assert stations.asked == ["order", "order", "order", "train after 3 s", "report"]


def test_the_controller_hears_of_groups_that_are_gone_and_of_no_step() -> None:
    stations = Stations(polls=0, lost=True)
    done, _ = lived(stations)
    assert done == GroupsMissing(version=version(0), lease_ids=(1,))
    assert stations.asked == ["order", "train after 1 s", "missing"]


def test_whoever_stops_the_run_between_two_polls_is_obeyed() -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    stations = Stations(polls=5)
    with pytest.raises(KeyboardInterrupt):
        one_round(stations, before=stop, after=lambda _: None, clock=lambda: 0.0, poll_seconds=1.0)
    assert stations.asked == []
