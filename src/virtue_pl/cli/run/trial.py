"""One training and one validation batch of two rows, tried before a run, on the meta device or on the data's rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils._python_dispatch import TorchDispatchMode

from virtue_pl.types import EmbeddingInput, RankingSample, Region, Sample, VirtueError

ROWS = 2
"""Rows of a batch that is tried."""
LOOKED_AT = 64
"""First rows of each dataset among which one with and one without a mask are looked for."""
DRAWS = 24
"""Number of draws of a row's prompt mode, among which one is looked for that the row has nothing for."""


@dataclass(frozen=True)
class Trial:
    """Result of a trial.

    metrics: the names that the model logs. untried: why a step was not tried, or "".

    Example:
        >>> Trial(frozenset({"train/loss"})).metrics
        frozenset({'train/loss'})
    """

    metrics: frozenset[str]
    untried: str = ""


def try_run(model: LightningModule, data: Any, trainer: Trainer) -> Trial:
    """Run one training step and one validation step of a model on two rows, and return the metrics that it logs.

    The rows are the data's first, or made up for a model on the meta device whose data is not there. The model's
    optimizer takes no step, but its state of random numbers and buffers may change: give a copy to go on with it.
    Raises VirtueError, which says in which step, for what the model or its collator refuses.
    """
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    device = torch.device("meta") if on_meta else next(model.parameters()).device
    metrics: set[str] = set()
    with recorded_metrics(model, metrics), autocast_on_meta() if on_meta else nullcontext():
        with said_of("setup"):
            prepare(model, trainer)
        if on_meta:
            model.float()  # autocast, which joins the types, is none of this device
        steps = [("a training batch", train_step), ("a validation batch", validation_step)]
        for name, step in steps:
            try:
                with said_of(name):
                    step(model, data, trainer, device)
            except (NotImplementedError, RuntimeError) as error:
                if not on_meta or isinstance(error, VirtueError) or "meta" not in str(error).lower():
                    raise
                return Trial(frozenset(metrics), f"all of {name} cannot run on the meta device ({first_line(error)})")
    return Trial(frozenset(metrics))


def try_collate(collator: Any, samples: Sequence[Sample], rankings: Sequence[RankingSample]) -> None:
    """Collate rows with and without masks as often as it takes to draw every prompt mode.

    Images are replaced by small ones. Raises VirtueError for a mode that a row has nothing for, in training or in
    validation.
    """
    with torch.random.fork_rng([]), said_of("a training batch"):
        for sample in unlike(samples):
            small = replace(sample, query=shrink(sample.query), target=shrink(sample.target), negatives=())
            for seed in range(DRAWS):
                torch.manual_seed(seed)
                collator.collate_train([small])
    with torch.random.fork_rng([]), said_of("a validation batch"):
        for ranking in unlike(rankings):
            few = tuple(map(shrink, ranking.candidates[:2]))
            collator.collate_eval([replace(ranking, query=shrink(ranking.query), candidates=few, rankings={})])


def unlike(samples: Sequence[Any]) -> list[Any]:
    """Return the first sample of each kind: without a region, with a box alone, with a mask."""
    kinds: dict[Any, Any] = {}
    for sample in samples:
        kinds.setdefault(None if sample.region is None else sample.region.mask is not None, sample)
    return list(kinds.values())


def shrink(item: EmbeddingInput) -> EmbeddingInput:
    """Return an input with images of 64 x 64 pixels in place of its own, and without stored features."""
    images = tuple(torch.zeros(3, 64, 64, dtype=torch.uint8) for _ in item.images)
    return replace(item, images=images, features=())


def prepare(model: LightningModule, trainer: Trainer) -> None:
    """Attach the trainer to a model and set it up as `fit` does."""
    model.trainer = trainer
    model.setup("fit")


def train_step(model: LightningModule, data: Any, trainer: Trainer, device: torch.device) -> None:
    """Run a training step, forward and backward, and where there are alignment steps one of either kind."""
    batch = first_batch(data, "train", model)
    if batch is None:
        return
    batch, steps = move_batch(batch, device), getattr(model, "alignment_steps", 0)
    model.train()
    for alignment in [steps, 0] if steps else [0]:
        with patch.object(model, "alignment_steps", alignment) if steps else nullcontext():
            with trainer.precision_plugin.forward_context():
                loss = model.training_step(batch, 0)
            if isinstance(loss, torch.Tensor) and loss.requires_grad and model.automatic_optimization:
                loss.backward()
    model.zero_grad()


def validation_step(model: LightningModule, data: Any, trainer: Trainer, device: torch.device) -> None:
    """Run a validation step with the hooks around it, where the run validates."""
    batch = first_batch(data, "val", model) if trainer.limit_val_batches else None
    if batch is None:
        return
    model.eval()
    reading = ZerosFromMeta() if device.type == "meta" else nullcontext()
    with torch.no_grad(), trainer.precision_plugin.forward_context(), reading:
        model.on_validation_epoch_start()
        model.validation_step(move_batch(batch, device), 0)
        model.on_validation_epoch_end()


