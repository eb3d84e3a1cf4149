"""Write event files as the guard does, from TensorBoard's own protos: no torch, no lightning, no guard."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter

START = 1_700_000_000.0
HOSTILE = [
    "<script>window.hacked=1</script>",
    '<img src=x onerror="window.hacked=1">',
    "blocks.0.__proto__",
    "constructor",
    "a" * 300,
    "couche.é.层.🔥",
    "'\"&amp;${1}`",
]
BLOCKS = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")


class Writer:
    """Write one run; a tag's metadata goes with its first event only."""

    def __init__(self, folder: Path) -> None:
        self._file = EventFileWriter(str(folder), max_queue_size=100_000, flush_secs=600)
        self._told: set[str] = set()
        self._incidents = 0
        self.now = START

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _add(self, tag: str, step: int, tensor: tensor_pb2.TensorProto, plugin: str, content: bytes) -> None:
        value = summary_pb2.Summary.Value(tag=tag, tensor=tensor)
        if tag not in self._told:
            self._told.add(tag)
            value.metadata.plugin_data.plugin_name = plugin
            value.metadata.plugin_data.content = content
            value.metadata.data_class = summary_pb2.DATA_CLASS_TENSOR
        self._file.add_event(event_pb2.Event(wall_time=self.now, step=step, summary=summary_pb2.Summary(value=[value])))

    def scalar(self, tag: str, step: int, number: float) -> None:
        value = summary_pb2.Summary.Value(tag=tag, simple_value=number)
        self._file.add_event(event_pb2.Event(wall_time=self.now, step=step, summary=summary_pb2.Summary(value=[value])))

    def layers(
        self,
        tick: int,
        names: Sequence[str],
        norms: npt.NDArray[np.float64],
        nonfinite: npt.NDArray[np.float64],
        prefix: str = "gradguard/",
        part: str = "",
    ) -> None:
        log2 = np.full(len(norms), -60.0)
        np.log2(norms, out=log2, where=norms > 0)
        content = json.dumps({"version": 1, "layers": list(names), "optimizer": 0}).encode()
        half = np.stack([log2, nonfinite]).astype("<f2")
        self._add(f"{prefix}layers{part}", tick, _tensor(half, types_pb2.DT_HALF), "gradguard_layers", content)

    def weights(
        self, tick: int, names: Sequence[str], norms: npt.NDArray[np.float64], updates: npt.NDArray[np.float64]
    ) -> None:
        content = json.dumps({"version": 1, "layers": list(names), "optimizer": 0}).encode()
        with np.errstate(divide="ignore"):
            half = np.maximum(np.log2(np.stack([norms, updates])), -60.0).astype("<f2")
        self._add("gradguard/weights", tick, _tensor(half, types_pb2.DT_HALF), "gradguard_layers", content)

    def window(self, tick: int, numbers: Sequence[float], prefix: str = "gradguard/") -> None:
        tensor = _tensor(np.asarray(numbers, "<f8"), types_pb2.DT_DOUBLE)
        self._add(f"{prefix}windows", tick, tensor, "gradguard_layers", b"{}")

    def incident(self, event: str, step: int, incident: dict[str, Any] | None, message: str | None = None) -> None:
        payload = {"event": event, "incident": incident, "message": message, "step": step}
        tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=[json.dumps(payload).encode()])
        self._incidents += 1
        self._add("gradguard/incidents", self._incidents, tensor, "gradguard_incidents", b"{}")


def _tensor(array: npt.NDArray[Any], dtype: int) -> tensor_pb2.TensorProto:
    shape = tensor_shape_pb2.TensorShapeProto(dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=n) for n in array.shape])
    return tensor_pb2.TensorProto(dtype=dtype, tensor_shape=shape, tensor_content=array.tobytes())


def transformer(blocks: int) -> list[str]:
    """Layer names of a small transformer."""
    return ["embed", *(f"blocks.{b}.{part}" for b in range(blocks) for part in BLOCKS), "norm", "head"]


