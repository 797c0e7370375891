"""`entrostat eval` as a user calls it, with vLLM: a model on a named task, without any TOML."""

import json
import subprocess
import sys
from pathlib import Path

SAMPLES = 4
PROMPTS = 20


def test_a_model_is_scored_on_a_named_task(starter: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "entrostat", "eval", str(starter), "--task", "reasoning_gym:chain_sum"]
    options = ["--samples", str(SAMPLES), "--limit", str(PROMPTS), "--max-tokens", "60", "--json", "--out", "out.jsonl"]
    settings = ["--set", "task.template={question}\\n", "--set", "task.parameters={max_terms = 3, max_digits = 2}"]
    done = subprocess.run(
        [*command, *options, *settings], cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(records) == found["responses"] == PROMPTS * SAMPLES
    scores = found["scores"]
    assert list(scores["pass_at"]) == ["1", "2", "4"]
    correct = [record["status"] == "correct" for record in records]
    assert scores["pass_at"]["1"]["mean"] == found["pass_at_1"] == sum(correct) / len(correct)
    assert 0.0 <= scores["pass_at"]["4"]["low"] < scores["pass_at"]["4"]["mean"] < scores["pass_at"]["4"]["high"] <= 1.0
    assert sum(record["tokens"] for record in records) == found["tokens"]
    assert scores["tokens"]["mean"] == found["tokens"] / len(records)
    assert scores["entropy_nats"]["mean"] > 0.0
    assert found["tokens_per_second"] > 0.0
