"""What the command line makes of errors, and what it lets one choose."""

from pathlib import Path

import pytest

from entrostat import cli
from entrostat import directory as directories
from entrostat.config import effective_toml, load
from entrostat.protocol.messages import STATUSES


@pytest.mark.parametrize("status", STATUSES)
def test_samples_of_every_status_can_be_asked_for(status: str, tmp_path: Path) -> None:
    assert cli.main(["samples", str(tmp_path), "--status", status]) == 2  # no run there, but the status is known


def test_a_status_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["samples", str(tmp_path), "--status", "right"])
    assert "invalid choice: 'right'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "explain", "calibrate"])
def test_a_law_told_of_a_delay_that_no_run_has_is_refused(
    command: str, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = repository / "deploy/runs/simulated.toml"
    # The second fault is said by every command, so that none goes on to run.
    overrides = ["--set", "entropy.law.lag=4", "--set", "batch.prompts=1000000"]
    assert cli.main([command, str(config), *overrides]) == 2
    assert "[entropy.law] lag = 4, expected 1" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_run_goes_on_with_no_other_delay_either(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = effective_toml(load(repository / "deploy/runs/simulated.toml"))
    directories.create(tmp_path / "run", text, keep_earlier=False).close()
    assert cli.main(["train", "--resume", str(tmp_path / "run"), "--set", "entropy.law.lag=4"]) == 2
    assert "[entropy.law] lag = 4, expected 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [(PermissionError(13, "Permission denied", "/data/run"), 2), (OSError(28, "No space left on device"), 1)],
)
def test_a_file_that_can_not_be_used_is_bad_input_and_a_machine_that_fails_is_not(
    error: OSError, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(chosen: object) -> int:
        raise error

    monkeypatch.setattr(cli, "_report", fails)
    assert cli.main(["report", str(tmp_path)]) == code
    assert str(error.strerror) in capsys.readouterr().err
