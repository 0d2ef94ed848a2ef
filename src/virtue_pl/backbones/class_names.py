"""A trunk's own ImageNet classifier, whose prediction becomes a text embedding of the language model."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.functional import normalize

from virtue_pl.backbones.pretrained import are_weights_skipped, readable_description
from virtue_pl.engine.weight_files import load_safetensors
from virtue_pl.features.fingerprints import fingerprint_of
from virtue_pl.types import VirtueError, replace_whole

STORED_NAMES = "class_names-"
"""Beginning of the name of a file of stored embeddings; a fingerprint follows."""


class ClassNames(nn.Module):
    """Pooled features of the trunk to the expected embedding of the class's name and description, frozen throughout.

    Contrastive training on a few hundred objects teaches no word for the next one. The classifier that the trunk was
    pretrained with discriminates a thousand classes, and the language model embeds their descriptions, which is stored
    beside the weights (`described_classes`).

    Args:
        trunk: a timm model of the EfficientNet or ResNet family, the same as the segmentation backbone's.
        text_model: folder or hub name of the language model, whose mean token state embeds a description.
        weights: a safetensors file with the timm model's tensors, its classifier included, or None for random ones.
        temperature: divides the classifier's logits. Above 1 similar classes share the probability, which serves an
            object of none of the classes.

    Example:
        >>> names = ClassNames("tf_efficientnet_lite0", "weights/minilm")  # doctest: +SKIP
        >>> names(torch.randn(2, names.width)).shape
        torch.Size([2, 384])
    """

    names: Tensor

    def __init__(
        self, trunk: str, text_model: str, weights: str | Path | None = None, temperature: float = 1.0
    ) -> None:
        import timm
        from timm.models.efficientnet import EfficientNet
        from timm.models.resnet import ResNet

        super().__init__()
        if not temperature > 0:
            raise VirtueError(f"class_names.temperature is {temperature}, expected more than 0")
        self.temperature = temperature
        self.trunk = trunk
        network = timm.create_model(trunk, pretrained=False)
        if not isinstance(network, EfficientNet | ResNet):
            raise VirtueError(
                f"class_names: {trunk} is a {type(network).__name__}, expected an EfficientNet or ResNet of timm; or"
                " set the connector's class_names to null"
            )
        if weights is not None:
            load_classifier(network, weights)
        self.expand = (
            nn.Sequential(network.conv_head, network.bn2) if isinstance(network, EfficientNet) else nn.Identity()
        )
        self.classify: Any = network.get_classifier()
        self.register_buffer("names", described_classes(trunk, text_model, weights))
        self.width: int = (
            network.conv_head.in_channels if isinstance(network, EfficientNet) else self.classify.in_features
        )
        self.hidden_size = self.names.shape[1]
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> ClassNames:
        """Return the module unchanged: it stays in eval mode."""
        return super().train(False)

    def forward(self, pooled: Float[Tensor, "prompts width"]) -> Float[Tensor, "prompts hidden"]:
        """Return the mean of the classes' embeddings, weighted by their probabilities.

        pooled: the mean of the trunk's coarsest features over an object.
        """
        logits = self.classify(self.expand(pooled[:, :, None, None]).flatten(1)).float()
        return (logits / self.temperature).softmax(dim=-1) @ self.names


def load_classifier(network: nn.Module, path: str | Path) -> None:
    """Load a whole timm network. Raises VirtueError where a tensor is missing or of another shape."""
    if not Path(path).is_file():
        raise VirtueError(
            f"ClassNames.weights: {path} is not there: run `virtue-pl fetch weights` (with --trunk NAME for another"
            " than tf_efficientnet_lite1), or set `weights: null` for random ones"
        )
    try:
        network.load_state_dict(load_safetensors(path))
    except RuntimeError as error:
        raise VirtueError(
            f"ClassNames.weights: {path} is not of {type(network).__name__} with its classifier:"
            f" {str(error).splitlines()[1].strip()}"
        ) from error


def class_descriptions(trunk: str) -> list[str]:
    """Return a caption for each of the trunk's classes, of its name and WordNet definition, in the classifier's order.

    "a jay, crested largely blue bird" is similar to captions of other birds, too.
    """
    import timm
    from timm.data import ImageNetInfo, infer_imagenet_subset

    config = timm.get_pretrained_cfg(trunk)
    info = ImageNetInfo((infer_imagenet_subset(config.to_dict()) if config is not None else None) or "imagenet-1k")
    return [
        describe_class(*info.index_to_description(index, detailed=True).partition(": ")[::2])
        for index in range(info.num_classes())
    ]


def describe_class(synonyms: str, definition: str) -> str:
    """Return "a NAME, DEFINITION" with the first of the comma-separated synonyms; an empty definition is left out."""
    name = synonyms.split(", ")[0]
    return ", ".join(part for part in (f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}", definition) if part)


def described_classes(
    trunk: str, text_model: str, weights: str | Path | None = None
) -> Float[Tensor, "classes hidden"]:
    """Return the embeddings of the trunk's classes, stored ones where there are any of the same model and texts.

    They are in `class_names-FINGERPRINT.safetensors` beside `weights`, or beside the text model's folder. A folder that
    cannot be written to, and a model of the hub without `weights`, keep none.
    """
    from transformers import AutoTokenizer

    from virtue_pl.backbones.text_encoder import load_text_encoder

    descriptions = class_descriptions(trunk)
    encoder: Any = load_text_encoder(text_model, 0.0).eval()
    if are_weights_skipped():
        return torch.empty(len(descriptions), encoder.config.hidden_size)
    with readable_description(text_model):
        tokenizer = AutoTokenizer.from_pretrained(text_model, trust_remote_code=False)
    beside = Path(weights) if weights is not None else Path(text_model)
    if not beside.exists():
        return embed_descriptions(descriptions, encoder, tokenizer)
    path = beside.parent / f"{STORED_NAMES}{fingerprint_of(encoder, tokenizer, descriptions)[:16]}.safetensors"
    shape = len(descriptions), encoder.config.hidden_size
    stored = read_embeddings(path)
    if stored is not None and stored.shape == shape:
        return stored
    embeddings = embed_descriptions(descriptions, encoder, tokenizer)
    with suppress(OSError, SafetensorError):
        store_embeddings(embeddings, path)
    return embeddings


def read_embeddings(path: Path) -> Tensor | None:
    """Return the embeddings that `store_embeddings` wrote; None where there is no file, or no sound one."""
    try:
        return load_file(path)["embeddings"]
    except (OSError, SafetensorError, KeyError):
        return None


def store_embeddings(embeddings: Tensor, path: Path) -> None:
    """Write the embeddings under a name that no other process takes, and move the file to `path`."""
    with replace_whole(path) as temporary:
        temporary.write_bytes(save({"embeddings": embeddings.contiguous()}))


@torch.no_grad()
def embed_descriptions(
    descriptions: list[str], encoder: Any, tokenizer: Any, batch_size: int = 250
) -> Float[Tensor, "descriptions hidden"]:
    """Return unit embeddings of the descriptions, with their common mean subtracted.

    encoder, tokenizer: the language model, whose mean token state embeds a description.
    """
    chunks = []
    for start in range(0, len(descriptions), batch_size):
        batch = tokenizer(descriptions[start : start + batch_size], padding=True, return_tensors="pt")
        mask = batch["attention_mask"].unsqueeze(-1)
        states = encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        chunks.append(normalize((states * mask).sum(dim=1) / mask.sum(dim=1), dim=-1))
    embeddings = torch.cat(chunks)
    return normalize(embeddings - embeddings.mean(dim=0), dim=-1)