def incident(number: int, step: int, form: str, layer: str, **changes: Any) -> dict[str, Any]:
    """An incident as ``to_json`` writes it."""
    value, limit = changes.pop("value", 310.0), changes.pop("limit", 3.7)
    remedies = changes.pop("remedies", ["skip"])
    reasons = {
        "non-finite": f"3 gradients of {layer} hold NaN",
        "sudden": "the norm left its band within one step",
        "drift": "the norm has risen steadily for 240 steps",
        "recurrent": "the third spike within 500 steps",
    }
    verdict = {
        "form": form,
        "detector": form,
        "value": value,
        "limit": limit,
        "reason": reasons.get(form, form),
        "layers": [layer],
        "alarm": True,
    }
    outcomes = [
        {
            "remedy": remedy,
            "applied": True,
            "detail": {
                "skip": "the update was held; weights and optimizer state are untouched",
                "clip": "gradients were scaled down to the limit",
                "backoff": "learning rate × 0.5 for 200 steps, then back over 200",
                "rollback": "weights and optimizer state of 200 steps before",
            }.get(remedy, remedy),
            "layers": [layer] if remedy == "reinitialize" else [],
            "coefficient": {"skip": 0.0, "clip": 0.012}.get(remedy, 1.0),
        }
        for remedy in remedies
    ]
    action = {
        "step": step,
        "verdict": verdict,
        "decision": {"remedies": remedies, "reason": "first offence", "factor": 0.5, "exhausted": False},
        "outcomes": outcomes,
    }
    blame = [
        {
            "layer": layer,
            "score": 5.1,
            "reason": "its output is 180 times its input, 12 times the usual",
            "forward_gain": 180.0,
            "backward_gain": 44.0,
            "weight_ratio": 9.5,
        },
        {
            "layer": "head",
            "score": 1.2,
            "reason": "its gradient is 3 times the usual",
            "forward_gain": None,
            "backward_gain": 3.0,
            "weight_ratio": None,
        },
    ]
    return {
        "number": number,
        "optimizer": 0,
        "step": step,
        "form": form,
        "actions": [action],
        "blame": blame,
        "batch": step % 800,
        "alarms": 1,
        "closed": None,
        "helped": None,
        **changes,
    }


