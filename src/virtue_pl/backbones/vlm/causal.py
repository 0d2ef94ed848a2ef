"""Vision-language models on transformers' own classes: tokenizer, frozen tower, and causal language model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer

from virtue_pl.backbones.attention_masks import known_padding
from virtue_pl.backbones.description import byte_tokenizer, check_sizes, write_description
from virtue_pl.backbones.hub_models import check_available
from virtue_pl.backbones.pretrained import (
    are_weights_skipped,
    build_without_weights,
    description_files,
    readable_description,
)
from virtue_pl.backbones.vlm.base import VLMBackbone, scatter_tokens, token_positions
from virtue_pl.features.fingerprints import fingerprint_of
from virtue_pl.preprocessing.processor import VLMProcessor
from virtue_pl.preprocessing.truncation import tokenize_pieces
from virtue_pl.types import IMAGE_TOKEN, EncoderBatch, TokenSequence, VirtueError

TEXT_CONFIGS = frozenset(
    {"text_config", "transformers_version", "_name_or_path", "_commit_hash", "architectures", "dtype"}
)
"""Names in a model's config that its images' features do not depend on."""


class CausalVLMProcessor(VLMProcessor):
    """Abstract processor on the model's own tokenizer, without a chat template; `IMAGE_TOKEN` becomes an image's ids.

    `normalise` is the model's own image processor.

    Args:
        vlm_model: folder or hub name of the model.
        max_tokens: the free part of longer texts is cut; an image's tokens do not count.

    Example:
        >>> from virtue_pl.backbones import Qwen2VLBackbone  # doctest: +SKIP
        >>> processor: CausalVLMProcessor = Qwen2VLBackbone("Qwen/Qwen2-VL-2B-Instruct").processor
        >>> input_ids, attention_mask = processor.tokenize(["a dog", "a black dog"], sizes=[[], []])
    """

    text_settings = frozenset({"tokenizer", "max_tokens", "image_id", "files"})

    def __init__(self, vlm_model: str, max_tokens: int) -> None:
        with readable_description(vlm_model):
            self.tokenizer = AutoTokenizer.from_pretrained(vlm_model, trust_remote_code=False)
            self.normalise: Any = AutoImageProcessor.from_pretrained(vlm_model)
            self.image_id: int = AutoConfig.from_pretrained(vlm_model).image_token_id
        self.image_token = str(self.tokenizer.convert_ids_to_tokens(self.image_id))
        self.max_tokens = max_tokens
        self.files = description_files(vlm_model)

    @abstractmethod
    def image_ids(self, size: tuple[int, int], only_image: bool = True) -> list[int]:
        """Return the ids of one image of `size` = (height, width), resized.

        They are `image_id` for each of its tokens, and whatever the model expects between them. only_image: whether the
        image is its text's only one.
        """

    def tokenize(
        self, texts: Sequence[str], sizes: Sequence[Sequence[tuple[int, int]]]
    ) -> tuple[Int[Tensor, "rows tokens"], Int[Tensor, "rows tokens"]]:
        """Return `input_ids` and `attention_mask`, right-padded. sizes: of every row's images, resized, in order."""
        rows = [self.tokenize_row(text, image_sizes) for text, image_sizes in zip(texts, sizes, strict=True)]
        longest = max(len(row) for row in rows)
        pad = self.tokenizer.pad_token_id
        input_ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        return input_ids, mask

    def check_row(self, text: str, sizes: Sequence[tuple[int, int]]) -> None:
        super().check_row(text, sizes)
        if self.image_token != IMAGE_TOKEN and self.image_token in text:
            self.tokenize_row(text, sizes)

    def tokenize_row(self, text: str, sizes: Sequence[tuple[int, int]]) -> list[int]:
        """Return a row's ids: at most `max_tokens` of the text (`tokenize_pieces`), and all of the images.

        Raises VirtueError where `IMAGE_TOKEN`s and images differ in number, or the text holds the model's image token.
        """
        super().check_row(text, sizes)
        ids: list[int] = []
        kept = tokenize_pieces(self.tokenizer, text, self.image_delimiters, self.max_tokens)
        for number, piece_ids in enumerate(kept):
            if number:
                ids += self.image_ids(sizes[number - 1], len(sizes) == 1)
            if self.image_id in piece_ids:
                raise VirtueError(
                    f"a text holds the model's own {self.image_token}, expected {IMAGE_TOKEN} where an image stands:"
                    " take it out of the text"
                )
            ids += piece_ids
        return ids


