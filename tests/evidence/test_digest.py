"""A batch is known again by its digest, and no other is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lightning_gradguard.evidence.digest import digest_of

X = torch.arange(12.0).reshape(3, 4)


@pytest.mark.parametrize(
    "other",
    [
        (X + torch.eye(3, 4), "a"),
        (X.reshape(4, 3), "a"),
        (X.double(), "a"),
        (X, "b"),
        [X, "a"],
        {"x": X, "y": "a"},
        (X,),
        (X.int(), "a"),
    ],
)
def test_what_differs_has_another_digest(other: Any) -> None:
    assert digest_of(other) != digest_of((X, "a"))


@pytest.mark.parametrize(
    "batch",
    [
        X,
        X.t(),
        torch.tensor(3),
        torch.full((2, 3), torch.nan),
        X.to(torch.bfloat16),
        torch.complex(X, X).conj(),
        torch.eye(3).to_sparse(),
        {"x": [X, 1, None], "y": np.arange(4)},
        (SimpleNamespace(), True, "name"),
    ],
)
def test_the_same_batch_has_the_same_digest(batch: Any) -> None:
    copy = batch.clone() if isinstance(batch, torch.Tensor) else batch
    assert digest_of(copy) == digest_of(batch) and len(digest_of(batch)) == 16
