"""Gain of stored features: samples per second of training steps with live and with stored features, side by side.

Models have the sizes of configs/virtue_mini.yaml and configs/segmenter.yaml, with random weights; scenes of drawn
shapes are made in a temporary folder. A step is reading its batch, forward, backward and the optimizer. Prints one JSON
object; `cpu_ratio` is the ratio of the process's own time, which other work on the machine changes less.

    python benchmarks/stored_features.py --steps 5
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from text_model import save_text_model

from virtue_pl.backbones.segmentation.timm_sam import TimmSamBackbone, TimmSamPromptEncoder
from virtue_pl.backbones.vlm.timm_text import TimmTextBackbone
from virtue_pl.callbacks.feature_writer import FeatureWriter
from virtue_pl.data.conversion.scar import convert_scar
from virtue_pl.data.datamodules.scar import SCaRDataModule
from virtue_pl.data.scenes import SceneConfig, write_scenes
from virtue_pl.data.shards.manifest import ShardFolder
from virtue_pl.data.streaming.options import BadSampleLimits, SamplingOptions
from virtue_pl.data.streaming.shard_reader import read_shards
from virtue_pl.data.streaming.skip_log import SkipLog
from virtue_pl.features.store import FeatureIndex
from virtue_pl.losses.contrastive import InfoNCELoss
from virtue_pl.models.connector import MaskConnector
from virtue_pl.models.fusion_head import VLMFusionHead
from virtue_pl.models.segmentation_extractor import SegmentationExtractor
from virtue_pl.models.virtue import Virtue
from virtue_pl.models.visual_prompt_encoder import VisualPromptEncoder

FEATURES = "features"


def main() -> None:
    options = parse()
    torch.set_flush_denormal(True)  # features of random networks may be tiny, and arithmetic with tiny numbers slow
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shards = write_shards(folder, options)
        text_model = save_text_model(folder / "text_model", vocabulary_of(shards))
        virtue = build_virtue(text_model, options)
        alignment = build_virtue(text_model, options)
        alignment.alignment_steps = 10**9
        segmenter = build_segmenter(options)
        share_trunk(segmenter, virtue, alignment)
        stored = store(virtue, shards, options)
        runs = {
            "embedder": compare(virtue, shards, options, options.batch_size, 4),
            "embedder_alignment": compare(alignment, shards, options, options.batch_size, 4),
            "segmenter": compare(segmenter, shards, options, options.segmenter_batch_size, 0),
        }
    about = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
    }
    print(json.dumps({"settings": vars(options), **about, "stored": stored, "samples_per_second": runs}, indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5, help="measured steps of each kind, after one that is not")
    parser.add_argument("--scenes", type=int, default=64, help="training images, each with two samples")
    parser.add_argument("--batch_size", type=int, default=32, help="samples of an embedder's step")
    parser.add_argument("--segmenter_batch_size", type=int, default=24, help="samples of a segmenter's step")
    parser.add_argument(
        "--image_size",
        type=int,
        default=256,
        help="height and width of the images and of the models' canvas, in pixels",
    )
    parser.add_argument("--trunk", default="tf_efficientnet_lite0", help="a timm model, of both streams")
    parser.add_argument("--weights", help="safetensors file of that timm model; default random")
    parser.add_argument("--dtype", default="float16", help="of the stored features")
    return parser.parse_args()


def write_shards(folder: Path, options: argparse.Namespace) -> Path:
    """Write scenes as shards, and return the folder of training shards."""
    write_scenes(SceneConfig("shapes", options.scenes, 1, 1, options.image_size, cache=str(folder)), folder / "scenes")
    convert_scar(folder / "scenes", folder / "shards", images_per_shard=32)
    return folder / "shards" / "SCAR_mini"


def vocabulary_of(shards: Path) -> list[str]:
    """Return the words of the captions, sorted."""
    folder = ShardFolder.open(shards, "train")
    rows = [
        row
        for record in read_shards(
            [{"url": str(shard)} for shard in folder.paths], folder, SkipLog(BadSampleLimits(0, 0))
        )
        for row in record.rows
    ]
    return sorted(
        {
            word
            for row in rows
            for text in (row["query"], row["target"], *row["negatives"])
            for word in text.lower().split()
        }
    )


def build_virtue(text_model: str, options: argparse.Namespace) -> Virtue:
    encoder = TimmSamPromptEncoder(128, options.image_size, dense_hints=True)
    segmentation = SegmentationExtractor(
        TimmSamBackbone(options.trunk, options.weights, 128, options.image_size, dense_hints=True), frozen=True
    )
    backbone = TimmTextBackbone(text_model, options.trunk, options.weights, options.image_size, frozen_layers=3)
    connector = partial(MaskConnector, summary=True)
    loss = InfoNCELoss(0.05)
    return Virtue(VisualPromptEncoder(encoder, frozen=True), segmentation, connector, VLMFusionHead(backbone), loss)


def build_segmenter(options: argparse.Namespace) -> SegmentationExtractor:
    encoder = TimmSamPromptEncoder(128, options.image_size, dense_hints=True)
    backbone = TimmSamBackbone(options.trunk, options.weights, 128, options.image_size, dense_hints=True)
    return SegmentationExtractor(backbone, VisualPromptEncoder(encoder), flip=False)


def share_trunk(segmenter: SegmentationExtractor, *embedders: Virtue) -> None:
    """Give all models the same frozen trunks, as if they had started from one file."""
    state: Any = segmenter.backbone.trunk.state_dict()  # type: ignore[operator, union-attr]
    for embedder in embedders:
        embedder.segmentation.backbone.trunk.load_state_dict(state)  # type: ignore[operator, union-attr]
        embedder.fusion.backbone.vision.network.load_state_dict(
            embedders[0].fusion.backbone.vision.network.state_dict()
        )  # type: ignore[union-attr]


def store(model: Virtue, shards: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Store the features of all images, and return the cost of that."""
    quiet: Any = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    trainer = Trainer(accelerator="cpu", callbacks=[FeatureWriter(FEATURES, options.dtype)], **quiet)
    trainer.predict(model, datamodule=data_module(model, shards, 16, 0, features=FEATURES, predict="images"))
    index = FeatureIndex.read(shards / FEATURES)
    return {
        "pictures": index.images,
        "seconds_per_picture": round(index.seconds / index.images, 4),
        "bytes_per_picture": index.bytes // index.images,
    }