class TileProcessor(CausalVLMProcessor):
    """Abstract processor of a model that cuts images in tiles by their own size, and counts all tokens in sequence.

    Example:
        >>> from virtue_pl.backbones import SmolVLMBackbone  # doctest: +SKIP
        >>> processor: TileProcessor = SmolVLMBackbone("HuggingFaceTB/SmolVLM2-500M-Video-Instruct").processor
    """

    def position_ids(
        self,
        input_ids: Int[Tensor, "rows tokens"],
        attention_mask: Int[Tensor, "rows tokens"],
        sizes: Sequence[Sequence[tuple[int, int]]],
    ) -> Int[Tensor, "rows tokens"]:
        """Return the number of real tokens before each token; 0 for padding."""
        return (attention_mask.cumsum(dim=1) - 1) * attention_mask

    def resized_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size


class CausalVLM(VLMBackbone):
    """A model on one of transformers' classes, without the head that predicts words.

    All is frozen but the language model's layers and final norm. The tower's features are at the language model's width
    already. Where there are several levels, the first one stands in the sequence, and the others are added behind the
    language model's first layers (`TokenSequence.deepstack_embeds`).

    Args:
        vlm_model: folder or hub name of the model.
        dtype: type of the weights, "float32" or "bfloat16".
        attention: transformers' name of the attention's implementation: sdpa, eager, flash_attention_2 (with the
            package flash-attn) or, where the model offers it, flex_attention.

    Example:
        >>> from virtue_pl.backbones import Qwen2VLBackbone  # doctest: +SKIP
        >>> backbone: CausalVLM = Qwen2VLBackbone("Qwen/Qwen2-VL-2B-Instruct", dtype="bfloat16")
        >>> backbone.hidden_size
        1536
    """

    model_class: ClassVar[Any]
    model: Any
    processor: CausalVLMProcessor

    def __init__(self, vlm_model: str, dtype: str, attention: str) -> None:
        super().__init__()
        self.model = load_vlm(self.model_class, vlm_model, dtype, attention)
        self.replace_layers()
        for layer in self.language_model.layers:
            layer.register_forward_pre_hook(withhold_position_ids, with_kwargs=True)
        self.hidden_size = self.model.config.text_config.hidden_size
        self.model.requires_grad_(False)
        for trained in (self.language_model.layers, self.language_model.norm):
            trained.requires_grad_(True)
        self.train()  # a pretrained model comes in eval mode

    @classmethod
    def describe(cls, sizes: Mapping[str, Any], folder: Path) -> None:
        """Write a folder from which the model is built without its weights, by its `vlm_sizes` alone.

        Raises VirtueError for sizes of another model.
        """
        check_sizes(sizes, cls.model_class.config_class.model_type, "vlm_sizes")
        config = cls.model_class.config_class.from_dict(dict(sizes))
        tokenizer = byte_tokenizer(cls.described_tokens(config))
        write_description(folder, sizes, tokenizer, cls.described_processors(config, tokenizer))

    @classmethod
    @abstractmethod
    def described_tokens(cls, config: Any) -> dict[str, int]:
        """Return the ids of the tokens, by their names, that the processor looks for in its tokenizer."""

    @classmethod
    @abstractmethod
    def described_processors(cls, config: Any, tokenizer: Any) -> Sequence[Any]:
        """Return the model's processors, of its images or of all, for a model of these sizes."""

    def replace_layers(self) -> None:
        """Replace layers of the model by faster ones of the same weights, where a final has some."""

    @property
    def language_model(self) -> Any:
        """Return the part of the model that reads a token sequence and is trained."""
        return self.model.get_decoder()

    @property
    @abstractmethod
    def vision_networks(self) -> Sequence[Any]:
        """Return the frozen modules and parameters that `vision_features` are computed by."""

    def fingerprint(self) -> str:
        """Return a hash of the frozen networks, of all but the text's config, and of how images are prepared."""
        config = {name: value for name, value in vars(self.model.config).items() if name not in TEXT_CONFIGS}
        return fingerprint_of(self.vision_networks, config, self.processor.image_settings())

    def vision_tokens(
        self, features: Sequence[tuple[Float[Tensor, "tokens hidden"], ...]]
    ) -> tuple[Float[Tensor, "tokens levels_hidden"], ...]:
        """Return each image's levels, concatenated."""
        return tuple(torch.cat(levels, dim=1) if len(levels) > 1 else levels[0] for levels in features)

    def select_tokens(
        self, tokens: Float[Tensor, "tokens levels_hidden"], only_image: bool
    ) -> Float[Tensor, "row_tokens levels_hidden"]:
        """Return the tokens of an image that stand in a row, as many as `image_ids` has.

        All of them, but in models that read several images less closely than one. only_image: whether the image is its
        row's only one.
        """
        return tokens

    def embed(self, inputs: EncoderBatch, vision: Sequence[Float[Tensor, "tokens levels_hidden"]]) -> TokenSequence:
        """Return embedded texts with the vision tokens in their positions. vision: one for each use of an image."""
        assert inputs.position_ids is not None, "the processor gives them"
        embeds = self.language_model.embed_tokens(inputs.input_ids)
        is_padded = inputs.layout.is_padded(inputs.input_ids.shape[1])
        if not vision:
            return TokenSequence(embeds, inputs.attention_mask, inputs.position_ids, is_padded=is_padded)
        is_image = inputs.input_ids == self.processor.image_id
        uses = zip(vision, inputs.layout.only_image, strict=True)
        selected = torch.cat([self.select_tokens(tokens, only_image) for tokens, only_image in uses])
        first, *deepstack_embeds = selected.to(embeds.dtype).split(self.hidden_size, dim=1)
        return TokenSequence(
            scatter_tokens(embeds, is_image, first),
            inputs.attention_mask,
            inputs.position_ids,
            tuple(deepstack_embeds),
            is_image if deepstack_embeds else None,
            is_padded,
        )

    def forward(self, sequence: TokenSequence) -> Float[Tensor, "rows tokens hidden"]:
        """Return the language model's last hidden state."""
        if sequence.visual_pos_mask is None or not sequence.deepstack_embeds:
            return self.run_language_model(sequence)
        positions = token_positions(sequence.visual_pos_mask, len(sequence.deepstack_embeds[0]))
        levels = list(sequence.deepstack_embeds)
        return self.run_language_model(sequence, visual_pos_masks=positions, deepstack_visual_embeds=levels)

    def run_language_model(
        self, sequence: TokenSequence, **options: Any
    ) -> Float[Tensor, "rows computed_tokens hidden"]:
        """Return the last hidden state that the language model computes. options: those of a final's own layers."""
        with known_padding(sequence.is_padded):
            output = self.language_model(
                inputs_embeds=sequence.embeds,
                attention_mask=sequence.attention_mask,
                position_ids=sequence.position_ids,
                use_cache=False,
                **options,
            )
        return output.last_hidden_state


