"""What a person should look at is said when it begins, and again when it begins again."""

from pathlib import Path

from msgspec.structs import replace

from entrostat.alarms import CEILING_ORDERS, Alarms
from entrostat.protocol.messages import ControllerView
from tests.made_messages import scene

SAMPLES = 10
RUN = Path("runs/a")


def view(**changes: object) -> ControllerView:
    """Of a step whose samples were half right, half wrong."""
    healthy = {"reward": 0.5, "statuses": (5, 5, 0, 0, 0)}
    return replace(scene().controller.view(), **(healthy | changes))


def test_a_healthy_step_says_nothing() -> None:
    assert Alarms(RUN, alarm_share=0.5).begun(view(), SAMPLES) == []


def test_each_alarm_has_its_words() -> None:
    for change, word in (
        (
            {"statuses": (4, 0, 1, 2, 3)},
            "6 of 10 verdicts are unparsable (1), timeout (2) or error (3), more than",
        ),
        ({"reward": 0.0}, "every reward of this step is 0"),
        ({"brake": True}, "far above its target"),
        ({"ceiling_orders": CEILING_ORDERS}, f"at its ceiling for {CEILING_ORDERS} orders"),
        ({"frozen_updates": 1}, "could not be used"),
    ):
        [said] = Alarms(RUN, alarm_share=0.5).begun(view(**change), SAMPLES)
        assert word in said


def test_the_alarm_about_verdicts_says_where_they_can_be_read() -> None:
    [said] = Alarms(RUN, alarm_share=0.5).begun(view(statuses=(0, 0, 10, 0, 0)), SAMPLES)
    assert said.endswith("entrostat samples runs/a")


def test_what_just_reaches_its_bound_is_no_alarm() -> None:
    alarms = Alarms(RUN, alarm_share=0.5)
    assert alarms.begun(view(statuses=(5, 0, 5, 0, 0), ceiling_orders=CEILING_ORDERS - 1), SAMPLES) == []


def test_an_alarm_that_stands_is_said_once_and_anew_after_a_pause() -> None:
    alarms = Alarms(RUN, alarm_share=0.5)
    said = [len(alarms.begun(view(brake=brake), SAMPLES)) for brake in (True, True, False, True)]
    assert said == [1, 0, 0, 1]


def test_every_measurement_that_is_refused_is_new_and_those_before_a_resume_are_old() -> None:
    alarms = Alarms(RUN, alarm_share=0.5, frozen=3)
    said = [len(alarms.begun(view(frozen_updates=count), SAMPLES)) for count in (3, 4, 4, 5)]
    assert said == [0, 1, 0, 1]


def test_what_is_watched_elsewhere_is_said_when_it_begins_too() -> None:
    alarms = Alarms(RUN, alarm_share=0.5)
    said = [alarms.begun(view(), SAMPLES, [("drift", text)]) for text in ("far", "further", None, "far")]
    assert said == [["far"], [], [], ["far"]]
