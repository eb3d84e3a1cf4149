"""Precisions; under a GradScaler the tests of ``tests/test_callback.py`` are behind the same cells."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.builders import Net, mlp
from tests.compatibility.matrix import cells
from tests.compatibility.runs import Bursts, thrown_back, unnoticed

TRUE = ("32-true", "64-true", "bf16-true", "16-true", "bf16-mixed")


def implemented(precision: str) -> bool:
    """Tell whether torch trains the network of these tests in this precision."""
    kind = {"16-true": torch.float16, "bf16-true": torch.bfloat16}.get(precision, torch.float32)
    try:
        out = mlp().to(kind)(torch.ones(2, 8, dtype=kind))
        torch.nn.functional.mse_loss(out, torch.ones(2, 1, dtype=kind)).backward()
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("precision", cells("Precision", {name: name for name in TRUE}, "healthy", "sick"))
def test_precision(precision: Any, tmp_path: Path) -> None:
    if not implemented(precision):
        pytest.skip(f"this torch does not train in {precision} on a CPU")
    rate = 1e-3 if precision.endswith("true") and "16" in precision else 1e-2
    for make in (partial(torch.optim.SGD, lr=rate, momentum=0.9), partial(torch.optim.AdamW, lr=rate, eps=1e-4)):
        unnoticed(lambda make=make: Net(mlp(), make), tmp_path, precision=precision)
        thrown_back(lambda make=make: Bursts(mlp(), make), tmp_path, precision=precision)
