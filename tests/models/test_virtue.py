from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from fixtures.tiny_models import VISION_MODEL, save_text_model, save_vision_model
from virtue_pl.backbones.segmentation.timm_sam import TimmSamBackbone, TimmSamPromptEncoder
from virtue_pl.backbones.vlm.timm_text import TimmTextBackbone
from virtue_pl.engine.gradient_cache import GradientCache
from virtue_pl.losses.contrastive import InfoNCELoss
from virtue_pl.models.connector import ConvolutionConnector, MaskConnector
from virtue_pl.models.fusion_head import VLMFusionHead
from virtue_pl.models.segmentation_extractor import SegmentationExtractor
from virtue_pl.models.virtue import Virtue
from virtue_pl.models.visual_prompt_encoder import VisualPromptEncoder
from virtue_pl.preprocessing.contrastive_collator import ContrastiveCollator
from virtue_pl.preprocessing.input_formatters import CropFormatter, VirtueFormatter
from virtue_pl.types import EmbeddingInput, EncoderBatch, RankingSample, Region, Sample, VirtueError, VisualPrompt

SIZE = 64


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    save_text_model(folder / "minilm")
    save_vision_model(folder / "vision.safetensors")
    return folder


def backbone(weights: Path) -> TimmTextBackbone:
    return TimmTextBackbone(
        str(weights / "minilm"), VISION_MODEL, str(weights / "vision.safetensors"), image_size=SIZE, grid_size=2
    )


def virtue(weights: Path, connector: object = MaskConnector) -> Virtue:
    torch.manual_seed(0)
    return Virtue(
        VisualPromptEncoder(TimmSamPromptEncoder(embed_dim=32, image_size=SIZE), frozen=True),
        SegmentationExtractor(
            TimmSamBackbone(VISION_MODEL, str(weights / "vision.safetensors"), 32, SIZE, num_heads=2, mlp_dim=64),
            frozen=True,
        ),
        connector,  # type: ignore[arg-type]
        VLMFusionHead(backbone(weights)),
        InfoNCELoss(0.1, learn_temperature=True),
    )


def make_image(seed: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, SIZE, SIZE), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def rows() -> list[EmbeddingInput]:
    """Rows with and without images and prompts, two of them on the same image."""
    size = (SIZE, SIZE)
    mask = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    mask[0, 10:30, 20:50] = True
    return [
        EmbeddingInput("a red fox"),
        EmbeddingInput(
            "find it", (make_image(0),), VisualPrompt.from_pixels(boxes=[[4, 4, 30, 40]], size=size), ("a",)
        ),
        EmbeddingInput("a much longer text about nothing at all, with no image beside it"),
        EmbeddingInput(
            "find it",
            (make_image(0),),
            VisualPrompt.from_pixels(points=[[9, 9], [50, 50]], labels=[1, 0], size=size),
            ("a",),
        ),
        EmbeddingInput("find it now", (make_image(1),), VisualPrompt.from_pixels(masks=mask, size=size), ("b",)),
        EmbeddingInput("look", (make_image(1),), image_keys=("b",)),
    ]


@pytest.mark.parametrize("connector", [MaskConnector, ConvolutionConnector])
def test_an_embedding_does_not_depend_on_its_batch(weights: Path, connector: object) -> None:
    model = virtue(weights, connector).eval()
    batch = model.collator.encoder_batch(rows())
    assert len(batch.images) == 2
    with torch.no_grad():
        together = model.encode(batch)
        alone = torch.cat([model.encode(model.collator.encoder_batch([row])) for row in rows()])
        chunks = torch.cat([model.encode(chunk) for chunk in batch.split(4)])
    assert torch.allclose(together.norm(dim=1), torch.ones(6), atol=1e-6)
    assert (together - alone).abs().max() < 1e-5
    assert (together - chunks).abs().max() < 1e-5


