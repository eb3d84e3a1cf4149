import json
import math

import numpy as np
from tensorboard.util.tensor_util import make_ndarray

from lightning_gradguard.diagnostics import wire
from lightning_gradguard.records import to_json
from tests.diagnostics.examples import incident, window


def test_layers_travel_as_log2_in_half_precision():
    peaks, bad = np.array([8.0, 0.0, 1e38, math.nan, 1e-30]), np.array([0.0, 2.0, 0.0, 25.0, 1e9])
    array = make_ndarray(wire.encode_layers(window(layers=tuple("abcde"), layer_peaks=peaks, layer_nonfinite=bad)))
    assert array.dtype == np.float16 and array.shape == (2, 5)
    assert array[0, 0] == 3 and array[0, 1] == -60 and array[0, 3] == -60 and array[0, 4] == -60
    assert abs(float(array[0, 2]) - math.log2(1e38)) < 0.1
    assert array[1, :4].tolist() == [0, 2, 0, 25] and np.isfinite(array[1, 4])


def test_window_keeps_inf_and_nan_in_double_precision():
    array = make_ndarray(wire.encode_window(window(3, norm_peak=math.inf, limit=math.nan)))
    assert array.dtype == np.float64 and array.shape == (len(wire.WINDOW_FIELDS),)
    fields = dict(zip(wire.WINDOW_FIELDS, array.tolist(), strict=True))
    assert fields["step"] == 99 and fields["first_step"] == 75 and fields["lr_factor"] == 1.0
    assert math.isinf(fields["norm_peak"]) and math.isnan(fields["limit"])


def test_incident_is_strict_json():
    case = incident()
    payload = make_ndarray(wire.encode_incident("opened", 40, incident=case)).item()
    entry = json.loads(payload, parse_constant=lambda name: 1 / 0)
    assert entry == {"event": "opened", "incident": to_json(case), "message": None, "step": 40}
    assert entry["incident"]["actions"][0]["verdict"]["value"] == "nan"


def test_metadata_names_the_plugin_and_the_layers():
    metadata = wire.layers_metadata(window(layers=("<script>", "ünï"), optimizer=1))
    assert metadata.plugin_data.plugin_name == "gradguard_layers"
    assert json.loads(metadata.plugin_data.content) == {"version": 1, "layers": ["<script>", "ünï"], "optimizer": 1}
    assert wire.incidents_metadata().plugin_data.plugin_name == "gradguard_incidents"
    assert wire.windows_metadata(window()).data_class == wire.DATA_CLASS_TENSOR


def test_numpy_scalars_that_slipped_in_are_written_as_numbers():
    case = incident(step=np.int64(4), batch=np.int32(2), alarms=1)
    assert json.loads(make_ndarray(wire.encode_incident("opened", 4, incident=case)).item())["incident"]["step"] == 4


def test_weights_travel_as_log2_in_half_precision():
    numbers = np.array([8.0, 0.0, math.nan]), np.array([2.0**-10, 0.0, math.nan])
    told = window(layers=tuple("abc"), layer_weights=numbers[0], layer_updates=numbers[1])
    array = make_ndarray(wire.encode_weights(told))
    assert array.dtype == np.float16 and array[:, :2].tolist() == [[3, -60], [-10, -60]]
    assert np.isnan(array[:, 2]).all()
