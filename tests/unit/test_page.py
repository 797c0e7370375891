"""Tables in the docs, renewed in their place."""

from pathlib import Path

import pytest

from benchmarks import page


def test_only_what_stands_between_the_marks_is_renewed(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text("above\n<!-- a: begin -->\nold\n<!-- a: end -->\nbelow\n<!-- b: begin -->\n<!-- b: end -->\n")
    page.put("a", "| new |\n\n", file)
    page.put("b", "other", file)
    page.put("a", "| newer |", file)
    assert file.read_text() == (
        "above\n<!-- a: begin -->\n| newer |\n<!-- a: end -->\nbelow\n<!-- b: begin -->\nother\n<!-- b: end -->\n"
    )


def test_a_page_without_the_place_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text("<!-- a: begin -->\nold\n")
    with pytest.raises(ValueError, match="a: end"):
        page.put("a", "new", file)
    assert file.read_text() == "<!-- a: begin -->\nold\n"


def test_the_page_has_a_place_for_every_benchmark_that_renews_its_tables(tmp_path: Path) -> None:
    copy = tmp_path / "performance.md"
    copy.write_text(page.PERFORMANCE.read_text())
    for name in ("overlap", "overhead"):
        page.put(name, "tables", copy)
