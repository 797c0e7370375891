"""A command with a deadline: what it says when it fails, is late or ends too soon, and what is left of it."""

import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.deadlines import carry_out

SECONDS = 20.0


def python(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_a_command_is_run_with_the_environment_given_and_its_start_is_told(tmp_path: Path) -> None:
    before = time.time()
    command = python("import os; print(os.environ['COLOUR'])")
    began = carry_out("it", command, output=tmp_path / "said", seconds=SECONDS, environment={"COLOUR": "blue"})
    assert before <= began <= time.time()
    assert (tmp_path / "said").read_text() == "blue\n"


def test_a_command_that_fails_is_named_with_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"the left side failed with exit code 3, expected 0: (?s:.*)alas"):
        carry_out("the left side", python("print('alas'); exit(3)"), output=tmp_path / "said", seconds=SECONDS)


def test_a_command_that_is_late_is_named_and_ended_with_all_below_it(tmp_path: Path) -> None:
    child = "import subprocess, sys; p = subprocess.Popen(['sleep', '60'], start_new_session=True); "
    command = python(child + "print(p.pid, flush=True); p.wait()")
    with pytest.raises(RuntimeError, match="the left side was not done after 2 s"):
        carry_out("the left side", command, output=tmp_path / "said", seconds=2.0)
    assert not psutil.pid_exists(int((tmp_path / "said").read_text()))


def test_a_command_is_interrupted_when_its_time_is_up(tmp_path: Path) -> None:
    command = python("import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: exit(130)")
    due = time.time() + 1.0
    carry_out("it", command, output=tmp_path / "said", seconds=SECONDS, interrupt_unix=due, expected=130)
    assert due <= time.time() < due + SECONDS


def test_a_command_heeds_interrupts_though_we_ignore_them(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        test_a_command_is_interrupted_when_its_time_is_up(tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_command_that_ends_before_its_time_is_up_is_an_error(tmp_path: Path) -> None:
    due = time.time() + SECONDS
    with pytest.raises(RuntimeError, match="it ended with exit code 0 before its time was up"):
        carry_out("it", python(""), output=tmp_path / "said", seconds=SECONDS, interrupt_unix=due, expected=130)
    assert time.time() < due
