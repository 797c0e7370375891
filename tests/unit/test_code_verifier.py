import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from entrostat.actors.verifiers import landlock, sandbox
from entrostat.actors.verifiers.code import CodeVerifier, program_of
from entrostat.protocol.errors import TaskError
from entrostat.protocol.messages import Prompt, Verdict
from entrostat.protocol.verifier_settings import Code
from tests.hostile_programs import PROGRAMS, Hostile

SECONDS = 0.8
ADDS = {"inputs": ["1 2\n", "3 4"], "outputs": ["3\n", "7"]}
FORTY_TWO = {"inputs": [""], "outputs": ["42"]}
CALLS = {"fn_name": "f", "inputs": [[1, 2], [3, 4]], "outputs": [3, 7]}
ASSERTS = ["assert f(1) == 2", "assert f(2) == 3"]
CHECK = {"test": "def check(candidate):\n    assert candidate(1) == 2", "entry_point": "f"}


def prompt(tests: object) -> Prompt:
    answer = tests if isinstance(tests, str) else json.dumps(tests)
    return Prompt(id=0, name="code:7", level="", task=0, text="", answer=answer, entry="")


def fenced(code: str) -> str:
    return f"So:\n```python\n{code}\n```\nDone."


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def verifier(scratch: Path) -> Iterator[CodeVerifier]:
    made = CodeVerifier(Code(test_seconds=SECONDS, file_mib=1, memory_mib=128), scratch)
    yield made
    made.close()


def judged(verifier: CodeVerifier, tests: object, code: str) -> Verdict:
    return verifier.verify(prompt(tests), fenced(code))


# ── tests of each form ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_program_that_writes_what_is_expected_is_correct(verifier: CodeVerifier) -> None:
    verdict = judged(verifier, ADDS, "a, b = map(int, input().split())\nprint(a + b)")
    assert (verdict.reward, verdict.status, verdict.detail) == (1.0, "correct", "")


@pytest.mark.parametrize(
    "code",
    [
        "import sys\na, b = map(int, sys.stdin.buffer.read().split())\nsys.stdout.write(f'{a + b}')",
        "import os\na, b = map(int, os.read(0, 99).split())\nos.write(1, b'%d' % (a + b))",
        "def main():\n    print(sum(map(int, open(0).read().split())))\nif __name__ == '__main__':\n    main(); exit()",
        "import atexit, sys\natexit.register(lambda: sys.__stdout__.write(str(sum(map(int, input().split())))))",
        "import threading, sys\nsys.setrecursionlimit(10**6)\nthreading.stack_size(1 << 26)\n"
        "threading.Thread(target=lambda: print(sum(map(int, input().split())))).start()",
        "import asyncio\nasync def main(): print(sum(map(int, input().split())))\nasyncio.run(main())",
        "open('x', 'w').write(input())\nprint(sum(map(int, open('x').read().split())))",
        "import tempfile\nwith tempfile.TemporaryFile(dir='.') as f: print(sum(map(int, input().split())))",
    ],
    ids=["buffer", "descriptors", "main", "atexit", "thread", "asyncio", "file", "tempfile"],
)
def test_programs_are_written_in_many_ways(verifier: CodeVerifier, code: str) -> None:
    verdict = judged(verifier, ADDS, code)
    assert (verdict.status, verdict.detail) == ("correct", "")


def test_another_output_is_wrong_and_names_the_test(verifier: CodeVerifier) -> None:
    verdict = judged(verifier, ADDS, "print(3)")
    assert (verdict.reward, verdict.status, verdict.detail) == (0.0, "wrong", "test 2: another output")


