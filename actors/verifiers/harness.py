"""Runs one program in its confined process: against what stands on its input, by calling it, or with assertions.

Standard library only. Replies are lines of JSON on RESULTS; "ready" follows the program's own top level.
"""

import atexit
import builtins
import io
import json
import os
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

RESULTS, SECRETS = 3, 4  # file descriptors: replies out, the secret in
SECRET_BYTES = 32
NOT_A_PROGRAM = 71  # exit code: a text without a fence that does not compile
DOES_NOT_COMPILE = 72
RAISED = 1
_EXEC, _COMPILE = exec, compile  # as they are before a program can put others in their place


def run(payload: bytes) -> None:
    """Runs the program that `payload` describes and ends the process; never returns."""
    code = RAISED
    try:
        code = _run(json.loads(payload))
    except SystemExit as ending:
        code = _exit_code(ending)
    except BaseException as error:  # noqa: BLE001 — whatever the program raises is its own failure
        _complain(error)
    finally:
        os._exit(_finish(code))


def _run(job: dict[str, Any]) -> int:
    _open_streams()
    try:
        program = compile(job["program"], "program.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, MemoryError, RecursionError, OverflowError) as error:
        _complain(error)
        return NOT_A_PROGRAM if job["bare"] else DOES_NOT_COMPILE
    calls = job["calls"] is not None
    asserts = job["asserts"] is not None
    module = types.ModuleType("solution" if calls or asserts else "__main__")
    sys.modules[module.__name__] = module
    exec(program, module.__dict__)  # this is what the process is for
    if calls or asserts:
        os.write(RESULTS, b"ready\n")
    if calls:
        _call(module.__dict__, job["calls"], job["function"])
    if asserts:
        _assert(module.__dict__, job["asserts"], job["function"])
    return 0


def _call(names: dict[str, Any], calls: list[list[Any]], function: str) -> None:
    """Calls the function (or the method of a class `Solution`); values go out as JSON and are compared elsewhere."""
    write, dumps = os.write, json.dumps
    for number, arguments in enumerate(calls):
        try:
            target = _function(names, function)
            reply = {"test": number, "value": target(*arguments)}
            line = dumps(reply)
        except Exception as error:  # noqa: BLE001 — the program's failure in this test
            line = dumps({"test": number, "error": _said(error)})
        _write_all(write, line.encode() + b"\n")


def _assert(names: dict[str, Any], tests: list[str], entry_point: str) -> None:
    """Runs each test after the program; only a line with the secret says that one passed."""
    secret = os.read(SECRETS, SECRET_BYTES).decode()
    write, dumps = os.write, json.dumps
    for number, test in enumerate(tests):
        try:
            _EXEC(_COMPILE(test, "test.py", "exec", dont_inherit=True), names)
            if entry_point and "check" in names:
                names["check"](_function(names, entry_point))
            line = dumps({"test": number, "secret": secret})
        except Exception as error:  # noqa: BLE001 — the program's failure in this test
            line = dumps({"test": number, "error": _said(error)})
        _write_all(write, line.encode() + b"\n")


def _function(names: dict[str, Any], function: str) -> Callable[..., Any]:
    if function in names:
        found: Callable[..., Any] = names[function]
    else:
        found = getattr(names["Solution"](), function) if "Solution" in names else names[function]
    return found


def _write_all(write: Callable[[int, bytes], int], line: bytes) -> None:
    while line:
        line = line[write(RESULTS, line) :]


def _open_streams() -> None:
    """UTF-8 whatever the machine's language; `exit` and `quit`, which programs use and `site` would bring."""
    reader = io.TextIOWrapper(io.BufferedReader(io.FileIO(0)), "utf-8", "replace")
    for name, stream in (("stdin", reader), ("stdout", _writer(1)), ("stderr", _writer(2))):
        for each in (name, f"__{name}__"):
            setattr(sys, each, stream)
    for name in ("exit", "quit"):
        setattr(builtins, name, sys.exit)
    sys.argv = ["program.py"]


def _writer(descriptor: int) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BufferedWriter(io.FileIO(descriptor, "w")), "utf-8", "backslashreplace")


def _finish(code: int) -> int:
    """What an interpreter does at its end: waits for threads, runs what was registered, writes what is buffered."""
    try:
        vars(threading)["_shutdown"]()
        vars(atexit)["_run_exitfuncs"]()
        for stream in (sys.stdout, sys.__stdout__):
            if stream is not None:
                stream.flush()
    except BaseException as error:  # noqa: BLE001 — whatever the program registered
        _complain(error)
        return code or RAISED
    return code


def _exit_code(ending: SystemExit) -> int:
    if ending.code is None:
        return 0
    return ending.code & 0xFF if isinstance(ending.code, int) else RAISED


def _said(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:200]
    except BaseException:  # noqa: BLE001 — the text of an error of the program's own making
        return type(error).__name__


def _complain(error: BaseException) -> None:
    line, trace = 0, error.__traceback__
    while trace is not None:
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == "program.py" else line
        trace = trace.tb_next
    said = _said(error) + (f" (line {line})" if line else "")
    try:
        os.write(2, said.encode(errors="backslashreplace") + b"\n")
    except OSError:
        return  # the program closed it
