"""The wire format between the training run and the GradGuard tab of TensorBoard, version 1.

Everything is a tensor event with ``data_class = DATA_CLASS_TENSOR`` (without it neither data loader serves it). Summary
metadata travels on the first event of a tag only.

``gradguard/layers``, plugin ``gradguard_layers``
    ``DT_HALF``, shape ``(2, n_layers)``. Row 0: log2 of the layer's largest finite gradient norm in the window, -60
    where it was zero or nothing finite was seen. Row 1: count of steps with a non-finite gradient. (Raw norms would
    overflow f16 at 65504.) Metadata content, UTF-8 JSON:
    ``{"version": 1, "layers": [names in forward order], "optimizer": 0}``.

``gradguard/windows``, plugin ``gradguard_layers``
    ``DT_DOUBLE``, shape ``(24,)``: the fields :data:`WINDOW_FIELDS` in raw linear units; may hold inf and NaN. Fields
    are only ever appended, so that a shorter row (earlier versions had nine, twelve, 19 and 23) is one of an older
    version. Metadata content: ``{"version": 1, "fields": [...], "optimizer": 0}``.

``gradguard/weights``, plugin ``gradguard_layers``
    ``DT_HALF``, shape ``(2, n_layers)``. Row 0: log2 of the norm of the layer's weights. Row 1: log2 of the norm of one
    update over it. -60 where it was zero, NaN where it is unknown. Metadata content as of ``layers``. An event stands
    for all steps since the one before.

``gradguard/incidents``, plugin ``gradguard_incidents``
    ``DT_STRING`` scalar, UTF-8 JSON: ``{"event": "opened" | "acted" | "closed" | "notice", "incident": {...} | null,
    "message": str | null, "step": int}``; ``incident`` is :func:`~lightning_gradguard.records.to_json` of the record,
    so inf and NaN are the strings ``"inf"``, ``"-inf"`` and ``"nan"``. Metadata content: ``{"version": 1}``.

**Event steps are counters that never go back**, because the fast loader deletes a tag's later points when a step is not
above the last: ``layers``, ``windows`` and ``weights`` use ``window.tick`` (equal ticks belong together), ``incidents``
a clock in milliseconds that always moves on, also across a resumed run. The training step is in the payload.

In a run with several optimizers the first three tags are ``gradguard/optimizer_<index>/layers`` and so on. Should the
list of layers change in the middle of a run, the new list gets a tag of its own: ``gradguard/layers_2``, ``_3``, ...
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_DOUBLE, DT_HALF, DT_STRING

from lightning_gradguard.diagnostics.strict_json import dumps
from lightning_gradguard.records import WITNESSES, Incident, Window, to_json

VERSION = 1
LAYERS_PLUGIN = "gradguard_layers"
INCIDENTS_PLUGIN = "gradguard_incidents"
LOG2_FLOOR = -60.0
WINDOW_FIELDS = (
    "step",
    "first_step",
    "norm_peak",
    "norm_before",
    "norm_after",
    "typical",
    "limit",
    "coefficient",
    "lr_factor",
    "clipped",
    "skipped",
    "overflows",
    "peak_step",
    "loss_low",
    "loss_high",
    "loss_mean",
    "rate",
    "rate_good",
    "rate_bad",
    *WITNESSES,
    "cooled",
)


def encode_layers(window: Window) -> TensorProto:
    """Return the layers' statistics of one window: ``DT_HALF``, shape ``(2, n_layers)``."""
    payload = np.empty((2, len(window.layers)), dtype="<f2")
    with np.errstate(divide="ignore", invalid="ignore"):
        log2 = np.log2(window.layer_peaks)
    payload[0] = np.nan_to_num(log2, nan=LOG2_FLOOR, posinf=1024.0, neginf=LOG2_FLOOR).clip(min=LOG2_FLOOR)
    payload[1] = np.minimum(window.layer_nonfinite, 65504.0)
    return _tensor(DT_HALF, payload)


def encode_weights(window: Window) -> TensorProto:
    """Return norms of weights and update-to-weight ratios: ``DT_HALF``, shape ``(2, n_layers)``."""
    with np.errstate(divide="ignore", invalid="ignore"):
        log2 = np.log2(np.stack([window.layer_weights, window.layer_updates]))
    return _tensor(DT_HALF, log2.clip(LOG2_FLOOR, 1024.0).astype("<f2"))


def encode_window(window: Window) -> TensorProto:
    """Return the numbers that need more precision than f16 has: ``DT_DOUBLE``, shape ``(24,)``."""
    # What is None becomes NaN.
    return _tensor(DT_DOUBLE, np.array([window.number(field) for field in WINDOW_FIELDS], dtype="<f8"))


def encode_incident(
    event: str, step: int, *, incident: Incident | None = None, message: str | None = None
) -> TensorProto:
    """Return one entry of the incident log: ``DT_STRING`` scalar that holds JSON."""
    entry = {"event": event, "incident": to_json(incident), "message": message, "step": step}
    return TensorProto(dtype=DT_STRING, string_val=[dumps(entry).encode()], tensor_shape=TensorShapeProto())


def layers_metadata(window: Window) -> SummaryMetadata:
    """Return the metadata of the ``layers`` tag."""
    return _metadata(LAYERS_PLUGIN, {"layers": list(window.layers), "optimizer": window.optimizer})


def windows_metadata(window: Window) -> SummaryMetadata:
    """Return the metadata of the ``windows`` tag."""
    return _metadata(LAYERS_PLUGIN, {"fields": list(WINDOW_FIELDS), "optimizer": window.optimizer})


def incidents_metadata() -> SummaryMetadata:
    """Return the metadata of the ``incidents`` tag."""
    return _metadata(INCIDENTS_PLUGIN, {})


def value(tag: str, tensor: TensorProto, metadata: SummaryMetadata | None) -> Summary.Value:
    """Return one summary value; ``metadata`` is for the first event of a tag only."""
    return Summary.Value(tag=tag, tensor=tensor, metadata=metadata)


def _tensor(dtype: int, array: np.ndarray[Any, Any]) -> TensorProto:
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in array.shape])
    return TensorProto(dtype=dtype, tensor_content=array.tobytes(), tensor_shape=shape)


def _metadata(plugin: str, content: dict[str, Any]) -> SummaryMetadata:
    data = SummaryMetadata.PluginData(plugin_name=plugin, content=dumps({"version": VERSION, **content}).encode())
    return SummaryMetadata(plugin_data=data, data_class=DATA_CLASS_TENSOR)
