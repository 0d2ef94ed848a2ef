"""A model from a folder, the hub or a run: ready to embed (`from_pretrained`), or to be trained on (`start_from`)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from virtue_pl.adapters.lora import LoRA
from virtue_pl.backbones.pretrained import skip_weights
from virtue_pl.checkpoints.adapter_folder import CONFIG as ADAPTER_CONFIG
from virtue_pl.checkpoints.folder import SPEC_FILE, read_folder, without_weights
from virtue_pl.checkpoints.hub import local_folder
from virtue_pl.checkpoints.published import read_published
from virtue_pl.checkpoints.release import (
    OWN_CLASSES,
    CheckpointSpec,
    check_tensors,
    find_class,
    instantiate,
    require_class,
)
from virtue_pl.checkpoints.run_checkpoint import (
    STARTED_FROM,
    has_adapters,
    model_paths,
    read_run,
    with_merged_adapters,
    with_settings,
)
from virtue_pl.engine.gradient_cache import FullBatch, GradientCache
from virtue_pl.engine.optimizer import Optimization
from virtue_pl.losses.base import EmbeddingLoss
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
    checkpoint = read_any(name, sam_checkpoint, base, revision)
    model = checkpoint.build(getattr(torch, dtype), allow_classes)
    use_formatter(model, formatter, str(name))
    return model


def start_from(
    start: str | None,
    loss: EmbeddingLoss | None = None,
    train_modes: Mapping[str, float] | None = None,
    evaluation_modes: Sequence[str] | None = None,
    gradient_cache: FullBatch | GradientCache | None = None,
    optimization: Optimization | None = None,
    adapter: LoRA | None = None,
    frozen: Sequence[str] | None = None,
    sam_checkpoint: str | None = None,
    base: str | None = None,
    allow_classes: Sequence[str] = (),
) -> EmbeddingModel:
    """Build the model of an export, a run's checkpoint or a release with its weights, to be trained further.

    What is trained is float32; what is frozen has the type that the start's config says. There is no alignment stage.

    Args:
        start: the folder, OWNER/NAME on the hub, or a run's checkpoint (.ckpt).
        loss, train_modes, evaluation_modes, gradient_cache, optimization: of the training, see `Virtue`; None for what
            the start was trained with. A loss that is given starts with its own temperature.
        adapter: new adapters around the language model, those of the start merged into its weights first. None to train
            the start's own adapters, or without any the language model's weights.
        frozen: parts that train nothing, of prompt_encoder, segmentation and fusion; None for those of the start.
        sam_checkpoint, base, allow_classes: see `from_pretrained`.

    Raises VirtueError in one line where there is no such model, or nothing of it would be trained.

    Example:
        >>> model = start_from("mini", optimization=Optimization(1e-4, 0.01, 10, "cosine"))  # doctest: +SKIP
        >>> model.started_from["class_path"]
        'virtue_pl.models.Virtue'
    """
    if start is None:
        raise VirtueError("start is not set, expected an exported or published folder or a checkpoint: --shared.start")
    checkpoint = read_any(start, sam_checkpoint, base)
    had_adapters = has_adapters(checkpoint)
    if adapter is not None and had_adapters:
        checkpoint = with_merged_adapters(checkpoint)
    settings = {
        "loss": loss,
        "train_modes": train_modes,
        "evaluation_modes": evaluation_modes,
        "gradient_cache": gradient_cache,
        "optimization": optimization,
        "frozen": frozen,
    }
    model = build_to_train(checkpoint, settings, loss, allow_classes)
    use_formatter(model, None, str(start))
    if adapter is not None:
        adapter.adapt((model.fusion if isinstance(model, Virtue) else model).backbone)  # type: ignore[arg-type, union-attr]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not any(parameter.numel() for name, parameter in model.named_parameters() if is_trained_part(name, parameter)):
        raise VirtueError(f"{start}: all its parts are frozen, expected one to train: set `frozen`, or give `adapter`")
    for parameter in trained:
        parameter.data = parameter.data.to(torch.float32)
    model.started_from = {
        "path": str(start),
        "class_path": str(checkpoint.spec["class_path"]),
        "fingerprint": hash_tensors(checkpoint.tensors),
        "adapters": "new ones" if adapter is not None else "its own" if had_adapters else "none",
        STARTED_FROM: model_paths(checkpoint.spec, checkpoint.folder),
    }
    return model


def is_trained_part(name: str, parameter: Tensor) -> bool:
    """Return whether a parameter is trained and belongs to the model itself, not to its loss."""
    return parameter.requires_grad and not name.startswith("loss.")


def build_to_train(
    checkpoint: CheckpointSpec, settings: Mapping[str, Any], loss: EmbeddingLoss | None, allow_classes: Sequence[str]
) -> EmbeddingModel:
    """Return the model of a checkpoint with other settings of its training, and the checkpoint's tensors.

    loss: replaces the checkpoint's, with its tensors. Raises VirtueError as `CheckpointSpec.build` does.
    """
    allowed = (OWN_CLASSES, *allow_classes)
    require_class(find_class(checkpoint.spec["class_path"], checkpoint.folder, allowed), checkpoint.folder)
    tensors = dict(checkpoint.tensors)
    if loss is not None:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("loss.")}
        tensors |= {f"loss.{name}": tensor.detach().clone() for name, tensor in loss.state_dict().items()}
    with skip_weights():
        spec = with_settings(checkpoint.spec, settings, str(checkpoint.folder))
        model = instantiate(spec, checkpoint.folder, allowed)
    check_tensors(model.state_dict(), replace(checkpoint, tensors=tensors))
    model.load_state_dict(tensors)
    return model


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of tensors' names, types and values, the same wherever they are read from."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_any(
    name: str | Path,
    sam_checkpoint: str | Path | None = None,
    base: str | Path | None = None,
    revision: str | None = None,
) -> CheckpointSpec:
    """Return the model of a run's checkpoint (.ckpt), a folder, or a hub name. Raises VirtueError for anything else."""
    if str(name).endswith(".ckpt"):
        return read_trained(Path(name))
    return read_release(local_folder(name, revision=revision), sam_checkpoint, base)


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
