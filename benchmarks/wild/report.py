"""Turn rows of wild runs into Markdown: a summary of each part and a table with a row for each case."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import mean, median
from typing import Any

from benchmarks.wild.contenders import GUARD, SICK, SIMPLE

Row = dict[str, Any]
Runs = dict[str, dict[int, Row]]
"""All rows of one case: by contender, by seed."""
RESCUED = 0.95
MARGIN = 0.05
NEAR = 0.02


def group(rows: list[Row]) -> dict[str, Runs]:
    """Sort rows by case, contender and seed."""
    grouped: dict[str, Runs] = {}
    for r in sorted(rows, key=lambda r: (r["kind"], r["case"], r["seed"])):
        grouped.setdefault(r["case"], {}).setdefault(r["contender"], {})[r["seed"]] = r
    return grouped


def first(runs: Runs) -> Row:
    """Give any row of a case, for what all of them share."""
    return next(iter(next(iter(runs.values())).values()))


def rescue(runs: Runs, name: str) -> float | None:
    """Median over the seeds of ``(score - chance) / (twin's score - chance)``, in [0, 1.05]; None without rows or a
    twin that learned."""
    found = [
        (row["score"] - row["chance"]) / (twin["score"] - twin["chance"])
        for seed, row in runs.get(name, {}).items()
        if (twin := runs.get("twin", {}).get(seed)) is not None and twin["score"] > twin["chance"]
    ]
    return min(max(median(found), 0.0), 1.05) if found else None


def gain(runs: Runs) -> float | None:
    """How far the guard's rescue lies above the best of what a user has without it."""
    guarded, simple = rescue(runs, GUARD), [rescue(runs, n) for n in SIMPLE]
    known = [s for s in simple if s is not None]
    return None if guarded is None or len(known) < len(SIMPLE) else guarded - max(known)


def pairs(runs: Runs) -> list[tuple[Row, Row]]:
    """Give the guarded rows of a healthy case, each with the unguarded one of its seed."""
    return [(r, runs["none"][s]) for s, r in runs.get(GUARD, {}).items() if s in runs.get("none", {})]


def identical(runs: Runs) -> bool | None:
    """Whether the guard changed no bit under any seed; None where there is nothing to compare."""
    found = [g["state"] == n["state"] and g["steps"] == n["steps"] and not g["error"] for g, n in pairs(runs)]
    return all(found) if found else None


def drift(runs: Runs) -> float | None:
    """Give the largest relative difference of score between guarded and unguarded over the seeds, with its sign."""
    found = [(g["score"] - n["score"]) / max(abs(n["score"] - n["chance"]), 1e-9) for g, n in pairs(runs)]
    return max(found, key=abs) if found else None


def stopped(runs: Runs) -> bool:
    """Whether the guard ended the run early under any seed."""
    return any(r["stopped"] for r in runs.get(GUARD, {}).values())


def time_ratio(grouped: dict[str, Runs], reference: str) -> float | None:
    """Median over cases and seeds of guarded processor time to that of a reference."""
    found = [
        r["cpu_seconds"] / max(other["cpu_seconds"], 1e-3)
        for runs in grouped.values()
        for seed, r in runs.get(GUARD, {}).items()
        if (other := runs.get(reference, {}).get(seed)) is not None
    ]
    return median(found) if found else None


def tables(rows: list[Row], detail: bool = True) -> str:
    """Write the report; without detail, the summaries alone."""
    grouped = group(rows)
    parts = [("Held out", True), ("Development", False)]
    out = []
    for title, held in parts:
        part = {k: v for k, v in grouped.items() if first(v)["held_out"] is held}
        if part:
            out += [f"## {title}", "", *summary(part), ""]
            out += [*sick_table(_of(part, "sick")), "", *healthy_table(_of(part, "healthy")), ""] if detail else []
    errors = [r for r in rows if r["error"]]
    if errors and detail:
        out += [
            "## Runs that raised",
            "",
            *(f"- {r['case']}, {r['contender']}, seed {r['seed']}: {r['error']}" for r in errors),
            "",
        ]
    return "\n".join(out).replace("\n\n\n", "\n\n").strip() + "\n"


def _of(part: dict[str, Runs], kind: str) -> dict[str, Runs]:
    return {k: v for k, v in part.items() if first(v)["kind"] == kind}


def _values(part: dict[str, Runs], measure: Callable[[Runs], Any]) -> list[Any]:
    return [value for runs in part.values() if (value := measure(runs)) is not None]


def summary(part: dict[str, Runs]) -> list[str]:
    """Summarise a part in a few lines."""
    sick, healthy = _of(part, "sick"), _of(part, "healthy")
    lines = []
    if sick:
        body = []
        for name in SICK:
            found = _values(sick, lambda runs, name=name: rescue(runs, name))  # type: ignore[misc]
            if found:
                body.append(
                    [name, str(len(found)), _number(mean(found)), f"{sum(f >= RESCUED for f in found)} of {len(found)}"]
                )
        lines += [*table(["sick runs under", "cases", "mean rescue", f"at {RESCUED} or more"], body), ""]
        gains = _values(sick, gain)
        if gains:
            lines.append(
                f"- Guard minus the better of none, clip and skip_clip: {mean(gains):+.3f} in the mean of {len(gains)} "
                "sick runs;"
            )
            lines.append(f"  more than {MARGIN} below it: {sum(g < -MARGIN for g in gains)}.")
        lines.append(f"- Processor time of the guarded run to its twin's, median: {_number(time_ratio(sick, 'twin'))}.")
    if healthy:
        steady = {k: v for k, v in healthy.items() if not first(v)["regime"]}
        regime = {k: v for k, v in healthy.items() if first(v)["regime"]}
        same, drifts = _values(steady, identical), _values(regime, drift)
        lines.append(
            f"- Healthy runs bit-identical under all seeds: {sum(same)} of {len(same)}; "
            f"stopped: {sum(map(stopped, steady.values()))}."
        )
        lines.append(
            f"- Healthy runs with a change of regime that end within {NEAR}: {sum(abs(d) <= NEAR for d in drifts)} "
            f"of {len(drifts)}; stopped: {sum(map(stopped, regime.values()))}."
        )
        lines.append(
            "- Processor time of the guarded healthy run to the unguarded one's, median: "
            f"{_number(time_ratio(healthy, 'none'))}."
        )
    return lines


def sick_table(sick: dict[str, Runs]) -> list[str]:
    """One row for each sick case: rescue under every contender, and what the guard did."""
    body = [
        [k, _number(_score(v, "twin")), *(_number(rescue(v, n)) for n in SICK if n != "twin"), story(v)]
        for k, v in sick.items()
    ]
    return table(
        ["sick run", "twin's score", *(n for n in SICK if n != "twin"), "what the guard did, first seed"], body
    )


def healthy_table(healthy: dict[str, Runs]) -> list[str]:
    """One row for each healthy case: scores, whether it was left alone, and what the guard did."""
    body = []
    for k, v in healthy.items():
        scores = [_number(_score(v, n)) for n in ("none", GUARD, "slower", "faster")]
        same, far = identical(v), drift(v)
        touched = "" if same is None else "identical" if same else f"{far:+.3f}"
        body.append([k, "yes" if first(v)["regime"] else "", *scores, touched, "yes" if stopped(v) else "", story(v)])
    return table(
        [
            "healthy run",
            "regime",
            "none",
            GUARD,
            "slower",
            "faster",
            "guarded against none",
            "stopped",
            "what the guard did, first seed",
        ],
        body,
    )


def _score(runs: Runs, name: str) -> float | None:
    found = [r["score"] for r in runs.get(name, {}).values()]
    return median(found) if found else None


def story(runs: Runs) -> str:
    """What the guard did under the first seed, in a few words."""
    row = next((r for _, r in sorted(runs.get(GUARD, {}).items())), None)
    if row is None:
        return ""
    parts = [
        f"{i['step']} {i['form']}{' (' + i['culprit'] + ')' if i['culprit'] else ''}: "
        f"{'+'.join(i['remedies']) or 'nothing'}"
        for i in row["incidents"]
    ]
    more = f" … {len(parts)} incidents" if len(parts) > 3 else ""
    return (
        "; ".join(parts[:3])
        + more
        + (" **stopped**" if row["stopped"] else "")
        + (" **raised**" if row["error"] else "")
    )


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.3g}"


def table(head: list[str], body: list[list[str]]) -> list[str]:
    """Write a Markdown table; none where there is no row."""
    if not body:
        return []
    return [
        "| " + " | ".join(c.replace("|", "/") for c in cells) + " |" for cells in (head, ["---"] * len(head), *body)
    ]
