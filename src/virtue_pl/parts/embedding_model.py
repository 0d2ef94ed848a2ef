"""How whatever embeds is trained and ranked: shared by `Virtue` and by a fusion head that runs alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from virtue_pl.gradient_cache import GradientCache, PlainStep, text_lengths
from virtue_pl.metrics.rank_metrics import HitRate, RankTable
from virtue_pl.metrics.ranking import sample_ranks, set_blind_ranks
from virtue_pl.optimization import Optimization
from virtue_pl.parts.embedding_loss import EmbeddingLoss
from virtue_pl.parts.part import Part
from virtue_pl.precision import check_precision
from virtue_pl.recipes import Recipe
from virtue_pl.types import EmbeddingBatch, EncoderBatch, PairBatch, PictureBatch, PictureFeatures, Pictures, RankingBatch, RankingOutput, VirtueError

PICTURES_AT_ONCE = 16
"""That are encoded together where nothing is trained."""


class EmbeddingModel(Part):
    """A root that trains `encode` with a contrastive loss and ranks candidates with it.

    Args:
        loss: the contrastive loss; None where the module is a part.
        gradient_cache: how a batch is encoded: at once (`PlainStep`) or in chunks (`GradientCache`).
        optimization, weights, weights_prefix, frozen: see `Part`.
    """

    recipe: Recipe
    hit_rate: HitRate
    rank_table: RankTable

    def __init__(
        self,
        loss: EmbeddingLoss | None,
        gradient_cache: PlainStep | GradientCache | None,
        optimization: Optimization | None,
        weights: str | Path | None,
        weights_prefix: str,
        frozen: bool,
    ) -> None:
        super().__init__(optimization, weights, weights_prefix, frozen)
        self.loss = loss
        self.gradient_cache = gradient_cache or PlainStep()

    def configure_model(self) -> None:
        """As any part; ranks then take equally many chunks, since layers are gathered in each."""
        super().configure_model()
        self.gradient_cache.equal_chunks = self.sharding is not None

    @abstractmethod
    def encode(self, inputs: EncoderBatch) -> Float[Tensor, "rows dim"]:
        """Unit embeddings of the rows."""

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        if self.loss is None:
            raise VirtueError(f"{type(self).__name__} is to be trained, but has no loss: give it `loss`")
        output = self.loss(self.embed_pairs(batch))
        self.log("train/loss", output.loss, prog_bar=True, batch_size=len(batch))
        for name, value in output.metrics.items():
            self.log(f"train/{name}", value, batch_size=len(batch))
        return output.loss if self.sharding is None else self.sharding.reaching(output.loss)

    def embed_pairs(self, batch: PairBatch) -> EmbeddingBatch:
        """The batch's queries, targets and negatives as embeddings."""
        queries = self.embed(batch.queries)
        ids = (batch.query_ids, batch.target_ids, batch.negative_ids, batch.negative_rows, batch.picture_ids)
        return EmbeddingBatch(queries, *self.embed_candidates(batch), *ids)

    def embed_candidates(self, batch: PairBatch) -> tuple[Float[Tensor, "pairs dim"], Float[Tensor, "negatives dim"]]:
        """The batch's targets and its hard negatives as embeddings."""
        targets = self.embed(batch.targets)
        return targets, targets.new_zeros(0, targets.shape[1]) if batch.negatives is None else self.embed(batch.negatives)

    def embed(self, inputs: EncoderBatch) -> Float[Tensor, "rows dim"]:
        """Embeddings of the rows, encoded as `gradient_cache` says."""
        return self.gradient_cache(self.encode, inputs, self.known, self.row_tokens)

    @torch.no_grad()
    def known(self, inputs: EncoderBatch, at_once: int, keep: Callable[[Any], Any]) -> EncoderBatch:
        """The inputs with what frozen networks see in their pictures in place of pixels, `at_once` pictures at a time."""
        features = [keep(seen) for group in inputs.pictures.split(at_once) for seen in self.picture_features(group)]
        return replace(inputs, pictures=inputs.pictures.with_features(features))

    def row_tokens(self, inputs: EncoderBatch) -> list[int]:
        """How many tokens of each row the language model reads."""
        return text_lengths(inputs)

    def setup(self, stage: str) -> None:
        """Only the root has metrics."""
        check_precision(str(self.trainer.precision), self.trainer.strategy.root_device)
        self.hit_rate, self.rank_table = HitRate(), RankTable()

    def validation_step(self, batch: RankingBatch, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """hit@1 in the first evaluation mode. Returns a `RankingOutput`."""
        output = self.rank(batch, self.encode(batch.candidates), batch.modes[:1])
        self.hit_rate.update(sample_ranks(batch.samples, output.scores).of("hit@1"))
        self.log("val/hit@1", self.hit_rate, prog_bar=True, batch_size=len(batch), add_dataloader_idx=False)
        return output

    def test_step(self, batch: RankingBatch, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Returns a `RankingOutput`. Every ranking of every sample in every mode goes into `rank_table`, and "set_blind": no query at all."""
        candidates = self.encode(batch.candidates)
        output = self.rank(batch, candidates, batch.modes)
        for number, mode in enumerate(batch.modes):
            self.rank_table.update(mode, sample_ranks(batch.samples, output.scores[number * len(batch) : (number + 1) * len(batch)]))
        with torch.autocast(candidates.device.type, enabled=False):
            self.rank_table.update("set_blind", set_blind_ranks(batch.samples, [candidates[list(rows)] for rows in batch.candidate_rows]))
        return output

    @abstractmethod
    def picture_features(self, pictures: Pictures) -> tuple[PictureFeatures, ...]:
        """What the frozen networks see in each picture, of all streams that the model has."""

    def predict_step(self, batch: PairBatch | PictureBatch, batch_idx: int, dataloader_idx: int = 0) -> EmbeddingBatch | tuple[PictureFeatures, ...]:
        """Embeddings of training pairs, for a loss that is studied alone; or the frozen features of pictures, to be stored.

        A record may have many pictures, as in grounding, so that a batch of records may have more than memory holds the encoding of.
        """
        if not isinstance(batch, PictureBatch):
            return self.embed_pairs(batch)
        return tuple(seen for group in batch.pictures.split(PICTURES_AT_ONCE) for seen in self.picture_features(group))

    def rank(self, batch: RankingBatch, candidates: Float[Tensor, "candidates dim"], modes: Sequence[str]) -> RankingOutput:
        """Cosines of every sample's candidates, for each of the given (leading) modes, in float32 whatever the run's precision."""
        queries = self.encode(batch.queries.select(range(len(modes) * len(batch))))
        with torch.autocast(queries.device.type, enabled=False):
            scores = [candidates[list(batch.candidate_rows[row % len(batch)])] @ query for row, query in enumerate(queries)]
        return RankingOutput(tuple(scores))
