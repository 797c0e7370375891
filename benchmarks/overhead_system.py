"""The whole system with stations that do next to nothing: what a step costs on the critical path and in processor time.

A step is 32 groups of 16 × 2,048 tokens. Critical path: what stands between the learner's end of a step and the next
one's groups in its hands, decoded; on-policy also what stands between a step's weights and the actor's next request,
and between the last group and the learner. Processor time: all of every process, but for the learner's own arithmetic.
"""

import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil

from benchmarks import overhead_stations, paced_learner
from benchmarks.cells import ROOT
from benchmarks.deadlines import carry_out

TOML = "benchmarks/overhead.toml"
POLICY = "examples/starter/policy"
CONTEXT_TOKENS = 4096  # of the policy's copy
SAMPLING_SECONDS = 1.0
START_SECONDS = 120.0  # at most
STATIONS = {
    "ControllerActor": "controller",
    "BufferActor": "buffer",
    "SteadyActor": "actor",
    "FewTokensLearner": "learner",
    "overhead_stations": "driver",
    "gcs_server": "Ray",
    "raylet": "Ray",
    "ray": "Ray",
}
Result = dict[str, Any]
Moment = dict[str, Any]


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One run."""

    staleness: int
    groups_seconds: float  # in which a batch's groups are made
    learn_seconds: float
    first: int  # steps that are left out
    steps: int


class Processes:
    """The processor time of every process below this one, again and again, until it is left."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[str, list[tuple[float, float]]]] = {}  # pid → name, (moment, seconds)
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="processes", daemon=True)

    def __enter__(self) -> "Processes":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join(10.0)

    def used(self, begin: float, end: float) -> dict[str, float]:
        """Seconds between two moments, by the part of the system."""
        found: dict[str, float] = {}
        for name, series in self.seen.values():
            moments, seconds = np.array(series).T
            first, last = np.interp([begin, end], moments, seconds)
            found[name] = found.get(name, 0.0) + float(last - first)
        return found

    def _watch(self) -> None:
        while not self._left.wait(SAMPLING_SECONDS):
            for process in psutil.Process().children(recursive=True):
                try:
                    used, now = process.cpu_times(), time.monotonic()
                    name = part_of(" ".join(process.cmdline()))  # a worker of Ray's has another one later
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
                _, series = self.seen.get(process.pid, ("", []))
                series.append((now, used.user + used.system))
                self.seen[process.pid] = (name, series)


def part_of(words: str) -> str:
    """Which part of the system a process with this command line is."""
    return next((part for name, part in STATIONS.items() if name in words), "others")


def run(request: Request) -> Result:
    """The run's costs, per step.

    Raises:
        RuntimeError: it failed, or took too long.
    """
    total = request.first + request.steps
    with tempfile.TemporaryDirectory() as folder:
        directory, policy = Path(folder, "run"), Path(folder, "policy")
        shutil.copytree(ROOT / POLICY, policy)
        content = json.loads((policy / "config.json").read_text())
        (policy / "config.json").write_text(json.dumps(content | {"max_position_embeddings": CONTEXT_TOKENS}))
        settings = [
            f"run.name=overhead-{os.getpid()}",
            f"run.steps={total + 1}",  # nothing comes after the last
            f"model.path={policy}",
            f"rollout.max_staleness={request.staleness}",
        ]
        command = [sys.executable, "-m", "benchmarks.overhead_stations", "train", TOML, "--run", str(directory)]
        with Processes() as processes:
            carry_out(
                f"overhead at staleness {request.staleness}",
                [*command, *(word for setting in settings for word in ("--set", setting))],
                output=Path(folder, "output.txt"),
                seconds=START_SECONDS + 2 * (total + 2) * (request.groups_seconds + request.learn_seconds),
                environment={
                    "PYTHONPATH": str(ROOT),
                    "OMP_NUM_THREADS": "1",
                    paced_learner.VARIABLE: str(request.learn_seconds),
                    overhead_stations.VARIABLE: str(request.groups_seconds),
                },
            )
        actor, learner = (read(directory / f"{name}.jsonl") for name in ("actor", "learner"))
    trained = [one for one in learner if one["what"] == "trained"][request.first - 1 : total]
    begin, end = trained[0]["at"], trained[-1]["at"]
    used = {name: seconds / request.steps for name, seconds in processes.used(begin, end).items()}
    used["learner"] = used.get("learner", 0.0) - sum(one["work"] for one in trained[1:]) / request.steps
    return {
        "step_seconds": (end - begin) / request.steps,
        "processor": used,
        "to_the_learner": handed_over(learner, trained[:-1]),
        "last_group": last_group(actor, learner, trained[:-1]),
        "to_the_actor": begun(actor, trained[:-1]),
        "load": os.getloadavg()[0],
    }


def read(file: Path) -> list[Moment]:
    """A diary's entries."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def handed_over(learner: Sequence[Moment], trained: Sequence[Moment]) -> list[float]:
    """From the end of each of these steps to the next one's groups, decoded. Seconds."""
    decoded = {one["step"]: one["at"] for one in learner if one["what"] == "decoded"}
    return [decoded[one["step"] + 1] - one["at"] for one in trained]


def last_group(actor: Sequence[Moment], learner: Sequence[Moment], trained: Sequence[Moment]) -> list[float]:
    """From the last group of each next step's to all of them in the learner's hands, decoded. Seconds."""
    done = {one["lease"]: one["at"] for one in actor if one["what"] == "done"}
    decoded = {one["step"]: one for one in learner if one["what"] == "decoded"}
    following = [decoded[one["step"] + 1] for one in trained]
    return [one["at"] - max(done[lease] for lease in one["leases"]) for one in following]


def begun(actor: Sequence[Moment], trained: Sequence[Moment]) -> list[float]:
    """From the end of each of these steps to the actor's next request after it had none. Seconds; some may lack one."""
    moments = [one["at"] for one in actor if one["what"] == "began"]
    gaps = [next((at - one["at"] for at in moments if at > one["at"]), None) for one in trained]
    return [gap for gap in gaps if gap is not None]
