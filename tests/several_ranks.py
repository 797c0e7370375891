"""Processes that are the ranks of a learner on this machine, and the same functions run on all of them."""

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from entrostat.learner.ranks import Ranks

ANSWER_SECONDS = 300.0


class SeveralRanks:
    """`count` processes that have joined each other; `seconds` is the longest they wait for one another."""

    def __init__(self, folder: Path, count: int = 2, seconds: float = 240.0) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Any] = []
        self._processes: list[Any] = []
        for number in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, str(folder / "store"), number, count, seconds), daemon=True
            )
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `function(ranks, *arguments)` returns on each rank, called on all of them at once."""
        for pipe in self._pipes:
            pipe.send((function, arguments))
        found = [self._answer(number) for number in range(len(self._pipes))]
        failed = [value for good, value in found if not good]
        assert not failed, "\n".join(failed)
        return [value for _, value in found]

    def kill(self, number: int) -> None:
        """As the kernel would."""
        self._processes[number].kill()
        self._processes[number].join()

    def close(self) -> None:
        """Ends them."""
        for number in range(len(self._processes)):
            self.kill(number)

    def _answer(self, number: int) -> tuple[bool, Any]:
        assert self._pipes[number].poll(ANSWER_SECONDS), f"rank {number} does not answer"
        answer: tuple[bool, Any] = self._pipes[number].recv()
        return answer


def _serve(pipe: "Connection[Any, Any]", store: str, number: int, count: int, seconds: float) -> None:
    import torch
    from torch.distributed import FileStore

    from entrostat.learner.ranks import join

    torch.set_num_threads(1)
    ranks: Ranks = join(FileStore(store, count), number, count, torch.device("cpu"), seconds)
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, function(ranks, *arguments)))
        except BaseException:  # noqa: BLE001 (the parent raises it)
            pipe.send((False, traceback.format_exc()))
