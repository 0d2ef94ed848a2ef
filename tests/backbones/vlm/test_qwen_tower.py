"""A tower's attention and what it needs to know of images, against transformers' own."""

from __future__ import annotations

import pytest
import torch
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import VisionAttention

from fixtures.device_work import DeviceWork, as_on_a_device
from virtue_pl.backbones.vlm.qwen_tower import Stretches, TowerAttention

LENGTHS = {"equal": (4, 4, 4), "unequal": (4, 6, 4, 2, 6), "one": (5,)}


def stock_attention() -> VisionAttention:
    torch.manual_seed(0)
    config = Qwen2VLVisionConfig(embed_dim=16, num_heads=2)
    config._attn_implementation = "sdpa"
    return VisionAttention(config)


@pytest.mark.parametrize("name", sorted(LENGTHS))
def test_attention_is_that_of_transformers(name: str) -> None:
    stock, lengths = stock_attention(), LENGTHS[name]
    ours = TowerAttention(stock)
    assert ours.state_dict().keys() == stock.state_dict().keys()
    states, (cos, sin) = torch.randn(sum(lengths), 16), torch.randn(2, sum(lengths), 8)
    ends = torch.tensor([0, *lengths]).cumsum(dim=0)
    expected = stock(states, ends, position_embeddings=(cos, sin))
    with DeviceWork() as done:
        found = ours(states, Stretches(lengths), (cos, sin))
        with as_on_a_device():
            together = ours(states, Stretches(lengths), (cos, sin))
    assert torch.equal(found, expected) and torch.equal(ours(states, ends, (cos, sin)), expected) and not done.reads
    torch.testing.assert_close(together, expected, atol=1e-6, rtol=1e-5)


def test_stretches_of_a_length_go_together() -> None:
    stretches = Stretches((2, 1, 2))
    *groups, back = stretches.indices(torch.device("cpu"))
    assert [group.tolist() for group in groups] == [[0, 1, 3, 4], [2]]
    assert torch.cat(groups)[back].tolist() == [0, 1, 2, 3, 4]
