"""What `entrostat calibrate` proposes, from runs that are made up."""

import tomllib
from pathlib import Path

import pytest
from rich.console import Console

from entrostat import calibrate, config, proposal, toml
from entrostat.calibration import DRIFT_FLOOR
from entrostat.config import RunConfig
from entrostat.protocol.entropy_settings import (
    AnchoredLaw,
    BandLaw,
    BangBangLaw,
    FixedLaw,
    LawSettings,
    PiLaw,
    ThermostatLaw,
)
from entrostat.rows import MetricsRow
from tests.made_runs import BALANCE, DRIFT, H_0, MadeUp, calibrated

pytestmark = pytest.mark.usefixtures("logs")


def pasted(path: Path, text: str, folder: Path) -> RunConfig:
    """The configuration with the proposal's text in place of its own [entropy.law], as a user would paste it."""
    table, _ = toml.read(path)
    table["model"]["path"] = str((path.parent / table["model"]["path"]).resolve())
    table.get("entropy", {}).pop("law", None)
    changed = folder / "pasted.toml"
    changed.write_text(toml.write(table) + "\n" + text)
    return config.load(changed)


def test_what_is_proposed_is_what_was_made_up(quickstart: Path, tmp_path: Path) -> None:
    findings, text = calibrated(quickstart, tmp_path / "c", MadeUp())
    law = pasted(quickstart, text, tmp_path).entropy.law
    assert isinstance(law, ThermostatLaw)
    assert law.balance == pytest.approx(BALANCE, rel=0.1)
    assert law.drift == pytest.approx(DRIFT, rel=0.1)
    assert findings.initial_entropy == pytest.approx(H_0, rel=0.02)
    assert 0.01 <= law.noise < 0.03
    assert "Confirmed" in text
    assert (tmp_path / "c/proposal.toml").read_text() == text


def test_a_balance_that_does_not_hold_is_corrected_and_says_so(quickstart: Path, tmp_path: Path) -> None:
    _, text = calibrated(quickstart, tmp_path / "c", MadeUp(truth=3.0 * BALANCE))
    law = tomllib.loads(text)["entropy"]["law"]
    assert law["balance"] == pytest.approx(3.0 * BALANCE, rel=0.2)
    assert "corrected by a factor of" in text


@pytest.mark.parametrize("overrides", [[], ["entropy.law.kind=fixed"], ["entropy.measured=full"]])
def test_the_proposal_loads_in_place_of_the_configurations_law(
    quickstart: Path, tmp_path: Path, overrides: list[str]
) -> None:
    _, text = calibrated(quickstart, tmp_path / "c", MadeUp(), *overrides)
    assert isinstance(pasted(quickstart, text, tmp_path).entropy.law, ThermostatLaw)


def test_each_law_that_is_commented_out_loads_too(quickstart: Path, tmp_path: Path) -> None:
    _, text = calibrated(quickstart, tmp_path / "c", MadeUp())
    found = []
    for block in text.split("\n\n")[2:]:
        plain = [line.removeprefix("# ") for line in block.splitlines()]
        table = "\n".join(plain[plain.index("[entropy.law]") :])
        found.append(pasted(quickstart, table, tmp_path).entropy.law)
    assert [type(law) for law in found] == [BandLaw, BangBangLaw, AnchoredLaw]
    band = found[0]
    assert isinstance(band, BandLaw)
    target = 0.6 * H_0
    assert (band.low, band.high) == pytest.approx((0.9 * target, 1.1 * target), rel=0.03)
    assert (band.floor, band.ceiling) == pytest.approx((band.initial / 100, 10 * band.initial), rel=0.01)


@pytest.mark.parametrize(
    ("law", "expected"),
    [
        (ThermostatLaw(anchor=0.55), 0.55),
        (AnchoredLaw(anchor=0.4), 0.4),
        (BangBangLaw(target=0.115), 0.5),
        (PiLaw(anchor=0.8), 0.8),
        (FixedLaw(), 0.7),
        (BandLaw(initial=1e-3, floor=1e-4, ceiling=1e-2, low=0.1, high=0.2, rate=1e-3), 0.7),
    ],
)
def test_the_target_stays_the_configurations(law: LawSettings, expected: float) -> None:
    assert proposal.anchor(law, 0.23) == expected


def test_what_is_no_property_of_the_policy_stays(quickstart: Path, tmp_path: Path) -> None:
    settings = [
        "entropy.law.ceiling_ratio=5.0",
        "entropy.law.anchor_orders=4",
        "entropy.law.pace=0.2",
    ]
    _, text = calibrated(quickstart, tmp_path / "c", MadeUp(), *settings)
    law = tomllib.loads(text)["entropy"]["law"]
    assert (law["ceiling_ratio"], law["anchor_orders"], law["pace"], law["anchor"]) == (5.0, 4, 0.2, 0.6)


def test_an_entropy_that_does_not_fall_gives_a_floor_and_says_so(quickstart: Path, tmp_path: Path) -> None:
    class Still(MadeUp):
        def row(self, step: int, slope: float, measured: bool) -> MetricsRow:
            return super().row(step, 0.0, measured)

    _, text = calibrated(quickstart, tmp_path / "c", Still())
    words = " ".join(text.replace("#", " ").split())
    assert "does not fall distinguishably" in words
    assert "steepest fall not ruled out" in words
    assert "That confirms little" in words
    assert tomllib.loads(text)["entropy"]["law"]["drift"] == pytest.approx(DRIFT_FLOOR, rel=0.2)


def test_the_table_shows_each_number_beside_the_configured_one(quickstart: Path, tmp_path: Path) -> None:
    findings, _ = calibrated(quickstart, tmp_path / "c", MadeUp())
    console = Console(width=160, record=True)
    calibrate.show(console, config.load(quickstart), findings)
    text = console.export_text()
    for part in ("H_0", "anchor", "balance", "drift", "lag", "box", "noise", "pace", "0.06", "Confirmed"):
        assert part in text
