"""Settings of an evaluation, each declared here and nowhere else.

Constructors take these objects, YAML names their fields, and the commands make their options of them
(`virtue_pl.cli.dataclass_options`). Nothing here imports torch, so that `--help` needs none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from virtue_pl.preprocessing.input_formatters import InputFormatter

Stream = Literal["whole", "none", "roi"]
Baseline = Literal["set_blind", "random"]
Kind = Literal[
    "box_jitter", "box_scale", "click_offset", "mask_erosion", "mask_dilation", "mask_cover", "prompt_consistency"
]


@dataclass(frozen=True)
class QueryFormat:
    """Form of a query: how its region is given, what its text says, and which part of the model reads it.

    Raises VirtueError for an unknown mode.

    Example:
        >>> QueryFormat(mode="point", stream="none").describe_region
        True
    """

    mode: Literal["box", "point", "mask", "no_prompt", "blind"] = "box"
    """how regions are given; no_prompt: the image alone; blind: the text alone"""
    describe_region: bool = True
    """describe the region in the text, too, as the model's formatter does"""
    prompt_frame: Literal["canvas", "pixels"] | None = None
    """frame of boxes for the segmentation model: canvas, on the object; pixels, as published (with formatter published
    the default)
    """
    stream: Stream = "whole"
    """whole: the whole model; none: without segment tokens; roi: with pooled vision tokens of the box instead"""
    baseline: Baseline | None = None
    """rank without the query: set_blind, by each candidate's nearness to the others; random, by chance"""
    image_transform: InputFormatter | None = None
    """an input formatter that changes a query's image before the model's own, such as a crop or a drawn marker"""

    def __post_init__(self) -> None:
        from virtue_pl.preprocessing.contrastive_collator import EVALUATION_MODES, check_modes

        check_modes("mode", [self.mode], EVALUATION_MODES)


@dataclass(frozen=True)
class LoadingOptions:
    """Options of loading a model, which are arguments of `virtue_pl.checkpoints.pretrained.from_pretrained`.

    Example:
        >>> LoadingOptions(dtype="bfloat16").formatter is None
        True
    """

    formatter: InputFormatter | Literal["published", "virtue"] | None = None
    """the input formatter; by default the one that the weights were trained with"""
    sam_checkpoint: str | None = None
    """SAM's checkpoint of a published release, or its folder"""
    base: str | None = None
    """folder of the model under a checkpoint's adapters"""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """of the weights"""
    allow_classes: tuple[str, ...] = ()
    """an exported folder may name classes that begin so"""


@dataclass(frozen=True)
class EncodingOptions:
    """Options of embedding: the rows encoded at once, and the folder of stored embeddings.

    Example:
        >>> EncodingOptions(store="runs/embeddings").chunk_size
        8
    """

    store: str | Path | None = None
    """folder of embeddings by content (by default `embeddings` beside the report's folder)"""
    chunk_size: int = 8
    """rows encoded at once"""


@dataclass(frozen=True)
class ReportOptions:
    """Measurements beside the ranking, and how much of the ranking is written.

    Example:
        >>> ReportOptions(robustness=100).cost
        False
    """

    cost: bool = False
    """measure latency, throughput and memory of every kind of query, too"""
    robustness: int = 0
    """number of queries of each set that are also ranked with imprecise boxes, clicks and masks, about 37 times each"""
    full_lists: int = 10_000
    """queries with more candidates list only the best 1000 in predictions.jsonl; their ranks are among all"""


@dataclass(frozen=True)
class RobustnessOptions:
    """Options of `virtue-pl robustness`: its measurements, number of samples, and device.

    Example:
        >>> RobustnessOptions(kinds=("box_jitter",)).seed
        0
    """

    kinds: tuple[Kind, ...] = ()
    """perturbations of a prompt, and the consistency of a region's prompts; by default all"""
    limit: int | None = None
    """use only the first images of each set, as many as have this number of rows"""
    seed: int = 0
    """seed of the random perturbations"""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto: a GPU where there is one"""
    batch_size: int = 32
    """queries encoded at once"""
    plots: bool = True
    """draw the curves, with matplotlib; or numbers alone"""
