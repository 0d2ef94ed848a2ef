"""The paper's models at their real sizes, on the meta device: no weights, no hub, no data."""

from __future__ import annotations

import re

import pytest
from torch import nn

from fixtures.paper_configs import CONFIGS, without_data
from virtue_pl.adapters.lora import adapter_layers
from virtue_pl.cli.described import DescribedCLI
from virtue_pl.cli.main import main

SIZES = {"2b": (1536, 8960, 12, 2, 151936), "7b": (3584, 18944, 28, 4, 152064)}
"""Qwen2-VL's hidden size, MLP, heads, key and value heads, and vocabulary."""
LAYERS, VISION_LAYERS, VISION_WIDTH = 28, 32, 1280


def linear(inputs: int, outputs: int, bias: bool = True) -> int:
    return inputs * outputs + bias * outputs


def language_model(hidden: int, mlp: int, heads: int, kv: int, vocabulary: int) -> int:
    """Without the head that predicts words."""
    shared = hidden * kv // heads
    attention = linear(hidden, hidden) + 2 * linear(hidden, shared) + linear(hidden, hidden, bias=False)
    return vocabulary * hidden + LAYERS * (attention + 3 * hidden * mlp + 2 * hidden) + hidden


def vision_tower(hidden: int) -> int:
    width, merged = VISION_WIDTH, 4 * VISION_WIDTH
    block = (
        linear(width, 3 * width)
        + linear(width, width)
        + linear(width, 4 * width)
        + linear(4 * width, width)
        + 2 * 2 * width
    )
    return 3 * 2 * 14**2 * width + VISION_LAYERS * block + 2 * width + linear(merged, merged) + linear(merged, hidden)


def adapters(hidden: int, mlp: int, heads: int, kv: int) -> int:
    """DoRA of rank 8: two matrices and one length an output for each of the five maps."""
    shared = hidden * kv // heads
    maps = [(hidden, hidden), (hidden, shared), (hidden, shared), (hidden, hidden), (mlp, hidden)]
    return LAYERS * sum(8 * (inputs + outputs) + outputs for inputs, outputs in maps)


def count(module: nn.Module, trained: bool | None = None) -> int:
    return sum(
        parameter.numel() for parameter in module.parameters() if trained is None or parameter.requires_grad == trained
    )


@pytest.fixture(scope="module", params=sorted(SIZES))
def built(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[tuple[int, ...], DescribedCLI]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("empty"))
        config = without_data(tmp_path_factory.mktemp("configs"), request.param)
        return SIZES[request.param], DescribedCLI("fit", ["--config", str(config), "--trainer.accelerator", "cpu"])


def test_every_part_has_its_real_size(built):
    (hidden, mlp, heads, kv, vocabulary), cli = built
    model = cli.model
    assert all(parameter.is_meta for parameter in model.parameters())
    backbone = model.fusion.backbone.model
    assert count(backbone.visual) == vision_tower(hidden)
    assert count(backbone.language_model, trained=False) == language_model(hidden, mlp, heads, kv, vocabulary)
    assert count(model.fusion, trained=True) == adapters(hidden, mlp, heads, kv)
    assert count(model.connector, trained=True) == linear(256 * 16, 256) + linear(256, 256) + linear(256, hidden)
    assert count(model, trained=True) == count(model.connector) + adapters(hidden, mlp, heads, kv)


def test_sam_2_is_base_plus(built):
    """What can reach the feature, 72.4 M parameters: the image encoder, the prompt encoder, the two-way transformer and
    its own tokens.
    """
    encoder, backbone = built[1].model.prompt_encoder.encoder.encoder, built[1].model.segmentation.backbone
    decoder = backbone.mask_decoder
    read = [
        backbone.vision_encoder,
        encoder,
        decoder.transformer,
        decoder.obj_score_token,
        decoder.iou_token,
        decoder.mask_tokens,
    ]
    assert round(sum(map(count, read)) / 1e6, 1) == 72.4


def test_adapters_reach_all_layers_of_the_language_model_alone(built):
    names = {re.sub(r"\.\d+\.", ".*.", name) for name, _ in adapter_layers(built[1].model)}
    inside = "fusion.backbone.model.language_model.layers.*."
    assert names == {
        inside + name
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj")
    }
    assert len(list(adapter_layers(built[1].model))) == 5 * LAYERS


def test_what_would_be_read_is_known(built):
    assert sorted(set(built[1].unread.values()))[1:] == ["facebook/sam2.1-hiera-base-plus"]


def test_check_shows_it_without_weights_or_data(monkeypatch, tmp_path, capsys):
    """The configs as they are."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    stage = ["--config", str(CONFIGS / "overlays" / "stages" / "scar.yaml")]
    assert main(["check", "--config", str(CONFIGS / "virtue_2b.yaml"), *stage, "--trainer.accelerator", "cpu"]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert (
        "fusion VLMFusionHead 4,673,536 2,208,985,600" in shown
        and "connector ConvolutionConnector 1,509,376 0" in shown
    )
    assert "fusion.backbone.model.language_model.layers.*.self_attn.q_proj DoRA 28 731,136" in shown
    assert (
        "SCAR_RefCOCO_plus holds no shards" in shown
        and "optimizer steps 1,000" in shown
        and "global batch 1,024" in shown
    )
    assert (
        "model.init_args.weights runs/virtue_2b/mmeb/checkpoints/last.ckpt" in shown
        and "Qwen/Qwen2-VL-2B-Instruct" in shown
    )
    assert not list(tmp_path.iterdir())


def test_layers_change_what_is_built(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    arguments = ["--config", str(without_data(tmp_path)), "--trainer.accelerator", "cpu", "--config"]
    vit = DescribedCLI("fit", [*arguments, str(CONFIGS / "overlays" / "segmentation" / "sam1.yaml")]).model
    assert 93e6 < count(vit.segmentation) + count(vit.prompt_encoder) < 94e6
    alone = DescribedCLI("fit", [*arguments, str(CONFIGS / "overlays" / "segmentation" / "none.yaml")]).model
    assert type(alone).__name__ == "VLMFusionHead" and count(alone, trained=True) == adapters(*SIZES["2b"][:4])
    adapter = "--model.init_args.fusion.init_args.adapter"
    lora = DescribedCLI("fit", [*arguments[:-1], adapter, str(CONFIGS / "adapters" / "lora.yaml")]).model
    assert count(lora.fusion, trained=True) < adapters(*SIZES["2b"][:4])
