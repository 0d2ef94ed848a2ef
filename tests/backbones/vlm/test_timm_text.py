"""The text encoder: what is cut, its dropout, and the mode that trained and frozen layers are in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader
from transformers import BertModel

from fixtures.tiny_models import VISION_MODEL, save_text_model
from virtue_pl.adapters.lora import LoRA
from virtue_pl.backbones.vlm.pooling import MeanPooling
from virtue_pl.backbones.vlm.timm_text import TimmTextBackbone, TimmTextProcessor
from virtue_pl.engine.optimizer import Optimization
from virtue_pl.losses.contrastive import InfoNCELoss
from virtue_pl.models.fusion_head import VLMFusionHead
from virtue_pl.types import IMAGE_TOKEN, EmbeddingInput, PairBatch, Sample, VirtueError

GRID = 2


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> TimmTextProcessor:
    folder: Path = save_text_model(tmp_path_factory.mktemp("text"))
    return TimmTextProcessor(folder, image_size=64, grid_size=GRID, max_tokens=10)


@pytest.mark.parametrize("text", [f"{IMAGE_TOKEN}{'a' * 30}", f"{'a' * 30}{IMAGE_TOKEN}", f"b{IMAGE_TOKEN}{'a' * 30}"])
def test_a_text_is_cut_and_its_images_are_not_wherever_they_stand(processor: TimmTextProcessor, text: str) -> None:
    ids = processor.tokenize_row(text)
    assert ids.count(processor.IMAGE_ID) == GRID**2 and len(ids) == 10 + GRID**2
    assert (ids[0], ids[-1]) == (processor.tokenizer.cls_token_id, processor.tokenizer.sep_token_id)


def test_what_fits_is_not_cut(processor: TimmTextProcessor) -> None:
    assert len(processor.tokenize_row(f"{'a' * 8}{IMAGE_TOKEN}")) == 10 + GRID**2
    assert len(processor.tokenize_row("aaa")) == 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_text_model(tmp_path_factory.mktemp("text"), layers=3))


def backbone(folder: str, **options: float) -> TimmTextBackbone:
    torch.manual_seed(0)
    return TimmTextBackbone(folder, VISION_MODEL, image_size=64, grid_size=2, **options)  # type: ignore[arg-type]


class RecordingHead(VLMFusionHead):
    """A fusion head that remembers the losses of its steps."""

    def training_step(self, batch: PairBatch, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.seen = [*getattr(self, "seen", []), loss.item()]
        return loss


def head(folder: str, dropout: float = 0.0, frozen: bool = False) -> RecordingHead:
    optimization = Optimization(1e-2, 0.0, 0, "constant")
    return RecordingHead(
        backbone(folder, dropout=dropout),
        MeanPooling(),
        train_modes={"none": 1.0},
        loss=InfoNCELoss(0.1),
        optimization=optimization,
        frozen=frozen,
    )


def train(model: RecordingHead, root: Path) -> list[float]:
    """The losses of three steps of a trainer's."""
    samples = [Sample(str(i), "t", EmbeddingInput(f"question {i}"), EmbeddingInput(f"answer {i}")) for i in range(4)]
    trainer = Trainer(
        accelerator="cpu",
        max_steps=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=root,
    )
    torch.manual_seed(0)
    trainer.fit(model, DataLoader(samples, batch_size=4, collate_fn=model.collator.collate_train))
    return model.seen


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
def test_a_training_drops_as_much_as_it_is_told(folder: str, tmp_path: Path) -> None:
    plain, dropped = train(head(folder), tmp_path), train(head(folder, 0.1), tmp_path)
    assert all(one != other for one, other in zip(plain, dropped, strict=True))
    assert train(head(folder, 0.1), tmp_path) == dropped
    assert train(head(folder, 0.1).eval(), tmp_path) == dropped, "a model that was loaded for encoding drops, too"


def test_what_is_dropped_is_what_the_stock_encoder_drops(folder: str) -> None:
    model = backbone(folder, dropout=0.2)
    stock = BertModel.from_pretrained(
        folder,
        hidden_dropout_prob=0.2,
        attention_probs_dropout_prob=0.2,
        add_pooling_layer=False,
        attn_implementation="eager",
    ).train()
    inputs = VLMFusionHead(model, MeanPooling()).collator.encoder_batch(
        [EmbeddingInput("a cat"), EmbeddingInput("dog")]
    )
    torch.manual_seed(5)
    found = model(model.embed(inputs, ()))
    torch.manual_seed(5)
    expected = stock(inputs.input_ids, attention_mask=inputs.attention_mask).last_hidden_state
    real = inputs.attention_mask.bool()
    torch.testing.assert_close(found[real], expected[real])
    assert not torch.equal(found, model(model.embed(inputs, ())))


def modes(model: TimmTextBackbone) -> list[bool]:
    return [
        module.training for module in (model.text.embeddings, *model.text.encoder.layer, model.project, model.vision)
    ]


def test_frozen_layers_stay_in_eval_mode(folder: str) -> None:
    model = backbone(folder, dropout=0.1, frozen_layers=2)
    assert modes(model) == modes(model.eval().train()) == [False, False, False, True, True, False]
    assert not any(modes(model.eval()))
    assert modes(backbone(folder)) == [True, True, True, True, True, False]
    assert not any(modes(head(folder, 0.1, frozen=True).train().backbone))


def test_adapters_in_frozen_layers_are_trained(folder: str) -> None:
    model = backbone(folder, frozen_layers=2)
    LoRA(targets=["query"]).adapt(model)
    assert modes(model) == [False, True, True, True, True, False]


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_a_dropout_that_is_no_share_is_refused(folder: str, dropout: float) -> None:
    with pytest.raises(VirtueError, match=rf"dropout is {dropout}, expected 0 or more, and less than 1"):
        backbone(folder, dropout=dropout)