def write_run(
    folder: Path,
    names: Sequence[str],
    *,
    windows: int = 400,
    width: int = 10,
    seed: int = 0,
    sick: bool = False,
    diverge: bool = False,
    first: int = 0,
    amp: bool = False,
) -> None:
    """Write a run of ``windows`` windows.

    Args:
        folder: Where.
        names: Layer names.
        windows: How many.
        width: Steps in a window.
        seed: Of the noise.
        sick: Put four incidents in, one of them with a rollback.
        diverge: Let the norm run away from the middle on, with nobody there to guard.
        first: First step, as in a resumed run.
        amp: Let a GradScaler skip the first steps and one now and then, as it should.
    """
    rng = np.random.default_rng(seed)
    writer = Writer(folder)
    n = len(names)
    depth = np.exp(rng.normal(0, 0.6, n)) * np.linspace(2.0, 0.5, n) / np.sqrt(n)
    step, trouble = first, {}
    bad = names[min(n - 1, 3 + 6 * 7)] if n > 3 else names[-1]
    worst = next(i for i, name in enumerate(names) if name == bad)
    if sick:
        trouble = {
            int(windows * f): form
            for f, form in ((0.3, "sudden"), (0.47, "non-finite"), (0.62, "drift"), (0.8, "sudden"))
        }
    number, factor = 0, 1.0
    clipped = skipped = overflows = 0
    for tick in range(windows):
        progress = tick / windows
        base = (
            depth * (0.6 + 2.2 * np.exp(-progress * 12)) * np.exp(rng.normal(0, 0.10, n)) * np.exp(rng.normal(0, 0.05))
        )
        nonfinite = np.zeros(n)
        after_factor, limit, typical = 1.0, 0.0, 0.0
        form = trouble.get(tick)
        if diverge and progress > 0.47:
            away = (progress - 0.47) * 30
            base = base * np.exp(np.minimum(away, 9) * np.linspace(0.3, 1.0, n)[::-1])
            if progress > 0.8:
                nonfinite[: n // 2] = width
        calm = float(np.sqrt((base**2).sum()))
        typical = float(np.sqrt((depth**2).sum())) * (0.6 + 2.2 * np.exp(-progress * 12))
        limit = typical * 2.2
        if form == "sudden":
            base[: worst + 1] *= np.linspace(3, 90, worst + 1)
            base[worst:] *= 4
        elif form == "drift":
            base[worst] *= 60
        elif sick and 0 < min((t - tick for t, f in trouble.items() if f == "drift"), default=-1) < 24:
            base[max(0, worst - 2) : worst + 1] *= np.exp((24 - (min(trouble_tick(trouble, "drift")) - tick)) / 7)
        elif form == "non-finite":
            nonfinite[: worst + 1] = 1
        peak = float(np.sqrt((base**2).sum()))
        if nonfinite.any():
            peak = float("nan")
        if form:
            number += 1
            alarm = step + width // 2
            remedies = {"sudden": ["clip"], "non-finite": ["skip"], "drift": ["rollback", "backoff"]}[form]
            after_factor = 0.0 if "skip" in remedies else min(1.0, limit / peak)
            skipped, clipped = skipped + (after_factor == 0.0), clipped + (0.0 < after_factor < 1.0)
            shown = "nan" if peak != peak else peak
            record = incident(number, alarm, form, bad, value=shown, limit=limit, remedies=remedies)
            writer.incident("opened", alarm, record)
            writer.incident("acted", alarm, record)
            writer.incident("closed", alarm + 40, {**record, "closed": alarm + 40, "helped": True})
            if "backoff" in remedies:
                factor = 0.5
        elif tick > max(trouble_tick(trouble, "drift"), default=10**9) + windows // 10:
            factor = min(1.0, factor * 1.05)
        if amp and (tick < 2 or tick % 100 == 50):
            overflows += width if tick == 0 else 1
            # A window of nothing but overflows has no norm.
            peak, base = (0.0, np.zeros(n)) if tick == 0 else (peak, base)
        row = [step + width - 1, step, peak, calm, calm * after_factor, typical, limit, after_factor, factor]
        row += [clipped, skipped, overflows]
        writer.window(tick, row)
        writer.layers(tick, names, base, nonfinite)
        writer.now += width * 0.1
        step += width
        if form == "drift":
            step -= 20 * width
    if sick:
        writer.incident("notice", step, None, "the LR back-off has ended")
    writer.close()


def trouble_tick(trouble: dict[int, str], form: str) -> list[int]:
    """Ticks at which a form of trouble was put."""
    return [tick for tick, was in trouble.items() if was == form]


def write_large(folder: Path, *, layers: int = 1000, windows: int = 20_000, width: int = 50) -> None:
    """Write a run of a million steps and a thousand layers; a single spike and a single NaN lie in it."""
    rng = np.random.default_rng(0)
    writer = Writer(folder)
    names = transformer(layers // 6 + 1)[:layers]
    noise = np.exp(rng.normal(0, 0.1, (64, layers)))
    quiet = np.zeros(layers)
    for tick in range(windows):
        norms, nonfinite = noise[tick % 64], quiet
        if tick == windows // 3:
            norms = norms.copy()
            norms[layers // 2] = 500.0
        if tick == windows // 2:
            nonfinite = quiet.copy()
            nonfinite[7] = 1
        writer.window(tick, [tick * width + width - 1, tick * width, 32, 31, 31, 31, 90, 1, 1])
        writer.layers(tick, names, norms, nonfinite)
        writer.now += 5
    writer.close()


def write_pair(folder: Path) -> None:
    """Write a run of two optimizers."""
    rng = np.random.default_rng(0)
    writer = Writer(folder)
    for tick in range(60):
        for index, names in enumerate((["generator.0", "generator.1"], [f"critic.{i}" for i in range(3)])):
            norms = np.exp(rng.normal(0, 0.3, len(names)))
            prefix = f"gradguard/optimizer_{index}/"
            writer.window(tick, [tick, tick, norms.sum(), 2, 2, 2, 9, 1, 1, 0, 0, 0], prefix)
            writer.layers(tick, names, norms, np.zeros(len(names)), prefix)
        writer.now += 1
    writer.close()


def write_hostile(folder: Path) -> None:
    """Write a run whose names are an attack, with broken events among the good ones."""
    names = [*HOSTILE, "head"]
    write_run(folder, names, windows=60)
    writer = Writer(folder / ".." / folder.name)
    writer.now += 100
    record = incident(1, 300, "sudden", HOSTILE[0])
    record["blame"][0]["reason"] = HOSTILE[1]
    record["actions"][0]["verdict"]["reason"] = HOSTILE[0]
    record["actions"][0]["outcomes"][0]["detail"] = HOSTILE[1]
    writer.incident("opened", 300, record, message=HOSTILE[0])
    writer.incident("notice", 300, None, HOSTILE[1])
    writer.incident("closed", 301, {"number": "x", "blame": "none", "actions": [1, None, {"outcomes": 3}]})
    broken = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=[b"{not json \xff"])
    writer._add("gradguard/incidents", 9, broken, "gradguard_incidents", b"{}")
    writer.window(60, [float("nan")] * 9)
    writer._add("gradguard/layers", 61, _tensor(np.zeros((2, 3), "<f2"), types_pb2.DT_HALF), "gradguard_layers", b"[]")
    writer.close()


def write_lasting(folder: Path, *, layers: int = 160, sick: int = 77, since: int = 300, steps: int = 1200) -> None:
    """Write a run of many layers in which one has its weights multiplied by 300 at a step, which no norm and no loss shows."""
    rng = np.random.default_rng(0)
    writer = Writer(folder)
    names = [f"blocks.{i}.fc" for i in range(layers)]
    usual = np.exp(rng.normal(0, 0.5, layers))
    for tick in range(steps // 5):
        norms = usual * np.exp(rng.normal(0, 0.1, layers)) * (0.5 + np.exp(-tick / 40))
        if tick * 5 >= since:
            norms[sick] /= 300.0
        norm = float(np.sqrt((norms**2).sum()))
        writer.window(tick, [tick * 5 + 4, tick * 5, norm, norm, norm, norm, 4 * norm, 1, 1, 0, 0, 0])
        writer.layers(tick, names, norms, np.zeros(layers))
        writer.now += 5
    writer.close()
