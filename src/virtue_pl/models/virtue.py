"""The root that composes the parts: images, texts and visual prompts in, unit embeddings out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from virtue_pl.engine.gradient_cache import FullBatch, GradientCache, Offload
from virtue_pl.engine.optimizer import Optimization
from virtue_pl.engine.ranks import collectives
from virtue_pl.features.frozen import Levels
from virtue_pl.losses.base import EmbeddingLoss
from virtue_pl.models.connector import Connector
from virtue_pl.models.embedding_model import EmbeddingModel
from virtue_pl.models.fusion_head import DEFAULT_TRAIN_MODES, VLMFusionHead
from virtue_pl.models.segmentation_extractor import SegmentationExtractor
from virtue_pl.models.visual_prompt_encoder import VisualPromptEncoder
from virtue_pl.preprocessing.contrastive_collator import ContrastiveCollator
from virtue_pl.preprocessing.input_formatters import InputFormatter, VirtueFormatter
from virtue_pl.types import (
    EmbeddingBatch,
    EncoderBatch,
    FeatureWidths,
    ImageBatch,
    ImageFeatures,
    PairBatch,
    RankingBatch,
    RankingOutput,
    SegmentFeatures,
    SegmentTokens,
    VirtueError,
    cast,
    index_tensors,
)
from virtue_pl.types.layout import group_by_owner


class Virtue(EmbeddingModel):
    """Visual-interactive text-image universal embedder (arXiv 2510.00523), composed of exchangeable parts.

    Args:
        prompt_encoder: visual prompts to prompt tokens.
        segmentation: images and prompt tokens to prompt-conditioned features.
        connector: factory of the connector, called with the feature widths and the language model's hidden size.
        fusion: segment tokens, images and texts to unit embeddings.
        loss: the contrastive loss.
        formatter: prepares text and pixels.
        train_modes: probability of each prompt mode (box, point, mask, none) in training.
        evaluation_modes: the modes in which every evaluation query is ranked, each a row of the table; validation uses
            the first.
        alignment_steps: number of first steps in which a query is its summary alone, added to what all captions have in
            common; the language model reads, and learns, only the captions, which halves the time of a step. Needs a
            connector with a summary, and a model that is not sharded.
        gradient_cache: `FullBatch()` or `GradientCache(...)`.
        optimization: optimizer and schedule.
        weights, weights_prefix: a checkpoint of the whole model to start from.
        segment_unprompted: the segmentation model reads an image without a prompt too, under a grid of points (the
            paper); otherwise such an image has no segment tokens, and costs none.

    Example:
        >>> encoder = VisualPromptEncoder(Sam2PromptEncoder())  # doctest: +SKIP
        >>> segmentation = SegmentationExtractor(Sam2Backbone(), frozen=True)
        >>> fusion = VLMFusionHead(Qwen2VLBackbone("Qwen/Qwen2-VL-2B-Instruct"), LastTokenPooling())
        >>> model = Virtue(encoder, segmentation, ConvolutionConnector, fusion, InfoNCELoss())
    """

    not_in_fingerprint = frozenset({"alignment_steps", "num_segment_tokens"})

    def __init__(
        self,
        prompt_encoder: VisualPromptEncoder,
        segmentation: SegmentationExtractor,
        connector: Callable[[FeatureWidths, int], Connector],
        fusion: VLMFusionHead,
        loss: EmbeddingLoss,
        formatter: InputFormatter | None = None,
        train_modes: Mapping[str, float] | None = None,
        evaluation_modes: Sequence[str] = ("box", "point", "mask", "no_prompt", "blind"),
        alignment_steps: int = 0,
        gradient_cache: FullBatch | GradientCache | None = None,
        optimization: Optimization | None = None,
        weights: str | Path | None = None,
        weights_prefix: str = "",
        segment_unprompted: bool = True,
    ) -> None:
        super().__init__(loss, gradient_cache, optimization, weights, weights_prefix, frozen=False)
        self.prompt_encoder = prompt_encoder
        self.segmentation = segmentation
        self.connector = connector(segmentation.backbone.widths, fusion.hidden_size)
        self.fusion = fusion
        self.formatter = formatter or VirtueFormatter()
        self.train_modes = DEFAULT_TRAIN_MODES if train_modes is None else train_modes
        self.evaluation_modes = evaluation_modes
        self.alignment_steps = alignment_steps
        self.segment_unprompted = segment_unprompted
        self.num_segment_tokens: int | None = None
        self.load_and_freeze()

    def configure_model(self) -> None:
        """Shard the layers if the strategy does. Raises VirtueError where `alignment_steps` meets a sharded model."""
        if self.device_mesh is not None and self.device_mesh.size() > 1 and self.alignment_steps:
            size = self.device_mesh.size()
            raise VirtueError(
                f"alignment_steps is {self.alignment_steps}, but the model is sharded over {size} processes, expected"
                " one: set it to 0"
            )
        super().configure_model()

    def sharded_layers(self) -> Sequence[nn.Module]:
        """Return the layers that a sharding strategy wraps: the language model's."""
        return self.fusion.sharded_layers()

    def encode(self, inputs: EncoderBatch) -> Float[Tensor, "rows dim"]:
        """Return the rows' unit embeddings: prompts, features, connector, fusion."""
        if not len(inputs.prompts):
            return self.fusion(inputs)
        return self.fusion(inputs, self.connect(inputs))

    def connect(self, inputs: EncoderBatch) -> SegmentTokens:
        """Return the segment tokens of each prompt."""
        first = next(self.connector.parameters())
        segments = SegmentFeatures.join(inputs.segments) if inputs.segments else self.segment(inputs)
        return self.connector(cast(segments.to(first.device), first.dtype))

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        """Return the contrastive loss, in the first `alignment_steps` steps that of `alignment_step`."""
        if self.global_step < self.alignment_steps:
            return self.alignment_step(batch)
        return super().training_step(batch, batch_idx)

    def alignment_step(self, batch: PairBatch) -> Tensor:
        """Return the contrastive loss of prompts' summaries, each added to what all captions have in common.

        Queries without a prompt are encoded.
        """
        targets, negatives = self.embed_candidates(batch)
        common = normalize(collectives.gather(targets).detach().mean(dim=0), dim=-1)
        queries = self.align_queries(batch.queries, common)
        assert self.loss is not None
        output = self.loss(EmbeddingBatch(queries, targets, negatives, batch.ids))
        self.log("train/alignment_loss", output.loss, prog_bar=True, batch_size=len(batch))
        return output.loss

    def align_queries(self, queries: EncoderBatch, common: Float[Tensor, " dim"]) -> Float[Tensor, "rows dim"]:
        """Return `common` plus the summary of each row's prompt, normalised; rows without a prompt are encoded.

        Raises VirtueError for a connector without a summary.
        """
        prompted = set(queries.layout.prompt_rows)
        texts = [row for row in range(len(queries)) if row not in prompted]
        rows = common.expand(len(queries), -1)
        if prompted:
            summary = self.connect(queries).summary
            if summary is None:
                raise VirtueError(
                    "alignment_steps needs a connector with a summary: set `summary: true` in the connector, or"
                    " alignment_steps to 0"
                )
            rows = normalize(rows.index_add(0, queries.prompt_rows, summary.to(rows.dtype)), dim=-1)
        if texts:
            (chosen,) = index_tensors([texts], rows.device)
            rows = rows.index_copy(0, chosen, self.encode(queries.select(texts)).to(rows.dtype))
        return rows

    def segment(self, inputs: EncoderBatch) -> SegmentFeatures:
        """Return the segmentation model's features of each prompt."""
        images, prompts = inputs.prompted_images()
        return self.segmentation(images, self.prompt_encoder(prompts))

    @torch.no_grad()
    def encode_frozen(self, inputs: EncoderBatch, chunk_size: int, offload: Offload) -> EncoderBatch:
        """Return the inputs with frozen networks' outputs in place of pixels, encoding `chunk_size` images at a time.

        Where the whole segmentation stream is frozen, these are its features of each prompt, of which only what the
        connector reads is stored; its features of each image are then not needed again.
        """
        frozen = self.segmentation.frozen and self.prompt_encoder.frozen and not self.segmentation.training
        prompts_of_image = group_by_owner(inputs.prompts.owners)
        segments: dict[int, SegmentFeatures] = {}
        features: list[ImageFeatures] = []
        for start in range(0, len(inputs.images), chunk_size):
            group = range(len(inputs.images))[start : start + chunk_size]
            prompted = [number for number in group if number in prompts_of_image]
            encoded = self.encode_streams(inputs.images.select(group), [number - start for number in prompted])
            if frozen and prompted:
                uses = sorted(use for number in prompted for use in prompts_of_image[number])
                images = inputs.images.select(prompted).with_features([encoded[number - start] for number in prompted])
                found = self.segmentation(images, self.prompt_encoder(inputs.prompts.select(uses).reindex(prompted)))
                segments.update(zip(uses, self.offload_segments(found, offload).split(), strict=True))
            features += [offload(replace(one, segmentation=()) if frozen else one) for one in encoded]
        return inputs.with_images(inputs.images.with_features(features), [segments[use] for use in sorted(segments)])

    def encode_streams(self, images: ImageBatch, prompted: Sequence[int]) -> tuple[ImageFeatures, ...]:
        """Return each image's frozen features, the segmentation model's of the `prompted` ones (by number) alone."""
        vision = self.fusion.frozen_features(images)
        segmentation: dict[int, Levels] = {}
        if prompted:
            found = self.segmentation.frozen_features(images.select(prompted))
            segmentation = dict(zip(prompted, found, strict=True))
        return tuple(ImageFeatures(segmentation.get(number, ()), levels) for number, levels in enumerate(vision))

    def offload_segments(self, segments: SegmentFeatures, offload: Offload) -> SegmentFeatures:
        """Offload what the connector reads of a prompt's features, but for the positions, which all prompts share."""
        unread: dict[str, Any] = {
            name: segments.image.new_zeros(len(segments.image), 0, 0, 0) if name == "image" else None
            for name in ("image", "mask_logits", "focus")
            if name not in self.connector.reads
        }
        return replace(offload(replace(segments, **unread)), image_positions=segments.image_positions)

    def token_counts(self, inputs: EncoderBatch) -> list[int]:
        """Return the number of tokens of each row that the language model reads, segment tokens included."""
        counts = super().token_counts(inputs)
        for row in inputs.layout.prompt_rows:
            counts[row] += self.segment_tokens(inputs)
        return counts

    def segment_tokens(self, inputs: EncoderBatch) -> int:
        """Return the number of tokens of a prompt, measured with one prompt of `inputs` the first time."""
        if self.num_segment_tokens is None:
            one = inputs.select(inputs.layout.prompt_rows[:1])
            device = one.input_ids.device
            with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else [], device_type="cuda"):
                self.num_segment_tokens = self.connect(one).tokens.shape[1]
        return self.num_segment_tokens

    def image_features(self, images: ImageBatch) -> tuple[ImageFeatures, ...]:
        """Return the frozen features of each image, of both streams."""
        return self.encode_streams(images, range(len(images)))

    def validation_step(self, batch: RankingBatch, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Log hit@1 and return a `RankingOutput`, with the predicted masks of the first batch, which is drawn."""
        output = super().validation_step(batch, batch_idx, dataloader_idx)
        if batch_idx:
            return output
        first_mode = batch.queries.select(range(len(batch)))
        if not len(first_mode.prompts):
            return output
        return RankingOutput(output.scores, self.segment(first_mode).mask_logits, first_mode.prompt_rows)

    @property
    def collator(self) -> ContrastiveCollator:
        """Return the collator for both streams, whose fingerprints key the stored features."""
        size, processor = self.segmentation.backbone.image_size, self.fusion.backbone.processor
        fingerprints = {
            "segmentation": self.segmentation.fingerprint(self.formatter),
            "vision": self.fusion.fingerprint(self.formatter),
        }
        return ContrastiveCollator(
            processor,
            self.formatter,
            size,
            self.train_modes,
            self.evaluation_modes,
            fingerprints,
            self.segment_unprompted,
        )
