"""What the command line makes of errors, and what it lets one choose."""

from pathlib import Path

import pytest

from entrostat import cli
from entrostat.protocol.messages import STATUSES


@pytest.mark.parametrize("status", STATUSES)
def test_samples_of_every_status_can_be_asked_for(status: str, tmp_path: Path) -> None:
    assert cli.main(["samples", str(tmp_path), "--status", status]) == 2  # no run there, but the status is known


def test_a_status_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["samples", str(tmp_path), "--status", "right"])
    assert "invalid choice: 'right'" in capsys.readouterr().err


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
