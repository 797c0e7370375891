"""What Ray prints of its own goes to the log; what the run says stays on the screen."""

import logging

import pytest

from entrostat import ray_calls
from entrostat.screen import open_screen


def test_what_ray_prints_is_logged_and_the_screen_stays_the_runs(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    screen = open_screen(10, "a-run")
    with ray_calls.quiet():
        print("(raylet) A worker died\n\n  or was killed")
        screen.say("the controller died and is restarted")
    print("summary")
    assert capsys.readouterr().out == "the controller died and is restarted\nsummary\n"
    assert [record.getMessage() for record in caplog.records] == [
        "Ray says: (raylet) A worker died",
        "Ray says: or was killed",
    ]
