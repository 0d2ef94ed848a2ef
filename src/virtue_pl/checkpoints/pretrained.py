"""`from_pretrained`: a model from a folder or from the hub, ready to embed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from virtue_pl.checkpoints.adapter_folder import CONFIG as ADAPTER_CONFIG
from virtue_pl.checkpoints.folder import SPEC_FILE, read_folder, without_weights
from virtue_pl.checkpoints.hub import local_folder
from virtue_pl.checkpoints.published import read_published
from virtue_pl.checkpoints.release import CheckpointSpec
from virtue_pl.checkpoints.run_checkpoint import read_run
from virtue_pl.models.embedding_model import EmbeddingModel
from virtue_pl.models.virtue import Virtue
from virtue_pl.preprocessing.input_formatters import InputFormatter, PublishedFormatter, VirtueFormatter
from virtue_pl.types import VirtueError

FORMATTERS = {"published": PublishedFormatter, "virtue": VirtueFormatter}
DTYPES = ("float32", "bfloat16", "float16")


def from_pretrained(
    name: str | Path,
    sam_checkpoint: str | Path | None = None,
    formatter: InputFormatter | str | None = None,
    base: str | Path | None = None,
    dtype: str = "float32",
    revision: str | None = None,
    allow_classes: Sequence[str] = (),
) -> EmbeddingModel:
    """Load a model in eval mode from a folder, the hub, or a run's checkpoint.

    A folder is one that `virtue-pl export` wrote, a published release, or a published training checkpoint of adapters.

    Args:
        name: the folder, OWNER/NAME on the hub, or a run's checkpoint (.ckpt), whose run's config.yaml is above it.
        sam_checkpoint: SAM's file of a published release, where it lies neither beside the folder nor in it.
        formatter: None for the one that the weights were trained with; "published" or "virtue" to insist on it, which
            raises where the weights contradict; an object to prepare inputs in another way, as for further training.
        base: the folder under a checkpoint's adapters, where it is not what their config names.
        dtype: of the weights: float32, bfloat16 or float16.
        revision: of the hub's repository.
        allow_classes: prefixes of classes outside of this package that an exported folder may name, e.g.
            ("my_package.",).

    Raises VirtueError in one line for another model's folder, for a tensor missing, left over or of another size, and
    for an input formatter that contradicts the weights.
    """
    if dtype not in DTYPES:
        raise VirtueError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    checkpoint = (
        read_trained(Path(name))
        if str(name).endswith(".ckpt")
        else read_release(local_folder(name, revision=revision), sam_checkpoint, base)
    )
    model = checkpoint.build(getattr(torch, dtype), allow_classes)
    use_formatter(model, formatter, str(name))
    return model


def read_trained(path: Path) -> CheckpointSpec:
    """Return a run's model. The weights that the run started from are not read: the checkpoint has every tensor."""
    if not path.is_file():
        raise VirtueError(f"model: {path} is not there, expected a run's checkpoint, a folder or a hub name")
    checkpoint = read_run(path)
    return replace(checkpoint, spec=without_weights(checkpoint.spec))


def read_release(
    folder: Path, sam_checkpoint: str | Path | None = None, base: str | Path | None = None
) -> CheckpointSpec:
    """Return the model in a folder of any layout. Raises VirtueError for a folder of none."""
    if (folder / SPEC_FILE).is_file():
        return read_folder(folder)
    if (folder / "config.json").is_file() or (folder / ADAPTER_CONFIG).is_file():
        return read_published(folder, sam_checkpoint, base)
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
    raise VirtueError(
        f"{folder} holds {found}, expected {SPEC_FILE} (exported), config.json (published) or {ADAPTER_CONFIG}"
        " (adapters)"
    )


def use_formatter(model: EmbeddingModel, formatter: InputFormatter | str | None, name: str) -> None:
    """Set the model's formatter. Raises VirtueError for one that contradicts the weights."""
    trained = model.formatter
    if isinstance(formatter, str):
        if formatter not in FORMATTERS:
            raise VirtueError(
                f"formatter is {formatter!r}, expected one of {', '.join(FORMATTERS)}, or an InputFormatter"
            )
        if type(trained) is not FORMATTERS[formatter]:
            raise VirtueError(
                f"formatter is {formatter!r}, but the weights of {name} were trained with {type(trained).__name__}:"
                " leave `formatter` out"
            )
    elif formatter is not None:
        model.formatter = formatter
    if isinstance(model, Virtue) and isinstance(model.formatter, PublishedFormatter):
        check_published(model, model.formatter, name)


def check_published(model: Virtue, formatter: PublishedFormatter, name: str) -> None:
    """Raise VirtueError where the published formatter is made for other sizes than the model has."""
    processor = model.fusion.backbone.processor
    bounds = getattr(processor, "min_pixels", None), getattr(processor, "max_pixels", None)
    if None in bounds:
        raise VirtueError(
            f"formatter: {name} has PublishedFormatter, but a {type(model.fusion.backbone).__name__}, expected a"
            " Qwen2-VL under it: use VirtueFormatter"
        )
    if bounds != (formatter.min_pixels, formatter.max_pixels):
        raise VirtueError(
            f"formatter: min_pixels, max_pixels are {formatter.min_pixels}, {formatter.max_pixels}, expected"
            f" {bounds[0]}, {bounds[1]}, the model's own"
        )
    weight = model.connector.state_dict().get("reduce.weight")
    tokens = None if weight is None else (model.segmentation.backbone.image_size // 16 // weight.shape[-1]) ** 2
    if formatter.num_segment_tokens != tokens:
        raise VirtueError(
            f"formatter: num_segment_tokens is {formatter.num_segment_tokens}, expected {tokens}, which the connector"
            f" of {name} gives"
        )
