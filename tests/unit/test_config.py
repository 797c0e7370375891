import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrostat import toml
from entrostat.config import RunConfig, effective_toml, load, stations
from entrostat.protocol.entropy_settings import BandLaw, FixedLaw, ThermostatLaw
from entrostat.protocol.errors import ConfigError
from entrostat.protocol.settings import Jsonl

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


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A valid configuration whose model and data lie beside it."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(json.dumps({"vocab_size": 100, "max_position_embeddings": 256}))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/problems.jsonl").write_text(
        '{"question": "a", "answer": "1"}\n\n{"question": "b", "answer": "2"}\n'
    )
    (tmp_path / "small.toml").write_text(SMALL)
    return tmp_path / "small.toml"


def refused(file: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(file, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


def edited(file: Path, old: str, new: str) -> Path:
    assert old in SMALL
    file.write_text(SMALL.replace(old, new))
    return file


# ── what a good file becomes ─────────────────────────────────────────────────────────────────────────────────────────


def test_paths_are_seen_from_the_files_own_folder(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    config = load(file)
    assert config.model.path == str(file.parent / "model")
    task = config.tasks[1]
    assert isinstance(task, Jsonl)
    assert task.path == str(file.parent / "data/problems.jsonl")


def test_a_hub_name_stays_a_hub_name(file: Path) -> None:
    assert load(file, ["model.path=Qwen/Qwen3-0.6B"]).model.path == "Qwen/Qwen3-0.6B"


def test_a_run_is_called_like_its_file(file: Path) -> None:
    assert load(file).run.name == "small"
    assert load(file, ["run.name=other"]).run.name == "other"


def test_the_stations_are_told_what_the_configuration_says(file: Path, tmp_path: Path) -> None:
    told = stations(load(file, ["monitor.port=9000", "report.samples_per_step=3"]), tmp_path / "runs/small")
    assert told.directory == str(tmp_path / "runs/small")
    assert (told.run, told.total_steps, told.metrics_port, told.samples_per_step) == ("small", 20, 9000, 3)
    assert [type(task).__name__ for task in told.tasks] == ["ReasoningGym", "Jsonl"]


@pytest.mark.parametrize("name", ["quickstart", "simulated", "gsm8k-qwen3-0.6b"])
def test_a_shipped_configuration_loads_back_from_its_effective_form(
    name: str, repository: Path, tmp_path: Path
) -> None:
    config = load(repository / f"deploy/runs/{name}.toml")
    again = tmp_path / "config.toml"
    again.write_text(effective_toml(config))
    assert load(again) == config


values = st.recursive(
    st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=9,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(max_size=5), values, max_size=4))
def test_what_is_written_as_toml_reads_back(table: dict[str, Any]) -> None:
    import tomllib

    assert tomllib.loads(toml.write(table)) == table


# ── overrides ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_overrides_are_toml_values_and_bare_words_are_text(file: Path) -> None:
    config = load(
        file,
        ["learner.lr=3e-5", "learner.device=cpu", "batch.shuffle=false", "tasks.0.size=32", "run.name=2024-01-01"],
    )
    assert config.learner.lr == 3e-5
    assert config.learner.device == "cpu"
    assert config.batch.shuffle is False
    assert getattr(config.tasks[0], "size", None) == 32
    assert config.run.name == "2024-01-01"


def test_another_kind_replaces_the_whole_table(file: Path) -> None:
    assert load(file, ["entropy.law.kind=fixed"]).entropy.law == FixedLaw()
    values = {"initial": 0.1, "floor": 0.01, "ceiling": 1, "low": 0.1, "high": 0.2, "rate": 0.1}
    law = load(file, ["entropy.law.kind=band", *(f"entropy.law.{key}={value}" for key, value in values.items())])
    assert isinstance(law.entropy.law, BandLaw)


def test_the_same_kind_keeps_the_table(file: Path) -> None:
    law = load(file, ["entropy.law.kind=thermostat", "entropy.law.anchor=0.6"]).entropy.law
    assert law == ThermostatLaw(anchor=0.6, balance=0.1, drift=0.008)


@pytest.mark.parametrize("text", ["learner.lr", "=3", "learner..lr=3"])
def test_an_override_without_key_or_value_is_refused(file: Path, text: str) -> None:
    assert "expected SECTION.KEY=VALUE" in refused(file, text)


def test_an_override_through_a_value_is_refused(file: Path) -> None:
    assert "learner.lr is no table" in refused(file, "learner.lr.x=1")
    assert "a number from 0 to 1" in refused(file, "tasks.7.size=1")


# ── what is wrong is said, with its place ────────────────────────────────────────────────────────────────────────────


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert f"there is no configuration {tmp_path / 'none.toml'}" in refused(tmp_path / "none.toml")


def test_invalid_toml_names_the_line(file: Path) -> None:
    assert "small.toml is not TOML" in (said := refused(edited(file, "prompts = 8", "prompts = ")))
    assert "line 18" in said


def test_a_misspelt_key_names_its_line_its_section_and_the_nearest(file: Path) -> None:
    said = refused(edited(file, "lr = 1e-4", "lrr = 1e-4"))
    assert "line 29: [learner] lrr: unknown key; did you mean lr?" in said


def test_a_misspelt_section_names_the_nearest(file: Path) -> None:
    assert "line 17: [bach]: unknown key; did you mean batch?" in refused(edited(file, "[batch]", "[bach]"))


def test_a_misspelt_key_in_a_list_of_tables_names_which(file: Path) -> None:
    assert "line 10: [tasks 1] sise: unknown key; did you mean size?" in refused(edited(file, "size = 16", "sise = 16"))


def test_a_value_out_of_range_says_what_came_and_what_is_allowed(file: Path) -> None:
    assert "line 29: [learner] lr = -1; expected a number > 0" in refused(edited(file, "lr = 1e-4", "lr = -1"))
    assert "--set: [rollout] samples_per_prompt = 1; expected a whole number >= 2" in refused(
        file, "rollout.samples_per_prompt=1"
    )


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_number_that_is_not_finite_is_refused(file: Path, value: str) -> None:
    assert "expected a finite number" in refused(file, f"learner.lr={value}")


def test_a_value_of_another_type_says_both(file: Path) -> None:
    assert '[batch] prompts = "many"; expected a whole number, got text in quotes' in refused(
        file, "batch.prompts=many"
    )
    assert "[learner] lr = true; expected a number, got true or false" in refused(file, "learner.lr=true")
    assert "expected a table [learner], came 3" in refused(file, "learner=3")


def test_a_choice_names_the_nearest_and_all(file: Path) -> None:
    said = refused(file, "learner.truncated=penalize")
    assert '[learner] truncated = "penalize"; did you mean penalise? (allowed: mask, penalise, keep)' in said


def test_an_unknown_kind_names_the_nearest(file: Path) -> None:
    assert '[entropy.law] kind = "thermostate"; did you mean thermostat?' in refused(
        edited(file, '"thermostat"', '"thermostate"')
    )


def test_a_missing_key_is_named_at_its_section(file: Path) -> None:
    assert "line 1: [run] steps: is missing, and has no default" in refused(edited(file, "steps = 20\n", ""))
    assert "[entropy.law] kind: is missing; expected one of: thermostat" in refused(
        edited(file, 'kind = "thermostat"\n', "")
    )


def test_all_that_is_wrong_is_said_at_once(file: Path) -> None:
    said = refused(edited(file, "lr = 1e-4", "lrr = 1"), "batch.prompts=0", "rollout.max_staleness=x")
    assert "3 things are wrong" in said
    assert len(said.splitlines()) == 4


def test_a_line_inside_a_long_string_is_not_taken_for_a_key(file: Path) -> None:
    text = SMALL.replace(
        'dataset = "chain_sum"', 'dataset = "chain_sum"\ntemplate = """\n[learner]\nlr = 3\n{question}"""'
    )
    file.write_text(text.replace("lr = 1e-4", "lr = -1"))
    assert "line 33: [learner] lr" in refused(file)


# ── contradictions ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["batch.prompts=19"], "[batch] prompts = 19 prompts in each optimizer step, but the tasks hold 18"),
        (["rollout.max_response_tokens=256"], "leaves no room for a prompt in the model's context = 256"),
        (
            ["rollout.engine.kind=vllm", "rollout.engine.max_model_tokens=64"],
            "leaves no room for a prompt in [rollout.engine] max_model_tokens = 64",
        ),
        (
            ["rollout.engine.kind=vllm", "rollout.engine.max_model_tokens=512"],
            "is above what the model holds (256)",
        ),
        (["learner.microbatch_tokens=64"], "can't hold a prompt and one response"),
        (["learner.transport=ipc", "learner.device=cpu"], '"ipc" shares a GPU\'s memory'),
        (["learner.transport=ipc", "rollout.engine.kind=simulated"], "needs a real engine"),
        (
            ["learner.transport=ipc", "rollout.actors=2"],
            '[rollout] actors = 2, but [learner] transport = "ipc" is for one GPU',
        ),
        (
            ["learner.transport=ipc", "rollout.engine.kind=vllm", "rollout.engine.tensor_parallel=2"],
            '[rollout.engine] tensor_parallel = 2, but [learner] transport = "ipc" is for one GPU',
        ),
        (["learner.minibatches=9"], "[learner] minibatches = 9 optimizer steps of at least one group each"),
        (["learner.proximal=behaviour", "learner.sequence_mask=0.1"], "[learner] sequence_mask = 0.1 rejects samples"),
        (["batch.filter=zero_variance", "batch.refill=1.1"], "[batch] refill = 1.1 times 8 prompts leaves no group"),
        (["entropy.estimator.kind=clamped", "entropy.estimator.drop_fraction=0"], "= 0 drops none of 100 tokens"),
        (["entropy.estimator.kind=clamped", "entropy.estimator.drop_fraction=0.009"], "drops none of 100 tokens"),
        (["entropy.estimator.kind=clamped", "entropy.estimator.drop_fraction=0.995"], "leaves one of 100 tokens"),
        (["entropy.estimator.kind=top_k", "entropy.estimator.k=1"], "a single token has no entropy"),
        (["entropy.estimator.kind=top_k", "entropy.estimator.k=100"], "k = 100 is all 100 tokens"),
        (["entropy.tokens.kind=smoothed", "entropy.tokens.low=2"], "[entropy.tokens] low = 2 is not below high = 2"),
        (["entropy.law.kind=bang_bang", "entropy.law.floor=1"], "floor = 1 is not below ceiling = 0.005"),
        (["entropy.law.kind=bang_bang", "entropy.law.delta=5e-3"], "crosses the box floor = 0 … ceiling = 0.005"),
        (["entropy.law.kind=bang_bang", "entropy.law.initial=1"], "initial = 1 is outside the box"),
        (["entropy.law.kind=pi", "entropy.law.floor=1"], "[entropy.law] floor = 1 is not below ceiling = 1"),
        (["entropy.law.kind=pi", "entropy.law.proportional=0", "entropy.law.integral=0"], "the law would never act"),
        (["entropy.law.kind=quadratic", "entropy.law.target=4.7"], "100 tokens have an entropy of at most 4.61"),
        (["entropy.law.kind=sample_balance", "entropy.law.target=9"], "[entropy.law] target = 9 nats can't be reached"),
        (["learner.truncated=penalise", "learner.truncation_penalty=0"], "penalises nothing"),
        (["entropy.law.floor_ratio=20"], "floor_ratio = 20 is not below ceiling_ratio = 10"),
        (["entropy.law.floor_ratio=2"], "[entropy.law] balance: lies outside its own box"),
        (["run.stall_seconds=120"], "one lost actor would end the run"),
        (["verifier.deadline_seconds=600"], "one hanging verification would end the run"),
        (["run.name=a/b"], "expected a plain folder name"),
        (["tasks.0.template=hello"], "has no {question} in it"),
        (["tasks=[]"], "[tasks]: is empty"),
        (["evaluation.every_steps=5"], "an evaluation needs at least one"),
        (["evaluation.samples=5"], "an evaluation needs at least one"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(file: Path, overrides: list[str], expected: str) -> None:
    load(file)
    assert expected in refused(file, *overrides)


@pytest.mark.parametrize("lag", [0, 2, 4])
def test_a_run_has_one_delay_and_a_simulation_any(file: Path, lag: int) -> None:
    law = load(file, [f"entropy.law.lag={lag}"]).entropy.law
    assert isinstance(law, ThermostatLaw)
    assert law.lag == lag
    with pytest.raises(ConfigError, match=rf"--set: \[entropy.law\] lag = {lag}, expected 1: .*; leave it out"):
        load(file, [f"entropy.law.lag={lag}"], to_run=True)
    load(file, ["entropy.law.lag=1"], to_run=True)
    load(file, ["entropy.law.kind=fixed"], to_run=True)


@pytest.mark.parametrize(
    "overrides",
    [
        ["entropy.law.kind=bang_bang", "entropy.law.delta=4.9e-3"],
        ["entropy.law.kind=pi", "entropy.law.proportional=0"],
        ["entropy.law.kind=quadratic", "entropy.law.target=4.6"],
        ["entropy.law.kind=sample_balance", "entropy.estimator.kind=nucleus", "entropy.measured=sampled"],
        ["entropy.estimator.kind=clamped", "entropy.estimator.drop_fraction=0.01"],
        ["entropy.estimator.kind=top_k", "entropy.estimator.k=99"],
        ["batch.filter=zero_variance", "batch.refill=1.125"],
        ["learner.minibatches=8"],
        ["learner.proximal=behaviour"],
        ["entropy.weight.difficulty=group", "entropy.weight.minimum=0", "entropy.weight.normalise=false"],
    ],
)
def test_settings_at_the_edge_of_sense_are_taken(file: Path, overrides: list[str]) -> None:
    load(file, overrides)


BAND = ["kind=band", "initial=0.1", "floor=0.01", "ceiling=1", "low=0.1", "high=0.2", "rate=0.1"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (["low=5", "high=6"], "100 tokens have an entropy of at most 4.61"),
        (["floor=2"], "outside the box floor = 2.0 … ceiling = 1.0"),
        (["high=0.05"], "low = 0.1 is not below high = 0.05"),
    ],
)
def test_a_band_that_cannot_work_is_refused(file: Path, change: list[str], expected: str) -> None:
    band = [f"entropy.law.{each}" for each in BAND]
    assert isinstance(load(file, band).entropy.law, BandLaw)
    assert expected in refused(file, *band, *(f"entropy.law.{each}" for each in change))


def test_an_empty_file_of_problems_is_named(file: Path) -> None:
    (file.parent / "data/problems.jsonl").write_text("\n")
    assert "line 15: [tasks 2] path = " in (said := refused(file))
    assert "problems.jsonl is empty" in said


def test_every_section_has_a_default_but_run_model_and_tasks() -> None:
    import msgspec

    required = {field.name for field in msgspec.structs.fields(RunConfig) if field.required}
    assert required == {"run", "model", "tasks"}
