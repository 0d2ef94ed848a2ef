"""Every vision-language backbone with every segmentation model learns eight pairs by heart.

A segmentation model joins by a layer in `segmentation/`, a vision-language backbone by a line of
`fixtures.tiny_vlms.TINY` or `DUAL`. One pair of each is tested always, all others with the marker `matrix`:
`make test-matrix`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from fixtures.tiny_vlms import DUAL, TINY
from virtue_pl.cli.lightning import VirtueCLI
from virtue_pl.models.fusion_head import VLMFusionHead
from virtue_pl.models.virtue import Virtue
from virtue_pl.types import EmbeddingInput, EncoderBatch, PairBatch, Region, Sample

HERE = Path(__file__).parent
BACKBONES = [*sorted(TINY), *sorted(DUAL)]
SEGMENTATION = sorted(path.stem for path in (HERE / "segmentation").glob("*.yaml"))
STEPS = 80


def pairs() -> list:
    """All of them; the marker is on those that do not bring a backbone or a segmentation model for the first time."""
    always = {
        (BACKBONES[index % len(BACKBONES)], SEGMENTATION[index % len(SEGMENTATION)])
        for index in range(max(len(BACKBONES), len(SEGMENTATION)))
    }
    every = [(backbone, segmentation) for backbone in BACKBONES for segmentation in SEGMENTATION]
    marks = {pair: () if pair in always else (pytest.mark.matrix,) for pair in every}
    return [pytest.param(*pair, marks=marks[pair], id=f"{pair[0].rpartition('.')[2]}-{pair[1]}") for pair in every]


@pytest.fixture(scope="module")
def vlm_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda backbone: (TINY | DUAL)[backbone](tmp_path_factory.mktemp("vlm_model")))


def build(backbone: str, segmentation: str, folder: Path) -> Virtue | VLMFusionHead:
    """A line for each part; without a segmentation model the fusion head is all there is."""
    option = "--model.init_args.backbone" if segmentation == "none" else "--model.init_args.fusion.init_args.backbone"
    layers = ["--config", str(HERE / "pair.yaml"), "--config", str(HERE / "segmentation" / f"{segmentation}.yaml")]
    return VirtueCLI("fit", [*layers, option, backbone, f"{option}.init_args.vlm_model", str(folder)]).model


def enlarge(part: torch.nn.Module) -> None:
    """Random weights under which a prompt moves the features about as much as an image does; the networks' own are too
    small for that.
    """
    for weights in (parameter for parameter in part.parameters() if parameter.ndim > 1):
        torch.nn.init.normal_(weights, std=weights[0].numel() ** -0.5)


def samples() -> list[Sample]:
    """Two boxes in each of four images; the text does not say which."""
    images = [
        torch.randint(0, 256, (3, 60, 64), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
        for seed in range(4)
    ]
    boxes = [torch.tensor([0.05, 0.05, 0.4, 0.4]), torch.tensor([0.5, 0.4, 0.95, 0.9])]
    names = [
        "a red fox",
        "two cups",
        "the sea",
        "an old house",
        "green apples",
        "his left hand",
        "a wheel",
        "some bread",
    ]
    queries = [EmbeddingInput("what is it?", (image,), image_keys=(str(index),)) for index, image in enumerate(images)]
    return [
        Sample(name, "t", queries[index // 2], EmbeddingInput(name), (), Region(boxes[index % 2]))
        for index, name in enumerate(names)
    ]


def with_stored_features(model: Virtue | VLMFusionHead, rows: EncoderBatch) -> EncoderBatch:
    """What is frozen is encoded once."""
    return replace(rows, images=replace(rows.images, features=model.image_features(rows.images)))


@pytest.mark.parametrize(("backbone", "segmentation"), pairs())
def test_eight_pairs_are_learned_by_heart(backbone: str, segmentation: str, vlm_model: Callable[[str], Path]) -> None:
    model = build(backbone, segmentation, vlm_model(backbone)).train()
    head, faster = model, []
    if isinstance(model, Virtue):
        head, faster = model.fusion, list(model.connector.parameters())
        for part in (model.segmentation, model.prompt_encoder):
            enlarge(part)
    assert type(head.backbone).__name__ == backbone.rpartition(".")[2]
    batch: PairBatch = model.collator.collate_train(samples())
    batch = replace(batch, queries=with_stored_features(model, batch.queries))
    learning = [parameter for parameter in head.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW([{"params": faster, "lr": 3e-3}, {"params": learning, "lr": 1e-3}], weight_decay=0)
    for _ in range(STEPS):
        output = model.loss(model.embed_pairs(batch))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        if output.loss < 0.1:
            break
    assert output.loss < 0.1 and output.metrics["in_batch_accuracy"] == 1.0
