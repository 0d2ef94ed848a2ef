"""What a step asks of a device: it is read back a few times a step, and given as much to start for many as for one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from fixtures.device_work import DeviceWork, as_on_a_device, operations
from fixtures.tiny_models import save_text_model
from fixtures.tiny_virtue import make_image, pairs, tiny_virtue
from fixtures.tiny_vlms import TINY
from virtue_pl.adapters.lora import LoRA
from virtue_pl.backbones.segmentation.base import PromptEncoder, SegmentationBackbone
from virtue_pl.backbones.segmentation.sam1 import Sam1Backbone, Sam1PromptEncoder
from virtue_pl.backbones.segmentation.sam2 import Sam2Backbone, Sam2PromptEncoder
from virtue_pl.backbones.segmentation.timm_sam import TimmSamBackbone, TimmSamPromptEncoder
from virtue_pl.backbones.vlm.base import VLMBackbone
from virtue_pl.backbones.vlm.pooling import LastTokenPooling
from virtue_pl.backbones.vlm.timm_text import TimmTextBackbone
from virtue_pl.checkpoints.class_paths import import_class
from virtue_pl.engine.gradient_cache import FullBatch, GradientCache
from virtue_pl.losses.contrastive import InfoNCELoss
from virtue_pl.models.connector import ConvolutionConnector, MaskConnector
from virtue_pl.models.fusion_head import VLMFusionHead
from virtue_pl.models.roi_connector import RoiConnector
from virtue_pl.models.segmentation_extractor import SegmentationExtractor
from virtue_pl.models.virtue import Virtue
from virtue_pl.models.visual_prompt_encoder import VisualPromptEncoder
from virtue_pl.types import EmbeddingInput, EncoderBatch, ImageBatch, PromptBatch, Sample, VisualPrompt

READS_OF_A_STEP = 20
CANVAS, DIM = 64, 32
PROMPTS = {
    "box": VisualPrompt(boxes=torch.tensor([[0.1, 0.2, 0.6, 0.9]])),
    "points": VisualPrompt(points=torch.tensor([[0.3, 0.4], [0.8, 0.1]]), point_labels=torch.tensor([1, 0])),
    "mask": VisualPrompt(masks=torch.eye(40).bool()[None]),
    "boxes and a point": VisualPrompt(
        torch.tensor([[0.1, 0.2, 0.6, 0.9], [0.4, 0.0, 0.5, 0.3]]), torch.tensor([[0.3, 0.4]]), torch.tensor([0])
    ),
    "none": VisualPrompt(),
}
SAM1 = {"width": 16, "depth": 1, "num_heads": 2, "global_attention": (0,)}
SAM2 = {"width": 16, "num_heads": 2, "blocks": (1, 1, 2, 1), "global_attention": (3,)}
TIMM = {"trunk": "test_efficientnet", "num_heads": 2, "mlp_dim": 64}
SEGMENTATION: dict[str, tuple[type, type, dict[str, Any], dict[str, Any]]] = {
    "sam1": (Sam1PromptEncoder, Sam1Backbone, {}, SAM1),
    "sam2": (Sam2PromptEncoder, Sam2Backbone, {}, SAM2),
    "timm": (TimmSamPromptEncoder, TimmSamBackbone, {}, TIMM),
    "timm with hints": (TimmSamPromptEncoder, TimmSamBackbone, {"dense_hints": True}, {**TIMM, "dense_hints": True}),
}
BACKBONES = ["TimmTextBackbone", *(path.rpartition(".")[2] for path in sorted(TINY))]
PAIRS = [
    *((backbone, "sam2") for backbone in BACKBONES),
    *(("Qwen2VLBackbone", name) for name in (None, *SEGMENTATION) if name != "sam2"),
]
"""Each with another once: they meet in nothing but their tokens."""
CACHES = {"plain": FullBatch(), "chunks": GradientCache(1), "tokens": GradientCache(chunk_tokens=64)}


def segmentation(name: str) -> tuple[PromptEncoder, SegmentationBackbone]:
    encoder, backbone, hints, sizes = SEGMENTATION[name]
    torch.manual_seed(0)
    shared = {"embed_dim": DIM, "image_size": CANVAS}
    return encoder(**shared, **hints), backbone(**shared, **sizes)


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], VLMBackbone]:
    """A tiny backbone of each class, made once and built anew."""

    @cache
    def folder(name: str) -> Path:
        path = tmp_path_factory.mktemp("vlm")
        return next(save for key, save in TINY.items() if key.endswith(f".{name}"))(path)

    def build(name: str) -> VLMBackbone:
        torch.manual_seed(0)
        if name == "TimmTextBackbone":
            text = save_text_model(tmp_path_factory.mktemp("text"))
            return TimmTextBackbone(str(text), "test_efficientnet", image_size=64, grid_size=2)
        found: VLMBackbone = import_class(f"virtue_pl.backbones.{name}")(str(folder(name)))
        return found

    return build


def build(backbone: VLMBackbone, name: str | None, trained: bool = False) -> Virtue | VLMFusionHead:
    head = VLMFusionHead(backbone, LastTokenPooling(), loss=InfoNCELoss(0.1))
    if name is None:
        head.log = lambda *_, **__: None  # type: ignore[method-assign, assignment]
        return head.train()
    encoder, segmenter = segmentation(name)
    prompts = VisualPromptEncoder(encoder, frozen=not trained)
    model = Virtue(
        prompts, SegmentationExtractor(segmenter, frozen=not trained), ConvolutionConnector, head, InfoNCELoss(0.1)
    )
    model.log = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    return model.train()


def samples(rows: int) -> list[Sample]:
    """Every kind of prompt, rows with two images and with none, and texts of different lengths."""
    prompts = list(PROMPTS.values())
    made = []
    for row in range(rows):
        images = tuple(make_image(10 * row + number) for number in range((1, 2, 0)[row % 3]))
        keys = tuple(f"{row} {number}" for number in range(len(images)))
        prompt = prompts[row % len(prompts)] if images else VisualPrompt()
        query = EmbeddingInput("which " * (row % 4 + 1), images, prompt, keys)
        negatives = (EmbeddingInput("not this " * (row % 3 + 1)),)
        made.append(Sample(f"s{row}", "t", query, EmbeddingInput("thing " * (row % 5 + 1)), negatives))
    return made


def work_of_a_step(model: Virtue | VLMFusionHead, rows: int, strategy: FullBatch | GradientCache) -> DeviceWork:
    model.gradient_cache = strategy
    batch = model.collator.collate_train(samples(rows))
    with DeviceWork() as done:
        model.training_step(batch.to("cpu"), 0).backward()
    return done


@pytest.mark.parametrize(("backbone", "name"), PAIRS)
def test_a_step_reads_nothing_back_however_many_chunks(
    vlm: Callable[[str], VLMBackbone], backbone: str, name: str | None
) -> None:
    model = build(vlm(backbone), name)
    work_of_a_step(model, 3, FullBatch())  # sizes of images are looked at once
    for strategy in (CACHES["plain"], CACHES["chunks"]):
        reads = work_of_a_step(model, 8, strategy).reads
        assert reads.total() <= READS_OF_A_STEP, (strategy.describe(8), reads)


@pytest.mark.parametrize(("backbone", "name"), [pair for pair in PAIRS if not pair[0].startswith("Llava")])
def test_a_step_runs_where_nothing_can_be_read(
    vlm: Callable[[str], VLMBackbone], backbone: str, name: str | None
) -> None:
    """On the meta device there are no values, and what mixes it with the host's tensors is refused."""
    model = build(vlm(backbone), name)
    batch = model.collator.collate_train(samples(5)).to("meta")
    model = model.to("meta")
    model.gradient_cache = GradientCache(3)
    embedded = model.embed_pairs(batch)
    (embedded.queries.sum() + embedded.targets.sum() + embedded.negatives.sum()).backward()
    assert embedded.queries.device.type == "meta"


