from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from fixtures.recorded import GOLDEN
from virtue_pl.adapters.lora import LoRA, adapter_layers
from virtue_pl.backbones.segmentation.sam2 import Sam2Backbone, Sam2PromptEncoder
from virtue_pl.backbones.vlm.pooling import LastTokenPooling
from virtue_pl.backbones.vlm.qwen2_vl import Qwen2VLBackbone
from virtue_pl.engine.optimizer import Optimization
from virtue_pl.losses.contrastive import InfoNCELoss
from virtue_pl.models.connector import ConvolutionConnector
from virtue_pl.models.fusion_head import VLMFusionHead
from virtue_pl.models.segmentation_extractor import SegmentationExtractor
from virtue_pl.models.virtue import Virtue
from virtue_pl.models.visual_prompt_encoder import VisualPromptEncoder
from virtue_pl.types import EmbeddingInput, Sample, VirtueError

LAYERS, LANGUAGE_MODEL = 3, "fusion.backbone.model.language_model."
TARGETS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj")


def backbone() -> Qwen2VLBackbone:
    return Qwen2VLBackbone(str(GOLDEN / "qwen2_vl"))


def head(adapter: LoRA | None = None, **settings: object) -> VLMFusionHead:
    torch.manual_seed(0)
    return VLMFusionHead(backbone(), LastTokenPooling(), adapter=adapter, **settings)  # type: ignore[arg-type]


def virtue(adapter: LoRA) -> Virtue:
    """SAM 2.1's mask decoder has maps called q_proj, too."""
    extractor = SegmentationExtractor(
        Sam2Backbone(None, 16, 2, (1, 1, 1, 1), (2,), embed_dim=64, image_size=128), frozen=True
    )
    return Virtue(
        VisualPromptEncoder(Sam2PromptEncoder(None, 64, 128), frozen=True),
        extractor,
        ConvolutionConnector,
        head(adapter),
        InfoNCELoss(),
    )


@pytest.mark.parametrize("dora", [True, False], ids=["dora", "lora"])
def test_they_reach_the_language_model_alone(dora):
    model = virtue(LoRA(dora=dora))
    assert any(name.endswith("q_proj") for name, _ in model.segmentation.named_modules())
    assert [name for name, _ in adapter_layers(model)] == [
        f"{LANGUAGE_MODEL}layers.{layer}.{target}" for layer in range(LAYERS) for target in TARGETS
    ]
    trained = {
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not name.startswith("connector.")
    }
    assert all(name.startswith(LANGUAGE_MODEL) and "lora_" in name for name in trained)
    assert len(trained) == LAYERS * len(TARGETS) * (3 if dora else 2)


@pytest.mark.parametrize("dora", [True, False], ids=["dora", "lora"])
def test_a_new_adapter_changes_nothing_and_a_trained_one_does(dora):
    inputs = head().collator.encoder_batch([EmbeddingInput("a cat"), EmbeddingInput("a dog on the grass")])
    with torch.no_grad():
        plain, model = head().eval().encode(inputs), head(LoRA(dora=dora)).eval()
        torch.testing.assert_close(model.encode(inputs), plain, atol=1e-6, rtol=0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
        assert (model.encode(inputs) - plain).abs().max() > 1e-3


def test_adapters_stay_in_float32_beside_weights_in_bfloat16():
    model = VLMFusionHead(
        Qwen2VLBackbone(str(GOLDEN / "qwen2_vl"), dtype="bfloat16"), LastTokenPooling(), adapter=LoRA()
    )
    dtypes = {
        ("lora_" in name, parameter.dtype) for name, parameter in model.backbone.model.language_model.named_parameters()
    }
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}
    inputs = model.collator.encoder_batch([EmbeddingInput("a cat")])
    with torch.autocast("cpu", torch.bfloat16):
        model.encode(inputs).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def train_with_adapters(folder: Path) -> tuple[VLMFusionHead, Path]:
    model = head(
        LoRA(),
        train_modes={"none": 1.0},
        loss=InfoNCELoss(),
        optimization=Optimization(lr=1e-2, weight_decay=0.0, warmup_steps=0, schedule="constant"),
    )
    samples = [Sample(str(i), "t", EmbeddingInput(f"question {i}"), EmbeddingInput(f"answer {i}")) for i in range(4)]
    trainer = Trainer(
        accelerator="cpu",
        max_steps=2,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(model, DataLoader(samples, batch_size=4, collate_fn=model.collator.collate_train))
    trainer.save_checkpoint(folder / "last.ckpt")
    return model, folder / "last.ckpt"


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
def test_a_checkpoint_is_read_safely_and_starts_the_next_stage(tmp_path):
    model, path = train_with_adapters(tmp_path)
    state = torch.load(path, weights_only=True)["state_dict"]
    assert state.keys() == {*head(LoRA()).state_dict(), "loss.log_temperature"}
    again = head(LoRA(), weights=path)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
    assert any("lora_B" in name and value.abs().sum() > 0 for name, value in state.items())


@pytest.mark.parametrize(
    ("adapter", "told"),
    [
        (
            LoRA(module="model.decoder"),
            r"adapter.module: Qwen2VLBackbone has no 'model.decoder', expected a module under model, or null",
        ),
        (
            LoRA(targets=["q_proj", "query"]),
            (
                r"adapter.targets: there is no linear map 'query' in the language model of Qwen2VLBackbone, expected"
                r" some of down_proj, "
            ),
        ),
        (
            LoRA(targets=["q_proj"], module="model.visual"),
            r"there is no linear map 'q_proj' in model.visual, expected some of ",
        ),
    ],
)
def test_what_is_not_there_is_one_line(adapter, told):
    with pytest.raises(VirtueError, match=told):
        head(adapter)


def test_a_rank_of_nothing_is_refused():
    with pytest.raises(VirtueError, match=r"adapter\.rank is 0"):
        LoRA(rank=0)


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_a_dropout_that_is_no_share_is_refused(dropout):
    with pytest.raises(VirtueError, match=rf"adapter\.dropout is {dropout}, expected 0 or more, and less than 1"):
        LoRA(dropout=dropout)
