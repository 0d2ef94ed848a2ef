"""A CLIP or SigLIP as a vision-language backbone: its text encoder reads images and segments, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, normalize
from torchvision.transforms.v2 import functional as transforms
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, CLIPImageProcessor, CLIPModel, SiglipModel

from virtue_pl.backbones.description import byte_tokenizer, check_sizes, write_description
from virtue_pl.backbones.hub_models import check_available
from virtue_pl.backbones.pretrained import (
    are_weights_skipped,
    build_without_weights,
    description_files,
    readable_description,
)
from virtue_pl.backbones.vlm.base import VLMBackbone, scatter_tokens
from virtue_pl.features.fingerprints import fingerprint_of
from virtue_pl.preprocessing.processor import VLMProcessor
from virtue_pl.preprocessing.truncation import tokenize_pieces
from virtue_pl.types import EncoderBatch, TokenSequence, VirtueError


class ClipProcessor(VLMProcessor):
    """Processor of a CLIP or SigLIP; an image takes `grid_size` x `grid_size` tokens with the id -1.

    Args:
        vlm_model: folder or hub name of the model.
        image_size: height and width of the square that images are resized to, in pixels.
        grid_size: tokens along an image's side.
        max_tokens: the free part of longer texts is cut; an image's tokens do not count.
        fill: pad every text to `max_tokens` with tokens that are read, as SigLIP was trained.

    Example:
        >>> processor = ClipProcessor("openai/clip-vit-base-patch32", 224, 4, 77, fill=False)  # doctest: +SKIP
        >>> input_ids, attention_mask = processor.tokenize(["a dog", "a black dog"], sizes=[[], []])
    """

    IMAGE_ID = -1
    text_settings = frozenset({"tokenizer", "max_tokens", "files", "start", "end", "fill"})

    def __init__(self, vlm_model: str, image_size: int, grid_size: int, max_tokens: int, fill: bool) -> None:
        with readable_description(vlm_model):
            self.tokenizer = AutoTokenizer.from_pretrained(vlm_model, trust_remote_code=False)
        special = self.tokenizer("")["input_ids"] or [self.tokenizer.pad_token_id]
        self.start, self.end = list(special[:-1]), list(special[-1:])
        self.image_size = image_size
        self.grid_size = grid_size
        self.max_tokens = max_tokens
        self.fill = fill
        self.files = description_files(vlm_model)

    def tokenize(
        self, texts: Sequence[str], sizes: Sequence[Sequence[tuple[int, int]]]
    ) -> tuple[Int[Tensor, "rows tokens"], Int[Tensor, "rows tokens"]]:
        rows = [self.tokenize_row(text) for text in texts]
        longest, pad = max(map(len, rows)), self.tokenizer.pad_token_id
        input_ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
        return input_ids, torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])

    def tokenize_row(self, text: str) -> list[int]:
        """Return a row's ids: the model's first token, the text with its images' ids, its last token."""
        special = len(self.start) + len(self.end)
        kept = tokenize_pieces(self.tokenizer, text, self.image_delimiters, self.max_tokens, special)
        ids = list(self.start)
        for number, piece_ids in enumerate(kept):
            ids += [self.IMAGE_ID] * self.grid_size**2 if number else []
            ids += piece_ids
        missing = self.max_tokens - special - sum(map(len, kept)) if self.fill else 0
        return [*ids, *self.end, *[self.tokenizer.pad_token_id] * missing]

    def resize(self, image: UInt8[Tensor, "3 height width"]) -> UInt8[Tensor, "3 size size"]:
        size = [self.image_size, self.image_size]
        return image if list(image.shape[1:]) == size else transforms.resize(image, size, antialias=True)

    def resized_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return self.image_size, self.image_size


