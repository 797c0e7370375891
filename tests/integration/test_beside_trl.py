"""Both sides of the comparison with TRL, by the clock: each is stopped at a deadline and leaves a policy."""

from pathlib import Path

import pytest

from benchmarks import trl_environment
from benchmarks.beside_trl_sides import Course, ours, theirs
from benchmarks.trl_ways import FASTEST, WAYS

OURS_SECONDS, THEIRS_SECONDS = 45.0, 30.0  # until each has made a step, with time to spare


def check(course: Course, policy: Path, seconds: float) -> None:
    assert (policy / "model.safetensors").is_file()
    assert len(course.ended_seconds) == len(course.reward) == len(course.entropy_nats) == len(course.response_tokens)
    # The step that was under way at the deadline is finished, and no other begins.
    assert all(ended < seconds for ended in course.ended_seconds[:-1])
    assert 0.0 < course.reward[0] < 1.0


def test_ours_is_stopped_by_an_interrupt_and_leaves_its_policy(tmp_path: Path) -> None:
    policy = tmp_path / "policy"
    check(ours("ours", 1, seconds=OURS_SECONDS, policy=str(policy)), policy, OURS_SECONDS)


@pytest.mark.skipif(not trl_environment.ready(), reason="TRL isn't here: python -m benchmarks.trl_environment gets it")
def test_theirs_stops_all_its_processes_at_the_deadline_and_leaves_its_policy(tmp_path: Path) -> None:
    policy = tmp_path / "policy"
    way = WAYS[FASTEST]
    check(theirs("theirs", 1, way, seconds=THEIRS_SECONDS, policy=str(policy)), policy, THEIRS_SECONDS)
