"""`make chaos`: breaks real runs of the real engine in every way of the list, one after the other.

What came of each lies in `benchmarks/results/chaos`, and in the tables of docs/reliability.md. A fault whose result is
there, made by the same code, is not repeated: one that was stopped goes on where it stopped.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.cells import ROOT, cell
from tests.chaos.cases import CASES, Case
from tests.chaos.table import write

PRODUCT = ("actors", "controller", "learner", "protocol", "entrostat")


def main() -> int:
    """The exit code is 1 where something did not hold."""
    parser = argparse.ArgumentParser(description="break real runs in every way of the list")
    parser.add_argument("--only", nargs="*", metavar="FAULT", help="only these; default: all")
    parser.add_argument("--table", action="store_true", help="only write the page from the results that are there")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the runs there")
    chosen = parser.parse_args()
    failed = []
    for case in CASES:
        if chosen.table or (chosen.only and case.name not in chosen.only):
            continue
        began = time.monotonic()
        try:
            carry_out(case, chosen.keep)
        except PermissionError as reason:
            print(f"{case.name}: skipped, {reason}", flush=True)
        except Exception as error:  # noqa: BLE001 - whatever one fault ends with, the others are made
            failed.append(case.name)
            print(f"{case.name}: FAILED after {time.monotonic() - began:.0f} s: {error!r}", flush=True)
        else:
            print(f"{case.name}: holds, {time.monotonic() - began:.0f} s", flush=True)
    write()
    return 1 if failed else 0


def carry_out(case: Case, keep: Path | None) -> dict[str, Any]:
    """The fault's result: read, or made."""

    def compute() -> dict[str, Any]:
        folder = Path(tempfile.mkdtemp(prefix="chaos-")) if keep is None else keep / case.name
        if keep is not None and folder.exists():
            shutil.rmtree(folder)
        outcome = case.fault(folder)
        if keep is None:
            shutil.rmtree(folder)
        made: dict[str, Any] = msgspec.to_builtins(outcome)
        return made | {"unix_seconds": time.time()}

    return cell("chaos", case.name, {"steps": case.steps}, code(), compute)


def code() -> list[str]:
    """What a result depends on: the whole product."""
    return sorted(str(path.relative_to(ROOT)) for name in PRODUCT for path in (ROOT / name).rglob("*.py"))


if __name__ == "__main__":
    sys.exit(main())
