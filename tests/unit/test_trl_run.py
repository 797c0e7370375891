"""TRL beside ours: its configuration, its log as steps, its packages; and a run of it where they are."""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import trl_environment, trl_run
from benchmarks.trl_request import TrlConfig, TrlResult
from entrostat.actors.tasks.load import load_prompts
from entrostat.actors.tokenizer import HuggingFaceTokenizer
from entrostat.protocol.errors import NumericsError, ResourceError

ROOT = Path(__file__).parent.parent.parent
POLICY = ROOT / "examples" / "starter" / "policy"
RUN_SECONDS = 240
STEPS = 3


def raw(**changes: Any) -> dict[str, Any]:
    sums = {
        "kind": "reasoning_gym",
        "dataset": "chain_sum",
        "size": 8,
        "seed": 30000,
        "template": "{question}\n",
        "parameters": {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 2},
    }
    given = {"model": str(POLICY), "tasks": [sums], "seed": 7, "steps": STEPS, "prompts": 4, "samples": 4, "lr": 1e-4}
    return {**given, **changes}


def config(**changes: Any) -> TrlConfig:
    return msgspec.convert(raw(**changes), TrlConfig)


def entry(step: int, entropy: float | None, coefficient: float | None = None) -> dict[str, Any]:
    """What TRL logs after a step, as far as it is read."""
    made = {"step": step, "entropy": entropy, "reward": 0.5, "grad_norm": 0.1, "step_time": 1.0}
    made |= {"completions/mean_length": 30.0, "completions/clipped_ratio": 0.0}
    return made if coefficient is None else made | {"entropy_coef": coefficient}


# ── bad input ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "expected the JSON of a TrlConfig"),
        (json.dumps(raw(stepz=3)), "stepz"),
        (json.dumps(raw(samples=1)), "$.samples"),
        (json.dumps(raw(lr=0.0)), "$.lr"),
        (json.dumps(raw(microbatch_samples=3)), "does not divide the batch of 16"),
        (json.dumps(raw(entropy={"delta": 0.01})), "target"),
        (json.dumps(raw(entropy={"target": 0.1, "initial": 2.0})), "outside the box"),
        (json.dumps(raw(model="nowhere")), "no config.json"),
        (json.dumps(raw(prompts=9)), "8 prompts"),
        (json.dumps(raw(save="nowhere/policy")), "no folder nowhere"),
    ],
)
def test_a_bad_configuration_says_what_is_wrong_and_ends_with_code_2(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(text)
    assert trl_run.main(["--config", str(tmp_path / "config.json"), "--out", str(tmp_path / "out.json")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_a_missing_configuration_ends_with_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert trl_run.main(["--config", str(tmp_path / "none.json"), "--out", str(tmp_path / "out.json")]) == 2
    assert "none.json can't be read" in capsys.readouterr().err


def test_a_result_with_nowhere_to_go_ends_with_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(raw()))
    assert trl_run.main(["--config", str(tmp_path / "config.json"), "--out", str(tmp_path / "none" / "out.json")]) == 2
    assert "there is no folder" in capsys.readouterr().err


# ── the log, as steps ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_bonus_acts_one_step_after_the_entropy_fell_to_the_target() -> None:
    law = {"target": 0.2, "delta": 0.1, "initial": 0.3}
    log = [entry(1, 0.19, 0.4), entry(2, 0.25, 0.3), entry(3, 0.2, 0.4), {"step": 3, "train_runtime": 9.0}]
    found = trl_run.steps(log, config(entropy=law))
    assert [step.bonus for step in found] == [0.0, 0.4, 0.0]
    assert [step.coefficient for step in found] == [0.4, 0.3, 0.4]


@given(entropies=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=20), target=st.floats(0.01, 1.0))
def test_no_bonus_follows_an_entropy_above_the_target(entropies: Sequence[float], target: float) -> None:
    law = {"target": target, "initial": 0.5}
    log = [entry(number, entropy, 0.5) for number, entropy in enumerate(entropies, start=1)]
    found = trl_run.steps(log, config(entropy=law, steps=len(entropies)))
    assert found[0].bonus == 0.0
    for before, step in zip(entropies, found[1:], strict=False):
        assert (step.bonus > 0.0) == (before <= target)


def test_without_the_law_there_is_no_bonus() -> None:
    found = trl_run.steps([entry(1, 0.2), entry(2, 0.1), entry(3, 0.1)], config())
    assert [(step.bonus, step.coefficient) for step in found] == [(0.0, 0.0)] * STEPS


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_an_error(value: float | None) -> None:
    with pytest.raises(NumericsError, match="step 2"):
        trl_run.steps([entry(1, 0.2), entry(2, value), entry(3, 0.1)], config())


def test_missing_steps_are_an_error() -> None:
    with pytest.raises(NumericsError, match="2 of 3 steps"):
        trl_run.steps([entry(1, 0.2), entry(2, 0.2)], config())


# ── the task ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rewards_are_our_verdicts_on_the_prompt_asked() -> None:
    asked = config()
    prompts = load_prompts(asked.tasks)
    scorer = trl_run.Scorer(asked.tasks, prompts)
    right = [f"<answer>{prompt.answer}</answer>" for prompt in prompts.prompts]
    assert scorer(completions=right, prompt_id=list(range(8)), prompts=[]) == [1.0] * 8
    swapped = scorer(completions=right, prompt_id=[*range(1, 8), 0])
    assert all(reward < 1.0 for reward in swapped)
    assert scorer(completions=["no answer"], prompt_id=[0]) == [0.0]
    assert scorer.failed == 0


def test_a_scorer_that_raises_is_counted() -> None:
    asked = config()
    prompts = load_prompts(asked.tasks)
    broken = msgspec.structs.replace(prompts, prompts=(msgspec.structs.replace(prompts.prompts[0], entry="{"),))
    scorer = trl_run.Scorer(asked.tasks, broken)
    assert scorer(completions=["<answer>1</answer>"], prompt_id=[0]) == [0.0]
    assert scorer.failed == 1


# ── the packages ─────────────────────────────────────────────────────────────────────────────────────────────────────


def wheel(folder: Path, version: str) -> Path:
    """A package `nothing` with one module, and the requirements that name it."""
    name, info = f"nothing-{version}-py3-none-any.whl", f"nothing-{version}.dist-info"
    with zipfile.ZipFile(folder / name, "w") as file:
        file.writestr("nothing.py", "")
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: nothing\nVersion: {version}\n")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")
    requirements = folder / "requirements.txt"
    requirements.write_text(f"--no-index\n{folder / name}\n")
    return requirements


