"""Judges Python programs by unit tests, each run in a confined process of its own (see `sandbox.py`).

What is printed or returned is compared here, outside of the program's process, so it can't be forged. Assertions run
beside the program: one passes only if a secret comes back that the program's process is given after the program's own
top level, so neither `sys.exit(0)` nor a printed word passes. A program written against this very harness still can
(it finds the secret in the process's memory), as can objects that equal everything: prefer inputs and outputs.
"""

import contextlib
import json
import math
import time
import weakref
from functools import lru_cache
from pathlib import Path
from signal import Signals
from typing import Any

from entrostat.actors.verifiers.answers import after_thinking
from entrostat.actors.verifiers.code_tests import (
    Asserted,
    Called,
    Tests,
    Written,
    read_tests,
    same_return,
    same_text,
)
from entrostat.actors.verifiers.harness import DOES_NOT_COMPILE, NOT_A_PROGRAM
from entrostat.actors.verifiers.sandbox import Run, Sandbox, require_confinement
from entrostat.protocol.messages import Prompt, Status, Verdict
from entrostat.protocol.verifier_settings import Code

FENCE = "```"
PYTHON = ("python", "python3", "py")
TIMES = ("test_seconds", "total_seconds")


class CodeVerifier:
    """All tests passed is worth 1; with `partial`, their share. No program at all is unparsable."""

    def __init__(self, settings: Code, scratch: Path | None = None) -> None:
        """Tries whether programs can be confined here; starts nothing that stays.

        Args:
            settings: limits.
            scratch: a private folder; without one, the system's temporary one is used.

        Raises:
            TaskError: they can't, and the settings do not allow it.
        """
        if not settings.unconfined:
            require_confinement()
        self._settings = settings
        self._sandbox = Sandbox(
            scratch,
            memory_mib=settings.memory_mib,
            file_mib=settings.file_mib,
            cpu_seconds=math.ceil(settings.total_seconds) + 1,
            packages=settings.packages,
            unconfined=settings.unconfined,
        )
        weakref.finalize(self, self._sandbox.close)

    def close(self) -> None:
        """Ends what was started; the next program starts it again."""
        self._sandbox.close()

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        """What the program in `text` is worth.

        Raises:
            ValueError: the prompt's own tests can't be read.
            SandboxLost: no program can be run.
        """
        try:
            tests = _tests(prompt.answer)
        except ValueError as error:
            raise ValueError(f"the tests of {prompt.name} can't be read: {error}") from error
        program, fenced = program_of(text)
        if not program.strip():
            return Verdict(reward=0.0, status="unparsable", seconds=0.0, detail="no program: it is empty")
        trial = _Trial(self._sandbox, self._settings, {"program": program, "bare": not fenced})
        match tests:
            case Written():
                count = len(tests.inputs)
                trial.write(tests)
            case Called():
                count = len(tests.inputs)
                trial.call(tests)
            case Asserted():
                count = len(tests.tests)
                trial.check(tests)
        return _verdict(trial, count, self._settings.partial)