def test_nor_where_tokens_cut_the_chunks_or_there_are_more_rows(vlm: Callable[[str], VLMBackbone]) -> None:
    model = build(vlm("Qwen2VLBackbone"), "sam2")
    for rows in (6, 18):
        work = work_of_a_step(model, rows, CACHES["tokens"])
        assert work.reads.total() <= READS_OF_A_STEP and work.operations > 20 * READS_OF_A_STEP


@pytest.mark.parametrize("name", sorted(SEGMENTATION))
def test_nor_does_a_step_that_trains_the_segmentation_stream(vlm: Callable[[str], VLMBackbone], name: str) -> None:
    model = build(vlm("Qwen2VLBackbone"), name, trained=True)
    work_of_a_step(model, 6, FullBatch())
    assert work_of_a_step(model, 6, CACHES["chunks"]).reads.total() <= READS_OF_A_STEP


def test_nor_with_adapters_and_masks() -> None:
    model = tiny_virtue(MaskConnector, LoRA(dropout=0.1))
    model.log = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    model.gradient_cache = GradientCache(1)
    batch = pairs(model, 6)
    with torch.no_grad():
        model.encode(batch.queries)
    with DeviceWork() as done:
        model.training_step(batch, 0).backward()
    assert done.reads.total() <= READS_OF_A_STEP


def many_rows(rows: int) -> EncoderBatch:
    """Rows of which each has an image of its own with a prompt of its own."""
    ids, numbers = torch.arange(rows * 3).view(rows, 3), torch.arange(rows)
    images = ImageBatch(vision=(torch.zeros(3, 2, 2),) * rows, segmentation=(torch.zeros(3, 4, 4),) * rows)
    return EncoderBatch(ids, torch.ones_like(ids), images, prompts_of(rows), numbers, position_ids=ids)


def prompts_of(rows: int) -> PromptBatch:
    kinds = list(PROMPTS.values())
    return PromptBatch(tuple(kinds[row % len(kinds)] for row in range(rows)), torch.arange(rows))


class CountingLines:
    """Counts the lines of the package that run, and the items that its loops take."""

    number = 0

    def __enter__(self) -> CountingLines:
        self.before = sys.gettrace()
        sys.settrace(self.trace)
        return self

    def __exit__(self, *error: Any) -> None:
        sys.settrace(self.before)

    def trace(self, frame: Any, event: str, argument: Any) -> Any:
        self.number += 1
        return self.trace if "virtue_pl" in frame.f_code.co_filename else None


