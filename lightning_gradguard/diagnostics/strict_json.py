"""JSON that every reader takes: one line, and no bare NaN or inf."""

from __future__ import annotations

import json
from typing import Any

from lightning_gradguard.records import to_json


def dumps(entry: Any) -> str:
    """Return strict JSON on one line; numpy scalars that slipped into a record are taken as Python's.

    >>> dumps({"norm": float("inf")})
    '{"norm":"inf"}'
    """
    try:
        return _dump(entry)
    except (ValueError, TypeError):  # NaN or inf somewhere: walk through it, which takes five times as long
        return _dump(to_json(entry))


def _dump(entry: Any) -> str:
    return json.dumps(entry, allow_nan=False, separators=(",", ":"), default=lambda v: to_json(v.item()))
