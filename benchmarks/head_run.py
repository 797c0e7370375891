"""One measurement of a head in a process of its own: `python -m benchmarks.head_run REQUEST RESULT`, both JSON."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_head import selections
from benchmarks.head_ways import WAYS, Inputs, inputs

KIBIBYTE = 1024


def seconds_in_turn(names: list[str], made: Inputs, repeats: int) -> dict[str, list[float]]:
    """Each way once a round, so that what slows the machine slows all; a first round doesn't count."""
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats + 1):
        for name in names:
            made[0].grad = made[1].grad = None
            began = time.perf_counter()
            WAYS[name](*made)
            if turn:
                found[name].append(time.perf_counter() - began)
    return found


def peak_bytes(name: str, made: Inputs) -> int:
    """What the process holds at most while it goes this way, beyond its inputs."""
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = _status("VmRSS")
    WAYS[name](*made)
    return _status("VmHWM") - before


def _status(field: str) -> int:
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith(field))
    return int(line.split()[1]) * KIBIBYTE


def main() -> None:
    """Measures what the request asks for."""
    request: dict[str, Any] = json.loads(Path(sys.argv[1]).read_bytes())
    torch.set_num_threads(request["threads"])
    if request["what"] == "selection":
        found = selections(request["tokens"], request["vocabulary"], torch.device("cpu"), request["repeats"])
        Path(sys.argv[2]).write_text(json.dumps({name: one.seconds for name, one in found.items()}))
        return
    made = inputs(request["tokens"], request["width"], request["vocabulary"], getattr(torch, request["dtype"]))
    if request["what"] == "peak":
        told: Any = peak_bytes(request["ways"][0], made)
    else:
        told = seconds_in_turn(request["ways"], made, request["repeats"])
    Path(sys.argv[2]).write_text(json.dumps(told))


if __name__ == "__main__":
    main()
