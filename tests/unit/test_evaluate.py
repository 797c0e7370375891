"""`entrostat eval` without vLLM: what it is asked to do, how it keeps the engine full, what it says in the end."""

import io
import itertools
import json
import math
import os
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from rich.console import Console

from entrostat import evaluate
from entrostat.actors.evaluation import Evaluation, Progress
from entrostat.cli import main
from entrostat.config import RunConfig
from entrostat.evaluated import Evaluated, evaluated, show, warnings
from entrostat.evaluation_job import Asked, Job, own_dtype, prepare
from entrostat.progress import Watch
from entrostat.protocol.errors import ConfigError, Stalled
from entrostat.protocol.messages import STATUSES, EvaluationRequest, EvaluationResult, Prompt, Status, Verdict
from entrostat.protocol.ports import Completion, SampleRequest
from entrostat.protocol.task_settings import HuggingFace, Jsonl, Parquet, ReasoningGym
from entrostat.protocol.verifier_settings import Numeric
from entrostat.rows import EvaluationRow, evaluation_row, read_evaluations
from entrostat.scores import tries
from entrostat.summary import sentences, summarise
from entrostat.task_specs import tasks_of
from tests.fake_stations import PROMPTS, FakeEngine, FakeVerifiers, Letters, answers
from tests.made_messages import version
from tests.made_rows import evaluation_result, metrics_row, scored_row
from tests.made_rows import evaluation_row as earlier_row

# ── tasks by name ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_task_is_named_by_its_file_its_library_or_its_hub() -> None:
    specs = ["a.jsonl", "b.parquet", "reasoning_gym:chain_sum", "huggingface:openai/gsm8k", "huggingface:x/y:train"]
    lines, table, gym, hub, split = tasks_of(specs, ["task.verifier.kind=numeric"])
    assert isinstance(lines, Jsonl)
    assert lines.path == str(Path("a.jsonl").absolute())
    assert isinstance(table, Parquet)
    assert isinstance(gym, ReasoningGym)
    assert (gym.dataset, gym.size) == ("chain_sum", 200)
    assert isinstance(hub, HuggingFace)
    assert (hub.dataset, hub.split) == ("openai/gsm8k", "test")
    assert isinstance(split, HuggingFace)
    assert (split.dataset, split.split) == ("x/y", "train")
    assert all(task.verifier == Numeric() for task in (lines, table, gym, hub, split))


def test_settings_of_tasks_keep_their_commas() -> None:
    (task,) = tasks_of(["a.jsonl"], ["task.template=Think, then say: {question}", "task.chat=true"], limit=7)
    assert isinstance(task, Jsonl)
    assert (task.template, task.chat, task.limit) == ("Think, then say: {question}", True, 7)


@pytest.mark.parametrize(
    ("spec", "setting", "said"),
    [
        ("gsm8k", "task.chat=true", "reasoning_gym:DATASET"),
        ("reasoning_gym:", "task.chat=true", "names no task"),
        ("a.jsonl", "task.anser=x", "did you mean answer"),
        ("a.jsonl", "task.template=What?", "has no {question}"),
        ("reasoning_gym:chain_sum", "task.answer_after=####", "unknown key"),
    ],
)
def test_a_task_that_cannot_be_is_refused_with_what_was_expected(spec: str, setting: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r"--task") as refused:
        tasks_of([spec], [setting])
    assert said in str(refused.value)


# ── what is asked ────────────────────────────────────────────────────────────────────────────────────────────────────

SUMS = ("reasoning_gym:chain_sum",)


def test_without_a_toml_a_model_and_a_task_are_enough(starter: Path) -> None:
    asked = Asked(model=str(starter), tasks=SUMS, samples=4, k=(1, 4), temperature=0.5, max_tokens=30, limit=6)
    job = prepare(asked)
    assert len(job.prompts) == 6
    assert (job.samples, job.config.evaluation.k, job.config.evaluation.temperature) == (4, (1, 4), 0.5)
    assert job.config.rollout.max_response_tokens == 30
    assert job.config.model.dtype == own_dtype(starter) == "float32"
    assert job.notes == ()


