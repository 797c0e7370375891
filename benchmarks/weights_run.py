"""One variant of publishing weights, in a process of its own, with an actor's process beside it.

`python -m benchmarks.weights_run REQUEST RESULT`, both JSON. In turn: one copy of the bytes by numpy, from warm memory
to warm memory, by one thread; a version published; the version opened by the actor, every page of it touched; its
checksums. Each is timed by the wall and by what the processor did, which a busy machine does not disturb.
"""

import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import torch
from torch import Tensor

from entrostat.actors.flat_buffer import SharedFiles, damaged
from entrostat.learner.probe import make_probe
from entrostat.learner.shared_memory import SharedMemoryPublisher
from entrostat.learner.weights import as_tensor, layout, manifest, specs
from entrostat.protocol import wire
from entrostat.protocol.buckets import checksums, pieces
from entrostat.protocol.messages import PolicyVersion, Probe, SharedFile, WeightsManifest

PAGE = 4096
ANSWER_SECONDS = 300.0

Clock = dict[str, float]  # wall and cpu, seconds


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure."""

    variant: str  # "reused" or "fresh"
    threads: int
    layers: int
    hidden: int
    intermediate: int
    key_value: int  # width of keys, and of values
    vocabulary: int
    rounds: int


class Sender(Protocol):
    """What publishes."""

    def publish(self, version: PolicyVersion, tensors: Mapping[str, Tensor], probe: Probe) -> WeightsManifest:
        """See `learner.weights.Publisher`."""
        ...

    def close(self) -> None:
        """Frees every version."""
        ...


class FreshFiles:
    """As it was before files were used again: a new one per version, filled tensor by tensor by torch."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._paths: list[Path] = []

    def publish(self, version: PolicyVersion, tensors: Mapping[str, Tensor], probe: Probe) -> WeightsManifest:
        """See `Sender`."""
        places, size = layout(tensors)
        while len(self._paths) >= 2:
            self._paths.pop(0).unlink()
        path = self._folder / str(version)
        with path.open("xb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
        buffer = np.memmap(path, np.uint8, "r+")
        flat = as_tensor(buffer)
        for place in places:
            if not place.shared:
                piece = flat[place.offset : place.offset + place.bytes]
                piece.view(place.dtype).view(place.tensor.shape).copy_(place.tensor)
        self._paths.append(path)
        return manifest(
            version, specs(buffer, places), size, SharedFile(host=os.uname().nodename, path=str(path)), probe
        )

    def close(self) -> None:
        """See `Sender`."""
        for path in self._paths:
            path.unlink()


def policy(request: Request) -> tuple[Tensor, dict[str, Tensor]]:
    """Random bfloat16 weights, shaped as a decoder's with a tied head: all of them `[bytes]`, and by name."""
    wide, inner, narrow = request.hidden, request.intermediate, request.key_value
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (request.vocabulary, wide)}
    for layer in range(request.layers):
        shapes |= {
            f"model.layers.{layer}.{name}.weight": shape
            for name, shape in {
                "self_attn.q_proj": (wide, wide),
                "self_attn.k_proj": (narrow, wide),
                "self_attn.v_proj": (narrow, wide),
                "self_attn.o_proj": (wide, wide),
                "mlp.gate_proj": (inner, wide),
                "mlp.up_proj": (inner, wide),
                "mlp.down_proj": (wide, inner),
                "input_layernorm": (wide,),
                "post_attention_layernorm": (wide,),
            }.items()
        }
    shapes["model.norm.weight"] = (wide,)
    sizes = {name: 2 * int(np.prod(shape)) for name, shape in shapes.items()}
    flat = torch.from_numpy(np.random.default_rng(0).integers(0, 255, sum(sizes.values()), dtype=np.uint8))
    tensors, end = {}, 0
    for name, shape in shapes.items():
        tensors[name] = flat[end : end + sizes[name]].view(torch.bfloat16).view(shape)
        end += sizes[name]
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    return flat, tensors


def timed(work: Callable[[], Any]) -> tuple[Any, Clock]:
    """What `work` returns, and what it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def actor(connection: Connection, threads: int) -> None:
    """Opens every version it is told of, keeps the one before as an engine does until the new one is accepted."""
    files = SharedFiles()
    while frame := connection.recv_bytes():
        version = wire.decode(np.frombuffer(frame, np.uint8), WeightsManifest)
        assert isinstance(version.location, SharedFile)
        location = version.location
        buffer, opened = timed(partial(files.hold, location, version.bytes))
        _, touched = timed(buffer[::PAGE].sum)
        wrong, checked = timed(partial(damaged, buffer, version.tensors, threads))
        assert not wrong, wrong
        del buffer
        files.keep([location.path])
        connection.send({"opened": opened, "touched": touched, "checked": checked})


def resident() -> int:
    """Bytes of this process's own memory now: shared pages are not counted."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(fields["RssAnon"].split()[0]) * 1024


def measure(request: Request) -> dict[str, Any]:
    """The rounds, one after another."""
    torch.set_num_threads(request.threads)
    flat, tensors = policy(request)
    source, target = flat.numpy(), np.ones(flat.nbytes, np.uint8)
    tokens = [np.arange(3, dtype=np.int32)]
    probe = make_probe(tokens, [np.zeros(2, np.float32)], None, 1.0)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=actor, args=(there, request.threads), daemon=True)
    process.start()
    rounds = []
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        publisher: Sender = (
            SharedMemoryPublisher("benchmark", Path(folder), request.threads)
            if request.variant == "reused"
            else FreshFiles(Path(folder))
        )
        before = resident()
        np.copyto(target, source)
        for step in range(request.rounds):
            version = PolicyVersion(branch=0, step=step)
            _, memcpy = timed(partial(np.copyto, target, source))
            made, published = timed(partial(publisher.publish, version, tensors, probe))
            _, checked = timed(partial(checksums, source, pieces(len(source)), request.threads))
            here.send_bytes(wire.encode(made).tobytes())
            if not here.poll(ANSWER_SECONDS):
                raise TimeoutError(f"the actor did not answer within {ANSWER_SECONDS:.0f} s")
            rounds.append({"memcpy": memcpy, "published": published, "own_check": checked} | here.recv())
            if isinstance(publisher, SharedMemoryPublisher):
                rounds[-1]["phases"] = {
                    name: getattr(publisher.seconds, name) for name in ("room", "copy", "checksums")
                }
        held = sum(file.stat().st_blocks * 512 for file in Path(folder).rglob("*") if file.is_file())
        grown = resident() - before
        here.send_bytes(b"")
        process.join(ANSWER_SECONDS)
        publisher.close()
    return {
        "bytes": flat.nbytes,
        "rounds": rounds,
        "shared_bytes": held,
        "grown_bytes": grown,
    }


def main() -> None:
    request = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Request)
    Path(sys.argv[2]).write_text(json.dumps(measure(request)))


if __name__ == "__main__":
    main()
