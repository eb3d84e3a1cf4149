"""What a verdict means: asked of it, and nowhere else."""

from __future__ import annotations

import ast
import math
from pathlib import Path
from typing import get_args

import pytest

import lightning_gradguard
from lightning_gradguard.records import BATCH, Form, Suspect, Verdict

ROOT = Path(lightning_gradguard.__file__).parent
FORMS = get_args(Form)


def verdict(form: Form, **more: bool) -> Verdict:
    return Verdict(form, "test", 2.0, 1.0, "x", **more)


@pytest.mark.parametrize(
    ("question", "forms"),
    [
        ("of_one_step", {"sudden", "non-finite"}),
        ("stands_out", {"sudden"}),
        ("drifts", {"drift"}),
        ("diverges", {"divergence"}),
        ("of_a_start", {"cold-start"}),
        ("of_optimizer", {"state"}),
        ("can_recur", {"sudden", "drift", "divergence"}),
        ("against_the_run", {"divergence", "cold-start"}),
    ],
)
def test_each_question_has_its_forms(question: str, forms: set[str]) -> None:
    assert {form for form in FORMS if getattr(verdict(form), question)} == forms


def test_what_is_still_to_be_examined_speaks_against_no_run() -> None:
    assert not verdict("divergence", examine=True).against_the_run


def test_a_nan_exceeds_every_limit() -> None:
    assert Verdict("sudden", "test", math.nan, 1.0, "x").excess == math.inf
    assert verdict("sudden").excess == 2.0


def test_the_batch_is_a_suspect_like_no_layer() -> None:
    assert Suspect(BATCH, 1.0, "x").is_batch and not Suspect("layer", 1.0, "x").is_batch


def test_nobody_else_asks_for_a_form_by_its_string() -> None:
    """Whoever makes a verdict names its form; who reads one asks what it means."""
    asked = {
        f"{file.relative_to(ROOT)}: {ast.unparse(node)}"
        for file in ROOT.rglob("*.py")
        if file.name != "verdict.py" and not file.is_relative_to(ROOT / "report")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Compare)
        and isinstance(node.left, ast.Attribute)
        and node.left.attr == "form"
        and any(isinstance(part, ast.Constant) and part.value in FORMS for part in ast.walk(node))
    }
    assert asked == set()