def withhold_position_ids(
    layer: Any, arguments: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Take the position ids from what a layer is given, which has the rotation that was made of them.

    Flash attention takes positions that do not rise one by one, as those of segment tokens, for several sequences in
    one row, which it would attend within.
    """
    return arguments, {**options, "position_ids": None} if "position_ids" in options else options


def load_vlm(model_class: Any, name: str, dtype: str, attention: str) -> Any:
    """Return the model without its head.

    Raises VirtueError where the folder is missing, is of another model, or lacks a tensor, and for an attention that
    the model does not offer or that needs a package that is not there.
    """
    expected = model_class.config_class.model_type
    if name.startswith((".", "/")) and not Path(name).is_dir():
        raise VirtueError(f"vlm_model: the folder {name} is not there, expected a {expected}, or name one of the hub")
    check_available(name, "vlm_model")
    with readable_description(name):
        found = read_config(name).model_type
    if found != expected:
        raise VirtueError(
            f"vlm_model: {name} is a {found}, expected a {expected}: name another folder, or give the backbone's class"
            f" for {found}"
        )
    settings = {"dtype": getattr(torch, dtype), "attn_implementation": attention}
    check_attention(model_class, name, attention)
    if are_weights_skipped():
        return build_without_weights(name, {}, **settings)
    model, report = model_class.from_pretrained(name, output_loading_info=True, **settings)
    missing = sorted(report["missing_keys"])
    if missing:
        raise VirtueError(
            f"vlm_model: {name} lacks {len(missing)} tensors of a {expected}, e.g. {missing[0]}: download it again, or"
            " name another"
        )
    return model


def read_config(name: str) -> Any:
    """Return a model's config. Raises VirtueError where there is none that transformers reads."""
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split()).partition(". ")[0][:200]
        raise VirtueError(f"vlm_model: {name} has no config that can be read ({reason}): name another") from error


def check_attention(model_class: Any, name: str, attention: str) -> None:
    """Raise VirtueError for an attention that the model does not offer, or whose package is missing.

    `paged` attention is for a server that writes texts, with a cache.
    """
    try:
        if not isinstance(attention, str) or attention.startswith("paged"):
            raise ValueError(f"{attention!r} is none that encodes whole sequences")
        config = AutoConfig.from_pretrained(name)
        config._attn_implementation = attention
        with torch.device("meta"):
            model_class(config)
    except (ImportError, ValueError) as error:
        reason = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
        raise VirtueError(
            f"attention: {attention} does not work for {model_class.__name__} here ({reason}), expected sdpa, eager or"
            " another that it offers: set `attention` to sdpa"
        ) from error