def data_module(model: Any, shards: Path, batch_size: int, num_negatives: int, **options: Any) -> SCaRDataModule:
    data = SCaRDataModule(
        str(shards), batch_size=batch_size, sampling=SamplingOptions(num_negatives, sample_buffer=1), **options
    )
    data.connect(model.collator)
    return data


def compare(
    model: LightningModule, shards: Path, options: argparse.Namespace, batch_size: int, num_negatives: int
) -> dict[str, float]:
    """Measure live and stored steps, which take turns, and return their medians and ratios."""
    model.log = model.log_dict = lambda *arguments, **settings: None  # type: ignore[method-assign]
    model.train()
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-4)
    modules = {name: data_module(model, shards, batch_size, num_negatives, features=name) for name in (None, FEATURES)}
    batches = {name: forever(data) for name, data in modules.items()}
    seconds: dict[str | None, list[tuple[float, float]]] = {None: [], FEATURES: []}
    for _ in range(1 + options.steps):
        for name, stream in batches.items():
            wall, cpu = time.perf_counter(), time.process_time()
            optimizer.zero_grad()
            loss: Any = model.training_step(next(stream), 0)
            loss.backward()
            optimizer.step()
            seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    (live, live_cpu), (stored, stored_cpu) = (
        map(statistics.median, zip(*seconds[name][1:], strict=True)) for name in (None, FEATURES)
    )
    ratios = {"ratio": round(live / stored, 2), "cpu_ratio": round(live_cpu / stored_cpu, 2)}
    return {"live": round(batch_size / live, 2), "stored": round(batch_size / stored, 2), **ratios}


def forever(data: SCaRDataModule) -> Iterator[Any]:
    epoch = 0
    while True:
        data.set_epoch(epoch)
        yield from data.train_dataloader()
        epoch += 1


if __name__ == "__main__":
    main()