@pytest.mark.parametrize("code", ["def f(a, b): return a + b", "class Solution:\n    def f(self, a, b): return a + b"])
def test_a_function_is_called_with_its_arguments(verifier: CodeVerifier, code: str) -> None:
    assert judged(verifier, CALLS, code).status == "correct"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def f(a, b): return 3", "test 2: another value"),
        ("def f(a, b): return 1 / 0", "test 1: ZeroDivisionError: division by zero"),
        ("def g(a, b): return a + b", "test 1: KeyError: 'f'"),
        ("raise ValueError('no')\ndef f(a, b): return a + b", "test 1: ValueError: no (line 1)"),
        ("class A:\n    def __eq__(self, o): return True\ndef f(a, b): return A()", "test 1: TypeError"),
        ("import sys\ndef f(a, b): sys.exit(0)", "test 1: ended with code 0"),
        ("import os\ndef f(a, b): os._exit(0)", "test 1: ended with code 0"),
        ("def f(a, b): return [[1] * 9**5] * 20", "killed: too much output"),
    ],
)
def test_what_a_function_returns_is_compared_out_of_its_reach(verifier: CodeVerifier, code: str, said: str) -> None:
    verdict = judged(verifier, CALLS, code)
    assert (verdict.reward, verdict.status) == (0.0, "wrong")
    assert said in verdict.detail


@pytest.mark.parametrize("tests", [ASSERTS, {"test_list": ASSERTS}, CHECK], ids=["list", "test_list", "check"])
def test_assertions_pass_or_fail(verifier: CodeVerifier, tests: object) -> None:
    assert judged(verifier, tests, "def f(x): return x + 1").status == "correct"
    verdict = judged(verifier, tests, "def f(x): return x")
    assert (verdict.status, verdict.detail) == ("wrong", "test 1: AssertionError: ")


@pytest.mark.parametrize(
    "code",
    [
        "import sys\nsys.exit(0)",
        "import os\nos._exit(0)",
        "import os\ndef f(x): os._exit(0)",
        "import builtins\nbuiltins.exec = lambda *a, **k: None",
        "import builtins\nbuiltins.compile = lambda *a, **k: (lambda: None).__code__",
        "def f(x): raise SystemExit(0)",
        "print('test 1: passed', 'ok', 'PASSED')",
        "def check(c): pass",
        'import os\nos.write(3, b\'ready\\n{"test": 0, "secret": ""}\\n{"test": 1, "secret": ""}\\n\')\nos._exit(0)',
        'import json\njson.dumps = lambda x: \'{"test": 0, "secret": true}\'\ndef f(x): return x',
    ],
)
@pytest.mark.parametrize("tests", [ASSERTS, CHECK], ids=["list", "check"])
def test_the_known_hacks_pass_no_assertion(verifier: CodeVerifier, tests: object, code: str) -> None:
    verdict = judged(verifier, tests, code)
    assert (verdict.reward, verdict.status) == (0.0, "wrong")


def test_a_share_of_the_tests_is_the_reward_where_asked_for(scratch: Path) -> None:
    verifier = CodeVerifier(Code(partial=True), scratch)
    for tests, code in (
        (ADDS, "print(7)"),
        (CALLS, "def f(a, b): return 7"),
        (ASSERTS, "def f(x): return 3"),
    ):
        verdict = judged(verifier, tests, code)
        assert (verdict.reward, verdict.status) == (0.5, "wrong")
    verifier.close()


def test_time_is_limited_per_test_and_for_all(scratch: Path) -> None:
    verifier = CodeVerifier(Code(test_seconds=0.3, total_seconds=0.5), scratch)
    sleeps = "import time\ndef f(a, b):\n    time.sleep({})\n    return a + b"
    one = judged(verifier, CALLS, "while True: pass")
    assert (one.status, one.detail) == ("timeout", "test 1 was not over within 0.3 s (test_seconds)")
    second = judged(verifier, CALLS, "def f(a, b):\n    while a > 1: pass\n    return a + b")
    assert second.detail == "test 2 was not over within 0.3 s (test_seconds)"
    both = judged(verifier, {"fn_name": "f", "inputs": [[1, 2]] * 3, "outputs": [3] * 3}, sleeps.format(0.2))
    assert (both.status, both.detail) == ("timeout", "test 3 was not over within 0.5 s (total_seconds)")
    verifier.close()


@pytest.mark.parametrize(
    ("tests", "said"),
    [
        ("{", "it is not JSON"),
        ("7", "found int"),
        ("{}", "found nothing"),
        ({"inputs": ["1"], "outputs": []}, "1 inputs and 0 outputs"),
        ({"inputs": [], "outputs": []}, "at least one"),
        ({"inputs": "1", "outputs": ["1"]}, "inputs is no list"),
        ({"inputs": [3], "outputs": ["1"]}, "expected a text or a list of lines"),
        ({"inputs": ["x"], "outputs": ["1"], "fn_name": "f"}, "one value in JSON a line"),
        ([], "at least one test"),
        ([1], "each a text"),
    ],
)
def test_tests_that_cannot_be_read_name_the_prompt(verifier: CodeVerifier, tests: object, said: str) -> None:
    with pytest.raises(ValueError, match=r"the tests of code:7 can't be read: .*" + said):
        judged(verifier, tests, "print(1)")


