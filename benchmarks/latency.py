"""Cost of a query: latency of an image's first and next prompt, throughput and peak memory, by kind of query.

The model is that of any folder, or else one of the sizes of configs/virtue_mini.yaml with random weights. Prints one
JSON object.

    python benchmarks/latency.py --model FOLDER --device cuda --dtype bfloat16
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from text_model import save_text_model

from virtue_pl.backbones.segmentation.timm_sam import TimmSamBackbone, TimmSamPromptEncoder
from virtue_pl.backbones.vlm.timm_text import TimmTextBackbone
from virtue_pl.embedder import Embedder
from virtue_pl.evaluation.probes.cost import measure_cost
from virtue_pl.losses.contrastive import InfoNCELoss
from virtue_pl.models.connector import MaskConnector
from virtue_pl.models.fusion_head import VLMFusionHead
from virtue_pl.models.segmentation_extractor import SegmentationExtractor
from virtue_pl.models.virtue import Virtue
from virtue_pl.models.visual_prompt_encoder import VisualPromptEncoder


def main() -> None:
    options = parse()
    torch.set_flush_denormal(True)  # features of random networks may be tiny, and arithmetic with tiny numbers slow
    torch.manual_seed(0)
    image = torch.randint(0, 256, (3, options.height, options.width), dtype=torch.uint8)
    cost = measure_cost(load(options), image, options.rows, options.repeats)
    about: dict[str, Any] = {
        "model": options.model or "random weights",
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
    }
    print(json.dumps({**about, **cost}, indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model",
        help=(
            "an exported or published folder, a hub name or a run's checkpoint; default random weights of virtue_mini's"
            " sizes"
        ),
    )
    parser.add_argument("--sam_checkpoint", help="SAM's checkpoint of a published release")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32", help="of a model's folder")
    parser.add_argument("--height", type=int, default=480, help="of the image, in pixels")
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--rows", type=int, default=8, help="queries that are embedded at once, for the throughput")
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


def load(options: argparse.Namespace) -> Embedder:
    if options.model:
        sizes = {"batch_size": options.rows, "cached_images": options.rows}
        return Embedder.from_pretrained(
            options.model, device=options.device, dtype=options.dtype, sam_checkpoint=options.sam_checkpoint, **sizes
        )
    with tempfile.TemporaryDirectory() as folder:
        return Embedder(mini(Path(folder)), options.device, options.rows, options.rows)


def mini(folder: Path) -> Virtue:
    """Return a model of virtue_mini's sizes with random weights, whose text model is written to `folder`."""
    text_model, trunk, image_size = (
        save_text_model(folder / "text_model", map(chr, range(33, 127))),
        "tf_efficientnet_lite0",
        256,
    )
    encoder = VisualPromptEncoder(TimmSamPromptEncoder(128, image_size, dense_hints=True), frozen=True)
    segmentation = SegmentationExtractor(TimmSamBackbone(trunk, None, 128, image_size, dense_hints=True), frozen=True)
    fusion = VLMFusionHead(TimmTextBackbone(text_model, trunk, None, image_size))
    return Virtue(encoder, segmentation, partial(MaskConnector, summary=True), fusion, InfoNCELoss(0.05)).eval()


if __name__ == "__main__":
    main()
