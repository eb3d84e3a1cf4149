"""Turn the rows of a field trial into two tables."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]
RESCUED = 0.95
LEARNED = 0.2
"""How far above chance a healthy twin must come; less is too little to measure a rescue by."""


def tables(rows: list[Row]) -> str:
    """Write everything as Markdown."""
    by_name: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_name.setdefault(row["name"], {})[row["what"]] = row
    healthy = {k: v for k, v in by_name.items() if v["none"]["kind"] == "healthy"}
    sick = {k: v for k, v in by_name.items() if v["none"]["kind"] == "sick"}
    return "\n\n".join([*([healthy_part(healthy)] if healthy else []), *([sick_part(sick)] if sick else [])])


def is_healthy(row: Row) -> bool:
    """Whether an unguarded run came through by itself: finite, and better at the end than before it."""
    return row["finite"] and not row["error"] and None not in row["losses"] and row["score"] > row["score_before"]


def learned(twin: Row) -> bool:
    """Whether a rescue can be measured by this healthy twin."""
    return is_healthy(twin) and twin["score"] - twin["chance"] >= LEARNED


def healthy_part(runs: dict[str, dict[str, Row]]) -> str:
    """Which healthy runs were touched, and which runs are left out because they were not healthy."""
    good = {k: v for k, v in runs.items() if is_healthy(v["none"])}
    lines = ["### Healthy runs", ""]
    for title, part in _parts(good):
        same = sum(untouched(v) for v in part.values())
        lines.append(f"- {title}: {same} of {len(part)} end bit-identical and without an intervention.")
    lines += ["", *table(["run", "score unguarded", "score guarded", "what was done"], [
        [k, f"{v['none']['score']:.3f}", f"{v['gradguard']['score']:.3f}", story(v["gradguard"])]
        for k, v in good.items() if not untouched(v)
    ])]  # fmt: skip
    left_out = [
        f"{k} (score {v['none']['score_before']:.2f} → {v['none']['score']:.2f})"
        for k, v in runs.items()
        if k not in good
    ]
    lines += ["", f"Left out, because the unguarded run is not healthy itself: {'; '.join(left_out) or 'none'}."]
    return "\n".join(lines)


def untouched(run: dict[str, Row]) -> bool:
    """Whether the guard left no trace."""
    return run["none"]["state"] == run["gradguard"]["state"] and not run["gradguard"]["interventions"]


def sick_part(runs: dict[str, dict[str, Row]]) -> str:
    """Rescue of every sick run."""
    ill = {k: v for k, v in runs.items() if rescue(v, "none") < RESCUED and learned(v["twin"])}
    lines = ["### Sick runs", ""]
    for title, part in _parts(ill):
        saved = sum(rescue(v, "gradguard") >= RESCUED for v in part.values())
        blamed = [right(v["gradguard"]) for v in part.values() if v["gradguard"]["expected"]]
        large = sum(v["gradguard"]["large_updates"] + v["gradguard"]["nonfinite_updates"] > 0 for v in part.values())
        lines.append(
            f"- {title}: {saved} of {len(part)} rescued; the layer named first in {sum(blamed)} of {len(blamed)};"
            f" an update of ten times the usual size or more was applied in {large}."
        )
    head = ["run", "twin", "unguarded", "guarded", "rescue", "blamed", "≥ 10× updates", "what was done"]
    lines += ["", *table(head, [
        [k, *(f"{v[w]['score']:.3f}" for w in ("twin", "none", "gradguard")), f"{rescue(v, 'gradguard'):.2f}",
         "" if not v["gradguard"]["expected"] else "right" if right(v["gradguard"]) else str(v["gradguard"]["culprit"]),
         str(v["gradguard"]["large_updates"] + v["gradguard"]["nonfinite_updates"]), story(v["gradguard"])]
        for k, v in sorted(ill.items(), key=lambda item: rescue(item[1], "gradguard"))
    ])]  # fmt: skip
    left_out = [
        f"{k} ({rescue(v, 'none'):.2f})" if learned(v["twin"]) else f"{k} (twin {v['twin']['score']:.2f})"
        for k, v in runs.items()
        if k not in ill
    ]
    lines += [
        "",
        "Left out, where the unguarded run does well (its rescue) or the twin does not (its score): "
        f"{'; '.join(left_out) or 'none'}.",
    ]
    return "\n".join(lines)


def _parts(runs: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        ("all", runs),
        ("of these held out", {k: v for k, v in runs.items() if v["none"]["held_out"]}),
    ]


def rescue(run: dict[str, Row], what: str) -> float:
    """``(score − chance) / (twin's score − chance)``."""
    twin, chance = run["twin"], run["none"]["chance"]
    return float((run[what]["score"] - chance) / max(twin["score"] - chance, 1e-9))


def right(row: Row) -> bool:
    """Whether the first layer that was blamed is the one."""
    blamed = row["culprit"] or ""
    return any(blamed == c or blamed.endswith("." + c) for c in row["expected"])


def story(row: Row) -> str:
    """What the guard did, in a few words."""
    parts = [
        f"{i['step']} {i['form']} ({i['detector']}{', ' + i['culprit'] if i['culprit'] else ''}): "
        f"{'+'.join(i['remedies']) or '–'}"
        for i in row["incidents"]
    ]
    more = f" … {len(parts)} incidents" if len(parts) > 4 else ""
    return (
        "; ".join(parts[:4])
        + more
        + (" **stopped**" if row["stopped"] else "")
        + (f" {row['error'][:80]}" if row["error"] else "")
    )


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Write a Markdown table."""
    if not rows:
        return []
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