def test_every_kind_of_prompt_moves_the_embedding(weights: Path) -> None:
    model = virtue(weights).eval()
    whole = EmbeddingInput("find it", (make_image(0),), image_keys=("a",))
    size = (SIZE, SIZE)
    mask = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    mask[0, :20, :20] = True
    prompts = [
        VisualPrompt(),
        VisualPrompt.from_pixels(boxes=[[0, 0, 20, 20]], size=size),
        VisualPrompt.from_pixels(points=[[10, 10]], size=size),
        VisualPrompt.from_pixels(points=[[10, 10], [40, 40]], labels=[1, 0], size=size),
        VisualPrompt.from_pixels(masks=mask, size=size),
    ]
    inputs = [EmbeddingInput(whole.text, whole.images, prompt, whole.image_keys) for prompt in prompts]
    model.formatter.prompt_text = False  # type: ignore[attr-defined]
    with torch.no_grad():
        embeddings = model.encode(model.collator.encoder_batch(inputs))
    distances = torch.cdist(embeddings, embeddings) + torch.eye(5)
    assert distances.min() > 1e-5


def test_only_what_is_not_frozen_learns(weights: Path) -> None:
    model = virtue(weights)
    model.train()
    assert not model.segmentation.training and not model.segmentation.backbone.training and model.fusion.training
    model.encode(model.collator.encoder_batch(rows())).sum().backward()
    assert all(p.grad is None for part in (model.prompt_encoder, model.segmentation) for p in part.parameters())
    assert all(p.grad is not None for p in model.connector.parameters())


def samples(count: int, negatives: int = 1) -> list[Sample]:
    region = Region(torch.tensor([0.1, 0.1, 0.5, 0.6]))
    query = [EmbeddingInput("find it", (make_image(i),), image_keys=(str(i),)) for i in range(count)]
    others = [tuple(EmbeddingInput(f"wrong {i} {k}") for k in range(negatives)) for i in range(count)]
    return [
        Sample(f"s{i}", "t", query[i], EmbeddingInput(f"thing number {i}"), others[i], region) for i in range(count)
    ]


def loss_and_gradients(model: Virtue | VLMFusionHead, batch: object) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model.loss(model.embed_pairs(batch)).loss  # type: ignore[misc, arg-type]
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_the_gradient_cache_equals_the_plain_step(weights: Path) -> None:
    model = virtue(weights)
    collator = model.collator
    collator.train_modes = {"box": 1.0}
    batch = collator.collate_train(samples(5))
    plain_loss, plain = loss_and_gradients(model, batch)
    model.gradient_cache = GradientCache(2)
    cached_loss, cached = loss_and_gradients(model, batch)
    assert cached_loss == pytest.approx(plain_loss, rel=1e-6)
    assert plain.keys() == cached.keys()
    assert all((cached[name] - plain[name]).norm() <= 1e-5 * plain[name].norm() + 1e-6 for name in plain)


def test_eight_pairs_are_learned_by_heart(weights: Path) -> None:
    model = virtue(weights)
    collator = model.collator
    collator.train_modes = {"box": 1.0}
    batch = collator.collate_train(samples(8))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        output = model.loss(model.embed_pairs(batch))  # type: ignore[misc]
        output.loss.backward()
        optimizer.step()
    assert output.metrics["in_batch_accuracy"] == 1.0


def test_a_prompt_without_an_image_is_refused(weights: Path) -> None:
    prompt = VisualPrompt.from_pixels(boxes=[[0, 0, 1, 1]], size=(4, 4))
    with pytest.raises(VirtueError, match="visual prompt but no image"):
        virtue(weights).collator.encoder_batch([EmbeddingInput("text", prompt=prompt)])


def test_evaluation_batches_hold_every_mode_and_each_candidate_once(weights: Path) -> None:
    mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    mask[5:30, 5:30] = True
    region = Region(torch.tensor([0.1, 0.1, 0.5, 0.5]), mask)
    candidates = tuple(EmbeddingInput(f"caption {i}") for i in range(3))
    found = [
        RankingSample(
            f"k{i}",
            "t",
            EmbeddingInput("find it", (make_image(0),), image_keys=("a",)),
            candidates,
            {"hit@1": (0, 1, 2)},
            region,
        )
        for i in range(2)
    ]
    batch = virtue(weights).collator.collate_eval(found)
    assert batch.modes == ("box", "point", "mask", "no_prompt", "blind")
    assert len(batch.queries) == 10 and len(batch.candidates) == 3 and len(batch.queries.images) == 1
    assert batch.queries.use_rows.tolist() == list(range(8))
    again = virtue(weights).collator.collate_eval(found)
    assert torch.equal(batch.queries.prompts.prompts[2].points, again.queries.prompts.prompts[2].points)


