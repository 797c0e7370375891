"""The report shows a run without needing anything beside it."""

import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from matplotlib.figure import Figure

from entrostat import sinks, summary
from entrostat.directory import create
from entrostat.report import draw_waiting, smooth, write_report
from tests.made_rows import evaluation_row, metrics_row, scored_row


def test_a_page_holds_its_pictures_and_the_summary(tmp_path: Path) -> None:
    directory = create(tmp_path / "a", "[run]\n# <b>\n", keep_earlier=False)
    rows = [metrics_row(step) for step in range(1, 20)]
    evaluations = [evaluation_row(0, 0.3), scored_row(10, 0.5), evaluation_row(19, 0.6)]
    sink = sinks.JsonLines(directory)
    for row in rows:
        sink.step(row)
    for evaluation in evaluations:
        sink.evaluation(evaluation)
    sink.close()
    told = summary.summarise(rows, evaluations, seconds=60.0, first_step_seconds=20.0, actor_restarts=0)
    summary.write(told, directory.summary)
    page = write_report(directory.path).read_text()
    assert page.count("data:image/png;base64,") == 10
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "pass@1    0.300 → 0.600" in page
    assert page.count("<small>") == 9  # pass@1, 2, 4, 8, maj@2, 4, 8, tokens, nats of the one with scores
    assert "&lt;b&gt;" in page
    assert (directory.report / "entropy.png").stat().st_size > 10_000
    assert msgspec.json.decode(directory.summary.read_bytes())["steps"] == 19
    directory.close()


def test_a_run_of_one_step_can_be_drawn(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(
        msgspec.json.encode(metrics_row(1, target_nats=None, difficulty=(), level_entropy_nats={})) + b"\n"
    )
    assert "not finished" in write_report(tmp_path).read_text()


def test_the_waits_are_drawn_by_cause_as_shares_of_all_time_that_passed() -> None:
    waits = {"sampling": 0.5, "evaluation": 2.0, "weights": 0.0}
    axes = Figure().subplots()
    draw_waiting(axes, [metrics_row(step, wait_cause_seconds=waits) for step in (1, 2, 3)])
    assert axes.get_legend_handles_labels()[1] == ["sampling", "evaluation"]
    tops = [float(np.asarray(area.get_paths()[0].vertices)[:, 1].max()) for area in axes.collections]
    assert tops == pytest.approx([0.5 / 4.0, 2.5 / 4.0])  # of steps of 2 s, and an evaluation of 2 s after each


def test_smoothing_is_a_trailing_mean() -> None:
    values = np.arange(20, dtype=np.float64)
    assert smooth(values, 10)[-1] == pytest.approx(values[-10:].mean())
    assert smooth(values, 10)[0] == values[0]
