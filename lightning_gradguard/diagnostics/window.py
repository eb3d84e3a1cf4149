"""Collect the steps between two logs into one Window.

One idea, of whose more than 200 lines a third names the fields that it fills, saves and loads.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from lightning_gradguard.layers.names import layer_of
from lightning_gradguard.records import FloatArray, GradientStatistics, Window
from lightning_gradguard.statistics.weights import WeightScale


class WindowAccumulator:
    """Keep window peaks per parameter, and the counts of the whole run.

    Attributes:
        order: Layers in the order in which windows list them; those it lacks come after.
    """

    def __init__(self) -> None:
        self.clipped = 0
        self.skipped = 0
        self.overflows = 0
        self.tick = 0
        self.order: tuple[str, ...] = ()
        self._routine = False
        self._weights = WeightScale()
        self._names: tuple[str, ...] = ()
        self._clear()

    def _clear(self) -> None:
        self.steps = 0
        self._first = 0
        self._peak = 0.0
        self._peak_step: int | None = None
        self._losses = (math.inf, -math.inf, 0.0, 0)
        self._coefficient = 1.0
        self._peaks: FloatArray = np.zeros(len(self._names))
        self._nonfinite: FloatArray = np.zeros(len(self._names))

    def add(self, statistics: GradientStatistics, coefficient: float = 1.0, *, alarm: bool = False) -> None:
        """Take in one step, alarming or not, whose gradients were multiplied by ``coefficient``: 0 if skipped."""
        norms = statistics.norms if statistics.names == self._names else self._aligned(statistics)
        if self.steps == 0:
            self._first = statistics.step
        self.steps += 1
        loss = statistics.loss
        if loss is not None and math.isfinite(loss):
            low, high, total, count = self._losses
            self._losses = (min(low, loss), max(high, loss), total + loss, count + 1)
        # The overflow that a GradScaler answers by itself. One that raised an alarm is none, even if nothing was done
        # about it.
        finite = statistics.finite
        self._routine = statistics.scaled and not finite and not alarm
        if self._routine:
            self.overflows += 1
            return
        if finite:
            np.maximum(self._peaks, norms, out=self._peaks)
        else:
            good = np.isfinite(norms)
            np.maximum(self._peaks, norms, out=self._peaks, where=good)
            self._nonfinite += ~good
        # A NaN must win over every number, and max() would drop it.
        if (
            self._peak_step is None
            or statistics.norm > self._peak
            or (math.isnan(statistics.norm) and self._peak < math.inf)
        ):
            # Of several steps that were not finite the first is where it began.
            self._peak, self._peak_step = statistics.norm, statistics.step
        if coefficient < 1.0:
            self._coefficient = min(self._coefficient, coefficient)
            self.skipped += coefficient == 0.0
            self.clipped += coefficient > 0.0

    def _aligned(self, statistics: GradientStatistics) -> FloatArray:
        """Return the norms by known name, zero where a parameter has no gradient now; names that are new are learned.

        Branches that are not taken at every step come and go, and must not cost the window.
        """
        known = set(self._names)
        new = tuple(name for name in statistics.names if name not in known)
        self._names += new
        self._peaks = np.append(self._peaks, np.zeros(len(new)))
        self._nonfinite = np.append(self._nonfinite, np.zeros(len(new)))
        position = {name: i for i, name in enumerate(self._names)}
        norms = np.zeros(len(self._names))
        norms[[position[name] for name in statistics.names]] = statistics.norms
        return norms

    def weigh(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Look at the weights before and after the update of a window's first step.

        To be called at each step, before :meth:`add`.
        """
        if self.steps == 0 or self._weights.awaits_update:
            self._weights.look(parameters)

    def window(
        self,
        statistics: GradientStatistics,
        *,
        typical: float,
        optimizer: int,
        limit: float,
        coefficient: float,
        lr_factor: float,
        incidents: int,
        rates: tuple[float, float, float] = (math.nan, math.nan, math.nan),
        cooled: float = 1.0,
    ) -> Window:
        """Return the window that ends with this step, and begin the next.

        ``rates`` are those in use, known good and known bad; ``cooled`` is the share of a held rate in its cool-down.
        """
        norm = 0.0 if self._routine else statistics.norm
        window = Window(
            step=statistics.step,
            first_step=self._first,
            optimizer=optimizer,
            tick=self.tick,
            norm_peak=self._peak,
            norm_before=norm,
            norm_after=0.0 if coefficient == 0.0 else norm * coefficient,
            typical=typical,
            limit=limit if math.isfinite(limit) else math.nan,
            coefficient=self._coefficient,
            lr_factor=lr_factor,
            incidents=incidents,
            loss=statistics.loss,
            peak_step=self._peak_step,
            rate=rates[0],
            rate_good=rates[1],
            rate_bad=rates[2],
            cooled=cooled,
            **self._counts(),
            **self._loss_levels(),
            **self._by_layer(),
        )
        self.tick += 1
        self._clear()
        return window

    def _counts(self) -> dict[str, Any]:
        return {"clipped": self.clipped, "skipped": self.skipped, "overflows": self.overflows}

    def _loss_levels(self) -> dict[str, Any]:
        low, high, total, count = self._losses
        return {"loss_low": low, "loss_high": high, "loss_mean": total / count} if count else {}

    def _by_layer(self) -> dict[str, Any]:
        layers, groups = _layers(self._names, self.order)
        squares, bad = np.zeros(len(layers)), np.zeros(len(layers))
        np.add.at(squares, groups, self._peaks**2)
        np.maximum.at(bad, groups, self._nonfinite)
        weights, updates = self._weights.take(layers)
        peaks = np.sqrt(squares)
        told = {"layers": layers, "layer_peaks": peaks, "layer_nonfinite": bad}
        return {**told, "layer_weights": weights, "layer_updates": updates}

    def state_dict(self) -> dict[str, Any]:
        """Return the counts, and the window under way."""
        return {
            "clipped": self.clipped,
            "skipped": self.skipped,
            "overflows": self.overflows,
            "tick": self.tick,
            "steps": self.steps,
            "first": self._first,
            "peak": self._peak,
            "peak_step": -1 if self._peak_step is None else self._peak_step,
            "losses": list(self._losses),
            "coefficient": self._coefficient,
            "names": list(self._names),
            "peaks": self._peaks.tolist(),
            "nonfinite": self._nonfinite.tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        self.clipped, self.skipped, self.tick = int(state["clipped"]), int(state["skipped"]), int(state["tick"])
        self.overflows = int(state.get("overflows", 0))
        self._names = tuple(state["names"])
        self.steps, self._first = int(state["steps"]), int(state["first"])
        self._peak, self._coefficient = float(state["peak"]), float(state["coefficient"])
        peak_step = int(state.get("peak_step", -1))
        self._peak_step = None if peak_step < 0 else peak_step
        low, high, total, count = state.get("losses", (math.inf, -math.inf, 0.0, 0))
        self._losses = (float(low), float(high), float(total), int(count))
        self._peaks = np.array(state["peaks"], dtype=np.float64)
        self._nonfinite = np.array(state["nonfinite"], dtype=np.float64)


@functools.lru_cache(maxsize=8)
def _layers(names: tuple[str, ...], order: tuple[str, ...]) -> tuple[tuple[str, ...], list[int]]:
    """Group parameters by the layer that owns them: layer names in ``order``, and each parameter's group."""
    owners = [layer_of(name) or name for name in names]
    place = {layer: i for i, layer in enumerate(order)}
    layers = tuple(sorted(dict.fromkeys(owners), key=lambda layer: place.get(layer, len(place))))
    index = {layer: i for i, layer in enumerate(layers)}
    return layers, [index[owner] for owner in owners]
