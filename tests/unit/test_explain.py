from pathlib import Path

import pytest

from entrostat.config import load
from entrostat.explain import explain, parameter_count


@pytest.fixture
def quickstart(repository: Path) -> Path:
    return repository / "deploy/runs/quickstart.toml"


def test_the_quickstart_is_told_in_the_one_vocabulary(quickstart: Path) -> None:
    said = " ".join(explain(load(quickstart, ["run.steps=120", "rollout.max_staleness=1"])).split())
    assert "together 512 prompts" in said
    assert "samples 512: a group of 16 for each prompt" in said
    assert "tokens at most 40,960: 80 in a response" in said
    assert "epochs 7.50" in said
    assert "optimizer steps 120" in said
    assert "most versions 1" in said
    assert "thermostat: measures H_0 over 3 steps" in said


def test_a_changed_setting_changes_what_is_said(quickstart: Path) -> None:
    said = explain(
        load(quickstart, ["rollout.max_staleness=0", "learner.truncated=penalise", "entropy.law.kind=fixed"])
    )
    assert "on-policy" in said
    assert "their reward is lowered by 0.5" in said
    assert "no entropy control" in said


def test_what_is_not_on_this_machine_is_said_to_be_missing(repository: Path) -> None:
    said = explain(load(repository / "deploy/runs/gsm8k-qwen3-0.6b.toml"))
    assert "the model Qwen/Qwen3-0.6B is not in a folder here" in said
    assert "gsm8k_train.jsonl is not here: a run would end at once, with exit code 2" in said
    assert "ipc: the engine reads the learner's memory" in said


def test_a_trial_run_too_short_for_its_settings_is_allowed_and_says_so(quickstart: Path) -> None:
    settings = ["run.steps=3", "learner.warmup_steps=5", "evaluation.every_steps=10"]
    said = explain(load(quickstart, settings))
    for note in ("3 orders measure H_0: in 3 steps", "lr warms up for 5 steps", "an evaluation every 10 steps"):
        assert note in said
    assert "measure H_0: in" not in explain(load(quickstart))


def test_too_few_groups_in_flight_are_worth_knowing(quickstart: Path) -> None:
    assert "4 rounds a step" in explain(load(quickstart, ["rollout.groups_in_flight=8"]))
    assert "rounds a step" not in explain(load(quickstart, ["rollout.groups_in_flight=32"]))


@pytest.mark.parametrize(("dtype", "size"), [("float32", 16), ("bfloat16", 18)])
def test_what_training_holds_is_counted_by_the_parameter(
    quickstart: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, size: int
) -> None:
    monkeypatch.setattr("entrostat.explain.parameter_count", lambda _: 1 << 30)
    said = explain(load(quickstart, [f"model.dtype={dtype}"]))
    assert f"AdamW's moments {size}.0 GiB" in said


def test_what_the_evaluation_will_tell_depends_on_its_samples(quickstart: Path) -> None:
    assert "pass@1 and pass@8" in explain(load(quickstart, ["evaluation.samples=16"]))
    assert "pass@8 needs 8 of them" in explain(load(quickstart, ["evaluation.samples=4"]))


def test_an_engine_that_leaves_the_learner_no_memory_is_worth_knowing(repository: Path) -> None:
    file = repository / "deploy/runs/gsm8k-qwen3-0.6b.toml"
    assert "lower memory_share" in explain(load(file, ["rollout.engine.memory_share=0.9"]))
    assert "lower memory_share" not in explain(load(file))


def test_parameters_are_counted_from_the_files_headers(starter: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    with safe_open(starter / "model.safetensors", framework="numpy") as opened:
        counted = sum(opened.get_tensor(name).size for name in opened.keys())  # noqa: SIM118 — it is no dict
    assert parameter_count(str(starter)) == counted > 0
    assert parameter_count(str(tmp_path)) == 0
    (tmp_path / "model.safetensors").write_bytes(b"\x09\0\0\0\0\0\0\0not json!")
    assert parameter_count(str(tmp_path)) == 0
