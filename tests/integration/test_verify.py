"""`entrostat verify` as it is called, with its processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HANGS = "\\boxed{9^{9^{9^{9}}}}"
LINES = [
    {"gold": "18", "out": {"text": "The answer is 18."}},
    {"gold": 27.0, "out": {"text": "\\boxed{28}"}},
    {"gold": "1/2", "out": {"text": HANGS}},
    {"gold": "18", "out": {"text": "I don't know"}},
    {"gold": "(1,2)", "out": {"text": "$(1,2)$"}},
]
COMMAND = (
    sys.executable,
    "-m",
    "entrostat",
    "verify",
    "x.jsonl",
    "--field",
    "answer=gold",
    "--field",
    "response=out.text",
)
MATH = ("--verifier", "math", "--deadline", "1", "--processes", "2")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with five lines in x.jsonl."""
    (tmp_path / "x.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in LINES))
    return tmp_path


def entrostat(place: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*COMMAND, *arguments], cwd=place, capture_output=True, text=True, timeout=60, check=False)


def test_every_line_is_judged_in_order_and_a_timeout_is_a_judgement(place: Path) -> None:
    done = entrostat(place, *MATH, "--json")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["index"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["reward"] for row in rows] == [1.0, 0.0, 0.0, 0.0, 1.0]
    assert [row["status"] for row in rows] == ["correct", "wrong", "timeout", "unparsable", "correct"]


def test_lines_that_cannot_be_judged_have_their_place_and_the_rest_is_judged(place: Path) -> None:
    with (place / "x.jsonl").open("ab") as file:
        file.write(b'oh\n{"gold": 1}\n{"gold": 1, "out": {"text": "caf\xe9 1"}}\n')
    done = entrostat(place, *MATH, "--json")
    assert done.returncode == 2
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["status"] for row in rows[5:]] == ["error", "error", "correct"]
    assert [row["reward"] for row in rows[5:]] == [0.0, 0.0, 1.0]
    assert "2 of 8 lines of x.jsonl can't be judged: x.jsonl:6 is not JSON" in done.stderr
    assert "x.jsonl:7" in rows[6]["detail"]


def test_a_verifier_that_fails_on_every_line_is_no_success(place: Path) -> None:
    done = entrostat(place, "--verifier", "os:getpid", "--processes", "1", "--json")
    assert done.returncode == 1
    assert {json.loads(line)["status"] for line in done.stdout.splitlines()} == {"error"}
    assert "failed on every line of x.jsonl" in done.stderr


def test_the_table_counts_by_status_and_shows_examples(place: Path) -> None:
    done = entrostat(place, "--verifier", "numeric")
    assert done.returncode == 0, done.stderr
    assert "x.jsonl, judged by numeric" in done.stdout
    assert "100.00%" in done.stdout
    assert "wrong      line 2: expected 27.0, read 28 in \\boxed{28}" in done.stdout
    assert "error      line 5" in done.stdout


def test_a_function_of_ones_own_judges_from_the_current_directory(place: Path) -> None:
    (place / "mine.py").write_text("def short(prompt, text):\n    return len(text) < 15\n")
    done = entrostat(place, "--verifier", "mine:short", "--json")
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["reward"] for line in done.stdout.splitlines()] == [0, 1, 0, 1, 1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--verifier", "maths"), "did you mean math?"),
        (("--verifier", "mine:f"), "the verifier mine:f can't be imported"),
        (("--verifier", "math", "--field", "gold"), "expected answer=KEY or response=KEY"),
        ((), "either --verifier NAME or --config RUN.toml"),
    ],
)
def test_bad_input_is_one_sentence(place: Path, arguments: tuple[str, ...], said: str) -> None:
    done = entrostat(place, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("entrostat: ")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_goes_away_ends_it_quietly(place: Path) -> None:
    (place / "x.jsonl").write_text(f"{json.dumps(LINES[0])}\n" * 5000)
    with subprocess.Popen(
        [*COMMAND, *MATH, "--json"], cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["index"] == 0
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=30) == 141


def test_an_interrupt_ends_it_at_once(place: Path) -> None:
    (place / "x.jsonl").write_text(f"{json.dumps(LINES[0])}\n{json.dumps(LINES[2])}\n")
    with subprocess.Popen(
        [*COMMAND, "--verifier", "math", "--deadline", "60", "--json"],
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["index"] == 0
        start = time.monotonic()
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(timeout=30) == 130
        assert process.stderr is not None
        assert process.stderr.read() == b"entrostat: stopped at once\n"
        assert time.monotonic() - start < 10


def test_a_training_run_refuses_a_function_that_is_not_there(place: Path, starter: Path) -> None:
    (place / "x.jsonl").write_text(
        "".join(json.dumps({"question": f"{n} + 1 =", "answer": "2"}) + "\n" for n in range(8))
    )
    (place / "job.toml").write_text(
        f"""
[run]
steps = 2
[model]
path = "{starter}"
[[tasks]]
kind = "jsonl"
path = "x.jsonl"
verifier = {{ kind = "custom", function = "nowhere:f" }}
[batch]
prompts = 4
[rollout]
samples_per_prompt = 2
max_response_tokens = 8
engine = {{ kind = "simulated" }}
"""
    )
    command = [sys.executable, "-m", "entrostat", "train", "job.toml"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert "the verifier nowhere:f can't be imported (No module named 'nowhere')" in done.stderr
    assert not (place / "runs").exists()
