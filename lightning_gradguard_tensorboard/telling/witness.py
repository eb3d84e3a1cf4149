"""What had moved before the first alarm."""

from __future__ import annotations

import math

from .record import Record, dicts, number
from .words import clean, short

ROWS = {
    "update_ratio": "update / weight",
    "second_moment": "g / √second moment",
    "attention_logit": "attention logit",
    "router_load": "busiest expert",
}
"""What the row of each witness is called, in the order of the rows."""
_SENTENCES = {
    "update_ratio": "one update moved {} by {} of its weights",
    "second_moment": "the gradient of {} lay {} x above the root of the optimizer's second moment",
    "attention_logit": "an attention logit of {} reached {}",
    "router_load": "the busiest expert of {} got {} x an even share",
}


def witnessed(record: Record) -> list[str]:
    """Return what each witness had seen in the last windows before the first alarm, a sentence each.

    >>> witnessed({"witnessed": [{"witness": "update_ratio", "value": 0.04, "where": "fc", "usual": 0.001}]})
    ['before the alarm one update moved fc by 0.04 of its weights, 40 x the median of the windows before']
    """
    return [_sentence(one) for one in dicts(record.get("witnessed"))]


def _sentence(one: Record) -> str:
    name, where = clean(str(one.get("witness", "?"))), clean(str(one.get("where") or "")) or "the root module"
    value, usual = number(one.get("value")), number(one.get("usual"))
    if not math.isfinite(value):
        return f"before the alarm {ROWS.get(name, name)} of {where} was not finite"
    told = _SENTENCES.get(name, f"{name} of {{}} was {{}}").format(where, short(value))
    times = float(f"{value / usual:.2g}") if usual > 0.0 else math.nan
    since = f", {short(times)} x the median of the windows before" if math.isfinite(times) else ""
    return f"before the alarm {told}{since}"