class ClipBackbone(VLMBackbone):
    """A CLIP (arXiv 2103.00020) or SigLIP (arXiv 2303.15343), whose image and text embeddings are alike from the start.

    The text encoder reads segment tokens, an image's patches and the text, and every state is projected as the model
    projects its texts. The mean of the row's image embeddings is added to each state: before any training, the last
    token's is the sum of the text's and the image's embedding. The image tower is frozen.

    Args:
        vlm_model: folder or hub name of a CLIP or SigLIP, loaded by `from_pretrained`.
        grid_size: an image's patches are pooled to `grid_size` x `grid_size` tokens.
        frozen_layers: number of the text encoder's lowest layers (with its embeddings) that are not trained.
        max_tokens: the free part of longer texts is cut; None for the positions that the text encoder has, the most. A
            SigLIP always reads as many.
        vlm_sizes: what the model's config.json says, by which `virtue-pl check` builds it where its files are not; it
            is not read otherwise.

    Example:
        >>> backbone = ClipBackbone("openai/clip-vit-base-patch32", grid_size=4, frozen_layers=6)  # doctest: +SKIP
        >>> backbone.hidden_size
        512
    """

    processor: ClipProcessor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        vlm_model: str,
        grid_size: int = 4,
        frozen_layers: int = 0,
        max_tokens: int | None = None,
        vlm_sizes: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        model = load_dual_encoder(vlm_model)
        text, vision = model.config.text_config, model.config.vision_config
        self.is_clip = isinstance(model, CLIPModel)
        most = text.max_position_embeddings
        if not 1 <= (max_tokens or most) <= most:
            raise VirtueError(f"max_tokens is {max_tokens}, expected 1 to the {most} positions of {vlm_model}")
        self.hidden_size = text.hidden_size
        self.vision: Any = model.vision_model
        self.project_image: Any = model.visual_projection if self.is_clip else nn.Identity()
        self.text: Any = model.text_model
        self.project_text: Any = model.text_projection if self.is_clip else self.text.head
        if not self.is_clip:
            self.text.head = nn.Identity()  # it has one owner
        of_image = self.project_image.out_features if self.is_clip else vision.hidden_size
        if {self.project_text.out_features, of_image} != {self.hidden_size}:
            raise VirtueError(
                f"vlm_model: {vlm_model} embeds texts in {self.project_text.out_features} numbers and images in"
                f" {of_image}, expected {self.hidden_size}, as many as its text encoder's states have"
            )
        # a SigLIP reads as many tokens as it was trained with
        tokens = (max_tokens or most) if self.is_clip else most
        self.processor = ClipProcessor(vlm_model, vision.image_size, grid_size, tokens, fill=not self.is_clip)
        with readable_description(vlm_model):
            images = AutoImageProcessor.from_pretrained(vlm_model, trust_remote_code=False)
        self.register_buffer("mean", torch.tensor(images.image_mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(images.image_std).view(1, 3, 1, 1) * 255, persistent=False)
        self.project = nn.Sequential(nn.LayerNorm(vision.hidden_size), nn.Linear(vision.hidden_size, self.hidden_size))
        self.grid_positions = nn.Parameter(torch.randn(grid_size**2, self.hidden_size) * 0.02)
        self.image_weight = nn.Parameter(torch.ones(()))
        for module in (self.vision, self.project_image, *self.frozen_text(frozen_layers)):
            module.requires_grad_(False)
        self.train()  # a pretrained model comes in eval mode

    @classmethod
    def describe(cls, sizes: Mapping[str, Any], folder: Path) -> None:
        """Write a folder from which the model is built without its weights, by its `vlm_sizes` alone.

        Raises VirtueError for sizes of another model.
        """
        check_sizes(sizes, "siglip" if sizes.get("model_type") == "siglip" else "clip", "vlm_sizes")
        write_description(folder, sizes, byte_tokenizer({}), [CLIPImageProcessor()])

    def frozen_text(self, layers: int) -> list[nn.Module]:
        """Return the parts of the text encoder below its lowest trained layer; none where all of it is trained."""
        return [self.text.embeddings, *self.text.encoder.layers[:layers]] if layers else []

    @property
    def language_model(self) -> nn.Module:
        return self.text

    @torch.no_grad()
    def vision_features(self, pixels: Sequence[UInt8[Tensor, "3 size size"]]) -> tuple[tuple[Tensor, Tensor], ...]:
        """Return each image's patches, pooled to [channels, grid_size, grid_size], and its embedding, [hidden]."""
        images = (torch.stack(list(pixels)).to(self.mean.dtype) - self.mean) / self.std
        output = self.vision(images.to(next(self.vision.parameters()).dtype))
        num_patches = self.vision.config.image_size // self.vision.config.patch_size
        patches = output.last_hidden_state[:, -(num_patches**2) :].transpose(1, 2)
        pooled = adaptive_avg_pool2d(patches.unflatten(2, (num_patches, num_patches)), self.processor.grid_size)
        embeddings = normalize(self.project_image(output.pooler_output).float(), dim=-1)
        return tuple(zip(pooled.unbind(), embeddings.unbind(), strict=True))

    def vision_tokens(self, features: Sequence[tuple[Tensor, ...]]) -> tuple[Float[Tensor, "tokens hidden"], ...]:
        """Return each image's embedding, as the first of its tokens, and the tokens that the text encoder reads."""
        if not features:
            return ()
        patches = torch.stack([pooled for pooled, _ in features]).flatten(2).transpose(1, 2)
        tokens = self.project(patches.to(self.grid_positions.dtype)) + self.grid_positions
        embeddings = torch.stack([embedding for _, embedding in features]).to(tokens.dtype)
        return tuple(torch.cat([embeddings[:, None], tokens], dim=1).unbind())

    def fingerprint(self) -> str:
        return fingerprint_of(self.vision, self.project_image, self.mean, self.std, self.processor.image_settings())

    def embed(self, inputs: EncoderBatch, vision: Sequence[Float[Tensor, "tokens hidden"]]) -> TokenSequence:
        """Return embedded texts with the positions they have without images; an image's tokens stand at position 0."""
        of_image = inputs.input_ids == ClipProcessor.IMAGE_ID
        embeds = self.text.embeddings.token_embedding(inputs.input_ids.masked_fill(of_image, 0))
        is_text = (inputs.attention_mask.bool() & ~of_image).long()
        positions = (is_text.cumsum(dim=1) - 1).clamp(min=0) * is_text
        is_padded = inputs.layout.is_padded(inputs.input_ids.shape[1])
        if not vision:
            return TokenSequence(embeds, inputs.attention_mask, positions, is_padded=is_padded)
        read = torch.cat([tokens[1:] for tokens in vision]).to(embeds.dtype)
        own = torch.cat([tokens[:1].expand(len(tokens) - 1, -1) for tokens in vision])
        embeds = scatter_tokens(embeds, of_image, read)
        return TokenSequence(embeds, inputs.attention_mask, positions, (own,), of_image, is_padded)

    def forward(self, sequence: TokenSequence) -> Float[Tensor, "rows tokens hidden"]:
        hidden = sequence.embeds + self.text.embeddings.position_embedding(sequence.position_ids)
        mask = visible(sequence.attention_mask, self.is_clip)
        mask = torch.zeros_like(mask, dtype=hidden.dtype).masked_fill(~mask, torch.finfo(hidden.dtype).min)
        states = self.text.encoder(inputs_embeds=hidden, attention_mask=mask).last_hidden_state
        states = normalize(self.project_text(self.text.final_layer_norm(states)).float(), dim=-1)
        if sequence.visual_pos_mask is None:
            return states
        of_image, zeros = sequence.visual_pos_mask, torch.zeros_like(states)
        images = scatter_tokens(zeros, of_image, sequence.deepstack_embeds[0].to(zeros.dtype)).sum(dim=1)
        images = images / of_image.sum(dim=1, keepdim=True).clamp(min=1)
        return states + self.image_weight * images[:, None]


def visible(attention_mask: Int[Tensor, "rows tokens"], is_causal: bool) -> Bool[Tensor, "rows 1 queries tokens"]:
    """Return which tokens each token reads: those that are real and, in a causal model, not behind it."""
    tokens = attention_mask.shape[1]
    real = attention_mask.bool()[:, None, None, :].expand(-1, 1, tokens, -1)
    before = torch.ones(tokens, tokens, dtype=torch.bool, device=attention_mask.device).tril()
    return real & before if is_causal else real


def load_dual_encoder(name: str) -> Any:
    """Return a CLIP or SigLIP. Raises VirtueError for a missing folder or another model."""
    if name.startswith((".", "/")) and not Path(name).is_dir():
        raise VirtueError(f"vlm_model: the folder {name} is not there, expected a CLIP's or SigLIP's, or a hub name")
    if are_weights_skipped():
        model = build_without_weights(name, {})
    else:
        check_available(name, "vlm_model")
        with readable_description(name):
            model = AutoModel.from_pretrained(name, trust_remote_code=False)
    if not isinstance(model, CLIPModel | SiglipModel):
        raise VirtueError(
            f"vlm_model: {name} is a {model.config.model_type}, expected a clip or siglip (a SigLIP 2 of one image size"
            " is a siglip)"
        )
    return model
