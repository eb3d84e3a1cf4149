import copy
import math
import pickle

import pytest
import torch
from torch import nn

from lightning_gradguard.witnesses import AttentionLogits
from lightning_gradguard.witnesses.attention_logits import largest_logit
from tests.witnesses.scenes import Attending, batches, train


def reference(attention, query, key, mask=None):
    """The logits as the textbook has them, ``(N, heads, L, S)``."""
    width, heads = attention.embed_dim, attention.num_heads
    w, b = attention.in_proj_weight, attention.in_proj_bias
    q = (query @ w[:width].T + b[:width]).unflatten(-1, (heads, -1)).transpose(1, 2)
    k = (key @ w[width : 2 * width].T + b[width : 2 * width]).unflatten(-1, (heads, -1)).transpose(1, 2)
    logits = q @ k.transpose(-1, -2) / math.sqrt(width // heads)
    return logits if mask is None else logits.masked_fill(mask, -math.inf)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_the_logit_is_that_of_the_module(batch_first, masked):
    attention = nn.MultiheadAttention(16, 4, batch_first=batch_first)
    nn.init.normal_(attention.in_proj_bias)
    x = torch.randn(3, 7, 16)
    mask = torch.ones(7, 7, dtype=torch.bool).triu(1) if masked else None
    given = x if batch_first else x.transpose(0, 1)
    found = largest_logit(attention, given, given, attn_mask=mask)
    assert float(found) == pytest.approx(float(reference(attention, x, x, mask).max()), rel=1e-5)


@torch.no_grad()
def test_masks_of_every_shape_and_a_width_of_its_own_for_keys():
    attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=6, bias=False, batch_first=True)
    q, k = torch.randn(3, 5, 8), torch.randn(3, 9, 6)
    padding = torch.zeros(3, 9, dtype=torch.bool)
    padding[:, 4:] = True
    each = torch.zeros(3 * 2, 5, 9)
    each[..., 4:] = -math.inf
    short = largest_logit(attention, q, k[:, :4])
    assert float(largest_logit(attention, q, k, key_padding_mask=padding)) == pytest.approx(float(short))
    assert float(largest_logit(attention, q, k, attn_mask=each)) == pytest.approx(float(short))
    alone = largest_logit(attention, q[0], k[0], key_padding_mask=padding[0])
    assert math.isfinite(alone) and float(alone) <= float(short) + 1e-6


def test_it_moves_with_the_logits_and_is_still_in_a_healthy_run():
    network = Attending()

    def before(step):
        if step == 200:
            with torch.no_grad():
                network.attention.in_proj_weight[:32] *= 5.0

    data = batches(240)
    data[230] = (data[230][0] * math.nan, data[230][1])
    guard, windows = train(network, data, witnesses=[AttentionLogits()], before=before, mode="watch")
    seen = [(w.step, t.value) for w in windows.all for t in w.witnessed if t.witness == "attention_logit"]
    healthy = [value for step, value in seen if 50 < step < 200]
    assert len(healthy) > 20 and max(healthy) < 3.0 * min(healthy)
    assert all(value > 5.0 * max(healthy) for step, value in seen if 205 < step < 230)
    told = [one for one in guard.incidents[0].witnessed if one.witness == "attention_logit"]
    assert told and told[0].where == "attention" and told[0].value > 3.0 * told[0].usual


def test_a_module_whose_output_is_logits_can_be_named():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.qk, self.logits, self.head = nn.Linear(16, 32), nn.Identity(), nn.Linear(16, 1)

        def forward(self, x):
            q, k = self.qk(x).chunk(2, -1)
            return self.head((self.logits(q @ k.transpose(-1, -2)).softmax(-1) @ x).mean(1))

    _, windows = train(Own(), batches(40), witnesses=[AttentionLogits(modules=["*logits"])])
    assert {t.where for w in windows.all for t in w.witnessed if t.witness == "attention_logit"} == {"logits"}


def test_a_copy_begins_without_hooks_and_so_does_a_copied_module():
    network, witness = Attending(), AttentionLogits(modules=[nn.Identity])
    witness.arm(network, network.parameters())
    assert witness.armed
    for other in (copy.deepcopy(witness), pickle.loads(pickle.dumps(witness))):
        assert not other.armed and other.modules == witness.modules
    copied = pickle.loads(pickle.dumps(copy.deepcopy(network)))
    copied(torch.randn(2, 3, 16))
    assert not witness._largest
    witness.disarm()
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("modules", ["attention", [3]])
def test_what_is_neither_a_name_nor_a_class_is_refused(modules):
    with pytest.raises(ValueError, match="modules must be a list of names and classes"):
        AttentionLogits(modules=modules)
