"""The pages say what the code does, where a test can tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_gradguard.attribution.cause import Cause
from lightning_gradguard.policy.ladder import Treatment, treatments

DOCS = Path(__file__).parents[1] / "docs"


def causes_in_the_page() -> dict[str, tuple[str, str]]:
    """Return each cause with the cells of its treatments: at a start, and under way."""
    text = (DOCS / "how-it-works.md").read_text()
    section = text.split("\n## Causes\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return {cause: (start, under_way) for cause, _, start, under_way in rows[2:]}


def written(ladder: tuple[Treatment, ...]) -> str:
    """Return the cell that a row of the ladder makes."""
    tried = [" + ".join(f"`{name}`" for name in treatment) for treatment in ladder]
    if len(tried) < 2:
        return "".join(tried) or "first aid only"
    return "<br>".join(f"{number}. {treatment}" for number, treatment in enumerate(tried, 1))


def test_the_page_names_every_cause_once() -> None:
    assert sorted(causes_in_the_page()) == sorted(cause.value for cause in Cause)


@pytest.mark.parametrize("cause", Cause)
def test_the_page_gives_the_treatments_of_the_ladder(cause: Cause) -> None:
    start, under_way = causes_in_the_page()[cause.value]
    assert start == written(treatments(cause, start=True))
    assert under_way == written(treatments(cause, start=False))
