"""An embedder that reads inputs as an evaluation does, for what is measured beside its ranking."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from virtue_pl.embedder import Embedder
from virtue_pl.embedder.row_details import RowDetails, inspect_batch
from virtue_pl.embedder.row_keys import row_key
from virtue_pl.evaluation.retrieval.query_collator import EvaluationCollator
from virtue_pl.evaluation.retrieval.query_encoder import QueryEncoder
from virtue_pl.types import EmbeddingInput, EncoderBatch, ImageFeatures


class QueryEmbedder(Embedder):
    """An embedder in an evaluation's query format: its collator, its image transform, and its part of the model.

    Args:
        encoder: encodes rows as the evaluation does.
        collator: turns inputs into batches as the evaluation does.
        device: of the model.
        ranked: embeddings that the evaluation has ranked, by `row_key`, which are not computed again.

    Example:
        >>> collator = EvaluationCollator(model.collator, QueryFormat())  # doctest: +SKIP
        >>> embedder = QueryEmbedder(encoder, collator, "cpu")  # doctest: +SKIP
        >>> embedder.embed([EmbeddingInput("a cat")]).shape  # doctest: +SKIP
        torch.Size([1, 384])
    """

    def __init__(
        self,
        encoder: QueryEncoder,
        collator: EvaluationCollator,
        device: str | torch.device,
        ranked: Mapping[tuple[Any, ...], Float[Tensor, " dim"]] | None = None,
    ) -> None:
        super().__init__(encoder.model, device)
        self.encoder = encoder
        self.query_collator = collator
        self.collator = collator.collator
        self.ranked = dict(ranked or {})

    def embed(
        self,
        items: Iterable[EmbeddingInput],
        batch_size: int | None = None,
        progress: bool = False,
        details: dict[Any, RowDetails] | None = None,
    ) -> Float[Tensor, "rows dim"]:
        """Return unit float32 embeddings of inputs, on the CPU, in order: those that were ranked, or else new ones.

        details: as `Embedder.embed` has them; of inputs that are embedded anew alone.
        """
        items = list(items)
        keys = [row_key(item) for item in items]
        new = [row for row, key in enumerate(keys) if key not in self.ranked]
        found = torch.empty(len(items), self.embed_dim)
        for row, key in enumerate(keys):
            if key in self.ranked:
                found[row] = self.ranked[key]
        if new:
            found[new] = super().embed([items[row] for row in new], batch_size, progress, details)
        return found

    @torch.no_grad()
    def encode_batch(
        self, items: Sequence[EmbeddingInput], details: dict[Any, RowDetails] | None = None
    ) -> Float[Tensor, "rows dim"]:
        """Return the embeddings of one batch of inputs whose images have keys, on the CPU."""
        transform = self.query_collator.query_format.image_transform
        prepared = items if transform is None else [transform.prepare(item) for item in items]
        batch = self.prepare_batch(prepared)
        if details is not None:
            batch, found = inspect_batch(self.model, batch)
            details.update(zip(map(row_key, items), found, strict=True))
        return self.encoder.encode(batch).cpu()

    def encode_images(self, batch: EncoderBatch) -> tuple[ImageFeatures, ...]:
        """Return each image's frozen features, in order, of the streams that the evaluation uses."""
        return self.encoder.features(batch)
