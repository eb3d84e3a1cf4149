"""Whether what was saved has the shape of what is expected: keys, types, and the shapes of the module's tensors."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_gradguard.diagnostics.decode import decode
from lightning_gradguard.layers.names import clean
from lightning_gradguard.records import Incident, incident_from_json

# A fresh track is no model for these: parts may have changed since, and others are empty at first.
_OF_ITS_OWN = ("detectors", "remedies", "incidents", "incident", "kept", "trial", "peaks", "untreated", "looking")


def like(model: Any, found: Any, where: str) -> None:
    """Check that ``found`` has the keys of ``model`` and values of its types; of lists, those of its first item.

    Raises:
        KeyError: A key is missing.
        TypeError: A value is of another type.
    """
    if isinstance(model, dict):
        expect(found, dict, where)
        for key, value in model.items():
            if key not in found:
                raise KeyError(f"{where}.{key} is missing")
            if key not in _OF_ITS_OWN:
                like(value, found[key], f"{where}.{key}")
            elif value is not None:
                expect(found[key], type(value), f"{where}.{key}")
    elif isinstance(model, list):
        expect(found, list, where)
        for number, item in enumerate(found):
            if model:
                like(model[0], item, f"{where}[{number}]")
            else:
                expect(item, (float, int, str), f"{where}[{number}]")
    elif isinstance(model, float):
        expect(found, (float, int), where)
    else:
        expect(found, type(model), where)
        if isinstance(found, bool) is not isinstance(model, bool):
            raise TypeError(f"{where} is {found!r}")


def expect(found: Any, kind: type | tuple[type, ...], where: str) -> None:
    """Raise TypeError if ``found`` is of no such type."""
    if not isinstance(found, kind):
        wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise TypeError(f"{where} should be a {wanted} and is a {type(found).__name__}")


def check_incident(found: Any, where: str) -> None:
    """Raise KeyError or ValueError if an incident cannot be made of what was saved of it."""
    try:
        decode(Incident, found)
        incident_from_json(found)
    except KeyError as error:
        raise KeyError(f"{where}: {error} is missing") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def check_snapshot(found: Any, module: nn.Module | None, where: str) -> None:
    """Raise KeyError, TypeError or ValueError if a copy of the state is none, or is of a module of other shapes."""
    model = {"step": 0, "parameters": {}, "buffers": {}, "optimizer_state": {}, "extra": {}}
    like(model, found, where)
    if unknown := found.keys() - model.keys():
        raise KeyError(f"{where} has an unknown entry {sorted(unknown)[0]!r}")
    for name, state in found["optimizer_state"].items():
        expect(state, dict, f"{where}.optimizer_state.{name}")
    live: dict[str, Tensor] = {}
    if module is not None:
        live = {clean(name): value for name, value in (*module.named_parameters(), *module.named_buffers())}
    for kind in ("parameters", "buffers"):
        for name, value in found[kind].items():
            expect(value, Tensor, f"{where}.{kind}.{name}")
            mine = live.get(name)
            if mine is not None and not is_lazy(mine) and mine.shape != value.shape:
                shapes = f"{tuple(value.shape)} there and {tuple(mine.shape)} in the module"
                raise ValueError(f"{where}: the shape of {name} is {shapes}")
