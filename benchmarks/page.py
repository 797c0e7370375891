"""Tables in a page of the docs, between two marks, renewed by the benchmark that makes them."""

from pathlib import Path

from benchmarks.cells import ROOT

PERFORMANCE = ROOT / "docs/performance.md"


def put(name: str, text: str, page: Path = PERFORMANCE) -> None:
    """Writes `text` between the page's marks of that name.

    Raises:
        ValueError: the page has no such marks.
    """
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    before, found, rest = page.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{page} has no place for the tables of {name}: expected {begin.strip()} … {end.strip()}")
    page.write_text(f"{before}{begin}{text.rstrip()}\n{end}{after}")
