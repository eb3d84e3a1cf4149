"""The axis, the running median and the thinning, as pure functions."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from lightning_gradguard_tensorboard import codes, packing, series, thinning, weights, wire


def timeline(steps: list[int], width: int = 10, peak: float | list[float] = 1.0) -> series.Timeline:
    table = np.ones((len(steps), len(wire.COLUMNS)))
    table[:, 0], table[:, 1] = steps, np.array(steps) - width + 1
    table[:, 2], table[:, 6] = peak, 5.0
    return series.lay_out(np.arange(len(steps)), np.arange(len(steps), dtype=float), table)


def test_without_a_rollback_the_place_is_the_step() -> None:
    axis = timeline([9, 19, 29]).axis
    assert axis.first.tolist() == [0, 10, 20] and axis.last.tolist() == [10, 20, 30]
    assert [s["offset"] for s in axis.segments] == [0]
    assert axis.place(25, 99) == 25


def test_a_rollback_goes_on_to_the_right() -> None:
    axis = timeline([9, 19, 29, 14, 24]).axis
    assert axis.last.tolist() == [10, 20, 30, 40, 50]
    assert [s["offset"] for s in axis.segments] == [0, 25]
    # Step 12 was done twice; which one is meant, the clock tells.
    assert axis.place(12, wall_time=1.0) == 12
    assert axis.place(12, wall_time=4.0) == 37
    # The incident that caused the rollback, written as the next stretch had just been heard of.
    assert axis.place(3, wall_time=4.0) == 3


def test_of_a_tick_written_twice_the_later_counts() -> None:
    table = np.ones((3, len(wire.COLUMNS)))
    table[:, 0] = [5, 15, 25]
    table[:, 1] = [0, 10, 20]
    laid = series.lay_out(np.array([0, 1, 1]), np.zeros(3), table)
    assert laid.table[:, 0].tolist() == [5, 25]


def halves(rows: int, layers: int, value: float = 0.0) -> np.ndarray:
    made = np.zeros((rows, 2, layers), np.float16)
    made[:, 0] = value
    return made


def test_an_incident_is_not_its_own_yardstick() -> None:
    """Half of the run lies a thousandfold higher, over its limit: the median stays what it was."""
    peaks = [1.0] * 100 + [1000.0] * 100
    windows = timeline(list(range(9, 2009, 10)), peak=peaks)
    data = halves(200, 1)
    data[100:, 0] = 10.0
    made = series.assemble(["a"], windows, np.arange(200), np.zeros(200), data)
    assert (made.baseline == 0).all()
    shown = thinning.view(made, 0, 2000, 500)
    assert shown.ratios[0, -1] == 10 * codes.CODES


def test_a_slow_decay_does_not_tint_the_map() -> None:
    windows = timeline(list(range(9, 10009, 10)))
    data = halves(1000, 1)
    data[:, 0, 0] = np.linspace(6, -6, 1000)
    made = series.assemble(["a"], windows, np.arange(1000), np.zeros(1000), data)
    ratios = thinning.view(made, 0, 10000, 1000).ratios[0, 50:]
    assert np.abs(ratios).max() < 1.0 * codes.CODES


@pytest.mark.parametrize("columns", [1, 7, 100, 5000])
def test_thinning_keeps_the_worst(columns: int) -> None:
    windows = timeline(list(range(9, 10009, 10)), peak=[1.0] * 500 + [77.0] + [float("nan")] + [1.0] * 498)
    data = halves(1000, 3)
    data[333, 0, 1] = 9.0
    data[777, 1, 2] = 2.0
    made = series.assemble(["a", "b", "c"], windows, np.arange(1000), np.zeros(1000), data)
    shown = thinning.view(made, 0, 10000, columns)
    assert shown.codes.shape == (3, min(columns, 1000))
    assert shown.codes[1].max() == 9 * codes.CODES and shown.codes[0].max() == 0
    assert shown.nonfinite[2].max() == 2 and shown.nonfinite[:2].max() == 0
    assert np.nanmax(shown.windows["peak"]) == 77.0
    assert shown.windows["nonfinite"].sum() == 1


def test_zero_and_missing_have_no_ratio() -> None:
    data = halves(50, 2)
    data[:, 0, 0] = wire.ZERO
    data[10, 0, 1] = np.nan
    made = series.assemble(["frozen", "b"], timeline(list(range(9, 509, 10))), np.arange(50), np.zeros(50), data)
    shown = thinning.view(made, 0, 500, 100)
    assert (shown.ratios[0] == codes.MISSING).all()
    assert shown.codes[1, 10] == codes.MISSING and shown.ratios[1, 10] == codes.MISSING


def test_a_loader_that_kept_other_ticks_of_each_tag() -> None:
    windows = timeline(list(range(9, 1009, 10)))
    ticks = np.array([0, 50, 99])
    made = series.assemble(["a"], windows, ticks, np.zeros(3), halves(3, 1))
    assert made.layer_axis.first.tolist() == [0, 500, 990]


def test_layers_without_windows_lie_on_their_ticks() -> None:
    nothing = series.lay_out(np.zeros(0, np.int64), np.zeros(0), np.zeros((0, len(wire.COLUMNS))))
    made = series.assemble(["a"], nothing, np.arange(3), np.zeros(3), halves(3, 1))
    assert made.layer_axis.last.tolist() == [1, 2, 3]
    assert thinning.view(made, 0, 3, 10).windows["peak"].shape == (0,)


def test_restless_only_when_it_has_not_ended() -> None:
    steps = list(range(9, 209, 10))
    assert timeline(steps).restless_since is None
    assert timeline(steps, peak=[1.0] * 18 + [9.0] * 2).restless_since is None
    assert timeline(steps, peak=[1.0] * 10 + [9.0] * 5 + [1.0] * 5).restless_since is None
    assert timeline(steps, peak=[1.0] * 10 + [9.0] * 5 + [float("nan")] * 5).restless_since == 100


def test_packed_arrays_lie_where_their_types_may() -> None:
    data = halves(7, 3)
    made = series.assemble(["a", "b", "c"], timeline(list(range(9, 79, 10))), np.arange(7), np.zeros(7), data)
    packed = packing.view(thinning.view(made, 0, 70, 100), 0, 70)
    length = struct.unpack("<I", packed[:4])[0]
    header = json.loads(packed[4 : 4 + length])
    offset = 4 + length
    for array in header["arrays"]:
        size = np.dtype(array["type"]).itemsize
        assert offset % size == 0
        offset += size * int(np.prod(array["shape"]))
    assert offset == len(packed)


def test_counts_since_the_run_began_become_counts_of_each_window() -> None:
    made = timeline([9, 19, 29, 39])
    made.table[:, wire.COLUMNS.index("skipped")] = [1, 1, 4, 4]
    assert made.done("skipped").tolist() == [1, 0, 3, 0] and made.total("skipped") == 4
    # A run begun anew in the same folder counts from zero.
    made.table[:, wire.COLUMNS.index("skipped")] = [3, 5, 0, 2]
    assert made.total("skipped") == 7
    shown = thinning.view(series.assemble([], made, np.zeros(0, np.int64), np.zeros(0), halves(0, 0)), 0, 40, 2)
    assert shown.windows["skipped"].tolist() == [5, 2]


def test_a_log_of_the_first_version_counts_nothing() -> None:
    rows = [wire.parse_window(np.arange(9.0) + i) for i in range(3)]
    laid = series.lay_out(np.arange(3), np.zeros(3), np.array(rows))
    assert laid.total("skipped") == 0
    shown = thinning.view(series.assemble([], laid, np.zeros(0, np.int64), np.zeros(0), halves(0, 0)), 0, 9, 1)
    assert np.isnan(shown.windows["skipped"]).all() and shown.windows["coefficient"].tolist() == [7]
    assert wire.parse_window(np.arange(8.0)) is None and wire.parse_window(np.full(9, np.nan)) is None
    assert wire.parse_window(np.arange(30.0)).tolist() == list(range(len(wire.COLUMNS)))


def test_lists_of_layers_are_put_side_by_side() -> None:
    wide = codes.spread(halves(2, 1, 3.0), ["b"], ["a", "b"])
    assert np.isnan(wide[:, 0, 0]).all() and wide[:, 0, 1].tolist() == [3, 3] and not wide[:, 1].any()


def test_weights_lie_on_the_axis_without_gaps() -> None:
    """An event stands for all steps since the one before, since fewer are written of them than of windows."""
    windows = timeline([9, 19, 29, 39])
    numbers = np.array([[[0, 3], [-10, -60]], [[1, 3], [-9, np.nan]]], np.float16)
    found = weights.weigh(["a", "b"], windows, np.array([1, 3]), numbers)
    assert found.axis.first.tolist() == [10, 20] and found.axis.last.tolist() == [20, 40]
    assert found.beginning.tolist() == [0, 3 * codes.CODES]
    places, norms, updates = thinning.weights(found, 0.0, 40.0, 1)
    assert places["last"].tolist() == [40.0] and norms.tolist() == [[codes.CODES], [3 * codes.CODES]]
    assert updates.tolist() == [[-9 * codes.CODES], [-60 * codes.CODES]], "the largest of what it covers"
    nothing = weights.weigh(["a"], timeline([]), np.array([3]), np.zeros((1, 2, 1), np.float16))
    assert nothing.norms.shape == (0, 1) and nothing.beginning.tolist() == [codes.MISSING]


def test_a_layer_that_has_left_its_level_for_good_stays_coloured() -> None:
    """Its running median would follow, and the map would cool down although nothing has healed."""
    halves = np.zeros((400, 2, 8), np.float16)
    halves[200:, 0, 3] = -8.0
    loaded = series.assemble(
        list("abcdefgh"), timeline([10 * i + 9 for i in range(400)]), np.arange(400), np.zeros(400), halves
    )
    assert [one.layer for one in loaded.outliers] == [3]
    ratios = thinning.view(loaded, 0.0, 4000.0, 400).ratios / codes.CODES
    assert (ratios[3, 205:] == -8.0).all() and (ratios[3, :195] == 0.0).all() and (ratios[4] == 0.0).all()


def test_a_resumed_run_goes_on_with_the_count_of_the_step_it_was_resumed_from() -> None:
    made = timeline([9, 19, 29, 39, 29, 39])
    made.table[:, wire.COLUMNS.index("skipped")] = [1, 1, 2, 2, 2, 3]
    assert made.done("skipped").tolist() == [1, 0, 1, 0, 1, 1] and made.total("skipped") == 4
