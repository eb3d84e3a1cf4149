"""The page on large models says what the code does: its table is computed here, and measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from lightning_gradguard import SnapshotStore
from lightning_gradguard.snapshots.budget import Budget, Keeping, Need, fitting, need, size

PAGE = Path(__file__).parents[1] / "docs" / "large-models.md"
MODELS = {"100 M": 10**8, "1 B": 10**9, "7 B": 7 * 10**9, "70 B": 7 * 10**10}
HOST = 10**12
"""Bytes of memory that the host of the table has left."""
PROCESSES = 8
"""Processes on a host."""
WAYS = {"DDP": 1, "FSDP2, 8 processes": 8, "FSDP2, 64 processes": 64}
"""Processes that each parameter is cut for."""
OF_WHOLE = {Keeping.NODE, Keeping.DISK}
"""What can be done only where parameters are whole: shards are no other process's, and lie in no single file."""
WORDS = {
    Keeping.ALL: "two",
    Keeping.ONE: "one",
    Keeping.NODE: "one for the host",
    Keeping.LEAN: "one, without the optimizer's state",
    Keeping.DISK: "the last checkpoint on disk",
    Keeping.NOTHING: "none",
}


def table() -> list[str]:
    """Return the lines of the table: fp32 with AdamW, whose state is twice the parameters."""
    lines = [
        "| parameters | under | one snapshot, a process | two, and one for a treatment, a host | kept by default |"
    ]
    lines.append("|---|---|---:|---:|---|")
    for name, count in MODELS.items():
        for way, cuts in WAYS.items():
            one = Need(4 * count // cuts, 8 * count // cuts)
            budget = Budget(HOST, PROCESSES, max_bytes=None, max_share=0.25)
            possible = set(Keeping) if cuts == 1 else set(Keeping) - OF_WHOLE
            keeping = fitting([budget.allows(one, 2)], possible)
            whole = PROCESSES * one.bytes(Keeping.ALL, 2)
            lines.append(f"| {name} | {way} | {size(one.whole)} | {size(whole)} | {WORDS[keeping]} |")
    return lines


def test_the_table_of_the_page_is_this_one() -> None:
    told = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    assert told == table(), "\n" + "\n".join(table())


@pytest.mark.parametrize("width", [100, 1000, pytest.param(5800, marks=pytest.mark.slow)])
def test_a_snapshot_takes_what_the_table_reckons_with(width: int) -> None:
    """Measured up to a hundred million parameters, before and after the first step."""
    network = nn.Sequential(*(nn.Linear(width, width) for _ in range(3)))
    optimizer = torch.optim.AdamW(network.parameters())
    count = sum(p.numel() for p in network.parameters())
    assert need(network.parameters(), (), optimizer, pinned=0).whole == 12 * count
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    kept = SnapshotStore()
    kept.take(1, dict(network.named_parameters()), {}, optimizer)
    assert kept.latest is not None
    held = [
        t for t in tree_leaves((kept.latest.parameters, kept.latest.optimizer_state)) if isinstance(t, torch.Tensor)
    ]
    assert sum(t.nbytes for t in held) == pytest.approx(12 * count, rel=1e-3)