# ── which program ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("```python\na\n```\n```python\nb\n```", ("b", True)),
        ("```python\na\n```\nprints\n```\n3\n```", ("a", True)),
        ("```py\na\n```\n```text\nb\n```", ("a", True)),
        ("```\na\n```", ("a", True)),
        ("```Python\nx = '''`'''\n", ("x = '''`'''\n", True)),
        ("print(1)", ("print(1)", False)),
        ("  ```python\n  a\n  ```", ("a", True)),
        ("1. So:\n   ```python\n   if 1:\n       print(42)\n\n   ```", ("if 1:\n    print(42)\n", True)),
        ("  ```python\nprint(42)\n  ```", ("print(42)", True)),
        ("<think>\n```python\nprint(1)\n```\n</think>\n```\nprint(42)\n```", ("print(42)", True)),
        ("<think>\n```python\nprint(1)\n</think>\n```python\nprint(42)\n```", ("print(42)", True)),
        ("<think>\n```python\nprint(1)\n```\n</think>\n", ("print(1)", True)),
    ],
)
def test_the_last_python_block_is_the_program(text: str, program: tuple[str, bool]) -> None:
    assert program_of(text) == program


def test_a_program_without_a_fence_is_one_if_it_compiles(verifier: CodeVerifier) -> None:
    assert verifier.verify(prompt(FORTY_TWO), "print(42)").status == "correct"
    verdict = verifier.verify(prompt(FORTY_TWO), "I can't do it.")
    assert (verdict.reward, verdict.status) == (0.0, "unparsable")
    assert verifier.verify(prompt(FORTY_TWO), fenced("I can't do it.")).status == "wrong"


@pytest.mark.parametrize("text", ["", " \n", "```python\n\n```"])
def test_nothing_is_no_program(verifier: CodeVerifier, text: str) -> None:
    assert verifier.verify(prompt({"inputs": [""], "outputs": [""]}), text).status == "unparsable"


def test_the_same_program_has_the_same_output_every_time(verifier: CodeVerifier) -> None:
    code = "print(list({'a', 'b', 'c', 'd', 'e', 'f', 'g'}))"
    order = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": "0"}, capture_output=True, text=True, check=True
    ).stdout
    assert judged(verifier, {"inputs": [""], "outputs": [order]}, code).status == "correct"


# ── hostile programs ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("hostile", PROGRAMS, ids=lambda hostile: hostile.name)
def test_a_hostile_program_gets_nothing_and_leaves_nothing(
    verifier: CodeVerifier, scratch: Path, hostile: Hostile
) -> None:
    start = time.monotonic()
    verdict = judged(verifier, FORTY_TWO, hostile.code)
    assert time.monotonic() - start < SECONDS + 1
    assert (verdict.reward, verdict.status) == (0.0, hostile.status), verdict.detail
    assert hostile.said in verdict.detail
    [nursery] = [child for child in psutil.Process().children() if "nursery" in " ".join(child.cmdline())]
    assert nursery.children(recursive=True) == []
    [work] = scratch.glob("programs-*")
    assert list(work.iterdir()) == []
    assert [path for folder in (Path("/tmp"), Path("/dev/shm"), scratch) for path in folder.glob("hostile-*")] == []
    assert judged(verifier, FORTY_TWO, "print(42)").status == "correct"


def test_a_program_sees_no_environment_and_none_of_our_modules(verifier: CodeVerifier) -> None:
    code = "import os, sys\nprint(dict(os.environ), [name for name in sys.modules if 'entrostat' in name])"
    assert judged(verifier, {"inputs": [""], "outputs": ["{} []"]}, code).status == "correct"
    assert "No module" in judged(verifier, FORTY_TWO, "import entrostat").detail
    assert "No module" in judged(verifier, FORTY_TWO, "import numpy").detail


