"""`entrostat calibrate`: what it runs, what it refuses and what it leaves behind, with runs that are made up."""

from pathlib import Path

import msgspec
import pytest

from entrostat import calibrate, cli, config, proposal, rows
from entrostat import directory as directories
from entrostat.config import RunConfig
from entrostat.controller.state import Controller
from entrostat.protocol.entropy_settings import FixedLaw
from entrostat.protocol.errors import BadInput, ConfigError, Interrupted, Stalled
from entrostat.protocol.messages import BalanceReport, Waits
from entrostat.rows import MetricsRow, read_metrics
from tests.made_messages import plain_report, run_of
from tests.made_runs import BALANCE, DRIFT, MadeUp, calibrated

pytestmark = pytest.mark.usefixtures("logs")


class Fails(MadeUp):
    """Raises `error` in the run of that name, after `steps` steps."""

    def __init__(self, error: BaseException, where: str = calibrate.UNCONTROLLED, steps: int = 0) -> None:
        super().__init__()
        self.error, self.where, self.steps = error, where, steps

    def __call__(self, config: RunConfig, path: Path) -> list[MetricsRow]:
        if path.name == self.where:
            made = directories.create(path, "", keep_earlier=False)
            few = [self.row(step, 0.0, True) for step in range(1, self.steps + 1)]
            made.metrics.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in few))
            made.close()
            raise self.error
        return super().__call__(config, path)


# ── what is run ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_runs_once_without_control_and_once_at_the_balance(quickstart: Path, tmp_path: Path) -> None:
    trial = MadeUp()
    calibrated(quickstart, tmp_path / "c", trial)
    free, held = trial.configs["uncontrolled"], trial.configs["confirmed"]
    assert free.entropy.law == FixedLaw(coefficient=0.0)
    assert isinstance(held.entropy.law, FixedLaw)
    assert held.entropy.law.coefficient == pytest.approx(BALANCE, rel=0.1)
    assert (free.run.steps, held.run.steps) == (calibrate.STEPS, calibrate.CONFIRM_STEPS)
    assert (free.learner.measure_balance, held.learner.measure_balance) == (True, False)
    assert free.run.seed == held.run.seed == config.load(quickstart).run.seed
    assert free.run.name != held.run.name


def test_the_runs_keep_all_of_the_configuration_that_bears_on_entropy(quickstart: Path, tmp_path: Path) -> None:
    trial = MadeUp()
    settings = config.load(quickstart, ["learner.schedule=cosine", "entropy.estimator.drop_fraction=0.5"])
    calibrate.calibrate(settings, tmp_path / "c", trial, 30, 20, keep_earlier=False)
    for made in trial.configs.values():
        assert made.entropy.estimator == settings.entropy.estimator
        assert made.entropy.weight == settings.entropy.weight
        assert (made.batch, made.rollout, made.tasks) == (settings.batch, settings.rollout, settings.tasks)
        assert made.learner.lr == settings.learner.lr
        assert made.learner.schedule == "constant"  # or it would end within the run


def test_the_learning_rates_warm_up_comes_on_top_and_shows_nothing(quickstart: Path, tmp_path: Path) -> None:
    warm = 25

    class SlowAtFirst(MadeUp):
        def row(self, step: int, slope: float, measured: bool) -> MetricsRow:
            return msgspec.structs.replace(super().row(max(step - warm, 2), slope, measured), step=step)

    trial = SlowAtFirst()
    found, _ = calibrated(quickstart, tmp_path / "c", trial, f"learner.warmup_steps={warm}")
    assert trial.configs["uncontrolled"].run.steps == calibrate.STEPS + warm
    assert trial.configs["confirmed"].run.steps == calibrate.CONFIRM_STEPS + warm
    assert found.balance.batches == calibrate.STEPS
    assert found.drift.proposed == pytest.approx(DRIFT, rel=0.05)
    assert found.confirmation is not None
    assert found.confirmation.uncontrolled.value == pytest.approx(-DRIFT, rel=0.05)


def test_the_confirmation_can_be_left_out(quickstart: Path, tmp_path: Path) -> None:
    trial = MadeUp()
    findings, text = calibrate.calibrate(config.load(quickstart), tmp_path / "c", trial, 30, 0, keep_earlier=False)
    assert set(trial.configs) == {"uncontrolled"}
    assert findings.confirmation is None
    assert "Not confirmed" in text


