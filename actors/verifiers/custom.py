"""Judges with a function of the user's."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import SupportsFloat

import msgspec

from entrostat.protocol.errors import TaskError
from entrostat.protocol.messages import STATUSES, Prompt, Verdict
from entrostat.protocol.task_settings import TaskSettings
from entrostat.protocol.verifier_settings import Custom, parts_of

IMPORT_SECONDS = 60.0


class CustomVerifier:
    """`module:function`, called as `function(prompt, text)` in the verifier's process, with its limits.

    It returns a `Verdict`, a reward from 0 to 1 (1 is correct, less is wrong), or true or false. What it raises, and
    anything else that it returns, is an error. The module is found as `python -m` finds one: in the directory that the
    command was called from, or on PYTHONPATH.
    """

    def __init__(self, settings: Custom) -> None:
        """Imports it.

        Raises:
            TaskError: there is no such module or function, or importing it fails.
        """
        self._name = settings.function
        self._function = load(settings.function)

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        """What the function says `text` is worth; whatever it raises is raised.

        Raises:
            TypeError: it returns neither a Verdict nor a number.
            ValueError: the number is not from 0 to 1, or the Verdict's status is none.
        """
        result = self._function(prompt, text)
        if isinstance(result, Verdict):
            return self._checked(result)
        if not isinstance(result, SupportsFloat):
            raise TypeError(
                f"{self._name} returned {result!r:.60}; expected a Verdict, a number from 0 to 1, or a bool"
            )
        reward = float(result)
        if not 0.0 <= reward <= 1.0:
            raise ValueError(f"{self._name} returned {reward:g}; expected a number from 0 to 1, or a Verdict")
        return Verdict(reward=reward, status="correct" if reward >= 1.0 else "wrong", seconds=0.0)

    def _checked(self, verdict: Verdict) -> Verdict:
        """The verdict, if it can be sent and counted: a Struct does not check what it is made of."""
        try:
            whole = msgspec.convert(msgspec.to_builtins(verdict), Verdict)
        except (msgspec.ValidationError, TypeError) as error:
            raise TypeError(f"{self._name} returned a Verdict that is none: {error}") from error
        if not -1e9 < whole.reward < 1e9:
            raise ValueError(f"{self._name} returned a reward of {whole.reward:g}; expected a finite number")
        assert whole.status in STATUSES
        return whole


def load(name: str) -> Callable[[Prompt, str], object]:
    """The function that `module:function` names.

    Raises:
        TaskError: says what is missing, and where it was looked for.
    """
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:  # noqa: PTH109 — entries of sys.path are text
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise TaskError(
            f"the verifier {name} can't be imported ({error}): expected {module_name.replace('.', '/')}.py in the "
            f"current directory {os.getcwd()} or on PYTHONPATH"  # noqa: PTH109
        ) from error
    except Exception as error:  # a user's module may raise anything
        raise TaskError(f"the verifier {name} can't be imported: {type(error).__name__}: {error}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        own = {one: value for one, value in vars(module).items() if getattr(value, "__module__", "") == module_name}
        known = [one for one, value in own.items() if callable(value) and not one.startswith("_")]
        raise TaskError(
            f"the verifier {name}: {module.__file__} has no function {function_name}; it has "
            f"{', '.join(known[:10]) or 'none'}"
        )
    return function  # type: ignore[no-any-return]


def check_functions(tasks: Sequence[TaskSettings]) -> None:
    """Sees that the users' functions of these tasks can be imported, in a process like a verifier's.

    Their modules stay out of this process, and what they print too.

    Raises:
        TaskError: one can't be, or importing it takes longer than a minute.
    """
    names = sorted({one.function for task in tasks for one in parts_of(task.verifier) if isinstance(one, Custom)})
    if not names:
        return
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
        "PYTHONDONTWRITEBYTECODE": "1",
        "LANG": "C.UTF-8",
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", "entrostat.actors.verifiers.custom", *names],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=IMPORT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise TaskError(f"importing {', '.join(names)} takes longer than {IMPORT_SECONDS:g} s") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise TaskError(said[-1] if said else f"importing {', '.join(names)} ended with code {done.returncode}")


if __name__ == "__main__":
    try:
        for each in sys.argv[1:]:
            load(each)
    except TaskError as failure:
        sys.exit(" ".join(str(failure).split()))
