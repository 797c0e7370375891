"""What a run writes down, and what it comes to."""

import math
import sys
from math import comb
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrostat import directory as directories
from entrostat import sinks, summary
from entrostat.calibration import entropies
from entrostat.controller.state import Controller
from entrostat.controller.thermometer import driving_estimator
from entrostat.protocol.entropy_settings import EntropySettings
from entrostat.protocol.errors import RunDirectoryError
from entrostat.protocol.messages import ControllerView, EvaluationResult, PolicyVersion, StepReport
from entrostat.protocol.moments import Moments
from entrostat.rows import MetricsRow, evaluation_row, metrics_row, pass_at, read_metrics
from tests.made_messages import Scene, plain_report, run_of, scene, step_of
from tests.made_rows import evaluation_row as made_evaluation
from tests.made_rows import metrics_row as made_row


@given(samples=st.integers(1, 12), data=st.data())
def test_pass_at_k_is_the_closed_form(samples: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, samples))
    correct = data.draw(st.lists(st.integers(0, samples), min_size=1, max_size=6))
    exact = np.mean([1 - comb(samples - c, k) / comb(samples, k) for c in correct])
    assert pass_at(k, np.array(correct), samples) == pytest.approx(exact, abs=1e-12)


def result(levels: tuple[str, ...], correct: tuple[int, ...], samples: int = 8) -> EvaluationResult:
    return EvaluationResult(
        version=PolicyVersion(branch=0, step=3),
        levels=levels,
        correct=correct,
        samples=samples,
        mean_tokens=10.0,
        surprise=Moments(count=1, mean=0.2),
        statuses=(0, 0, 0, 0, 0),
        seconds=1.0,
    )


def test_only_trained_levels_make_the_score() -> None:
    row = evaluation_row(result(("easy", "hard", "hard"), (8, 0, 0)), frozenset({"easy"}))
    assert (row.pass_at_1, row.pass_at_8, row.prompts) == (1.0, 1.0, 1)
    assert [(level.level, level.trained, level.pass_at_1) for level in row.levels] == [
        ("easy", True, 1.0),
        ("hard", False, 0.0),
    ]


def test_without_a_trained_level_all_count() -> None:
    assert evaluation_row(result(("a", "b"), (8, 0)), frozenset({"c"})).pass_at_1 == 0.5


def test_fewer_than_eight_samples_give_no_pass_at_8() -> None:
    assert evaluation_row(result(("a",), (2,), samples=4), frozenset()).pass_at_8 is None


def test_a_summary_averages_the_first_and_last_ten_steps() -> None:
    rows = [made_row(step) for step in range(1, 31)]
    evaluations = [made_evaluation(0, 0.3), made_evaluation(30, 0.7)]
    told = summary.summarise(rows, evaluations, seconds=90.0, first_step_seconds=20.0, actor_restarts=0)
    assert told.reward_first == pytest.approx(0.3 + 0.01 * 5.5)
    assert told.reward_last == pytest.approx(0.3 + 0.01 * 25.5)
    assert (told.pass_at_1_before, told.pass_at_1_after) == (0.3, 0.7)
    assert told.tokens_per_second == pytest.approx(500.0)
    assert told.max_mismatch_nats == pytest.approx(3e-5)
    assert told.max_staleness == 1
    assert any("pass@8" in line for line in summary.sentences(told))


def test_a_summary_without_evaluations_claims_none() -> None:
    told = summary.summarise([made_row(1)], [], seconds=1.0, first_step_seconds=1.0, actor_restarts=0)
    assert told.pass_at_1_before is None
    assert told.pass_at_1_after is None
    assert not any("pass@" in line for line in summary.sentences(told))


def test_rewinding_voids_what_came_after(tmp_path: Path) -> None:
    directory = directories.create(tmp_path / "a", "", keep_earlier=False)
    sink = sinks.JsonLines(directory)
    for step in range(1, 6):
        sink.step(made_row(step))
        sink.evaluation(made_evaluation(step, 0.5))
    sink.close()
    sinks.rewind(directory, 3)
    assert [row.step for row in read_metrics(directory.metrics)] == [1, 2, 3]
    assert len(directory.evaluations.read_bytes().splitlines()) == 3
    directory.close()