@pytest.mark.parametrize(
    ("steps", "confirm", "overrides", "said"),
    [
        (14, None, [], "--steps is 14, expected at least 15"),
        (0, None, [], "--steps is 0"),
        (-3, None, [], "--steps is -3"),
        (30, None, ["learner.warmup_steps=25"], "--steps is 30, expected at least 35.*learner.warmup_steps = 25"),
        (None, 9, [], "--confirm-steps is 9, expected at least 10"),
        (None, -1, [], "--confirm-steps is -1"),
    ],
)
def test_too_few_steps_are_refused(
    quickstart: Path, steps: int | None, confirm: int | None, overrides: list[str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        calibrate.trial_steps(config.load(quickstart, overrides), steps, confirm)


@pytest.mark.parametrize("balance", [None, BalanceReport(policy_push=-0.5, bonus_push=8.0)])
def test_the_pushes_reach_the_rows_where_they_are_measured(balance: BalanceReport | None) -> None:
    row = rows.metrics_row(
        msgspec.structs.replace(plain_report(), balance=balance),
        Controller(run_of(), ["easy"]).view(),
        [],
        unix_seconds=0.0,
        step_seconds=1.0,
        coefficient=0.0,
        samples=8,
        memory_gib=0.0,
        waits=Waits(sampling=0.5),
    )
    assert row.wait_cause_seconds["sampling"] == 0.5
    assert (row.policy_push, row.bonus_push) == ((None, None) if balance is None else (-0.5, 8.0))


# ── what is left behind ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("where", ["uncontrolled", "confirmed"])
@pytest.mark.parametrize("error", [Interrupted("saved; go on with --resume"), KeyboardInterrupt()])
def test_what_is_interrupted_leaves_nothing(quickstart: Path, tmp_path: Path, error: BaseException, where: str) -> None:
    with pytest.raises(type(error)) as raised:
        calibrated(quickstart, tmp_path / "c", Fails(error, where, steps=12))
    assert "--resume" not in str(raised.value)
    assert not (tmp_path / "c").exists()


def test_what_fails_before_its_first_step_leaves_nothing_and_later_its_rows(quickstart: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput):
        calibrated(quickstart, tmp_path / "c", Fails(BadInput("no GPU")))
    assert not (tmp_path / "c").exists()
    with pytest.raises(Stalled):
        calibrated(quickstart, tmp_path / "c", Fails(Stalled("no step"), "confirmed", steps=3))
    assert len(read_metrics(tmp_path / "c/uncontrolled/metrics.jsonl")) == calibrate.STEPS
    assert not (tmp_path / "c/proposal.toml").exists()
    with pytest.raises(BadInput):
        calibrated(quickstart, tmp_path / "d", Fails(BadInput("no room"), "confirmed", steps=3))
    assert len(read_metrics(tmp_path / "d/uncontrolled/metrics.jsonl")) == calibrate.STEPS


def test_an_earlier_calibration_is_refused_or_kept_whole(quickstart: Path, tmp_path: Path) -> None:
    settings, target = config.load(quickstart), tmp_path / "c"
    _, first = calibrate.calibrate(settings, target, MadeUp(), 30, 20, keep_earlier=False)
    with pytest.raises(BadInput, match="exists already"):
        calibrate.calibrate(settings, target, MadeUp(), 30, 20, keep_earlier=False)
    assert (target / "proposal.toml").read_text() == first
    calibrate.calibrate(settings, target, MadeUp(2.5 * BALANCE), 30, 20, keep_earlier=True)
    kept = [path for path in tmp_path.iterdir() if path != target]
    assert len(kept) == 1
    assert (kept[0] / "proposal.toml").read_text() == first
    assert (kept[0] / "confirmed/metrics.jsonl").is_file()


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────


def command(*arguments: object) -> int:
    return cli.main(["calibrate", *map(str, arguments)])


def test_bad_input_is_refused_before_anything_is_written(
    quickstart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "mine.toml"
    mine.write_text("precious = 1\n")
    (tmp_path / "there").mkdir()
    for arguments, said in (
        ((tmp_path / "none.toml",), "there is no configuration"),
        ((quickstart, "--steps", 5), "--steps is 5"),
        ((quickstart, "--set", "learner.lrr=1"), "unknown key"),
        ((quickstart, "--write", mine), "no earlier proposal"),
        ((quickstart, "--write", tmp_path / "there"), "a folder"),
        ((quickstart, "--write", mine / "inside"), "nothing can be written"),
        ((quickstart, "--run", tmp_path / "there"), "exists already"),
        ((quickstart, "--address", "127.0.0.1:9"), "no Ray cluster answers"),
    ):
        assert command(*arguments) == 2
        assert said in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.toml", "there"]
    assert mine.read_text() == "precious = 1\n"


def test_an_earlier_proposal_may_be_written_over(tmp_path: Path) -> None:
    file = tmp_path / "law.toml"
    file.write_text(f"{proposal.MARK} for something\n")
    calibrate.check_writable(file)
    calibrate.check_writable(tmp_path / "new/law.toml")
