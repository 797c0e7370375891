"""A fork server whose verifier does whatever a response says: Python code, which may set `reward`.

It imports none of the libraries, so that it starts at once.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from entrostat.actors.verifiers import server
from entrostat.protocol.messages import Prompt, Verdict
from entrostat.protocol.task_settings import TaskSettings


class ObedientJudge:
    """In place of the real `Judge`."""

    def __init__(self, tasks: Sequence[TaskSettings], scratch: Path | None = None) -> None:
        self._tasks, self._scratch = tasks, scratch

    def within(self, scratch: Path) -> "ObedientJudge":
        return ObedientJudge(self._tasks, scratch)

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        names: dict[str, object] = {"scratch": self._scratch, "reward": 1.0, "detail": str(os.getpid())}
        exec(text, names)
        reward = float(str(names["reward"]))
        return Verdict(
            reward=reward, status="correct" if reward > 0 else "wrong", seconds=0.0, detail=str(names["detail"])
        )


if __name__ == "__main__":
    server.Judge = ObedientJudge  # type: ignore[assignment,misc]
    server.warm_up = lambda tasks: None
    sys.exit(server.main(int(sys.argv[1])))
