"""What judging a program costs: `python -m benchmarks.programs`; two minutes on a quiet machine.

One process, one program at a time. Beside it stands what a new interpreter costs, so that machines can be compared.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

from entrostat.actors.verifiers.code import CodeVerifier
from entrostat.protocol.messages import Prompt
from entrostat.protocol.verifier_settings import Code

REPEATS = 200
CASES: dict[str, tuple[object, str]] = {
    "1 output": ({"inputs": [""], "outputs": ["42"]}, "print(42)"),
    "10 outputs": ({"inputs": [""] * 10, "outputs": ["42"] * 10}, "print(42)"),
    "10 calls": ({"fn_name": "f", "inputs": [[1]] * 10, "outputs": [1] * 10}, "def f(x): return x"),
    "3 assertions": (["assert f(1) == 1"] * 3, "def f(x): return x"),
}


def main() -> None:
    """Prints the median and the tenth percentile of each case, in milliseconds."""
    fresh = [sys.executable, "-I", "-S", "-c", "pass"]
    _show("a new interpreter", lambda: subprocess.run(fresh, check=True))
    verifier = CodeVerifier(Code())
    for name, (tests, program) in CASES.items():
        prompt = Prompt(id=0, name=name, level="", task=0, text="", answer=json.dumps(tests), entry="")
        if verifier.verify(prompt, program).status != "correct":
            raise RuntimeError(f"{name}: the program is right, and was not judged so")
        _show(name, partial(verifier.verify, prompt, program))
    verifier.close()


def _show(name: str, action: Callable[[], object]) -> None:
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    seconds.sort()
    print(f"{name:20s} median {1000 * seconds[REPEATS // 2]:6.1f} ms, tenth {1000 * seconds[REPEATS // 10]:6.1f} ms")


if __name__ == "__main__":
    main()
