"""How text, pixels and coordinates are prepared for the model: one object, given to whatever prepares batches."""

from __future__ import annotations

from abc import ABC, abstractmethod

from jaxtyping import Shaped, UInt8
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from virtue_pl.types import IMAGE_TOKEN, EmbeddingInput


class Recipe(ABC):
    """One consistent way to prepare inputs; a checkpoint is used with the recipe that it was trained with."""

    @abstractmethod
    def text(self, item: EmbeddingInput) -> str:
        """The text that is tokenized, with `IMAGE_TOKEN` for each picture."""

    @abstractmethod
    def segmentation_pixels(self, image: UInt8[Tensor, "3 height width"], size: int) -> Shaped[Tensor, "3 size size"]:
        """The picture on the segmentation model's square canvas."""


class VirtueRecipe(Recipe):
    """The default: original pixels, resized once; the prompt is also told in words, as the paper does.

    Args:
        prompt_text: append "Referring object bbox: [x1, y1, x2, y2]" (or "point: (x, y)") in pixels of the picture, as
            SCaR's queries do. A mask and no prompt have no words.
    """

    def __init__(self, prompt_text: bool = True) -> None:
        self.prompt_text = prompt_text

    def text(self, item: EmbeddingInput) -> str:
        missing = len(item.images) - item.text.count(IMAGE_TOKEN)
        lines = [IMAGE_TOKEN] * missing + [item.text]
        if self.prompt_text and item.images:
            lines += self.prompt_lines(item)
        return "\n".join(line for line in lines if line)

    def prompt_lines(self, item: EmbeddingInput) -> list[str]:
        height, width = item.images[0].shape[1:]
        boxes = [[round(x1 * width), round(y1 * height), round(x2 * width), round(y2 * height)] for x1, y1, x2, y2 in item.prompt.boxes.tolist()]
        points = [(round(x * width), round(y * height)) for x, y in item.prompt.points.tolist()]
        return [f"Referring object bbox: {box}" for box in boxes] + [f"Referring object point: {point}" for point in points]

    def segmentation_pixels(self, image: UInt8[Tensor, "3 height width"], size: int) -> UInt8[Tensor, "3 size size"]:
        return image if image.shape[1:] == (size, size) else transforms.resize(image, [size, size], antialias=True)
