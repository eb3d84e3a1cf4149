import json
import math
from urllib.parse import unquote

import pytest

from lightning_gradguard.diagnostics import pinned_link, scalars, tags
from lightning_gradguard.diagnostics.scalars import CEILING, LOG_FLOOR
from tests.diagnostics.examples import window


@pytest.mark.parametrize("norm", [math.nan, math.inf, 1e300])
def test_a_norm_that_exploded_stays_visible(norm):
    assert scalars(window(norm_peak=norm))["gradguard/1_log10_norm_peak"] == CEILING


def test_every_value_can_be_drawn_however_bad_the_window():
    values = scalars(window(norm_peak=math.nan, norm_before=0.0, norm_after=0.0, typical=math.nan, limit=math.nan))
    assert all(math.isfinite(value) for value in values.values())
    assert values["gradguard/2_log10_norm_before_clip"] == LOG_FLOOR
    assert not any("limit" in name or "band" in name for name in values)


def test_a_skipped_step_has_no_norm_after_clipping():
    assert "gradguard/3_log10_norm_after_clip" not in scalars(window(norm_after=0.0))


def test_an_index_enters_the_tags_only_where_there_are_several_optimizers():
    assert set(scalars(window())) >= {f"gradguard/{name}" for name in tags.SCALARS}
    assert all("/optimizer_1/" in name for name in scalars(window(), 1))


def test_the_reading_order_survives_an_alphabetical_sort():
    assert sorted(tags.SCALARS) == list(tags.SCALARS)


def test_the_link_pins_scalars():
    link = pinned_link("http://127.0.0.1:6006/", optimizers=2)
    assert link.startswith("http://127.0.0.1:6006/?pinnedCards=") and link.endswith("&smoothing=0#timeseries")
    cards = json.loads(unquote(link.split("pinnedCards=")[1].split("&")[0]))
    assert len(cards) == 12 and cards[-1] == {"plugin": "scalars", "tag": "gradguard/optimizer_1/6_lr_factor"}


def test_a_scalers_overflow_draws_no_point_instead_of_a_false_one():
    names = set(scalars(window(overflows=1, norm_before=0.0, norm_after=0.0)))
    assert "gradguard/1_log10_norm_peak" in names and "gradguard/2_log10_norm_before_clip" not in names
    assert "gradguard/3_log10_norm_after_clip" not in names
    empty = set(scalars(window(overflows=1, norm_before=0.0, norm_after=0.0, norm_peak=0.0)))
    assert not any("norm" in name for name in empty) and "gradguard/6_lr_factor" in empty
