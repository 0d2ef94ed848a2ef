"""The settings of an evaluation, each declared here and nowhere else.

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
    """How a query is put to the model: what is pointed at, what is said, which part of the model looks at it.

    Raises VirtueError for an unknown mode.

    Example:
        >>> QueryFormat(mode="point", stream="none").describe_region
        True
    """

    mode: Literal["box", "point", "mask", "no_prompt", "blind"] = "box"
    """how regions are pointed at; no_prompt: the image alone; blind: the text alone"""
    describe_region: bool = True
    """say the region in words, too, as the model's formatter does"""
    prompt_frame: Literal["canvas", "pixels"] | None = None
    """where a box lies for the segmentation model: canvas, on its object; pixels, as published (the default with
    formatter
    published)
    """
    stream: Stream = "whole"
    """whole: the model as it is; none: without segment tokens; roi: pooled vision tokens of the box in their place"""
    baseline: Baseline | None = None
    """rank without the model's opinion of the query: set_blind, by each candidate's nearness to the others; random, by
    chance
    """
    image_transform: InputFormatter | None = None
    """an input formatter that changes a query's image first, as a crop or a drawn marker; the model's own formatter
    does the rest
    """

    def __post_init__(self) -> None:
        from virtue_pl.preprocessing.contrastive_collator import EVALUATION_MODES, check_modes

        check_modes("mode", [self.mode], EVALUATION_MODES)


@dataclass(frozen=True)
class LoadingOptions:
    """How a model's weights are loaded; the fields are arguments of `virtue_pl.checkpoints.pretrained.from_pretrained`.

    Example:
        >>> LoadingOptions(dtype="bfloat16").formatter is None
        True
    """

    formatter: InputFormatter | Literal["published", "virtue"] | None = None
    """insist on an input formatter; by default it is the one that the weights were trained with"""
    sam_checkpoint: str | None = None
    """SAM's checkpoint of a published release, or the folder that it is in"""
    base: str | None = None
    """folder of the model under a checkpoint's adapters"""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """of the weights"""
    allow_classes: tuple[str, ...] = ()
    """an exported folder may name classes that begin so"""


@dataclass(frozen=True)
class EncodingOptions:
    """How inputs are embedded, and where embeddings are stored.

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
    """What an evaluation measures beside its ranking, and how much of the ranking it writes.

    Example:
        >>> ReportOptions(robustness=100).cost
        False
    """

    cost: bool = False
    """measure latency, throughput and memory of every kind of query, too"""
    robustness: int = 0
    """rank so many first queries with a region of each set with imprecise boxes, clicks and masks, too: about 37 times
    each
    """
    full_lists: int = 10_000
    """queries with more candidates have only the best 1000 in predictions.jsonl; their ranks are of all"""


@dataclass(frozen=True)
class RobustnessOptions:
    """What `virtue-pl robustness` measures, of how many samples, and on which device.

    Example:
        >>> RobustnessOptions(kinds=("box_jitter",)).seed
        0
    """

    kinds: tuple[Kind, ...] = ()
    """perturbations of a prompt, and whether other prompts of a region are nearest to its box; by default all"""
    limit: int | None = None
    """of each set only the first images, as many as have so many rows"""
    seed: int = 0
    """of what is drawn"""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto: a GPU where there is one"""
    batch_size: int = 32
    """queries that are encoded at once"""
    plots: bool = True
    """draw the curves, with matplotlib; or numbers alone"""
