"""What publishing takes of memory, measured in a process of its own; torch's memory is seen by the kernel alone."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch

from entrostat.actors.flat_buffer import SharedFiles, damaged
from entrostat.learner.probe import make_probe
from entrostat.learner.shared_memory import ROOT, SharedMemoryPublisher
from entrostat.protocol.messages import PolicyVersion, SharedFile

NAME = "memory-test"
MIB = 1 << 20
VERSION_BYTES = 32 * MIB
SLACK_BYTES = 4 * MIB
WARM_UPDATES, UPDATES = 5, 200
DEADLINE_SECONDS = 240.0


def memory() -> dict[str, int]:
    """Bytes of this process, and its mapped and open files."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    wanted = {"VmHWM": "peak", "VmRSS": "all", "RssAnon": "own"}
    found = {name: int(fields[key].split()[0]) * 1024 for key, name in wanted.items()}
    mapped = sum(NAME in line for line in Path("/proc/self/maps").read_text().splitlines())
    return found | {"mapped": mapped, "files": len(list(Path("/proc/self/fd").iterdir()))}


def publish(connection: Connection, updates: int, reading: bool) -> None:
    """Sends the memory before the first update, after some, and after all; with it what lies in shared memory."""
    tensors = {str(i): torch.randn(VERSION_BYTES // 4 // 8) for i in range(8)}
    probe = make_probe([np.arange(3, dtype=np.int32)], [np.zeros(2, np.float32)], None, 1.0)
    publisher, files = SharedMemoryPublisher(NAME, threads=2), SharedFiles()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    connection.send(memory() | {"shared": 0})
    for step in range(updates):
        tensors["0"] += 1
        manifest = publisher.publish(PolicyVersion(branch=0, step=step), tensors, probe)
        assert isinstance(manifest.location, SharedFile)
        if reading:
            assert not damaged(files.hold(manifest.location, manifest.bytes), manifest.tensors)
            files.keep([manifest.location.path])
        if step + 1 in (WARM_UPDATES, updates):
            folder = Path(manifest.location.path).parent
            shared = sum(file.stat().st_blocks * 512 for file in folder.iterdir())
            connection.send(memory() | {"shared": shared})
    publisher.close()
    connection.send(list(map(str, ROOT.glob(f"entrostat-{NAME}-*"))))


@pytest.fixture
def measured() -> Callable[[int, bool], list[dict[str, int]]]:
    def measure(updates: int, reading: bool) -> list[dict[str, int]]:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=publish, args=(there, updates, reading), daemon=True)
        process.start()
        found = []
        for _ in range(3):
            assert here.poll(DEADLINE_SECONDS), "the publisher did not answer"
            found.append(here.recv())
        assert here.poll(DEADLINE_SECONDS)
        assert here.recv() == []
        process.join(DEADLINE_SECONDS)
        return found

    return measure


def test_two_hundred_updates_take_no_more_memory_than_five(
    measured: Callable[[int, bool], list[dict[str, int]]],
) -> None:
    _, some, all = measured(UPDATES, True)
    for name, allowed in {"all": SLACK_BYTES, "own": SLACK_BYTES, "mapped": 0, "files": 0}.items():
        assert all[name] - some[name] <= allowed, (name, some, all)
    assert all["shared"] == some["shared"] == 2 * VERSION_BYTES


def test_publishing_needs_two_versions_of_shared_memory_and_none_of_its_own(
    measured: Callable[[int, bool], list[dict[str, int]]],
) -> None:
    before, _, after = measured(WARM_UPDATES + 1, False)
    assert after["shared"] == 2 * VERSION_BYTES
    assert after["peak"] - before["all"] <= 2 * VERSION_BYTES + SLACK_BYTES
    assert after["own"] - before["own"] <= SLACK_BYTES
