"""From the results of the faults to the table of docs/reliability.md."""

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from benchmarks import page
from benchmarks.cells import RESULTS, ROOT, table
from tests.chaos.cases import CASES
from tests.chaos.outcome import Outcome

PAGE = ROOT / "docs/reliability.md"
HEADER = ("what dies", "what happens", "exit", "productive again after, s", "of it a pause, s", "steps made again")


def write() -> None:
    """Renews the page's table and quotations from the newest result of each fault."""
    found = {case.name: outcome for case in CASES if (outcome := newest(case.name)) is not None}
    rows, quoted = [], []
    for case in CASES:
        if (one := found.get(case.name)) is None:
            rows.append([case.dies, case.happens, "not measured", "", "", ""])
            continue
        rows.append(row(case.dies, case.happens, one))
        if one.said:
            quoted += [f"**{case.dies}**", "", "```", *one.said, "```", ""]
    usual = [one.step_seconds for one in found.values()]
    step = f"\n\nA step of an undisturbed moment takes {spread(usual, '.1f')} s in these runs.\n" if usual else ""
    page.put("faults", table(HEADER, rows) + step, PAGE)
    page.put("screens", "\n".join(quoted), PAGE)


def row(dies: str, happens: str, one: Outcome) -> list[str]:
    """One fault."""
    codes = " → ".join("killed" if code < 0 else str(code) for code in one.exit_codes)
    if isinstance(seconds := one.found.get("seconds_to_its_end"), float):
        happens += f" (it ended {seconds:.0f} s after the fault)"
    if not one.hits:
        return [dies, happens, codes, "", "", ""]
    return [
        dies,
        happens,
        codes,
        spread([hit.again_seconds for hit in one.hits], ".1f"),
        spread([hit.pause_seconds for hit in one.hits], ".1f"),
        spread([hit.repeated for hit in one.hits], ".0f"),
    ]


def newest(name: str) -> Outcome | None:
    """The result made last, whatever code made it."""
    results = [
        json.loads(path.read_text())["result"] for path in (RESULTS / "chaos").glob("*.json") if named(path, name)
    ]
    if not results:
        return None
    latest = max(results, key=lambda result: result.pop("unix_seconds"))
    return msgspec.convert(latest, Outcome)


def named(path: Path, name: str) -> bool:
    """Whether a result's file is of that fault."""
    return path.stem.rpartition("-")[0] == name


def spread(values: Sequence[float], digits: str) -> str:
    """The median, and the range where there are several."""
    middle = format(float(np.median(values)), digits)
    return middle if len(values) < 2 else f"{middle} ({min(values):{digits}}–{max(values):{digits}})"
