"""A module of the benchmarks run in a process of its own: a JSON request in, a JSON result out."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.cells import ROOT

RUN_SECONDS = 5400  # at most for one run
SHOWN = 2000  # characters of what a failed run wrote


def run(name: str, module: str, request: Mapping[str, Any], arguments: Callable[[str, str], list[str]]) -> Any:
    """What `python -m MODULE ARGUMENTS` wrote.

    Args:
        name: what the run is called in errors.
        module: of the benchmarks.
        request: JSON.
        arguments: from the paths of request and result to the module's arguments.

    Raises:
        RuntimeError: it failed, took too long, or wrote nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, target, output = (Path(folder, file) for file in ("request.json", "result.json", "output.txt"))
        source.write_text(json.dumps(request))
        with output.open("w") as stream:
            try:
                code = subprocess.run(
                    [sys.executable, "-m", module, *arguments(str(source), str(target))],
                    cwd=ROOT,
                    env=os.environ | {"OMP_NUM_THREADS": "1"},
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    timeout=RUN_SECONDS,
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired as error:
                raise RuntimeError(f"{name} was not done after {RUN_SECONDS} s") from error
        if code or not target.is_file():
            raise RuntimeError(f"{name} failed with exit code {code}: {output.read_text()[-SHOWN:]}")
        return json.loads(target.read_bytes())
