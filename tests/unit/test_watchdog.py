"""A run that no longer moves ends: by its main thread, or in spite of it."""

import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from entrostat import processes
from entrostat.protocol.errors import Stalled, StationLost
from entrostat.stall import Picture
from entrostat.watchdog import Heart, reported

STUCK = """
import sys, threading, time
from pathlib import Path
from entrostat.watchdog import Heart

def stuck_in_ray():
    time.sleep(60)

heart = Heart(Path(sys.argv[1]), 0.2, 3.0, grace_seconds=0.1, start_seconds=0.1)
heart.beat("the learner")
stuck_in_ray()
"""


class Exits:
    """Remembers the code instead of ending the process."""

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.exited = threading.Event()

    def __call__(self, code: int) -> None:
        self.codes.append(code)
        self.exited.set()


def heart_of(path: Path, exits: Exits, *, limit: float = 0.15) -> Heart:
    return Heart(path, limit, 3.0, grace_seconds=0.0, start_seconds=0.0, exit=exits)


def pictured(reason: str, doing: str, doing_seconds: float) -> Picture:
    return Picture(reason=reason, doing=doing, doing_seconds=doing_seconds, unix_seconds=time.time(), lease_seconds=3.0)


def until(met: Callable[[], bool], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not met() and time.monotonic() < deadline:
        time.sleep(0.01)
    return met()


def test_a_driver_that_is_stuck_ends_with_code_3_and_its_stack(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STUCK, str(tmp_path / "stall.txt")],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert "waits for the learner" in done.stderr
    text = (tmp_path / "stall.txt").read_text()
    assert "in stuck_in_ray" in text
    assert "the driver    has waited for the learner" in text


def test_a_driver_that_comes_by_lives(tmp_path: Path) -> None:
    exits = Exits()
    heart = heart_of(tmp_path / "stall.txt", exits, limit=0.3)
    for _ in range(12):
        heart.beat("the learner")
        time.sleep(0.05)
    heart.close()
    assert not exits.codes
    assert heart.doing[0] == "the learner"
    assert heart.doing[1] > 0.5  # it is waited for since the first of these


def test_a_heart_that_was_closed_ends_nothing(tmp_path: Path) -> None:
    exits = Exits()
    heart_of(tmp_path / "stall.txt", exits).close()
    assert not exits.exited.wait(0.4)


def test_a_report_that_cannot_be_written_does_not_keep_the_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exits = Exits()
    (tmp_path / "file").touch()
    heart_of(tmp_path / "file" / "stall.txt", exits)
    assert exits.exited.wait(5.0)
    assert exits.codes == [3]
    said = capsys.readouterr().err
    assert "has not come by" in said
    assert "stall.txt can't be written" in said


def test_a_stall_is_written_down_with_its_cause_and_raised_on(tmp_path: Path) -> None:
    exits, path = Exits(), tmp_path / "stall.txt"
    heart = heart_of(path, exits, limit=60.0)
    heart.beat("the learner")
    with pytest.raises(Stalled, match="likely cause: unknown") as raised, reported(heart, pictured):
        raise Stalled("no step for 9 s")
    assert str(path) in str(raised.value)
    assert "what          no step for 9 s" in path.read_text()
    assert "has waited for the learner" in path.read_text()
    heart.close()


def test_what_is_no_stall_is_not_written_down(tmp_path: Path) -> None:
    heart = heart_of(tmp_path / "stall.txt", Exits(), limit=60.0)
    with pytest.raises(StationLost), reported(heart, pictured):
        raise StationLost("the learner died")
    heart.close()
    assert not (tmp_path / "stall.txt").exists()


def test_a_cluster_that_cannot_be_left_after_a_stall_ends_the_process_and_keeps_the_first_report(
    tmp_path: Path,
) -> None:
    exits, path = Exits(), tmp_path / "stall.txt"
    heart = heart_of(path, exits, limit=60.0)
    with pytest.raises(Stalled), reported(heart, pictured):
        raise Stalled("no step for 9 s")
    heart.leave(0.1)
    heart.beat("somebody")  # who leaves has no more time for coming by
    assert exits.exited.wait(5.0)
    assert exits.codes == [3]
    text = path.read_text()
    assert text.index("no step for 9 s") < text.index("waits for somebody")


def test_a_failed_run_whose_cluster_cannot_be_left_tells_its_failure_and_exits_with_its_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exits = Exits()
    heart = heart_of(tmp_path / "stall.txt", exits, limit=60.0)
    heart.failed(StationLost("the learner died"))
    heart.leave(0.1)
    assert exits.exited.wait(5.0)
    assert exits.codes == [1]
    assert "entrostat: the learner died" in capsys.readouterr().err


def test_the_kernel_is_asked_about_processes_of_this_host_only() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        try:
            child_of = psutil.Process(child.pid)
            child_of.suspend()
            assert until(lambda: processes.state_of(platform.node(), child.pid) == "stopped")
            assert processes.state_of("elsewhere", child.pid) == ""
            assert processes.end([child_of], seconds=0.05) == 1  # a stopped process dies too
        finally:
            child.kill()
    assert processes.state_of(platform.node(), child.pid) == "gone"
