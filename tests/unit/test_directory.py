"""A run directory is made whole or not at all, and is one process's at a time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from entrostat import directory as directories
from entrostat.protocol.errors import RunDirectoryError


def test_a_new_directory_holds_its_configuration(tmp_path: Path) -> None:
    made = directories.create(tmp_path / "runs/a", "x = 1\n", keep_earlier=False)
    assert made.config.read_text() == "x = 1\n"
    made.close()


def test_an_existing_run_is_refused_and_untouched(tmp_path: Path) -> None:
    directories.create(tmp_path / "a", "first", keep_earlier=False).close()
    with pytest.raises(RunDirectoryError, match=r"--resume .*--run.*--keep-earlier"):
        directories.create(tmp_path / "a", "second", keep_earlier=False)
    assert (tmp_path / "a/config.toml").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_earlier_run_is_kept_under_another_name(tmp_path: Path) -> None:
    for text in ("first", "second", "third"):
        directories.create(tmp_path / "a", text, keep_earlier=True).close()
    texts = {(path / "config.toml").read_text() for path in tmp_path.iterdir()}
    assert texts == {"first", "second", "third"}
    assert (tmp_path / "a/config.toml").read_text() == "third"


def test_what_is_no_run_is_not_renamed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/mine.txt").write_text("precious")
    with pytest.raises(RunDirectoryError, match="holds no run"):
        directories.create(tmp_path / "a", "", keep_earlier=True)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["mine.txt"]


def test_a_run_in_use_is_not_opened_twice_nor_renamed(tmp_path: Path) -> None:
    held = directories.create(tmp_path / "a", "", keep_earlier=False)
    with pytest.raises(RunDirectoryError, match="in use by process"):
        directories.reopen(tmp_path / "a")
    with pytest.raises(RunDirectoryError, match="in use by process"):
        directories.create(tmp_path / "a", "", keep_earlier=True)
    held.close()
    directories.reopen(tmp_path / "a").close()


def test_a_folder_without_a_run_is_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="holds no run"):
        directories.reopen(tmp_path)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="can't be made"):
        directories.create(tmp_path / "file/run", "", keep_earlier=False)


def test_a_closed_run_names_no_endpoint(tmp_path: Path) -> None:
    made = directories.create(tmp_path / "a", "", keep_earlier=False)
    token = made.make_token()
    made.write_info(directories.RunInfo(process=1, started_unix=0.0, targets="t", health="h", scale="s", token=token))
    assert (made.path / "run.json").exists()
    assert Path(token).exists()
    made.close()
    assert not (made.path / "run.json").exists()
    assert not Path(token).exists()


def test_a_token_is_for_its_owner_alone_and_new_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENTROSTAT_TOKEN", raising=False)
    made = directories.create(tmp_path / "a", "", keep_earlier=False)
    first = Path(made.make_token())
    content = first.read_text()
    assert first.stat().st_mode & 0o777 == 0o600
    assert len(content) >= 40
    assert Path(made.make_token()).read_text() != content
    monkeypatch.setenv("ENTROSTAT_TOKEN", "known elsewhere")
    assert made.make_token() == ""
    assert not first.exists()
    made.close()


def test_a_configuration_is_written_in_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from entrostat import directory\n"
        "directory.create(Path(sys.argv[1]), 'name = \"H\\u0303 \\u2013 \\u00e4\"', keep_earlier=False).close()"
    )
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "a")], env={**os.environ, **locale}, check=True)
    assert (tmp_path / "a/config.toml").read_text(encoding="utf-8") == 'name = "H\u0303 – ä"'


def test_what_a_run_begins_with_is_there_from_the_beginning(tmp_path: Path) -> None:
    made = directories.create(tmp_path / "a", "", keep_earlier=False, files={"prompts.npy": b"12"})
    assert (made.path / "prompts.npy").read_bytes() == b"12"
    made.close()