def test_unknown_modes_are_refused(weights: Path) -> None:
    with pytest.raises(VirtueError, match="train_modes: 'circle'"):
        ContrastiveCollator(backbone(weights).processor, virtue(weights).formatter, None, {"circle": 1.0}, ("box",))


def test_a_formatter_may_change_the_image_before_anything_reads_it(weights: Path) -> None:
    collator = ContrastiveCollator(
        backbone(weights).processor, CropFormatter(), None, {"box": 1.0}, ("box", "no_prompt")
    )
    whole, boxed = EmbeddingInput("find it", (make_image(0),), image_keys=("a",)), rows()[1]
    batch = collator.encoder_batch([whole, boxed, boxed])
    assert len(batch.images) == 2 and batch.prompts.image_index.tolist() == [0, 1, 1]
    assert torch.equal(batch.images.vision[1], collator.processor.resize(make_image(0)[:, 4:40, 4:30]))
    unchanged = ContrastiveCollator(collator.processor, VirtueFormatter(), None, {"box": 1.0}, ("box",))
    assert (
        collator.collate_train(samples(2)).ids.query_ids.tolist()
        == unchanged.collate_train(samples(2)).ids.query_ids.tolist()
    )


def test_a_blind_head_sees_no_image_in_training_or_evaluation(weights: Path) -> None:
    head = VLMFusionHead(
        backbone(weights), train_modes={"blind": 1.0}, evaluation_modes=["blind"], loss=InfoNCELoss(0.1)
    )
    batch = head.collator.collate_train(samples(3))
    assert len(batch.queries) == 3 and not len(batch.queries.images) and not len(batch.queries.prompts)
    loss_and_gradients(head, batch)
    query = samples(1)[0]
    ranked = head.collator.collate_eval(
        [RankingSample("k", "t", query.query, (query.target,), {"hit@1": (0,)}, query.region)]
    )
    assert torch.equal(ranked.queries.input_ids[0], batch.queries.input_ids[0])


def test_a_fusion_head_alone_needs_no_segmentation(weights: Path) -> None:
    head = VLMFusionHead(backbone(weights), loss=InfoNCELoss(0.1)).eval()
    batch: EncoderBatch = head.collator.encoder_batch(rows())
    assert batch.images.segmentation == ()
    assert head.encode(batch).shape == (6, 32)


def test_alignment_teaches_the_summary_and_the_captions(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The language model does not read the queries: what makes their tokens gets no gradient."""
    model = virtue(weights, partial(MaskConnector, summary=True))
    model.alignment_steps, model.train_modes = 1, {"box": 1.0}
    monkeypatch.setattr(model, "log", lambda *arguments, **options: None)
    summary = model.connector.summary
    for into in (summary.inside, summary.outside, *summary.directions):  # type: ignore[union-attr]
        torch.nn.init.normal_(into[-1].weight)
    model.training_step(model.collator.collate_train(samples(4)), 0).backward()
    learned = {
        ".".join(name.split(".")[:3])
        for name, p in model.named_parameters()
        if p.grad is not None and p.grad.abs().sum() > 0
    }
    of_connector = {
        "connector.surroundings.describe",
        "connector.surroundings.normalise",
        "connector.surroundings.saliency",
    }
    of_connector |= {f"connector.summary.{name}" for name in ("inside", "outside", "directions")}
    assert learned == of_connector | {"fusion.backbone.text", "loss.log_temperature"}


def test_alignment_needs_a_summary(weights: Path) -> None:
    model = virtue(weights)
    model.alignment_steps, model.train_modes = 1, {"box": 1.0}
    with pytest.raises(VirtueError, match="`summary: true` in the connector"):
        model.training_step(model.collator.collate_train(samples(4)), 0)


@pytest.mark.parametrize("modes", [{}, {"box": 0.0}, {"box": 1.0, "point": -0.5}])
def test_shares_that_say_nothing_are_refused(weights: Path, modes: dict[str, float]) -> None:
    """No shares at all are not the usual ones."""
    with pytest.raises(VirtueError, match=r"train_modes: \{.*expected a share for at least one mode, none below 0"):
        _ = VLMFusionHead(backbone(weights), train_modes=modes).collator
