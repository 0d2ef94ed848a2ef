"""Fusion head: segment tokens, vision tokens and text through one language model, to one unit embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from virtue_pl.adapters.lora import LoRA
from virtue_pl.backbones.vlm.base import VLMBackbone
from virtue_pl.backbones.vlm.pooling import LastTokenPooling, MeanPooling, Pooling
from virtue_pl.engine.gradient_cache import FullBatch, GradientCache
from virtue_pl.engine.optimizer import Optimization
from virtue_pl.features.fingerprints import fingerprint_of
from virtue_pl.features.frozen import Levels, encode_missing
from virtue_pl.losses.base import EmbeddingLoss
from virtue_pl.models.embedding_model import EmbeddingModel
from virtue_pl.preprocessing.contrastive_collator import ContrastiveCollator
from virtue_pl.preprocessing.input_formatters import InputFormatter, VirtueFormatter
from virtue_pl.types import EncoderBatch, ImageBatch, ImageFeatures, SegmentTokens, TokenSequence

DEFAULT_TRAIN_MODES = {"box": 0.5, "point": 0.3, "mask": 0.2}


class VLMFusionHead(EmbeddingModel):
    """The vision-language model, with segment tokens in front where they are given.

    Alone it trains without segment tokens: the prompt reaches it as text only, the paper's first ablation (VLM2Vec's
    form).

    Args:
        backbone: the vision-language model.
        pooling: from token states to one vector: the mean for a sentence encoder, the last token for a causal model.
        formatter: prepares text and pixels.
        train_modes, evaluation_modes, loss, gradient_cache: only for running alone; see `Virtue`.
        optimization, weights, weights_prefix, frozen: see `VirtueModule`.
        adapter: trained in place of the language model's own weights.

    Example:
        >>> backbone = Qwen2VLBackbone("Qwen/Qwen2-VL-2B-Instruct")  # doctest: +SKIP
        >>> head = VLMFusionHead(backbone, pooling=LastTokenPooling(), adapter=LoRA(rank=8))
        >>> head.hidden_size
        1536
    """

    def __init__(
        self,
        backbone: VLMBackbone,
        pooling: Pooling | None = None,
        formatter: InputFormatter | None = None,
        train_modes: Mapping[str, float] | None = None,
        evaluation_modes: Sequence[str] = ("box", "point", "no_prompt", "blind"),
        loss: EmbeddingLoss | None = None,
        gradient_cache: FullBatch | GradientCache | None = None,
        optimization: Optimization | None = None,
        weights: str | Path | None = None,
        weights_prefix: str = "",
        frozen: bool = False,
        adapter: LoRA | None = None,
    ) -> None:
        super().__init__(loss, gradient_cache, optimization, weights, weights_prefix, frozen)
        self.backbone = backbone
        if adapter is not None:
            adapter.adapt(backbone)
        self.pooling = pooling or MeanPooling()
        self.formatter = formatter or VirtueFormatter()
        self.train_modes = DEFAULT_TRAIN_MODES if train_modes is None else train_modes
        self.evaluation_modes = evaluation_modes
        self.load_and_freeze()

    @property
    def hidden_size(self) -> int:
        """Return the width of the language model, which is the embedding's too."""
        return self.backbone.hidden_size

    def sharded_layers(self) -> Sequence[nn.Module]:
        """Return the layers that a sharding strategy wraps: the language model's."""
        return list(self.backbone.layers)

    def forward(self, inputs: EncoderBatch, segments: SegmentTokens | None = None) -> Float[Tensor, "rows hidden"]:
        """Return the rows' unit embeddings. segments: one set of tokens a prompt, to stand in front of its row."""
        images = self.backbone.vision_tokens(self.frozen_features(inputs.images))
        sequence = self.backbone.embed(inputs, [images[number] for number in inputs.layout.use_images])
        if segments is not None:
            sequence = sequence.prepend(segments.tokens, inputs.layout.prompt_rows)
        embeddings = normalize(self.pool(sequence).float(), dim=-1)
        if segments is None or segments.summary is None:
            return embeddings
        return normalize(embeddings.index_add(0, inputs.prompt_rows, segments.summary.float()), dim=-1)

    def pool(self, sequence: TokenSequence) -> Float[Tensor, "rows hidden"]:
        """Return each row's pooled state; for the last token alone the backbone may spare itself the others."""
        if isinstance(self.pooling, LastTokenPooling):
            return self.backbone.last_states(sequence)
        return self.pooling(self.backbone(sequence).float(), sequence.attention_mask)

    def encode(self, inputs: EncoderBatch) -> Float[Tensor, "rows hidden"]:
        """Return the rows' unit embeddings, without segment tokens."""
        return self(inputs)

    def frozen_features(self, images: ImageBatch) -> list[Levels]:
        """Return the vision tower's frozen features of each image, in order: stored, or else encoded in one batch."""
        stored = [features.vision for features in images.stored_features]
        return encode_missing(stored, images.vision, self.backbone.vision_features, self.backbone)

    def image_features(self, images: ImageBatch) -> tuple[ImageFeatures, ...]:
        """Return the vision tower's frozen features of each image."""
        return tuple(ImageFeatures(vision=levels) for levels in self.frozen_features(images))

    def fingerprint(self, formatter: InputFormatter) -> str:
        """Return a hash of all that an image's stored features depend on. formatter: gives its first size."""
        return fingerprint_of(self.backbone.fingerprint(), formatter.vision_settings())

    @property
    def collator(self) -> ContrastiveCollator:
        """Return the collator of the head alone, which prepares no segmentation canvas."""
        fingerprints = {"vision": self.fingerprint(self.formatter)}
        return ContrastiveCollator(
            self.backbone.processor, self.formatter, None, self.train_modes, self.evaluation_modes, fingerprints
        )
