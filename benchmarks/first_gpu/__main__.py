"""The first half hour on a GPU: from what tells most to what tells least, in under nine minutes on one H100.

``python -m benchmarks.first_gpu --out first_gpu.json`` prints a table as it goes, and writes what it has after each
part, so that nothing is lost if the machine goes back early. Without a GPU, or with ``--short``, the same parts run in
short form on a device that is simulated (``tests/device``): their times then mean nothing, but all else does.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import platform
import random
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import overhead_gpu
from benchmarks.first_gpu.place import AT, Place
from benchmarks.first_gpu.runs import compiled, example, one_rank, one_sharded_rank, tests
from benchmarks.first_gpu.steps import back, calm, overhead, skipped, snapshot

BUDGET = 9 * 60.0
"""Seconds after which no further part begins."""
BAR = 1.01
"""Times the unguarded step that a guarded one may take."""


def machine(place: Place) -> dict[str, Any]:
    """Return what the numbers were measured on."""
    card = torch.cuda.get_device_name() if place.real else "simulated"
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found = {"card": card, "torch": torch.__version__, "python": platform.python_version(), "host GiB": host / 2**30}
    if place.real:
        found |= {"driver": torch.version.cuda, "card GiB": torch.cuda.get_device_properties(0).total_memory / 2**30}
    return found


PARTS: dict[str, Callable[[Place], dict[str, Any]]] = {
    "machine": machine,
    "tests": tests,
    "calm": calm,
    "skipped": skipped,
    "back": back,
    "overhead": overhead,
    "snapshot": snapshot,
    "example": example,
    "one rank": one_rank,
    "one rank, sharded": one_sharded_rank,
    "compiled": compiled,
}
ON_THE_DEVICE = frozenset({"calm", "skipped", "back", "snapshot"})
"""Parts for which the device has to be there; the others bring their own."""


def verdicts(found: dict[str, Any]) -> list[str]:
    """Return in words what is not as it should be; nothing where all is."""
    wrong = [f"{part}: {result['error']}" for part, result in found.items() if "error" in result]
    for kind, one in found.get("calm", {}).items():
        if isinstance(one, dict) and (one["waits"] or not one["identical"] or one["incidents"]):
            wrong.append(f"calm, {kind}: {one}")
    for kind, one in found.get("skipped", {}).items():
        if isinstance(one, dict) and not (one["finite"] and one["incidents"]):
            wrong.append(f"skipped, {kind}: {one}")
    for part in ("one rank", "one rank, sharded"):
        one = found.get(part, {})
        if "finite" in one and not (one["finite"] and one["incidents"] == [AT]):
            wrong.append(f"{part}: {one}")
    for precision, one in found.get("example", {}).items():
        if isinstance(one, dict) and "problem" in one:
            wrong.append(f"example, {precision}: {one['problem']}")
    wrong += [f"back, {kind}: it does not go on" for kind, well in found.get("back", {}).items() if well is False]
    for name, one in found.get("overhead", {}).items() if found.get("machine", {}).get("card") != "simulated" else ():
        if isinstance(one, dict) and (ratio := one["ratio"][overhead_gpu.GUARDED]) > BAR:
            wrong.append(f"overhead, {name}: a guarded step takes {ratio:.3f} times an unguarded one")
        if isinstance(one, dict) and one["waits"]:
            wrong.append(
                f"overhead, {name}: {one['waits']} of {overhead_gpu.WATCHED} calm steps waited: {one['first wait']}"
            )
    return wrong


def run(
    place: Place, out: Path | None = None, *, budget: float = BUDGET, told: Callable[[str], object] = print
) -> dict[str, Any]:
    """Go through the parts until the time is up; return, print and write what was found."""
    begun, found = time.monotonic(), {}
    for name, part in PARTS.items():
        if time.monotonic() - begun > budget:
            found[name] = {"left out": "the time was up"}
            continue
        start = time.monotonic()
        random.seed(0)
        try:
            with place.at_work() if name in ON_THE_DEVICE else contextlib.nullcontext():
                found[name] = part(place)
        except Exception as error:  # the next part tells something else
            lines = io.StringIO()
            traceback.print_exc(file=lines)
            found[name] = {"error": repr(error), "traceback": lines.getvalue()[-4000:]}
        told(f"{name} ({time.monotonic() - start:.1f} s)")
        told("\n".join(f"    {key}: {value}" for key, value in found[name].items()))
        if out is not None:
            out.write_text(json.dumps(found, indent=1, default=str))
    wrong = verdicts(found)
    told("\n".join(["", *(wrong or ["all as it should be"])]))
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    parser.add_argument("--short", action="store_true", help="on the simulated device, though there is a GPU")
    arguments = parser.parse_args(argv)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    place = Place(real=torch.cuda.is_available() and not arguments.short)
    return 1 if verdicts(run(place, arguments.out)) else 0


if __name__ == "__main__":
    raise SystemExit(main())