@pytest.mark.parametrize("backwards", [False, True])
def test_chunks_are_selected_in_as_many_steps_as_there_are_rows(backwards: bool) -> None:
    """Operations of torch, and lines of Python: twice the rows, twice of both."""
    counts = []
    for rows in (1024, 2048, 4096):
        batch = many_rows(rows)
        order = list(range(rows))[:: -1 if backwards else 1]
        batch.select([0])
        with DeviceWork() as done:
            chunks = [batch.select(order[start : start + 2]) for start in range(0, rows, 2)]
        with CountingLines() as lines:
            for start in range(0, rows, 64):
                batch.select(order[start : start + 2])
        assert not done.reads and sum(map(len, chunks)) == rows
        counts.append([(done.operations + done.views) / rows, lines.number / rows])
    torch.testing.assert_close(torch.tensor(counts), torch.tensor(counts[:1] * 3), rtol=0.05, atol=0)


def test_a_batch_moves_as_a_few_tensors_however_many_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    moved, move = [], torch.Tensor.to

    def count(tensor: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        moved.append(tensor)
        return move(tensor, *arguments, **options)

    numbers = []
    for rows in (8, 64):
        batch = replace(many_rows(rows), images=ImageBatch())
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "to", count)
            there = batch.to("meta")
        numbers.append(len(moved))
        moved.clear()
        assert there.layout == batch.layout and there.prompts.owners == tuple(range(rows))
        tensors = [getattr(prompt, name) for prompt in there.prompts.prompts for name in ("boxes", "points", "masks")]
        assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert numbers[0] == numbers[1] <= 12


@pytest.mark.parametrize("kind", [*PROMPTS, "all"])
@pytest.mark.parametrize("name", sorted(SEGMENTATION))
def test_prompts_cost_as_much_to_start_for_many_as_for_few(name: str, kind: str) -> None:
    encoder, backbone = segmentation(name)
    chosen = list(PROMPTS.values()) if kind == "all" else [PROMPTS[kind]]
    canvas = torch.randint(0, 256, (1, 3, CANVAS, CANVAS), dtype=torch.uint8)
    counts = []
    with as_on_a_device(), torch.no_grad():
        features = backbone.image_features(canvas)
        for times in (2, 16):  # one alone spares a few copies
            prompts = PromptBatch(tuple(chosen * times), torch.zeros(len(chosen) * times, dtype=torch.long))
            counts.append(operations(lambda prompts=prompts: backbone(features, encoder(prompts))))
    assert counts[1] < counts[0] + 14 * len(chosen)


@pytest.mark.parametrize("name", sorted(SEGMENTATION))
def test_so_do_images_of_the_segmentation_model(name: str) -> None:
    _, backbone = segmentation(name)
    canvas = torch.randint(0, 256, (8, 3, CANVAS, CANVAS), dtype=torch.uint8)
    with as_on_a_device(), torch.no_grad():
        backbone.image_features(canvas[:1])
        two, eight = (operations(lambda count=count: backbone.image_features(canvas[:count])) for count in (2, 8))
    assert eight < two + 6


@pytest.mark.parametrize("backbone", [name for name in BACKBONES if not name.startswith("Llava")])
def test_so_do_images_of_the_tower(vlm: Callable[[str], VLMBackbone], backbone: str) -> None:
    """LLaVA-OneVision's image processor and packing go image by image, in transformers."""
    network = vlm(backbone)
    pixels = [network.processor.resize(make_image(number)) for number in range(8)]
    with as_on_a_device(), torch.no_grad():
        network.vision_features(pixels[:1])
        two, eight = (operations(lambda count=count: network.vision_features(pixels[:count])) for count in (2, 8))
    assert eight < two + 6


@pytest.mark.parametrize("backbone", [name for name in BACKBONES if name.startswith("Qwen")])
def test_a_tower_gives_the_same_image_by_image_and_all_at_once(
    vlm: Callable[[str], VLMBackbone], backbone: str
) -> None:
    network = vlm(backbone)
    sizes = [(56, 56), (112, 84), (56, 56), (140, 140)]
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes]
    pixels = [network.processor.resize(image) for image in images]
    with torch.no_grad():
        by_image = network.vision_features(pixels)
        with as_on_a_device():
            together = network.vision_features(pixels)
    for ours, theirs in zip(together, by_image, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_the_area_of_a_prompt_is_read_without_the_device() -> None:
    """`RoiConnector` reads where a prompt points."""
    encoder, backbone = segmentation("timm with hints")
    connector = RoiConnector(backbone.widths, 16)
    prompts = PromptBatch(tuple(PROMPTS.values()), torch.zeros(len(PROMPTS), dtype=torch.long))
    features = backbone.image_features(torch.zeros(1, 3, CANVAS, CANVAS, dtype=torch.uint8))
    with DeviceWork() as done:
        connector(backbone(features, encoder(prompts)))
    assert not done.reads
