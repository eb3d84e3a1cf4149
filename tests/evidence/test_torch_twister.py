"""The memory of torch's generator tells what its getter tells."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import nn

from lightning_gradguard.evidence import torch_twister
from lightning_gradguard.evidence.torch_twister import state_of, view_of


def test_the_memory_is_that_of_the_getter_whatever_is_drawn() -> None:
    generator = torch.Generator()
    seen = view_of(generator)
    assert seen is not None, "the memory of torch's generator is not known here"
    drawn = torch.zeros(3, dtype=torch.float64)
    for seed in (0, 1, 2**63 + 5):
        generator.manual_seed(seed)
        for kind in (torch.float32, torch.float64, torch.bfloat16):
            for size in (1, 3, 20, 700):
                torch.randn(size, dtype=kind, generator=generator)
                assert state_of(seen.raw).equal(generator.get_state())
        torch.randperm(50, generator=generator), drawn.exponential_(generator=generator)
        assert state_of(seen.raw).equal(generator.get_state())
        assert view_of(torch.Generator()).raw != seen.raw


def test_the_default_generator_is_followed_through_all_that_sets_it() -> None:
    seen, first = view_of(torch.default_generator), torch.get_rng_state()
    for change in (
        lambda: torch.manual_seed(4),
        lambda: torch.set_rng_state(first),
        lambda: nn.Dropout(0.5)(torch.ones(100)),
        lambda: torch.random.fork_rng(devices=[]).__enter__(),
    ):
        change()
        assert state_of(seen.raw).equal(torch.get_rng_state())


def test_what_is_laid_out_in_another_way_is_left_to_the_getter(monkeypatch: pytest.MonkeyPatch) -> None:
    with mock.patch.object(torch_twister, "_BYTES_OF_STATE", 16):
        assert view_of(torch.default_generator) is None
    with mock.patch.object(torch_twister, "_AHEAD", torch_twister.struct.Struct("=4xf?3xf4x?")):
        assert view_of(torch.default_generator) is None
    with mock.patch.object(torch_twister, "_address", return_value=id(torch_twister)):
        assert view_of(torch.default_generator) is None