def first_batch(data: Any, split: str, model: LightningModule) -> Any:
    """Return a batch of the data's first rows, or of rows that are made up where it has none; None for no batch."""
    if data is None:
        return None
    named = "first_samples" if split == "train" else "first_rankings"
    if not hasattr(data, named):
        if split == "val" and not is_overridden("val_dataloader", data, LightningDataModule):
            return None
        loader = data.train_dataloader() if split == "train" else data.val_dataloader()
        return next(iter(loader), None) if loader is not None else None
    rows = first_rows(data, split, ROWS) if data_is_there(data) else made_up(split, getattr(data, "num_negatives", 0))
    if not rows:
        return None
    collator: Any = model.collator  # type: ignore[attr-defined]
    return collator.collate_train(rows[:ROWS]) if split == "train" else collator.collate_eval(rows[:ROWS])


def data_is_there(data: Any) -> bool:
    """Return whether the data's training shards are there, and are connected to a model."""
    try:
        return bool(data.first_samples(1))
    except VirtueError:
        return False


def first_rows(data: Any, split: str, count: int) -> list[Any]:
    """Return the data's first training samples (`train`) or validation samples (`val`), of each of its datasets."""
    rows: list[Any] = data.first_samples(count) if split == "train" else data.first_rankings(count)
    return rows


def made_up(split: str, negatives: int) -> list[Any]:
    """Return rows of every kind of input: an image, a text, and a region with a mask."""
    mask = torch.zeros(48, 64, dtype=torch.bool)
    mask[8:40, 8:40] = True
    region = Region(torch.tensor([0.125, 1 / 6, 0.625, 5 / 6]), mask)
    rows: list[Any] = []
    for number in range(ROWS):
        image = torch.full((3, 48, 64), 40 * number, dtype=torch.uint8)
        query = EmbeddingInput("what is it", (image,), image_keys=(f"made up {number}",))
        texts = tuple(EmbeddingInput(f"thing {number} {other}") for other in range(negatives + 1))
        if split == "train":
            rows.append(Sample(f"made up/{number}", "made up", query, texts[0], texts[1:], region))
        else:
            candidates = (EmbeddingInput("a thing"), EmbeddingInput("another"))
            rows.append(RankingSample(f"made up/{number}", "made up", query, candidates, {"hit@1": (0, 1)}, region))
    return rows


def move_batch(batch: Any, device: torch.device) -> Any:
    """Return a batch on a device."""
    return batch.to(device) if hasattr(batch, "to") else batch


@contextmanager
def said_of(step: str) -> Iterator[None]:
    """Say in which step of a trial a VirtueError, or torch's complaint about shapes and types, came."""
    try:
        yield
    except VirtueError as error:
        raise VirtueError(f"{step}: {error}") from error
    except NotImplementedError:
        raise
    except RuntimeError as error:
        if "meta tensor" in str(error):
            raise
        raise VirtueError(f"{step}: {first_line(error)} (VIRTUE_DEBUG=1 shows where)") from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@contextmanager
def recorded_metrics(model: LightningModule, names: set[str]) -> Iterator[None]:
    """Add the names that the model logs to `names`, and log nothing."""

    def log(name: str, value: Any, *arguments: Any, **options: Any) -> None:
        names.add(name)

    def log_dict(values: Any, *arguments: Any, **options: Any) -> None:
        names.update(values)

    averages = patch.object(model, "average", log, create=True)
    with patch.object(model, "log", log), patch.object(model, "log_dict", log_dict), averages:
        try:
            yield
        finally:
            model._trainer = None


@contextmanager
def autocast_on_meta() -> Iterator[None]:
    """Have torch's autocast do nothing on the meta device, of which it knows nothing."""
    autocast: Callable[..., Any] = torch.autocast
    is_enabled: Callable[..., bool] = torch.is_autocast_enabled

    def autocast_unless_meta(device_type: str, *arguments: Any, **options: Any) -> Any:
        return nullcontext() if device_type == "meta" else autocast(device_type, *arguments, **options)

    def is_enabled_unless_meta(*device_type: str) -> bool:
        return device_type != ("meta",) and is_enabled(*device_type)

    with patch.multiple(torch, autocast=autocast_unless_meta, is_autocast_enabled=is_enabled_unless_meta):
        yield


class ZerosFromMeta(TorchDispatchMode):
    """Give zeros for what is read back from a tensor on the meta device: its shape alone matters to a trial.

    Example:
        >>> with ZerosFromMeta():
        ...     torch.empty(2, device="meta").cpu().tolist(), torch.empty((), device="meta").item()
        ([0.0, 0.0], 0.0)
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        source = next((argument for argument in args if isinstance(argument, torch.Tensor)), None)
        if source is not None and source.is_meta:
            device = kwargs.get("device")
            if func is torch.ops.aten._local_scalar_dense.default:
                return 0.0 if source.is_floating_point() else 0
            if func is torch.ops.aten._to_copy.default and device is not None and device.type != "meta":
                return torch.zeros(source.shape, dtype=kwargs.get("dtype") or source.dtype, device=device)
        return func(*args, **kwargs)
