"""What a trunk's own classifier sees, said in the language model's words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from virtue_pl.backbones.pretrained import are_weights_left_out
from virtue_pl.types import VirtueError


class ClassNames(nn.Module):
    """Pooled features of the trunk to the expected class, as the language model embeds its name and description: frozen
    from end to end.

    Contrastive training on a few hundred objects leaves no word for the next one. The classifier that the trunk was
    pretrained with
    knows a thousand classes, and the language model knows what their descriptions are close to.

    Args:
        trunk: a timm model of the EfficientNet or ResNet family, the segmentation backbone's too.
        text_model: folder or hub name of the language model, whose mean token state embeds a description.
        weights: a safetensors file with the timm model's tensors, its classifier included, or None for random ones.
        temperature: the classifier's logits are divided by it. Above 1 a name's neighbours have a say, which serves an
            object that
            is none of the classes.
    """

    names: Tensor

    def __init__(
        self, trunk: str, text_model: str, weights: str | Path | None = None, temperature: float = 1.0
    ) -> None:
        import timm
        from timm.models.efficientnet import EfficientNet
        from timm.models.resnet import ResNet

        super().__init__()
        self.temperature = temperature
        network = timm.create_model(trunk, pretrained=False)
        if not isinstance(network, EfficientNet | ResNet):
            raise VirtueError(
                f"names: {trunk} is a {type(network).__name__}, expected an EfficientNet or ResNet of timm; or set the"
                " connector's names to null"
            )
        if weights is not None:
            load_classifier(network, weights)
        self.expand = (
            nn.Sequential(network.conv_head, network.bn2) if isinstance(network, EfficientNet) else nn.Identity()
        )
        self.classify: Any = network.get_classifier()
        self.register_buffer("names", embed_names(class_descriptions(trunk), text_model))
        self.width: int = (
            network.conv_head.in_channels if isinstance(network, EfficientNet) else self.classify.in_features
        )
        self.hidden_size = self.names.shape[1]
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> ClassNames:
        return super().train(False)

    def forward(self, pooled: Float[Tensor, "prompts width"]) -> Float[Tensor, "prompts hidden"]:
        """pooled: the mean over an object of the trunk's coarsest features."""
        logits = self.classify(self.expand(pooled[:, :, None, None]).flatten(1)).float()
        return (logits / self.temperature).softmax(dim=-1) @ self.names


def load_classifier(network: nn.Module, path: str | Path) -> None:
    """Fills a whole timm network. Raises VirtueError where a tensor is missing or of another shape."""
    if not Path(path).is_file():
        raise VirtueError(
            f"ClassNames.weights: {path} is not there: run `virtue-pl fetch weights`, or set `weights: null` for random"
            " ones"
        )
    try:
        network.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise VirtueError(
            f"ClassNames.weights: {path} is not of {type(network).__name__} with its classifier:"
            f" {str(error).splitlines()[1].strip()}"
        ) from error


def class_descriptions(trunk: str) -> list[str]:
    """The trunk's classes in the form of a caption, with what WordNet says of them, in the order of its classifier.

    "a jay, crested largely blue bird" is close to captions of other birds, too.
    """
    import timm
    from timm.data import ImageNetInfo, infer_imagenet_subset

    config = timm.get_pretrained_cfg(trunk)
    info = ImageNetInfo((infer_imagenet_subset(config.to_dict()) if config is not None else None) or "imagenet-1k")
    return [
        caption_of(*info.index_to_description(index, detailed=True).partition(": ")[::2])
        for index in range(info.num_classes())
    ]


def caption_of(names: str, definition: str) -> str:
    """names: synonyms, of which the first is taken."""
    name = names.split(", ")[0]
    return ", ".join(part for part in (f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}", definition) if part)


@torch.no_grad()
def embed_names(names: list[str], text_model: str, batch_size: int = 250) -> Float[Tensor, "names hidden"]:
    """Unit embeddings of the descriptions, after what all have in common is taken away."""
    from transformers import AutoTokenizer

    from virtue_pl.backbones.vlm.timm_text import load_text_encoder

    tokenizer = AutoTokenizer.from_pretrained(text_model, trust_remote_code=False)
    encoder: Any = load_text_encoder(text_model, 0.0).eval()
    if are_weights_left_out():
        return torch.empty(len(names), encoder.config.hidden_size)
    embedded = []
    for start in range(0, len(names), batch_size):
        batch = tokenizer(names[start : start + batch_size], padding=True, return_tensors="pt")
        states, real = encoder(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
        embedded.append(normalize((states * real).sum(dim=1) / real.sum(dim=1), dim=-1))
    every = torch.cat(embedded)
    return normalize(every - every.mean(dim=0), dim=-1)
