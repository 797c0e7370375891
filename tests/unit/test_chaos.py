"""What the harness of `make chaos` reads from a run's rows and its screen."""

from pathlib import Path

import pytest

from entrostat.controller.journal import Closed, Frames
from entrostat.protocol import wire
from entrostat.rows import MetricsRow
from tests.chaos.living import shorten, tear
from tests.chaos.outcome import hit
from tests.chaos.table import spread
from tests.made_rows import metrics_row


def rows(*seconds: float) -> list[MetricsRow]:
    return [metrics_row(step, unix_seconds=at) for step, at in enumerate(seconds, 1)]


def test_a_pause_counts_from_the_signal_to_its_end_and_without_the_step_that_it_holds_up() -> None:
    found = hit(rows(1, 2, 3, 4, 5, 15, 16, 17), at=5.5, last_step=5)
    assert (found.again_seconds, found.pause_seconds, found.repeated) == (9.5, 9.0, 0)


def test_a_pause_may_come_after_a_few_more_steps() -> None:
    assert hit(rows(1, 2, 3, 4, 5, 6, 7, 17, 18), at=5.5, last_step=5).again_seconds == 11.5


def test_without_a_pause_it_is_the_next_step_that_counts() -> None:
    found = hit(rows(1, 2, 3, 4, 5, 6.2, 7), at=5.5, last_step=5)
    assert found.again_seconds == pytest.approx(0.7)
    assert found.pause_seconds == 0.0


def test_a_pause_after_the_next_signal_is_that_ones() -> None:
    course = rows(1, 2, 3, 4, 5, 6, 7, 8, 20, 21, 22)
    assert hit(course, at=4.5, last_step=4, until=8.2).pause_seconds == 0.0
    assert hit(course, at=8.2, last_step=8).again_seconds == pytest.approx(11.8)


def test_steps_that_a_resume_voided_are_counted_and_the_pause_begins_with_the_signal() -> None:
    # Steps 3 to 6 were made before the signal, and are gone.
    found = hit(rows(1, 2, 30, 31, 32, 33, 34), at=20.0, last_step=6)
    assert (found.again_seconds, found.pause_seconds, found.repeated) == (10.0, 10.0, 4)


def test_a_torn_segment_has_half_a_record_after_its_last_whole_one(tmp_path: Path) -> None:
    segment = tmp_path / "0.0.journal"
    segment.write_bytes(bytes(wire.encode(Closed())))
    torn = tear(segment)
    frames = Frames(segment.read_bytes(), segment.name)
    assert len(list(frames)) == 1
    assert frames.torn == torn > 0


def test_a_line_of_the_screen_loses_the_places_of_one_machine() -> None:
    assert shorten("go on with: entrostat train --resume /tmp/a/b/run") == "go on with: entrostat train --resume RUN"
    assert shorten("the journal /tmp/a/run/journal/0.0.journal can't be written") == (
        "the journal RUN/journal/0.0.journal can't be written"
    )
    assert shorten("[run] stall_seconds") == "[run] stall_seconds"
    assert spread([3.0, 1.0, 2.0], ".1f") == "2.0 (1.0–3.0)"
