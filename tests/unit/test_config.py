"""A configuration: what a good file becomes, what overrides do to it, and how a bad one is refused."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrostat import toml
from entrostat.config import RunConfig, effective_toml, load, stations
from entrostat.protocol.entropy_settings import BandLaw, FixedLaw, ThermostatLaw
from entrostat.protocol.learner_settings import PpoClip
from entrostat.protocol.task_settings import Jsonl
from tests.made_config import SMALL, edited, refused, small_file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return small_file(tmp_path)


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
    assert not told.record_samples
    assert stations(load(file, ["run.record_samples=true"]), tmp_path).record_samples
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


@settings(max_examples=100)
@given(st.dictionaries(st.text(max_size=5), values, max_size=4))
def test_what_is_written_as_toml_reads_back(table: dict[str, Any]) -> None:
    import tomllib

    assert tomllib.loads(toml.write(table)) == table


def test_every_section_has_a_default_but_run_model_and_tasks() -> None:
    import msgspec

    required = {field.name for field in msgspec.structs.fields(RunConfig) if field.required}
    assert required == {"run", "model", "tasks"}


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
    assert "[tasks 2] kind: is missing; expected one of: " in refused(edited(file, 'kind = "jsonl"\n', ""))


def test_a_section_that_says_no_kind_is_of_its_default_s(file: Path) -> None:
    without = load(edited(file, 'kind = "thermostat"\n', ""), ["learner.loss.clip_high=0.28"])
    assert without.entropy.law == ThermostatLaw(balance=0.1, drift=0.008)
    assert without.learner.loss == PpoClip(clip_high=0.28)
    assert "[learner.loss] strength: unknown key" in refused(file, "learner.loss.strength=2")


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
