"""Calibrations as a user starts them: with the real engine to the end, with the simulated one until Ctrl-C."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from entrostat import config, toml
from entrostat.protocol.entropy_settings import ThermostatLaw
from entrostat.rows import read_metrics

DEADLINE_SECONDS = 240
SMALL = ["batch.prompts=6", "rollout.samples_per_prompt=8"]


def command(*arguments: object, small: bool = True) -> list[str]:
    chosen = [word for setting in (SMALL if small else []) for word in ("--set", setting)]
    return [sys.executable, "-m", "entrostat", "calibrate", *map(str, arguments), *chosen]


def test_the_quickstart_is_calibrated_and_the_proposal_loads(repository: Path, tmp_path: Path) -> None:
    quickstart = repository / "deploy/runs/quickstart.toml"
    done = subprocess.run(
        command(quickstart, "--steps", 18, "--confirm-steps", 10, "--write", "law.toml"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    free = read_metrics(tmp_path / "runs/quickstart-calibration/uncontrolled/metrics.jsonl")
    held = read_metrics(tmp_path / "runs/quickstart-calibration/confirmed/metrics.jsonl")
    assert [row.step for row in free] == list(range(1, 19))
    assert {row.coefficient for row in free} == {0.0}
    assert free[0].bonus_push is None  # Adam has no metric before its first step
    assert all(row.bonus_push is not None and row.bonus_push > 0.0 for row in free[1:])
    assert len(held) == 10
    assert all(row.coefficient == held[0].coefficient > 0.0 for row in held)
    assert held[0].bonus_push is None
    for run in ("uncontrolled", "confirmed"):
        left = tmp_path / "runs/quickstart-calibration" / run
        assert not (left / "checkpoints").exists()
        assert not (left / "evaluations.jsonl").read_bytes()

    text = (tmp_path / "law.toml").read_text()
    assert text == (tmp_path / "runs/quickstart-calibration/proposal.toml").read_text()
    table, _ = toml.read(quickstart)
    del table["entropy"]["law"]
    (tmp_path / "pasted.toml").write_text(toml.write(table) + text)
    law = config.load(tmp_path / "pasted.toml").entropy.law
    assert isinstance(law, ThermostatLaw)
    assert law.balance == float(f"{law.balance:.3g}") > 0.0
    for part in ("H_0", "balance", "drift", "configured", "law.toml"):
        assert part in done.stdout


def test_ctrl_c_ends_a_calibration_and_leaves_nothing(repository: Path, tmp_path: Path) -> None:
    arguments = command(repository / "deploy/runs/simulated.toml", "--steps", 500, "--run", "c", small=False)
    with subprocess.Popen(
        arguments, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            deadline = time.monotonic() + DEADLINE_SECONDS
            while len(read_metrics(tmp_path / "c/uncontrolled/metrics.jsonl")) < 3:
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, said
    assert "nothing is proposed" in said
    assert "--resume" not in said
    assert list(tmp_path.iterdir()) == []
