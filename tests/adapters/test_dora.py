"""The folded DoRA against peft's own."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from virtue_pl.adapters.dora import FusedDora, fuse_adapters, row_norms
from virtue_pl.adapters.dropout import QuickDropout


def adapter_network(folded: bool, dropout: float, bias: bool, stretched: bool = True) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(24, 40, bias=bias), nn.Tanh(), nn.Linear(40, 16, bias=bias))
    inject_adapter_in_model(
        LoraConfig(r=4, lora_alpha=32, lora_dropout=dropout, target_modules=["0", "2"], use_dora=True), network
    )
    for name, parameter in network.named_parameters():
        if "lora_B" in name or (stretched and "magnitude" in name):
            nn.init.normal_(parameter, mean=float("magnitude" in name), std=0.3)
    if folded:
        fuse_adapters(network)
    return network.train()


def result(network: nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(5)
    inputs = torch.randn(3, 7, 24, requires_grad=True)
    outputs = network(inputs)
    outputs.square().sum().backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return outputs.detach(), {**gradients, "inputs": inputs.grad}  # type: ignore[dict-item]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_outputs_and_gradients_are_pefts(bias: bool, training: bool) -> None:
    """In evaluation its dropout does nothing, so that there the two agree with it too."""
    dropout = 0.0 if training else 0.4
    ours, expected = (result(adapter_network(folded, dropout, bias).train(training)) for folded in (True, False))
    torch.testing.assert_close(ours[0], expected[0], atol=1e-5, rtol=1e-5)
    assert ours[1].keys() == expected[1].keys() and len(expected[1]) == 7
    for name, gradient in expected[1].items():
        assert (ours[1][name] - gradient).norm() <= 2e-6 * gradient.norm(), name


def test_dropout_reaches_the_update_alone() -> None:
    """Averaged over many draws the two are one, and so they are in each draw where nothing is stretched yet."""
    torch.manual_seed(1)
    networks = [adapter_network(folded, 0.4, True) for folded in (True, False)]
    inputs = torch.randn(1, 24).expand(20000, 24)
    with torch.no_grad():
        means = [network[0](inputs).mean(dim=0) for network in networks]  # type: ignore[index]
    torch.testing.assert_close(*means, atol=0.1, rtol=0)
    base = adapter_network(True, 0.4, True)[0]  # type: ignore[index]
    norms = row_norms(
        base.base_layer.weight, base.lora_A["default"].weight, base.lora_B["default"].weight, base.scaling["default"]
    )
    outputs = []
    for folded in (True, False):
        layer = adapter_network(folded, 0.4, True)[0]  # type: ignore[index]
        layer.lora_magnitude_vector["default"].weight.data.copy_(norms)
        layer.lora_dropout["default"] = QuickDropout(0.4)
        torch.manual_seed(2)
        outputs.append(layer(inputs[:5]))
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)


def test_the_norms_are_the_updated_weights() -> None:
    weight, down, up = torch.randn(40, 24), torch.randn(4, 24), torch.randn(40, 4)
    torch.testing.assert_close(
        row_norms(weight, down, up, 8.0), (weight + 8.0 * up @ down).norm(dim=1), rtol=1e-5, atol=1e-4
    )
    in_half = row_norms(weight.bfloat16(), down, up, 8.0)
    assert in_half.dtype == torch.float32
    torch.testing.assert_close(in_half, (weight.bfloat16().float() + 8.0 * up @ down).norm(dim=1), rtol=1e-5, atol=1e-4)


def test_in_bfloat16_it_is_as_close_to_float32_as_pefts() -> None:
    inputs = torch.randn(400, 24)
    with torch.no_grad():
        exact = adapter_network(False, 0.0, True)(inputs)
        with torch.autocast("cpu", torch.bfloat16):
            networks = (adapter_network(folded, 0.0, True) for folded in (True, False))
            ours, pefts = ((network(inputs).float() - exact).norm() for network in networks)
    assert ours <= 1.25 * pefts and ours <= 0.02 * exact.norm()


def test_only_dora_is_folded() -> None:
    network = nn.Sequential(nn.Linear(4, 4))
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["0"], use_dora=False), network)
    fuse_adapters(network)
    assert not network[0].lora_variant and isinstance(network[0].lora_dropout["default"], nn.Identity)
    dora = adapter_network(True, 0.2, True)[0]  # type: ignore[index]
    assert isinstance(dora.lora_variant["default"], FusedDora)
    assert isinstance(dora.lora_dropout["default"], QuickDropout) and dora.lora_dropout["default"].p == 0.2