def test_a_limit_is_of_each_task(starter: Path, quickstart: Path) -> None:
    job = prepare(Asked(model=str(starter), config=quickstart, limit=3))
    assert [prompt.level for prompt in job.prompts] == [f"{terms} terms" for terms in (3, 4, 5, 6) for _ in range(3)]
    assert job.trained_levels == {"3 terms", "4 terms", "5 terms"}


def test_half_precision_is_computed_in_bfloat16(tmp_path: Path) -> None:
    for told, wanted in ({"torch_dtype": "float16"}, "bfloat16"), ({"dtype": "bfloat16"}, "bfloat16"), ({}, "float32"):
        (tmp_path / "config.json").write_text(json.dumps(told))
        assert own_dtype(tmp_path) == wanted


def test_a_chat_template_that_is_left_unused_is_told(starter: Path, tmp_path: Path) -> None:
    shutil.copytree(starter, tmp_path / "model")
    (tmp_path / "model/chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert "task.chat=true" in prepare(Asked(model=str(tmp_path / "model"), tasks=SUMS, limit=2)).notes[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--task FILE.jsonl"),
        (["--task", "nonsense"], "names no task"),
        (["--task", "none.jsonl"], "none.jsonl can't be read"),
        (["--task", "reasoning_gym:chain_summ"], "did you mean 'chain_sum'"),
        ([*("--task", *SUMS), "--samples", "0"], "samples = 0"),
        ([*("--task", *SUMS), "--samples", "8", "--k", "1,16"], "pass@16 takes 16 samples"),
        ([*("--task", *SUMS), "--temperature", "9"], "temperature = 9"),
        ([*("--task", *SUMS), "--limit", "-1"], "--limit is -1"),
        ([*("--task", *SUMS), "--out", "/nowhere/at/all"], "/nowhere/at/all"),
        ([*("--task", *SUMS), "--set", "rollout.engine.kind=simulated"], "simulated engine"),
        ([*("--task", *SUMS), "--set", "task.chat=true"], "no chat template"),
        (["--set", "task.chat=true"], "there are none"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(
    starter: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(starter), *arguments]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.err.startswith("entrostat: ")
    assert shown.out == ""


# ── sampling ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Busy(FakeEngine):
    """Finishes one request a step, and remembers how many samples it had."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded.append(version(3))
        self.had: list[int] = []

    def step(self) -> list[Completion]:
        self.had.append(sum(request.samples for request in self.submitted.values()))
        self.finish(next(iter(self.submitted)))
        return super().step()


def asked_for(count: int, samples: int = 4) -> EvaluationRequest:
    return EvaluationRequest(prompts=PROMPTS[:count], samples=samples, temperature=1.0, seed=5)


def test_the_engine_has_enough_to_do_until_nothing_is_left() -> None:
    engine, told, seen = Busy(), list[str](), list[Progress]()
    result = evaluate.sample(
        engine,
        FakeVerifiers(),
        Letters(),
        asked_for(12),
        sequences=18,
        max_tokens=9,
        stall_seconds=5.0,
        watch=seen.append,
        told=lambda prompt, ticket, verdict: told.append(
            f"{prompt.name} {ticket.index} {ticket.text} {verdict.status}"
        ),
    )
    assert engine.had == [20] * 8 + [16, 12, 8, 4]
    assert result.version == version(3)
    assert result.statuses.shape == (12, 4)
    assert len(told) == 48
    assert "p7 2 7 correct" in told
    assert (seen[-2].sampled, seen[-2].prompts, seen[-2].tokens) == (11, 12, 10 * 4 + 1 * 8)


def test_verdicts_that_never_come_are_a_stall() -> None:
    verifiers, clock = FakeVerifiers(), itertools.count()
    verifiers.open = False
    with pytest.raises(Stalled, match="no verdict came for 20 s"):
        evaluate.sample(
            Busy(),
            verifiers,
            Letters(),
            asked_for(2),
            sequences=8,
            max_tokens=9,
            stall_seconds=20.0,
            clock=lambda: float(next(clock)),
        )


def test_each_response_is_written_with_its_verdict(tmp_path: Path) -> None:
    with evaluate._records(tmp_path / "out.jsonl") as told:
        evaluate.sample(
            Busy(), FakeVerifiers(), Letters(), asked_for(2), sequences=8, max_tokens=9, stall_seconds=5.0, told=told
        )
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(records) == 8
    assert {(record["prompt"], record["sample"]) for record in records} == {
        (f"p{i}", j) for i in (0, 1) for j in range(4)
    }
    assert (records[0]["response"], records[0]["expected"], records[0]["status"]) == ("0", "0", "correct")
    assert sum(record["truncated"] for record in records) == 2


def test_votes_are_by_answer_and_only_where_a_task_names_any() -> None:
    unread = msgspec.structs.replace(PROMPTS[2], task=2)
    prompts = (PROMPTS[0], PROMPTS[1], msgspec.structs.replace(PROMPTS[2], task=1), unread)
    evaluation = Evaluation(EvaluationRequest(prompts=prompts, samples=4, temperature=1.0, seed=5))
    said: dict[int, list[tuple[Status, str]]] = {
        0: [("wrong", "7"), ("correct", "9"), ("wrong", "8"), ("wrong", "7")],
        1: [("unparsable", ""), ("timeout", ""), ("correct", ""), ("wrong", "7")],
        2: [("wrong", ""), ("correct", ""), ("wrong", ""), ("wrong", "")],
        3: [("unparsable", "")] * 4,  # a majority of nothing is wrong, whatever the verifier would have named
    }
    for number, verdicts in said.items():
        evaluation.next_prompt()
        request = SampleRequest(
            id="",
            prompt_tokens=Letters().encode("x"),
            samples=4,
            temperature=1.0,
            max_tokens=9,
            seed=0,
            prompt=prompts[number],
        )
        evaluation.sampled(number, answers(request))
        for index, (status, answer) in enumerate(verdicts):
            evaluation.judged(number, index, Verdict(reward=0.0, status=status, seconds=0.0, answer=answer))
    votes = evaluation.result(version(0), 1.0).votes.tolist()
    assert votes == [[1, 0, 2, 1], [-1, -1, 0, 1], [-2, -2, -2, -2], [-1, -1, -1, -1]]


# ── what it says ─────────────────────────────────────────────────────────────────────────────────────────────────────


def said_of(result: EvaluationResult, starter: Path) -> Evaluated:
    job: Job = prepare(Asked(model=str(starter), tasks=SUMS, limit=2, samples=result.samples))
    return evaluated(job, evaluation_row(result, frozenset(), tries(result.samples)), int(result.lengths.sum()))


def test_the_table_has_every_score(starter: Path) -> None:
    found = said_of(evaluation_result([4, 2, 0, 8] * 10, 8, answer=1, levels=("easy", "hard") * 20), starter)
    out = io.StringIO()
    show(Console(file=out, width=100), found)
    for part in ("easy", "hard", "all", "pass@1", "pass@8", "maj@8", "nats a token", "20.0", "0.438", "tokens/s"):
        assert part in out.getvalue()
    assert "unparsable" not in out.getvalue()


def test_the_object_has_its_keys_and_loads_back(starter: Path) -> None:
    found = said_of(evaluation_result([4, 2], 4, answer=1), starter)
    plain = json.loads(msgspec.json.encode(found))
    assert plain["scores"]["pass_at"]["4"]["mean"] == 1.0
    assert set(plain["scores"]["majority_at"]["4"]) == {"mean", "low", "high"}
    assert (plain["responses"], plain["tokens"], plain["tokens_per_second"]) == (8, 160, 32.0)
    assert msgspec.json.decode(msgspec.json.encode(found), type=type(found)) == found


@pytest.mark.parametrize(
    ("status", "share", "lines", "worthless"),
    [
        ("error", 1.0, 1, True),
        ("timeout", 1.0, 1, True),
        ("timeout", 0.25, 1, False),
        ("unparsable", 1.0, 1, False),
        ("unparsable", 0.25, 0, False),
    ],
)
def test_failures_of_a_verifier_are_told(
    starter: Path, status: Status, share: float, lines: int, worthless: bool
) -> None:
    result = evaluation_result([0, 0], 4)
    statuses = result.statuses.copy()
    statuses.reshape(-1)[: math.ceil(8 * share)] = STATUSES.index(status)
    told = warnings(said_of(msgspec.structs.replace(result, statuses=statuses), starter), alarm_share=0.5)
    assert (len(told.lines), told.worthless) == (lines, worthless)
    assert all(status in line for line in told.lines)


def test_stdout_is_the_results_alone_and_nothing_judged_is_no_success(
    starter: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def measured(config: RunConfig, prompts: tuple[Prompt, ...], samples: int, **_: object) -> EvaluationResult:
        os.write(1, b"a library says hello\n")
        result = evaluation_result([0] * len(prompts), samples)
        return msgspec.structs.replace(result, statuses=np.full_like(result.statuses, STATUSES.index("error")))

    monkeypatch.setattr(evaluate, "measure", measured)
    assert main(["eval", str(starter), "--task", *SUMS, "--limit", "3", "--json"]) == 1
    shown = capfd.readouterr()
    assert json.loads(shown.out)["scores"]["statuses"]["error"] == 24
    assert "a library says hello" in shown.err
    assert "every verdict is a failure of the verifier (24 error)" in shown.err


def test_a_pipe_gets_a_line_now_and_then_and_a_terminal_a_bar() -> None:
    for terminal, wanted in ((False, 3), (True, 0)):
        out, now = io.StringIO(), itertools.count(0.0, 1.0)
        watch = Watch(Console(file=out, force_terminal=terminal, width=100), clock=lambda now=now: next(now))  # type: ignore[misc]
        watch.begin()
        for done in range(30):
            watch.told(Progress(prompts=40, sampled=done, judged=done, correct=done // 2, failed=0, tokens=100 * done))
        watch.close()
        assert out.getvalue().count(" of 40 prompts, ") == wanted
        assert "tokens/s, pass@1 0." in out.getvalue()


# ── in a run ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rows_of_earlier_releases_load(tmp_path: Path) -> None:
    row = msgspec.to_builtins(earlier_row(3, 0.5))
    old = {name: value for name, value in row.items() if name not in ("scores", "correct")}
    for level in old["levels"]:
        del level["scores"]
    (tmp_path / "evaluations.jsonl").write_text(json.dumps(old) + "\n")
    assert read_evaluations(tmp_path / "evaluations.jsonl") == [earlier_row(3, 0.5)]


def test_a_summary_says_how_sure_the_gain_is() -> None:
    def told(before: EvaluationRow, after: EvaluationRow) -> str:
        rows = [metrics_row(step) for step in range(1, 11)]
        found = summarise(rows, [before, after], seconds=1.0, first_step_seconds=1.0, actor_restarts=0)
        return next(line for line in sentences(found) if line.startswith("pass@1"))

    sure = told(scored_row(0, 0.3), scored_row(10, 0.6))
    assert "95 %" in sure
    assert "chance" not in sure
    assert "so it may be chance" in told(scored_row(0, 0.3), scored_row(10, 0.32))
    others = msgspec.structs.replace(scored_row(10, 0.6), asked="others")
    assert "by prompt" in told(scored_row(0, 0.3), scored_row(10, 0.6))
    assert "by prompt" not in told(scored_row(0, 0.3), others), "other prompts can't be paired"
    assert told(earlier_row(0, 0.3), scored_row(10, 0.3)).count("95 %") == 0
