"""One image whose towers have run: each further prompt on it costs only what depends on the prompt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from virtue_pl.types import EmbeddingInput, ImageFeatures, VirtueError, VisualPrompt

if TYPE_CHECKING:
    from virtue_pl.embedder.embedder import Embedder


class ImageHandle:
    """An image, decoded and seen once; it keeps its features for as long as it is held, whatever the cache forgets.

    Args:
        embedder: the one that encodes.
        item: the image with its key, and no text.

    Example:
        >>> image = embedder.image("street.jpg")  # doctest: +SKIP
        >>> image.encode(VisualPrompt.from_pixels(points=[[40, 30]], size=image.size), "What is this?").shape
        (384,)
        >>> image.regions(boxes=[[10, 20, 200, 240], [30, 40, 80, 90]]).shape
        (2, 384)
    """

    def __init__(self, embedder: Embedder, item: EmbeddingInput) -> None:
        self.embedder = embedder
        self.item = item
        self._state: object = None
        self._features: tuple[ImageFeatures, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """The image's (height, width), upright."""
        return (self.item.images[0].shape[1], self.item.images[0].shape[2])

    def encode(
        self, prompt: VisualPrompt | Sequence[VisualPrompt] | None = None, text: str = "", *, as_tensor: bool = False
    ) -> Any:
        """Return one unit embedding, [embed_dim], of the image with a text and with one region, or several together."""
        prompts = [prompt] if isinstance(prompt, VisualPrompt) else list(prompt or ())
        (found,) = self.embed([prompts], text)
        return found if as_tensor else found.numpy()

    def regions(
        self,
        boxes: Any = (),
        points: Any = (),
        masks: Any = None,
        *,
        prompts: Iterable[VisualPrompt] = (),
        text: str = "",
        batch_size: int | None = None,
        as_tensor: bool = False,
    ) -> Any:
        """Return one unit embedding for each region, [regions, embed_dim]: boxes first, then points, masks and prompts.

        Args:
            boxes: xyxy in pixels. points: (x, y) in pixels, each of which is a region. masks: over the whole image.
            prompts: further regions, each given by any number of boxes, points and masks.
            text: stands beside the image in each row.
            batch_size: rows of a batch, instead of the embedder's.
            as_tensor: return a tensor on the CPU rather than an array.

        Raises:
            VirtueError: no region, or one outside the image.
        """
        size = self.size
        found = [VisualPrompt.from_pixels(boxes=[box], size=size) for box in as_rows(boxes)]
        found += [VisualPrompt.from_pixels(points=[point], size=size) for point in as_rows(points)]
        found += [VisualPrompt.from_pixels(masks=mask[None], size=size) for mask in (() if masks is None else masks)]
        found += prompts
        if not found:
            raise VirtueError("regions: none are given, expected boxes, points, masks or prompts")
        embeddings = self.embed([[prompt] for prompt in found], text, batch_size)
        return embeddings if as_tensor else embeddings.numpy()

    def embed(
        self, rows: Sequence[Sequence[VisualPrompt]], text: str, batch_size: int | None = None
    ) -> Float[Tensor, "rows dim"]:
        """Return an embedding for each row of prompts, each of which has the image and the text."""
        prompted = any(not prompt.is_empty for row in rows for prompt in row)
        item = replace(self.item, text=text, features=self.features(prompted))
        items = []
        for row in rows:
            first, *further = row or (VisualPrompt(),)
            items.append(replace(item, prompt=first, extra_prompts=tuple(further)))
        return self.embedder.embed(items, batch_size)

    @torch.no_grad()
    def features(self, prompted: bool) -> tuple[ImageFeatures, ...]:
        """Return the image's features, encoding those that are missing; all of them where the model has changed."""
        state = self.embedder.feature_state()
        if state != self._state:
            self._state, self._features = state, ()
        if not self._features or (prompted and not self.embedder.is_encoded(self._features[0])):
            prompt = VisualPrompt(boxes=torch.tensor([[0.0, 0.0, 1.0, 1.0]])) if prompted else VisualPrompt()
            with self.embedder.autocast():
                batch = self.embedder.prepare_batch([replace(self.item, prompt=prompt, features=self._features)])
            self._features = tuple(batch.images.features)
        return self._features


def as_rows(values: Any) -> list[Any]:
    """Return boxes or points as a list, one entry each; tensors and arrays become lists."""
    return values.tolist() if hasattr(values, "tolist") else list(values)
