"""The ablation: every set-up is one that the zoo finds, and the report says what the rows say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import ablation
from benchmarks.zoo.contenders import find
from lightning_gradguard import GradGuard
from lightning_gradguard.remedies import Clip

CAUSES = {"a": "initialisation", "b": "initialisation", "c": "learning rate"}


def row(case: str, contender: str, score: float, acted: bool = False) -> dict[str, Any]:
    return {
        "case": case,
        "contender": contender,
        "seed": 0,
        "kind": "sick",
        "cause": CAUSES[case],
        "score": score,
        "chance": 0.1,
        "error": "",
        "interventions": int(acted),
    }


ROWS = ablation.named(
    [row(case, "twin", 0.9) for case in CAUSES]
    + [row(case, "none", 0.1) for case in CAUSES]
    + [row(case, "benchmarks.ablation:clipping", 0.9 if case == "a" else 0.5, acted=case != "c") for case in CAUSES]
)


@pytest.mark.parametrize("setup", ablation.SETUPS)
def test_every_set_up_is_found_by_its_name_and_made_anew(setup: str) -> None:
    ways = [find(f"benchmarks.ablation:{setup}") for _ in range(2)]
    made = [way.setup(None, None)["callbacks"][0] for way in ways]  # type: ignore[arg-type]
    names = [[remedy.name for remedy in callback.guard._parts.remedies] for callback in made]
    assert all(isinstance(callback, GradGuard) for callback in made) and made[0] is not made[1]
    assert names[0] == names[1] and names[0]


def test_a_set_up_whose_remedies_change_has_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: ablation.fingerprint(name) for name in ablation.SETUPS}
    assert len(set(before.values())) == len(before)
    assert isinstance(
        find(f"benchmarks.ablation:clipping@{before['clipping']}").setup(None, None)["callbacks"][0], GradGuard
    )  # type: ignore[arg-type]
    monkeypatch.setitem(ablation.SETUPS, "clipping", lambda: [Clip(algorithm="value")])
    assert ablation.fingerprint("clipping") != before["clipping"]
    with pytest.raises(AttributeError):
        find(f"benchmarks.ablation:clipping@{before['clipping']}")


def test_the_name_of_a_set_up_does_not_depend_on_where_its_remedies_lie() -> None:
    before = {name: ablation.fingerprint(name) for name in ablation.SETUPS}
    elsewhere = [make() for make in ablation.SETUPS.values()]
    assert elsewhere and {name: ablation.fingerprint(name) for name in ablation.SETUPS} == before


def test_alone_is_alone_and_together_is_all_six() -> None:
    alone = {name: [r.name for r in ablation.SETUPS[name]()] for name in ablation.SIX}
    assert all(len(names) == 1 for names in alone.values())
    assert [r.name for r in ablation.SETUPS["all_six"]()] == [names[0] for names in alone.values()]
    held = [r.name for r in ablation.SETUPS["clipping_and_skipping"]()]
    assert held == ["clip", "skip"]
    with pytest.raises(AttributeError):
        ablation.missing  # type: ignore[attr-defined]  # noqa: B018


def test_the_table_counts_by_cause_what_was_rescued() -> None:
    lines = ablation.table(ROWS).splitlines()
    assert lines[0] == "| remedies | initialisation | learning rate | rescued | mean rescue | acted in |"
    assert lines[2:] == [
        "| none | 0/2 | 0/1 | **0/3** | 0.00 | 0/3 |",
        "| clipping | 1/2 | 0/1 | **1/3** | 0.67 | 2/3 |",
    ]


def test_table_and_plot_are_written(tmp_path: Path) -> None:
    ablation.write(ROWS, tmp_path)
    assert (tmp_path / "ablation.md").read_text() == ablation.table(ROWS)
    assert (tmp_path / "ablation.png").read_bytes().startswith(b"\x89PNG")


def test_an_unknown_set_up_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ablation.main(["--setups", "prayer"])
    assert "no such set-up: prayer" in capsys.readouterr().err


def test_quick_takes_sick_cases_of_several_causes() -> None:
    chosen = ablation.sick(shorter=True)
    assert {c.kind for c in chosen} == {"sick"} and len({c.cause for c in chosen}) == len(chosen) > 5
    assert len(ablation.sick(shorter=False)) > 50
