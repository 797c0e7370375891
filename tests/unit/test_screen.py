"""What a person sees."""

import io

from rich.console import Console
from rich.text import Text

from entrostat.screen import LiveScreen, PlainScreen, duration, open_screen, sparkline
from tests.made_rows import evaluation_row, metrics_row


def test_a_plain_screen_says_each_step_in_one_line() -> None:
    out = io.StringIO()
    screen = PlainScreen(Console(file=out), 10)
    screen.step(metrics_row(4))
    screen.evaluation(evaluation_row(4, 0.5))
    step, evaluation = out.getvalue().splitlines()
    for part in ("step 4/10", "reward 0.340", "target 0.150", "λ 0.0500", "12s left"):
        assert part in step
    assert "pass@1 0.500" in evaluation
    assert "6 terms 0.10" in evaluation


def test_a_plain_screen_repeats_no_waiting() -> None:
    out = io.StringIO()
    screen = PlainScreen(Console(file=out), 10)
    for _ in range(3):
        screen.waiting("for groups")
    assert out.getvalue().count("for groups") == 1


def test_a_live_screen_shows_the_numbers_that_matter() -> None:
    out = io.StringIO()
    screen = LiveScreen(Console(file=out, force_terminal=True, width=120), 10, "quickstart")
    for step in range(1, 5):
        screen.step(metrics_row(step))
    screen.close()
    for part in ("quickstart", "reward", "H̃", "target 0.150", "coefficient", "staleness", "tokens/s", "step 4/10"):
        assert part in Text.from_ansi(out.getvalue()).plain


def test_no_terminal_means_plain_lines() -> None:
    assert isinstance(open_screen(10, "a"), PlainScreen)


def test_durations_are_short() -> None:
    assert [duration(s) for s in (5, 75, 3720)] == ["5s", "1m15s", "1h02m"]


def test_a_sparkline_goes_from_lowest_to_highest() -> None:
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([2.0, 2.0]) == "▁▁"
