"""Scalars for loggers other than TensorBoard's."""

from __future__ import annotations

import pytest

from lightning_gradguard.diagnostics import MetricsSink
from tests.diagnostics.examples import window


@pytest.mark.parametrize(("optimizers", "named"), [(1, False), (2, True)])
def test_tags_name_the_optimizer_only_where_there_are_several(optimizers: int, named: bool) -> None:
    told: list[tuple[dict[str, float], int | None]] = []
    MetricsSink(lambda metrics, step: told.append((metrics, step)), optimizers=optimizers).window(window(3))
    ((metrics, step),) = told
    assert step == window(3).step and metrics
    assert len({tag for tag in metrics if "0/" in tag or "optimizer" in tag}) == (len(metrics) if named else 0)
