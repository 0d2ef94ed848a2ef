"""Runs with adapters as folders: as they are, merged, and in the published layout, which holds none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fixtures.tiny_release import release, run_checkpoint
from fixtures.tiny_vlms import save_smolvlm
from virtue_pl.adapters.lora import adapter_layers
from virtue_pl.checkpoints.export import export
from virtue_pl.checkpoints.keys import same_tensors
from virtue_pl.checkpoints.pretrained import from_pretrained, read_release
from virtue_pl.checkpoints.published import part
from virtue_pl.cli.commands import export as command
from virtue_pl.embedder import Embedder
from virtue_pl.types import EmbeddingInput, VirtueError, VisualPrompt


def adapter(dora: bool) -> dict[str, Any]:
    return part(
        "virtue_pl.adapters.LoRA", rank=2, alpha=6, dropout=0.1, targets=["q_proj", "down_proj"], module=None, dora=dora
    )


def virtue(dora: bool, folder: Path) -> dict[str, Any]:
    spec: Any = release().spec
    settings = spec["init_args"]["fusion"]["init_args"]
    settings["backbone"]["init_args"]["vlm_model"] = str(release().folder)
    settings["adapter"] = adapter(dora)
    return spec


def smolvlm(dora: bool, folder: Path) -> dict[str, Any]:
    backbone = part("virtue_pl.backbones.SmolVLMBackbone", vlm_model=str(save_smolvlm(folder / "smolvlm")))
    pooling = part("virtue_pl.backbones.LastTokenPooling")
    return part("virtue_pl.models.VLMFusionHead", backbone=backbone, pooling=pooling, adapter=adapter(dora))


def embedding_inputs() -> list[EmbeddingInput]:
    image = torch.randint(0, 256, (3, 60, 90), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    box = VisualPrompt.from_pixels(boxes=[[5, 5, 40, 50]], size=(60, 90))
    return [EmbeddingInput("a cat"), EmbeddingInput("what is it", (image,), box)]


def embeddings(folder: Path) -> torch.Tensor:
    model = from_pretrained(folder)
    with torch.no_grad():
        return model.encode(model.collator.encoder_batch(embedding_inputs()))


@pytest.mark.parametrize("dora", [True, False], ids=["dora", "lora"])
@pytest.mark.parametrize("build", [virtue, smolvlm], ids=["virtue", "smolvlm"])
def test_adapters_come_through_bit_for_bit_and_merged_they_embed_alike(build, dora, tmp_path):
    checkpoint = run_checkpoint(tmp_path / "run", build(dora, tmp_path))
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert sum("lora_" in name for name in state) == 3 * 2 * (3 if dora else 2)
    export(checkpoint, tmp_path / "adapted")
    model = from_pretrained(tmp_path / "adapted")
    assert same_tensors(model.state_dict(), state) and len(list(adapter_layers(model))) == 6
    export(tmp_path / "adapted", tmp_path / "again")
    for name in ("model.safetensors", "virtue.yaml"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "adapted" / name).read_bytes()
    export(tmp_path / "adapted", tmp_path / "merged", merge_adapters=True)
    assert not any("lora_" in name or "base_layer" in name for name in read_release(tmp_path / "merged").tensors)
    expected, merged = embeddings(tmp_path / "adapted"), embeddings(tmp_path / "merged")
    torch.testing.assert_close(merged, expected, atol=1e-5, rtol=0)
    half = Embedder.from_pretrained(tmp_path / "adapted", device="cpu", dtype="bfloat16").embed(embedding_inputs())
    assert (half * expected).sum(dim=1).min() > 0.99


def test_the_published_layout_holds_none_and_says_so(tmp_path):
    checkpoint = run_checkpoint(tmp_path / "run", virtue(True, tmp_path))
    with pytest.raises(
        VirtueError, match=r"last\.ckpt has adapters, expected none in the published layout: add `--merge-adapters`"
    ):
        command.main([str(checkpoint), "--out", str(tmp_path / "published"), "--layout", "published"])
    assert not (tmp_path / "published").exists()
    assert (
        command.main(
            [str(checkpoint), "--out", str(tmp_path / "published"), "--layout", "published", "--merge-adapters"]
        )
        == 0
    )
    merged = read_release(tmp_path / "published").tensors
    assert merged.keys() == release().tensors.keys()
