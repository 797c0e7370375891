"""A small configuration that is valid, and what is said when it is not."""

import json
from pathlib import Path

import pytest

from entrostat.config import load
from entrostat.protocol.errors import ConfigError

SMALL = """\
[run]
steps = 20

[model]
path = "model"

[[tasks]]
kind = "reasoning_gym"
dataset = "chain_sum"
size = 16
parameters = { min_terms = 3, max_terms = 3 }

[[tasks]]
kind = "jsonl"
path = "data/problems.jsonl"

[batch]
prompts = 8

[rollout]
max_response_tokens = 64

[entropy.law]
kind = "thermostat"
balance = 0.1
drift = 0.008

[learner]
lr = 1e-4
"""


def small_file(folder: Path) -> Path:
    """A valid configuration whose model and data lie beside it."""
    (folder / "model").mkdir()
    (folder / "model/config.json").write_text(
        json.dumps({"vocab_size": 100, "hidden_size": 8, "max_position_embeddings": 256})
    )
    (folder / "data").mkdir()
    (folder / "data/problems.jsonl").write_text(
        '{"question": "a", "answer": "1"}\n\n{"question": "b", "answer": "2"}\n'
    )
    (folder / "small.toml").write_text(SMALL)
    return folder / "small.toml"


def refused(file: Path, *overrides: str) -> str:
    """What is said of a configuration that must not load."""
    with pytest.raises(ConfigError) as caught:
        load(file, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


def edited(file: Path, old: str, new: str) -> Path:
    """The file, written anew with one part of `SMALL` replaced."""
    assert old in SMALL
    file.write_text(SMALL.replace(old, new))
    return file
