"""A command with a deadline, in a session of its own: one that is not done in time is ended with all below it."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from benchmarks.cells import ROOT

SHOWN = 12_000  # characters of what a failed command wrote: what failed stands above its launcher's own words
END_SECONDS = 10.0


def carry_out(
    name: str,
    command: Sequence[str],
    *,
    output: Path,
    seconds: float,
    environment: Mapping[str, str] | None = None,
    interrupt_unix: float = 0.0,
    expected: int = 0,
) -> float:
    """Runs a command to its end; returns when it was given, Unix time.

    Args:
        name: what it is called in errors.
        command: the program and its arguments.
        output: where what it says goes.
        seconds: the longest it may take; after an interrupt, the longest it may take to end.
        environment: added to this process's.
        interrupt_unix: when it gets a Ctrl-C; 0: never.
        expected: its exit code where all is well.

    Raises:
        RuntimeError: it failed, took too long, or ended before it was to be interrupted.
    """
    with output.open("w") as stream:
        began = time.time()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_heeding_interrupts,
        )
        try:
            if interrupt_unix:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = process.wait(max(0.0, interrupt_unix - time.time()))
                    raise RuntimeError(f"{name} ended with exit code {code} before its time was up: {_said(output)}")
                process.send_signal(signal.SIGINT)
            code = process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"{name} was not done after {seconds:.0f} s: {_said(output)}") from error
        finally:
            end(process)
    if code != expected:
        raise RuntimeError(f"{name} failed with exit code {code}, expected {expected}: {_said(output)}")
    return began


def end(process: "subprocess.Popen[bytes]") -> None:
    """Ends a process that still runs, and all below it."""
    if process.poll() is not None:
        return
    below = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for one in below:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait(END_SECONDS)
    psutil.wait_procs(below, END_SECONDS)


def _heeding_interrupts() -> None:
    # What a shell starts in the background ignores them, and so does all that it starts.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _said(output: Path) -> str:
    return output.read_text(errors="replace")[-SHOWN:]
