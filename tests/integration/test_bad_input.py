"""Bad input as a user gives it: one sentence, exit code 2, no traceback, nothing half-written."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROW = {"question": "1 + 1 =", "answer": "2"}


@pytest.fixture
def place(tmp_path: Path, starter: Path) -> Path:
    """A folder with a small valid job: job.toml, model/, data.jsonl."""
    shutil.copytree(starter, tmp_path / "model")
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(ROW | {"question": f"{n} + 1 ="}) + "\n" for n in range(8)))
    (tmp_path / "job.toml").write_text(
        """
[run]
steps = 2
[model]
path = "model"
[[tasks]]
kind = "jsonl"
path = "data.jsonl"
[batch]
prompts = 4
[rollout]
samples_per_prompt = 2
max_response_tokens = 8
[rollout.engine]
kind = "simulated"
"""
    )
    return tmp_path


def entrostat(place: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """The command, as a user calls it from `place`."""
    return subprocess.run(
        [sys.executable, "-m", "entrostat", *arguments],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def refused(place: Path, *arguments: str) -> str:
    """Runs a command that must be refused; returns what it said."""
    before = sorted(str(path) for path in place.rglob("*"))
    done = entrostat(place, *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("entrostat: ")
    assert sorted(str(path) for path in place.rglob("*")) == before, "something was written"
    return done.stderr


def edited(place: Path, old: str, new: str) -> None:
    text = (place / "job.toml").read_text()
    assert old in text
    (place / "job.toml").write_text(text.replace(old, new))


def test_a_misspelt_key_names_itself_its_place_and_the_nearest_valid_one(place: Path) -> None:
    edited(place, "samples_per_prompt", "sample_per_prompt")
    said = refused(place, "train", "job.toml")
    assert "sample_per_prompt" in said
    assert "[rollout]" in said
    assert "samples_per_prompt" in said
    assert "line 12" in said


def test_a_value_out_of_range_says_what_is_allowed(place: Path) -> None:
    said = refused(place, "train", "job.toml", "--set", "learner.lr=-1")
    assert "lr" in said
    assert "-1" in said


def test_contradictory_batch_sizes_are_refused(place: Path) -> None:
    said = refused(place, "train", "job.toml", "--set", "batch.prompts=9")
    assert "prompts" in said
    assert "8" in said


def test_a_missing_config_is_named(place: Path) -> None:
    assert "none.toml" in refused(place, "train", "none.toml")


def test_a_missing_model_folder_is_named(place: Path) -> None:
    assert "nowhere" in refused(place, "train", "job.toml", "--set", "model.path=./nowhere")


def test_a_corrupt_model_is_named(place: Path) -> None:
    weights = place / "model/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "model.safetensors is damaged" in refused(place, "train", "job.toml")


def test_a_tokenizer_without_eos_is_refused(place: Path) -> None:
    file = place / "model/tokenizer_config.json"
    settings = json.loads(file.read_text())
    del settings["eos_token"]
    file.write_text(json.dumps(settings))
    assert "end-of-sequence" in refused(place, "train", "job.toml")


def test_an_empty_dataset_is_refused(place: Path) -> None:
    (place / "data.jsonl").write_text("")
    assert "data.jsonl" in refused(place, "train", "job.toml")


def test_a_line_that_is_not_json_is_named_by_file_and_number(place: Path) -> None:
    lines = (place / "data.jsonl").read_text().splitlines()
    lines[4] = "{not json"
    (place / "data.jsonl").write_text("\n".join(lines))
    assert "data.jsonl:5" in refused(place, "train", "job.toml")


def test_a_prompt_longer_than_the_context_is_refused(place: Path) -> None:
    with (place / "data.jsonl").open("a") as file:
        file.write(json.dumps(ROW | {"question": "1 + " * 2000}) + "\n")
    said = refused(place, "train", "job.toml")
    assert "context" in said
    assert "data.jsonl:9" in said


def test_a_taken_port_is_refused(place: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert str(port) in refused(place, "train", "job.toml", "--set", f"monitor.port={port}")


def test_an_existing_run_directory_is_refused(place: Path) -> None:
    (place / "runs/job").mkdir(parents=True)
    (place / "runs/job/config.toml").write_text("")
    assert "--resume" in refused(place, "train", "job.toml")


def test_resuming_what_is_no_run_is_refused(place: Path) -> None:
    assert "holds no run" in refused(place, "train", "--resume", "model")


def test_neither_a_config_nor_a_run_is_refused(place: Path) -> None:
    assert "--resume" in refused(place, "train")


def test_a_run_without_samples_is_refused(place: Path) -> None:
    assert "no samples" in refused(place, "samples", "model")
    assert "no metrics.jsonl" in refused(place, "report", "model")


def test_explain_refuses_the_same_as_train(place: Path) -> None:
    assert "lrr" in refused(place, "explain", "job.toml", "--set", "learner.lrr=1")