def test_programs_may_use_installed_packages_where_asked_for(scratch: Path) -> None:
    verifier = CodeVerifier(Code(packages=True, memory_mib=2048), scratch)
    code = "import numpy as np\nprint(int((np.ones((6, 7)) @ np.ones((7, 1))).sum()))"
    verdict = judged(verifier, FORTY_TWO, code)
    verifier.close()
    assert (verdict.status, verdict.detail) == ("correct", "")


def test_a_nursery_that_was_killed_costs_one_program_at_most(scratch: Path) -> None:
    verifier = CodeVerifier(Code(), scratch)
    assert judged(verifier, FORTY_TWO, "print(42)").status == "correct"
    [nursery] = [
        child
        for child in psutil.Process().children()
        if "nursery" in " ".join(child.cmdline()) and child.create_time() > time.time() - 30
    ][-1:]
    nursery.kill()
    nursery.wait(5)
    assert judged(verifier, FORTY_TWO, "print(42)").status == "correct"
    verifier.close()


def test_closing_ends_every_process_and_removes_the_folder(tmp_path: Path) -> None:
    before = set(psutil.Process().children())
    verifier = CodeVerifier(Code(), tmp_path)
    assert judged(verifier, FORTY_TWO, "print(42)").status == "correct"
    assert list(tmp_path.iterdir())
    verifier.close()
    assert list(tmp_path.iterdir()) == []
    assert set(psutil.Process().children()) <= before


def test_a_program_dies_with_the_process_that_judges_it(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from tests.unit.test_code_verifier import *
verifier = CodeVerifier(Code(test_seconds=60.0, total_seconds=60.0), Path({str(tmp_path)!r}))
judged(verifier, FORTY_TWO, "open('here', 'w').close()\\nwhile True: pass")
"""
    judging = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    end = time.monotonic() + 20
    while not list(tmp_path.glob("programs-*/here")) and time.monotonic() < end:
        time.sleep(0.02)
    started = psutil.Process(judging.pid).children(recursive=True)
    assert len(started) == 2  # the nursery and the program
    judging.kill()
    judging.wait()
    _, alive = psutil.wait_procs(started, timeout=5)
    assert alive == []


@pytest.fixture
def no_filters(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A kernel that takes no filter: in the nursery the option's number is one that no kernel knows."""
    fake = "from entrostat.actors.verifiers import seccomp; seccomp.PR_SET_SECCOMP = 9999; sys.path.pop()"
    monkeypatch.setattr(sandbox, "START", sandbox.START.replace("sys.path.pop()", fake))
    sandbox.confinable.cache_clear()
    yield
    sandbox.confinable.cache_clear()


def test_what_can_not_be_confined_is_refused_before_anything_runs(no_filters: None, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"seccomp: Invalid argument.*unconfined = true") as caught:
        CodeVerifier(Code(), tmp_path)
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []
    allowed = CodeVerifier(Code(unconfined=True), tmp_path)
    assert judged(allowed, FORTY_TWO, "print(42)").status == "correct"
    survivor = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(60)\nprint(42)"
    assert judged(allowed, FORTY_TWO, survivor).reward <= 1
    [nursery] = [each for each in psutil.Process().children() if str(tmp_path) in " ".join(each.cmdline())]
    assert nursery.children() == []
    allowed.close()


def test_without_landlock_programs_write_nothing_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    verifier = CodeVerifier(Code(), tmp_path)
    assert judged(verifier, ADDS, "import csv\nprint(sum(map(int, input().split())))").status == "correct"
    (tmp_path / "there").write_text("x")
    for attack in (
        "open('x', 'w')",
        f"open({str(tmp_path / 'there')!r}, 'r+')",
        f"os.truncate({str(tmp_path / 'there')!r}, 0)",
        f"os.unlink({str(tmp_path / 'there')!r})",
        f"os.rename({str(tmp_path / 'there')!r}, 'x')",
        "os.mkdir('x')",
        "os.open('.', os.O_TMPFILE | os.O_RDWR)",
    ):
        verdict = judged(verifier, FORTY_TWO, f"import os\n{attack}\nprint(42)")
        assert (verdict.status, verdict.detail[:32]) == ("wrong", "test 1: PermissionError: [Errno "), attack
    verifier.close()
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
