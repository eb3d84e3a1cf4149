"""Numbers of an optimizer that do not survive the precision of its parameters."""

from __future__ import annotations

import torch


def vanishing_number(optimizer: torch.optim.Optimizer) -> str | None:
    """Return, in words, which number of the optimizer is 0 in the dtype of its parameters; None if all survive.

    Adam's kind divide by ``sqrt(v) + eps``; the usual eps of 1e-8 is 0 in float16, and so is the square of a small
    gradient.
    """
    for group in optimizer.param_groups:
        for dtype in {p.dtype for p in group["params"] if p.is_floating_point()}:
            eps = group.get("eps")
            if isinstance(eps, float) and eps > 0.0 and float(torch.tensor(eps, dtype=dtype)) == 0.0:
                return f"eps={eps:g} is 0 in {str(dtype).removeprefix('torch.')}, so that an update divides by 0"
    return None