class _Trial:
    """One program against the tests: how many passed, and the first failure."""

    def __init__(self, sandbox: Sandbox, settings: Code, program: dict[str, Any]) -> None:
        self.passed = 0
        self.status: Status = "correct"
        self.detail = ""
        self._sandbox, self._settings, self._program = sandbox, settings, program
        self._end = time.monotonic() + settings.total_seconds

    def write(self, tests: Written) -> None:
        """One process per test, until one fails; with `partial` until one ends for its time or does not compile."""
        for number, (given, expected) in enumerate(zip(tests.inputs, tests.outputs, strict=True)):
            run = self._run({"calls": None, "asserts": None}, given.encode(errors="replace"))
            failure = self._failure(run, number)
            if failure or run.code != 0:
                failure = failure or f"test {number + 1}: {_ending(run)}"
            elif not same_text(run.output.decode(errors="replace"), expected, self._settings.tolerance):
                failure = f"test {number + 1}: another output"
            self._count(failure)
            if failure and (not self._settings.partial or self.status != "wrong" or run.code == DOES_NOT_COMPILE):
                return

    def call(self, tests: Called) -> None:
        """All calls in one process; those after one that ended it are not passed."""
        job = {"calls": tests.inputs, "asserts": None, "function": tests.function}
        run = self._run(job, replies=len(tests.inputs))
        replies = _replies(run)
        for number, expected in enumerate(tests.outputs):
            reply = replies.get(number)
            if reply is None:
                return self._count(self._failure(run, number) or f"test {number + 1}: {_ending(run)}")
            if "error" in reply or "value" not in reply:
                self._count(f"test {number + 1}: {reply.get('error')}")
            else:
                right = same_return(reply["value"], expected, self._settings.tolerance)
                self._count("" if right else f"test {number + 1}: another value")
        return None

    def check(self, tests: Asserted) -> None:
        """All assertions in one process, after the program."""
        job = {"calls": None, "asserts": tests.tests, "function": tests.entry_point}
        run = self._run(job, replies=len(tests.tests))
        replies = _replies(run)
        for number in range(len(tests.tests)):
            reply = replies.get(number)
            if reply is None:
                return self._count(self._failure(run, number) or f"test {number + 1}: {_ending(run)}")
            right = reply.get("secret") == run.secret
            self._count("" if right else f"test {number + 1}: {reply.get('error', 'forged')}")
        return None

    def _run(self, job: dict[str, Any], given: bytes = b"", replies: int = 0) -> Run:
        return self._sandbox.run(
            json.dumps({**self._program, **job}).encode(),  # half a surrogate pair travels as an escape
            given,
            test_seconds=self._settings.test_seconds,
            total_seconds=max(0.0, self._end - time.monotonic()),
            replies=replies,
        )

    def _failure(self, run: Run, number: int) -> str:
        """Why no test after this one can pass; sets the status."""
        if run.killed in TIMES:
            self.status = "timeout"
            limit = self._settings.test_seconds if run.killed == "test_seconds" else self._settings.total_seconds
            return f"test {number + 1} was not over within {limit:g} s ({run.killed})"
        if run.code == NOT_A_PROGRAM:
            self.status = "unparsable"
            return f"no program: {run.complaint.strip()}"
        if run.code == DOES_NOT_COMPILE:
            return f"does not compile: {run.complaint.strip()}"
        return ""

    def _count(self, failure: str) -> None:
        if not failure:
            self.passed += 1
            return
        if self.status == "correct":
            self.status = "wrong"
        self.detail = self.detail or failure


def program_of(text: str) -> tuple[str, bool]:
    """The program in a response, and whether a fence said so: the last ```python block, else the last block, else all.

    Looked at is what follows the last `</think>`. A block that is not closed goes to the end; one that stands further
    in, as in a list, begins where its fence does.
    """
    text = after_thinking(text)
    last = last_python = None
    block: list[str] | None = None
    language, margin = "", 0
    for line in text.split("\n"):
        bare = line.strip()
        if block is None and bare.startswith(FENCE):
            block, language = [], bare.strip("`").strip().lower().partition(" ")[0]
            margin = len(line) - len(line.lstrip())
        elif block is not None and bare.startswith(FENCE) and not bare.strip("`"):
            last, last_python = block, block if language in PYTHON else last_python
            block = None
        elif block is not None:
            block.append(line[min(margin, len(line) - len(line.lstrip())) :])
    if block:
        last, last_python = block, block if language in PYTHON else last_python
    found = last_python if last_python is not None else last
    return (text, False) if found is None else ("\n".join(found), True)


@lru_cache(maxsize=8)  # the G samples of a prompt come one after another, and tests may be megabytes
def _tests(answer: str) -> Tests:
    return read_tests(answer)


def _replies(run: Run) -> dict[int, dict[str, Any]]:
    """The first reply to each test; what is no reply of the harness is the program's, and none."""
    found: dict[int, dict[str, Any]] = {}
    for line in run.replies.split(b"\n")[1:]:
        with contextlib.suppress(ValueError, RecursionError):
            reply = json.loads(line)
            if isinstance(reply, dict) and isinstance(reply.get("test"), int):
                found.setdefault(reply["test"], reply)
    return found


def _ending(run: Run) -> str:
    """How a program ended that should have gone on."""
    if run.killed:
        return f"killed: too much {run.killed}" if run.killed != "threads" else "killed: too many threads"
    complaint = run.complaint.strip().rpartition("\n")[2]
    if run.code is not None and run.code < 0:
        with contextlib.suppress(ValueError):
            return f"ended by {Signals(-run.code).name}"
    return complaint or f"ended with code {run.code}"


def _verdict(trial: _Trial, count: int, partial: bool) -> Verdict:
    if trial.passed == count and trial.status == "correct":
        return Verdict(reward=1.0, status="correct", seconds=0.0)
    reward = trial.passed / count if partial else 0.0
    return Verdict(reward=reward, status=trial.status, seconds=0.0, detail=trial.detail[:300])
