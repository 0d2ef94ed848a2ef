"""`MTEBModel`: a model of this package in MTEB, with its segmentation stream.

The stream sees each image under the grid of points that stands for "no prompt".

    import mteb
    from virtue_pl.integrations import MTEBModel

    mteb.evaluate(MTEBModel("FOLDER"), mteb.get_tasks(tasks=["OxfordPetsZeroShot"]))

MTEB's own entry for VIRTUE leaves the stream out. It needs the extra `mteb`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from virtue_pl.embedder import Embedder
from virtue_pl.preprocessing.embedding_rows import decode_rows
from virtue_pl.preprocessing.images import MAX_PIXELS
from virtue_pl.types import EmbeddingInput, VirtueError

try:
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta, ScoringFunction
    from mteb.types import PromptType
except ModuleNotFoundError as error:
    raise VirtueError(
        f"virtue_pl.integrations needs mteb, which is not installed ({error}): pip install 'virtue-pl[mteb]'"
    ) from error

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from torch.utils.data import DataLoader

WINDOW = 1024
"""Rows that are in memory, with their images, and sorted by length at a time."""
MODALITIES = {"text", "image"}
"""Modalities that a row may have."""


class MTEBModel(AbsEncoder):
    """An MTEB encoder around an `Embedder`.

    A task's instruction stands before every query, and before every image where MTEB does not tell queries from
    documents (classification, clustering); other texts and documents have none, as in MMEB, unless the task gives
    documents one of their own.

    Args:
        model_name: the folder or hub name, see `Embedder.from_pretrained`; or an embedder.
        revision: of the hub's repository.
        device: None for a GPU where there is one.
        options: of `Embedder.from_pretrained`, such as batch_size or max_pixels.

    Example:
        >>> model = MTEBModel("exported", batch_size=8)  # doctest: +SKIP
        >>> mteb.evaluate(model, mteb.get_tasks(tasks=["OxfordPetsZeroShot"]))
    """

    def __init__(
        self,
        model_name: str | Path | Embedder,
        revision: str | None = None,
        *,
        device: str | None = None,
        **options: Any,
    ) -> None:
        if isinstance(model_name, Embedder):
            self.model = model_name
        else:
            self.model = Embedder.from_pretrained(model_name, revision=revision, device=device or "auto", **options)
        self.mteb_model_meta = model_meta(
            self.model, "model" if isinstance(model_name, Embedder) else str(model_name), revision
        )

    def encode(
        self,
        inputs: DataLoader[Any],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Return unit float32 embeddings of all rows, [rows, embed_dim].

        Raises VirtueError for another modality than text and image.
        """
        instruction = self.instruction(task_metadata, prompt_type)
        limit = self.model.max_pixels
        items = (item for batch in inputs for item in batch_rows(batch, instruction, prompt_type, limit))
        batch_size, progress = kwargs.get("batch_size"), bool(kwargs.get("show_progress_bar", False))
        found = [np.zeros((0, self.model.embed_dim), dtype=np.float32)]
        while window := list(islice(items, WINDOW)):
            found.append(self.model.embed(window, batch_size, progress).numpy())
        return np.concatenate(found)

    def instruction(self, task: TaskMetadata, prompt_type: PromptType | None) -> str:
        """Return the instruction before a query or a document, or before a row where `prompt_type` is None."""
        if prompt_type == PromptType.document and not (
            isinstance(task.prompt, Mapping) and task.prompt.get("document")
        ):
            return ""
        return self.get_task_instruction(task, prompt_type)


def batch_rows(
    batch: Mapping[str, Any], instruction: str, prompt_type: PromptType | None, max_pixels: int = MAX_PIXELS
) -> Iterator[EmbeddingInput]:
    """Yield the rows of one of MTEB's batches.

    Its columns are "text" and "image", one entry a row, either of which may be missing or None.
    """
    columns = {name: batch[name] for name in sorted(MODALITIES) if name in batch}
    if not columns:
        raise VirtueError(
            f"MTEB gave a batch of {', '.join(sorted(batch))}, expected text, image or both: this model takes no other"
            " modality"
        )
    count = len(next(iter(columns.values())))
    texts, images = (columns.get(name) or [None] * count for name in ("text", "image"))
    for text, image in zip(texts, images, strict=True):
        instructed = prompt_type is not None or image is not None
        full_text = " ".join(part for part in (instruction if instructed else "", text or "") if part)
        yield from decode_rows([(full_text, image, None)], max_pixels)


def model_meta(embedder: Embedder, name: str, revision: str | None) -> ModelMeta:
    """Return MTEB's description of a model. name: a folder becomes virtue_pl/FOLDER.

    MTEB stores results by name and revision, so that the revision has the embedder's fingerprint.
    """
    parameters = list(embedder.model.parameters())
    return ModelMeta(
        loader=cast(Any, MTEBModel),
        name=name if is_hub_name(name) else f"virtue_pl/{Path(name).resolve().name}",
        revision="-".join(each for each in (revision, embedder.fingerprint()[:16]) if each),
        release_date=None,
        languages=["eng-Latn"],
        n_parameters=sum(parameter.numel() for parameter in parameters),
        memory_usage_mb=sum(parameter.numel() * parameter.element_size() for parameter in parameters) / 2**20,
        max_tokens=None,
        embed_dim=embedder.embed_dim,
        license=None,
        open_weights=True,
        public_training_code=None,
        public_training_data=None,
        framework=["PyTorch"],
        similarity_fn_name=ScoringFunction.COSINE,
        use_instructions=True,
        training_datasets=None,
        modalities=["image", "text"],
    )


def is_hub_name(name: str) -> bool:
    """Return whether a name is one of the hub (OWNER/NAME), and no path."""
    return name.count("/") == 1 and not Path(name).exists() and not name.startswith((".", "/"))
