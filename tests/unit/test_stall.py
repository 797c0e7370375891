"""A stall's report names who is waited for, and a likely cause that its facts bear out."""

import time

import msgspec
import pytest

from entrostat.protocol.messages import ActorView, HeardActor, LeaseCounts, RunningNow, Standing
from entrostat.stall import MOST_LEASES, Look, Picture, Told, likely_cause, report, summary
from tests.made_messages import version

LEASE = RunningNow(id=41, prompt_id=7, slot=0, incarnation=2, version=version(3), age_seconds=12.5, left_seconds=17.5)
ACTOR = HeardActor(slot=0, incarnation=2, silent_seconds=0.2, judging=1)
STANDING = Standing(
    version=version(4),
    newest=version(4),
    needed=8,
    ordered=0,
    leases=LeaseCounts(granted=40, running=3, ready=2, trained=35),
    running=(LEASE,),
    actors=(ACTOR,),
)
VIEW = ActorView(
    slot=0,
    incarnation=2,
    version=version(3),
    tokens=5110,
    requests=3,
    updates=4,
    refused_updates=2,
    update_seconds=0.1,
    mismatch=0.0,
    max_mismatch=0.0,
    engine_seconds=2.0,
    metrics_port=1,
)
LEARNER = Look(name="the learner", host="there", process=123, stacks="MainThread\n  in train\n")
PICTURE = Picture(
    reason="no optimizer step for 600 s",
    doing="the controller",
    doing_seconds=0.4,
    unix_seconds=time.time(),
    lease_seconds=30.0,
    standing=STANDING,
    told=(Told(view=VIEW, age_seconds=0.7),),
    looks=(LEARNER,),
)


def pictured(**changes: object) -> Picture:
    return msgspec.structs.replace(PICTURE, **changes)


def standing(**changes: object) -> Standing:
    return msgspec.structs.replace(STANDING, **changes)


def silent(state: str) -> Look:
    return Look(name="the learner", host="here", process=123, stacks="", problem="did not answer", state=state)


def test_the_report_holds_everything_there_is() -> None:
    text = report(PICTURE)
    for expected in (
        "no optimizer step for 600 s",
        "the driver    has waited for the controller for 0.4 s",
        "the next step starts from version 0.4",
        "2 of 8 groups are ready, 3 leases are under way",
        "trained 35",
        "lease 41 on prompt 7: slot 0, incarnation 2, under 0.3, for 12.5 s, 17.5 s to its deadline",
        "last pulse 0.2 s ago, 1 groups wait for verdicts",
        "0.7 s ago: serves 0.3, 3 leases in the engine",
        "4 updates served, 2 refused",
        "the learner, process 123 on there: answered",
        "MainThread\n  in train",
    ):
        assert expected in text, text


def test_the_oldest_of_very_many_leases_are_listed() -> None:
    leases = tuple(msgspec.structs.replace(LEASE, id=id, age_seconds=float(id)) for id in range(MOST_LEASES + 5))
    text = report(pictured(standing=standing(running=leases)))
    assert f"lease {MOST_LEASES + 4} on" in text
    assert "lease 4 on" not in text
    assert "… and 5 younger leases" in text


def test_a_silent_controller_leaves_a_report_all_the_same() -> None:
    text = report(pictured(standing=None, told=(), looks=()))
    assert "did not say how it stands" in text
    assert "could not be asked" in text


@pytest.mark.parametrize(
    ("state", "said"),
    [("stopped", "kill -CONT 123"), ("gone", "lives no more"), ("running", "native code"), ("", "out of reach")],
)
def test_a_station_that_does_not_answer_is_the_cause_and_the_kernel_says_why(state: str, said: str) -> None:
    picture = pictured(looks=(silent(state),))
    assert said in likely_cause(picture)
    assert "the learner" in likely_cause(picture)
    assert ("the kernel says: stopped" in report(picture)) == (state == "stopped")


@pytest.mark.parametrize(
    ("stands", "said"),
    [
        (standing(ordered=8), "the learner has an order of 8 groups from version 0.4"),
        (
            standing(actors=(msgspec.structs.replace(ACTOR, silent_seconds=45.0),)),
            "no rollout actor was heard from for 45",
        ),
        (standing(actors=()), "no rollout actor was heard from for the whole time"),
        (
            standing(leases=LeaseCounts(ready=2)),
            "the actors serve 0.3, the newest version is 0.4, 2 updates were refused",
        ),
        (standing(leases=LeaseCounts(ready=7, running=1)), "wait for their verdicts"),
        (STANDING, "3 leases are under way, the oldest for 12 s"),
    ],
)
def test_where_all_answer_the_leases_tell_the_cause(stands: Standing, said: str) -> None:
    assert said in likely_cause(pictured(standing=stands))


def test_the_screen_shows_reason_cause_and_where_to_read_on() -> None:
    shown = summary(PICTURE, "runs/a/stall.txt")
    assert len(shown.splitlines()) == 3
    assert shown.startswith(PICTURE.reason)
    assert "runs/a/stall.txt" in shown
