"""Training and ranking of any model that embeds, shared by `Virtue` and by a fusion head that runs alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from virtue_pl.engine.gradient_cache import FullBatch, GradientCache, Offload, count_tokens
from virtue_pl.engine.module import VirtueModule
from virtue_pl.engine.optimizer import Optimization
from virtue_pl.engine.precision import check_precision
from virtue_pl.losses.base import EmbeddingLoss
from virtue_pl.metrics.rank_metrics import RankTable
from virtue_pl.metrics.ranking import sample_ranks, set_blind_ranks
from virtue_pl.preprocessing.input_formatters import InputFormatter
from virtue_pl.types import (
    EmbeddingBatch,
    EncoderBatch,
    ImageBatch,
    ImageFeatures,
    PairBatch,
    RankingBatch,
    RankingOutput,
    ShardImageBatch,
    VirtueError,
    index_tensors,
)

FROZEN_CHUNK_SIZE = 16
"""Number of images encoded together where nothing is trained."""


class EmbeddingModel(VirtueModule):
    """Abstract root that trains `encode` with a contrastive loss and ranks candidates with it.

    A final implements `encode` and `image_features`; this class is a `ChunkEncoder` for the gradient cache.

    Args:
        loss: the contrastive loss; None where the module is a part of another.
        gradient_cache: encodes a batch as a whole (`FullBatch`) or in chunks (`GradientCache`).
        optimization, weights, weights_prefix, frozen: see `VirtueModule`.

    Example:
        >>> class TextModel(EmbeddingModel):
        ...     def encode(self, inputs: EncoderBatch) -> Tensor:
        ...         return torch.nn.functional.normalize(self.embed_tokens(inputs.input_ids).mean(dim=1), dim=-1)
        ...     def image_features(self, images: ImageBatch) -> tuple[ImageFeatures, ...]:
        ...         return (ImageFeatures(),) * len(images)
    """

    not_in_fingerprint = frozenset(
        {
            *("loss", "gradient_cache", "formatter", "train_modes", "evaluation_modes", "rank_table"),
            "started_from",
        }
    )
    started_from: Mapping[str, Any] | None = None
    """The model whose weights this one started from (`checkpoints.start_from`): path, class path, fingerprint, whether
    it has adapters, and its spec; None for another.
    """
    formatter: InputFormatter
    rank_table: RankTable

    def __init__(
        self,
        loss: EmbeddingLoss | None,
        gradient_cache: FullBatch | GradientCache | None,
        optimization: Optimization | None,
        weights: str | Path | None,
        weights_prefix: str,
        frozen: bool,
    ) -> None:
        super().__init__(optimization, weights, weights_prefix, frozen)
        self.loss = loss
        self.gradient_cache = gradient_cache or FullBatch()

    def configure_model(self) -> None:
        """Shard the layers if the strategy does; ranks then take equally many chunks, as each gathers the layers."""
        super().configure_model()
        self.gradient_cache.equal_chunks = self.sharding is not None

    @abstractmethod
    def encode(self, inputs: EncoderBatch) -> Float[Tensor, "rows dim"]:
        """Return the unit embeddings of the rows."""

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        """Return the contrastive loss of the batch, and log it with the loss's metrics.

        Raises VirtueError for a model without `loss`.
        """
        if self.loss is None:
            raise VirtueError(f"{type(self).__name__} is to be trained, but has no loss: give it `loss`")
        output = self.loss(self.embed_pairs(batch))
        self.log("train/loss", output.loss, prog_bar=True, batch_size=len(batch))
        for name, value in output.metrics.items():
            self.log(f"train/{name}", value, batch_size=len(batch))
        return output.loss if self.sharding is None else self.sharding.with_unused_parameters(output.loss)

    def embed_pairs(self, batch: PairBatch) -> EmbeddingBatch:
        """Return the embeddings of the batch's queries, targets and hard negatives, with the pairs' ids."""
        queries = self.embed(batch.queries)
        return EmbeddingBatch(queries, *self.embed_candidates(batch), batch.ids)

    def embed_candidates(self, batch: PairBatch) -> tuple[Float[Tensor, "pairs dim"], Float[Tensor, "negatives dim"]]:
        """Return the embeddings of the batch's targets and of its hard negatives."""
        targets = self.embed(batch.targets)
        if batch.negatives is None:
            return targets, targets.new_zeros(0, targets.shape[1])
        return targets, self.embed(batch.negatives)

    def embed(self, inputs: EncoderBatch) -> Float[Tensor, "rows dim"]:
        """Return the embeddings of the rows, encoded by `gradient_cache`."""
        return self.gradient_cache(self, inputs)

    @torch.no_grad()
    def encode_frozen(self, inputs: EncoderBatch, chunk_size: int, offload: Offload) -> EncoderBatch:
        """Return the inputs with images' frozen features in place of pixels, encoding `chunk_size` images at a time."""
        groups = inputs.images.split(chunk_size)
        features = [offload(encoded) for group in groups for encoded in self.image_features(group)]
        return inputs.with_images(inputs.images.with_features(features))

    def token_counts(self, inputs: EncoderBatch) -> list[int]:
        """Return the number of tokens of each row that the language model reads."""
        return count_tokens(inputs)

    def setup(self, stage: str) -> None:
        """Check the precision and create the table of ranks, which the root alone has.

        A model on the meta device is checked for another machine, whose arithmetic is not this one's.
        """
        super().setup(stage)
        if not any(parameter.is_meta for parameter in self.parameters()):
            check_precision(str(self.trainer.precision), self.trainer.strategy.root_device)
        self.rank_table = RankTable()

    def validation_step(self, batch: RankingBatch, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Note hit@1 and the loss in the first evaluation mode, and return a `RankingOutput`."""
        output = self.rank(batch, self.encode(batch.candidates), batch.modes[:1])
        self.log_ranking_loss(batch, output)
        ranks = sample_ranks(batch.samples, output.scores).in_ranking("hit@1")
        if len(ranks):
            self.average("val/hit@1", (ranks < 1).double().mean(), len(ranks), prog_bar=True)
        return output

    def log_ranking_loss(self, batch: RankingBatch, output: RankingOutput) -> None:
        """Add to `val/loss`: that of each query among its own candidates, of the ranking hit@1.

        Batches do not matter to it, so it compares across batch sizes, but not with `train/loss`, whose queries have
        all candidates of a batch. A loss without such a form logs none.
        """
        lists = {
            row: sample.rankings["hit@1"] for row, sample in enumerate(batch.samples) if "hit@1" in sample.rankings
        }
        if self.loss is None or not lists:
            return
        chosen = index_tensors([list(indices) for indices in lists.values()], output.scores[0].device)
        loss = self.loss.ranking_loss([output.scores[row][rows] for row, rows in zip(lists, chosen, strict=True)])
        if loss is not None:
            self.average("val/loss", loss, len(lists))

    def test_step(self, batch: RankingBatch, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Return a `RankingOutput`, and add every sample's ranks to `rank_table`.

        The ranks are those of every ranking in every mode, and those of "set_blind", which has no query at all.
        """
        candidates = self.encode(batch.candidates)
        output = self.rank(batch, candidates, batch.modes)
        for number, mode in enumerate(batch.modes):
            scores = output.scores[number * len(batch) : (number + 1) * len(batch)]
            self.rank_table.update(mode, sample_ranks(batch.samples, scores))
        with torch.autocast(candidates.device.type, enabled=False):
            each = [candidates[rows] for rows in index_tensors(batch.candidate_rows, candidates.device)]
            self.rank_table.update("set_blind", set_blind_ranks(batch.samples, each))
        return output

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add `started_from`, by which the checkpoint says what the model consists of, to a checkpoint."""
        super().on_save_checkpoint(checkpoint)
        if self.started_from is not None:
            checkpoint["started_from"] = dict(self.started_from)

    @abstractmethod
    def image_features(self, images: ImageBatch) -> tuple[ImageFeatures, ...]:
        """Return the frozen features of each image, of all streams of the model."""

    def predict_step(
        self, batch: PairBatch | ShardImageBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> EmbeddingBatch | tuple[ImageFeatures, ...]:
        """Return training pairs' embeddings, for a loss studied alone; or images' frozen features, to be stored.

        A record may have many images, as in grounding, so that a batch of records is encoded in groups.
        """
        if not isinstance(batch, ShardImageBatch):
            return self.embed_pairs(batch)
        groups = batch.images.split(FROZEN_CHUNK_SIZE)
        return tuple(encoded for group in groups for encoded in self.image_features(group))

    def rank(
        self, batch: RankingBatch, candidates: Float[Tensor, "candidates dim"], modes: Sequence[str]
    ) -> RankingOutput:
        """Return the float32 cosines of every sample's candidates, for each of the given (leading) modes."""
        queries = self.encode(batch.queries.select(range(len(modes) * len(batch))))
        with torch.autocast(queries.device.type, enabled=False):
            rows = index_tensors(batch.candidate_rows, candidates.device)
            scores = [candidates[rows[number % len(batch)]] @ query for number, query in enumerate(queries)]
        return RankingOutput(tuple(scores))