def test_packages_are_got_once_for_each_set_of_versions(tmp_path: Path) -> None:
    build, requirements = tmp_path / "build", wheel(tmp_path, "1.0")
    packages = trl_environment.prepare(build, requirements)
    assert (packages / "nothing.py").is_file()
    (packages / "nothing.py").unlink()
    trl_environment.prepare(build, requirements)
    assert not (packages / "nothing.py").exists()  # it was not installed again
    trl_environment.prepare(build, wheel(tmp_path, "2.0"))
    assert [found.name for found in sorted(packages.glob("nothing*"))] == ["nothing-2.0.dist-info", "nothing.py"]


def test_packages_that_cant_be_had_are_bad_input_and_leave_no_stamp(tmp_path: Path) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("--no-index\nnothing==1.0\n")
    with pytest.raises(ResourceError, match=r"can't be had .*nothing==1\.0") as raised:
        trl_environment.prepare(tmp_path / "build", requirements)
    assert raised.value.exit_code == 2
    assert not trl_environment.ready(tmp_path / "build", requirements)


def test_all_of_trls_packages_are_pinned() -> None:
    lines = trl_environment.REQUIREMENTS.read_text().splitlines()
    wanted = [line for line in lines if not line.startswith("#")]
    assert "trl==1.16.0" in wanted
    assert all("==" in line for line in wanted)


# ── TRL itself ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.skipif(not trl_environment.ready(), reason="TRL isn't here: python -m benchmarks.trl_environment gets it")
def test_trl_trains_the_starter_on_our_task_by_its_law(tmp_path: Path) -> None:
    law = {"target": 5.0, "delta": 0.02, "initial": 0.01, "ceiling": 0.04}
    asked = raw(entropy=law, prompts=8, microbatch_samples=16, save=str(tmp_path / "policy"))
    (tmp_path / "config.json").write_text(json.dumps(asked))
    places = ["--config", str(tmp_path / "config.json"), "--out", str(tmp_path / "out.json")]
    command = [sys.executable, "-m", "benchmarks.trl_run", *places]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=RUN_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = msgspec.json.decode((tmp_path / "out.json").read_bytes(), type=TrlResult)
    assert result.trl == "1.16.0"
    assert result.config == msgspec.convert(asked, TrlConfig)
    assert [step.coefficient for step in result.steps] == pytest.approx([0.03, 0.04, 0.04])  # up by δ, to the ceiling
    assert [step.bonus for step in result.steps] == pytest.approx([0.0, 0.03, 0.04])
    assert 0.1 < result.steps[0].entropy_nats < 0.4  # the starter's is about a quarter of a nat
    assert HuggingFaceTokenizer(tmp_path / "policy").eos_token_id == HuggingFaceTokenizer(POLICY).eos_token_id
    assert (tmp_path / "policy" / "model.safetensors").is_file()
