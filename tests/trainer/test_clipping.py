"""The clipping hook, suspended for one step."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_gradguard.trainer.clipping import HOOK, SuspendedClipping


class Module:
    """Stands in for a LightningModule."""

    def configure_gradient_clipping(self, *args: Any) -> str:
        return "clipped"


@pytest.mark.parametrize("own", [True, False])
def test_nothing_is_clipped_until_it_is_resumed(own: bool) -> None:
    module: Any = Module()
    if own:
        setattr(module, HOOK, lambda *args: "clipped by the module's own")
    before = module.configure_gradient_clipping()
    clipping = SuspendedClipping()
    clipping.suspend(module)
    assert module.configure_gradient_clipping("optimizer", gradient_clip_val=1.0) is None
    clipping.resume()
    clipping.resume()
    assert module.configure_gradient_clipping() == before and (HOOK in vars(module)) is own
