"""What a guard is made of: the detectors that it asks, the remedies that may act, the policy, and the copies."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from torch import nn

from lightning_gradguard import checks
from lightning_gradguard.defaults import default_detectors, default_remedies
from lightning_gradguard.detectors import Detector
from lightning_gradguard.errors import GuardError
from lightning_gradguard.policy import Policy
from lightning_gradguard.records import Form
from lightning_gradguard.remedies import Remedy
from lightning_gradguard.snapshots.store import SnapshotStore
from lightning_gradguard.witnesses import Witness


@dataclass(frozen=True, slots=True)
class Parts:
    """Prototypes of the parts: each optimizer has copies of them.

    Args:
        detectors: What looks out for trouble.
        remedies: What may be done about it.
        policy: Decides.
        snapshots: Keeps copies of the state.
        isolate: Told of a detector or remedy that failed and is left out from then on; None lets the error pass.
        witnesses: What is watched besides, and only reported.
    """

    detectors: Sequence[Detector]
    remedies: Sequence[Remedy]
    policy: Policy
    snapshots: SnapshotStore
    isolate: Callable[[GuardError], None] | None = None
    witnesses: Sequence[Witness] = ()

    def named(self) -> dict[str, Any]:
        """Return the parts as they are shown: detectors and remedies by name."""
        names = {"detectors": [d.name for d in self.detectors], "remedies": [r.name for r in self.remedies]}
        if self.witnesses:
            names["witnesses"] = [w.name for w in self.witnesses]
        return {**names, "policy": self.policy, "snapshots": self.snapshots}

    def check(self, module: nn.Module) -> None:
        """Raise ValueError if a remedy does not fit a module, and GuardError if it fails to tell."""
        for remedy in self.remedies:
            try:
                remedy.check(module)
            except ValueError:
                raise
            except Exception as error:
                raise GuardError(f"remedy {remedy.name!r} failed: {error!r}") from error


def _class_words(kind: type) -> tuple[str, str]:
    """Return the name of a class, and as a word: ``BadStart`` and ``bad-start``, whose name in files is older."""
    return kind.__name__, re.sub(r"(?<=[a-z])(?=[A-Z])", "-", kind.__name__).lower()


def _instead(pattern: object) -> str:
    """Return what somebody may have meant who gave ``exclude`` something that no detector or remedy is called."""
    if pattern in get_args(Form):
        return ", which is a form of trouble and not the name of a detector"
    if isinstance(name := getattr(pattern, "name", None), str):
        return f", whose name is {name!r}"
    return "; layers are named to Reinitialize(exclude=...)" if isinstance(pattern, str) and "." in pattern else ""


def chosen(
    detectors: Sequence[Detector] | None,
    remedies: Sequence[Remedy] | None,
    policy: Policy | None,
    snapshots: SnapshotStore | None,
    *,
    exclude: Sequence[str],
    isolate: Callable[[GuardError], None] | None,
    witnesses: Sequence[Witness] = (),
) -> Parts:
    """Return the parts that a user has asked for, and the default ones in place of None.

    Args:
        detectors: What looks out for trouble.
        remedies: What may be done about it.
        policy: Decides.
        snapshots: Keeps copies of the state.
        exclude: Names of detectors and remedies that are left out, shell-style patterns of their names, or names of
            their classes.
        isolate: See :class:`Parts`.
        witnesses: What is watched besides.

    Raises:
        ValueError: One is of no use; the message names the argument.
    """
    asked = checks.instances("detectors", default_detectors() if detectors is None else detectors, Detector)
    able = checks.instances("remedies", default_remedies() if remedies is None else remedies, Remedy)
    names = {"detectors": [d.name for d in asked], "remedies": [r.name for r in able]}
    if not isinstance(exclude, str) and isinstance(exclude, Iterable):
        parts: list[Detector | Remedy] = [*asked, *able]
        own = {word: part.name for part in parts for word in _class_words(type(part))}
        exclude = [own.get(word, word) if isinstance(word, str) else word for word in exclude]
    gone = checks.matching("exclude", exclude, names, hint=_instead)
    return Parts(
        [detector for detector in asked if detector.name not in gone],
        [remedy for remedy in able if remedy.name not in gone],
        checks.instance("policy", Policy() if policy is None else policy, Policy),
        checks.instance("snapshots", SnapshotStore() if snapshots is None else snapshots, SnapshotStore),
        isolate,
        checks.instances("witnesses", witnesses, Witness),
    )