def test_a_line_cut_off_by_a_crash_never_was_a_row(tmp_path: Path) -> None:
    line = msgspec.json.encode(made_row(1)) + b"\n"
    (tmp_path / "metrics.jsonl").write_bytes(line + line[:40])
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1
    (tmp_path / "metrics.jsonl").write_bytes(line[:40] + b"\n" + line)
    with pytest.raises(RunDirectoryError, match=r"metrics\.jsonl:1"):
        read_metrics(tmp_path / "metrics.jsonl")


def row_of(report: StepReport, view: ControllerView) -> MetricsRow:
    return metrics_row(
        report,
        view,
        [],
        unix_seconds=0.0,
        step_seconds=1.0,
        coefficient=0.0,
        samples=4,
        memory_gib=0.0,
    )


def test_levels_and_ages_reach_the_row_and_what_was_not_measured_is_none() -> None:
    report = msgspec.structs.replace(plain_report(clamped=0.2), ages=(0.2, math.nan), masked_share=0.25)
    view = msgspec.structs.replace(
        scene().controller.view(), measured_entropy=math.nan, sample_balance=0.5, actor_ages=(math.nan, 0.3)
    )
    row = row_of(report, view)
    assert row.level_entropy_nats == {"a": 0.2}
    assert (row.age_entropy_nats, row.age_actor_entropy_nats) == ((0.2, None), (None, 0.3))
    assert (row.law_entropy_nats, row.sample_balance, row.masked_share) == (None, 0.5, 0.25)


@pytest.mark.parametrize("measured", ["full", "bonus", "sampled"])
def test_an_orders_row_has_the_entropy_that_the_law_was_told(measured: Literal["full", "bonus", "sampled"]) -> None:
    settings = EntropySettings(measured=measured)
    s = Scene(Controller(msgspec.structs.replace(run_of(), entropy=settings), ["a"] * 10))
    order = s.step(entropy=0.3, clamped=0.2, sampled=0.4)
    row = row_of(step_of(order, entropy=0.3, clamped=0.2, sampled=0.4), s.controller.view())
    told = entropies([row], driving_estimator(settings))
    assert list(told) == [row.law_entropy_nats] == [s.controller.steering.measured_entropy]


def test_what_the_actors_saw_is_no_measurement_of_the_current_policy() -> None:
    row = row_of(plain_report(sampled=0.4), msgspec.structs.replace(scene().controller.view(), actor_entropy=0.2))
    assert (row.sampled_entropy_nats, row.actor_entropy_nats) == (0.4, 0.2)


def test_a_row_is_one_line_of_plain_json() -> None:
    line = msgspec.json.encode(made_row(4))
    assert b"\n" not in line
    assert msgspec.json.decode(line)["step"] == 4


def test_tensorboard_gets_every_number(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    directory = directories.create(tmp_path / "a", "", keep_earlier=False)
    lines, board = sinks.open_sinks(("tensorboard",), directory)
    board.step(made_row(1))
    board.step(made_row(2))
    board.close()
    lines.close()
    events = accumulator.EventAccumulator(str(tmp_path / "a/tensorboard")).Reload()
    assert [event.step for event in events.Scalars("reward")] == [1, 2]
    assert events.Scalars("level_entropy_nats/5 terms")[1].value == pytest.approx(0.2)
    assert events.Scalars("entropy_nats")[0].value == pytest.approx(made_row(1).entropy_nats)
    directory.close()


class OnlineRun:
    """Takes what W&B's run takes."""

    def __init__(self) -> None:
        self.logged: list[tuple[dict[str, float], int | None]] = []
        self.axes: dict[str, str] = {}

    def define_metric(self, name: str, *, step_metric: str) -> None:
        self.axes[name] = step_metric

    def log(self, values: dict[str, float], step: int | None = None) -> None:
        self.logged.append((values, step))


def test_an_evaluation_that_ends_late_is_drawn_over_the_step_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    online = OnlineRun()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **_: online))
    sink = sinks.WeightsAndBiases(tmp_path, "a")
    sink.step(made_row(5))
    sink.step(made_row(6))
    sink.evaluation(made_evaluation(5, 0.5))
    # W&B would drop what comes with a step of its own before the last.
    assert [step for _, step in online.logged] == [None] * 3
    assert [values.get("step", values.get("evaluation/step")) for values, _ in online.logged] == [5, 6, 5]
    assert online.axes["reward"] == "step"
    assert online.axes["evaluation/*"] == "evaluation/step"
