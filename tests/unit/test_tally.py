import logging
from collections import Counter

import pytest

from entrostat.actors.verifiers.tally import BATCH, LEAST, LONGEST_SECONDS, ZEROS, StatusTally
from entrostat.protocol.messages import Status, Verdict
from tests.fake_stations import FakeMeter

ALARMS = "entrostat_verify_alarms_total"


class World:
    """A tally, its clock and its meter."""

    def __init__(self) -> None:
        self.now = 0.0
        self.meter = FakeMeter()
        self.tally = StatusTally(0.5, self.meter, lambda: self.now)

    def observe(self, status: Status, times: int, reward: float = 0.0) -> None:
        for _ in range(times):
            self.tally.observe(
                Verdict(reward=reward, status=status, seconds=0.0, detail="no tags" if status == "unparsable" else "")
            )

    def alarms(self, reason: str) -> float:
        return self.meter.counts.get((ALARMS, reason), 0)


def test_a_batch_with_too_many_failures_is_warned_about_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    with caplog.at_level(logging.WARNING):
        world.observe("unparsable", BATCH // 2)
        world.observe("correct", BATCH // 2, reward=1.0)
        assert caplog.text == ""
        assert world.alarms("failures") == 0
        world.observe("unparsable", BATCH // 2 + 1)
        world.observe("correct", BATCH // 2 - 1, reward=1.0)
    assert f"verifier alarm: {BATCH // 2 + 1} of the last {BATCH} responses" in caplog.text
    assert "no tags" in caplog.text
    assert world.tally.counts == Counter(unparsable=BATCH + 1, correct=BATCH - 1)
    assert world.alarms("failures") == 1


def test_a_batch_that_fills_slowly_is_judged_after_a_while() -> None:
    world = World()
    world.observe("error", LEAST)
    world.tally.look()
    assert world.alarms("failures") == 0
    world.now += LONGEST_SECONDS + 1
    world.tally.look()
    assert world.alarms("failures") == 1
    world.now += LONGEST_SECONDS + 1
    world.tally.look()
    assert world.alarms("failures") == 1


def test_too_few_verdicts_are_not_judged_before_the_end() -> None:
    world = World()
    world.observe("error", LEAST - 1)
    world.now += 10 * LONGEST_SECONDS
    world.tally.look()
    assert world.alarms("failures") == 0
    world.tally.close()
    assert world.alarms("failures") == 1


def test_the_last_few_of_a_long_run_raise_no_alarm() -> None:
    world = World()
    world.observe("correct", BATCH, reward=1.0)
    world.observe("timeout", 3)
    world.tally.close()
    assert world.alarms("failures") == 0


def test_a_short_run_of_failures_alone_does_not_end_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.observe("unparsable", 200)
    world.tally.close()
    world.tally.close()
    assert (world.alarms("failures"), world.alarms("zeros")) == (1, 1)
    assert "200 of the last 200 responses were not judged" in caplog.text
    assert "all 200 responses have a reward of 0" in caplog.text


def test_nothing_but_wrong_answers_is_an_alarm_too(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.observe("wrong", ZEROS - 1)
    assert world.alarms("zeros") == 0
    world.observe("wrong", 1)
    assert world.alarms("zeros") == 1
    assert f"the last {ZEROS} responses have a reward of 0 ({ZEROS} wrong so far" in caplog.text
    assert world.alarms("failures") == 0


def test_zeros_go_on_being_counted_and_are_said_less_and_less_often(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.observe("wrong", 8 * ZEROS)
    assert world.alarms("zeros") == 8
    assert caplog.text.count("have a reward of 0") == 4


def test_one_reward_ends_a_stretch_of_zeros() -> None:
    world = World()
    world.observe("wrong", ZEROS - 1)
    world.observe("wrong", 1, reward=0.1)
    world.observe("wrong", ZEROS - 1)
    world.tally.close()
    assert world.alarms("zeros") == 0


def test_the_share_of_failures_is_a_metric() -> None:
    world = World()
    world.observe("timeout", BATCH // 4)
    world.observe("wrong", BATCH - BATCH // 4)
    assert world.meter.gauges["entrostat_verify_failure_ratio",] == 0.25
    assert world.meter.gauges["entrostat_verify_zero_rewards",] == BATCH
