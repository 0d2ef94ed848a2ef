"""Inputs as callers of other libraries give them: each becomes one request, and so one embedding.

`RequestEncoder` is what the embedding classes for other libraries have in common; no other library is imported here.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from virtue_pl.embedder import Embedder, convert_vectors
from virtue_pl.preprocessing.embedding_rows import names_image
from virtue_pl.preprocessing.requests import is_image_uri
from virtue_pl.types import VirtueError
from virtue_pl.types.errors import suggest_name
from virtue_pl.types.prompt_values import describe
from virtue_pl.types.requests import EmbeddingRequest, Message, read_request

ROLES = ("query", "document")
"""Roles of an input, each of which may have an instruction."""

LOCKS: WeakKeyDictionary[Embedder, Lock] = WeakKeyDictionary()
"""A lock for each embedder, which encodes for one thread at a time."""


class RequestEncoder:
    """An embedder as other libraries call it: one embedding for each input, for one thread at a time.

    Args:
        model: the folder, hub name or run's checkpoint, see `Embedder.from_pretrained`; or an embedder.
        instructions: for "query" and "document", what stands before each text; by default those of the embedder.
        truncate_dim: the number of first dimensions, scaled back to length 1; None for all.
        options: of `Embedder.from_pretrained`, such as device or max_pixels.

    Raises VirtueError for an unknown option or role, and for more dimensions than the model has.

    Example:
        >>> encoder = RequestEncoder("exported", instructions={"query": "Find the caption."})  # doctest: +SKIP
        >>> encoder.encode([{"image": "street.jpg", "regions": [{"box": [10, 20, 200, 240]}]}], "query").shape
        (1, 384)
    """

    def __init__(
        self,
        model: str | Path | Embedder,
        instructions: Mapping[str, str] | None = None,
        truncate_dim: int | None = None,
        **options: Any,
    ) -> None:
        check_names("instructions", instructions or {}, ROLES)
        self.embedder = load_embedder(model, **options)
        self.instructions = dict(instructions or {})
        self.truncate_dim = truncate_dim
        self.embed_dim = int(convert_vectors(torch.zeros(1, self.embedder.embed_dim), truncate_dim).shape[1])
        self._lock = LOCKS.setdefault(self.embedder, Lock())

    def encode(
        self, values: Sequence[Any], role: Literal["query", "document"], strings: Literal["text", "image"] = "text"
    ) -> np.ndarray:
        """Return a unit float32 embedding for each value, [values, embed_dim], in order.

        Args:
            values: see `to_request`.
            role: whose instruction stands before each text.
            strings: what strings are, see `to_request`.

        Raises VirtueError, which names the row, for what is no input.
        """
        if isinstance(values, str | Mapping | EmbeddingRequest):
            raise VirtueError(f"found {describe(values)} alone, expected a list of inputs: put it into a list")
        requests: list[Any] = []
        for number, value in enumerate(values):
            try:
                requests.append(to_request(value, strings))
            except VirtueError as error:
                raise VirtueError(f"row {number}: {error}") from error
        instruction = self.embedder.instruction(role, self.instructions.get(role))
        with self._lock:
            found = self.embedder.encode(requests, instruction=instruction, truncate_dim=self.truncate_dim)
        return np.asarray(found)


def load_embedder(model: str | Path | Embedder, **options: Any) -> Embedder:
    """Return an embedder as it is, or load one.

    Args:
        model: see `RequestEncoder`.
        options: of `Embedder.from_pretrained`.

    Raises VirtueError for options beside an embedder, and for an unknown one, with the closest name.
    """
    if isinstance(model, Embedder):
        if options:
            raise VirtueError(
                f"{', '.join(options)}: given beside an Embedder, expected with a folder: set it where the embedder is"
                " made"
            )
        return model
    if not isinstance(model, str | os.PathLike):
        raise VirtueError(f"model is {describe(model)}, expected a folder, a hub name, a checkpoint, or an Embedder")
    names = [name for name in inspect.signature(Embedder.from_pretrained).parameters if name != "name"]
    check_names("options", options, names)
    return Embedder.from_pretrained(os.fspath(model), **options)


def check_names(what: str, found: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raise VirtueError, with the closest name, for a key that is none of the names."""
    for name in found:
        if name not in names:
            raise VirtueError(f"{what}: {describe(name)} is none of this model{suggest_name(str(name), names)}")


def to_request(value: Any, strings: Literal["text", "image"] = "text") -> EmbeddingRequest:
    """Return an input as a request that asks for one embedding.

    Args:
        value: a text, an image (path as a `Path`, data URI, bytes, PIL, array or tensor), a request or a mapping with
            its keys, or a conversation as chat models are given it: a message, or a list of them.
        strings: what a string is: a text, unless it is an image's data URI, or the path or data URI of an image.

    Raises VirtueError for token ids and other values, for the path of an image as a text, and for a request that asks
    for an embedding of each region.

    Example:
        >>> to_request({"image": "street.jpg", "regions": [{"box": [10, 20, 200, 240]}]}).regions[0].box
        (10.0, 20.0, 200.0, 240.0)
        >>> to_request([3, 14, 15])
        Traceback (most recent call last):
        virtue_pl.types.errors.VirtueError: found [3, 14, 15], expected text: token ids are of another model's ...
    """
    request = read_value(value, strings)
    if request.embeddings != 1:
        raise VirtueError(
            f"regions_as is 'each', which makes {request.embeddings} embeddings of one input, expected 'joint': give a"
            " request for each region"
        )
    return request


def read_value(value: Any, strings: Literal["text", "image"]) -> EmbeddingRequest:
    """Return a value as a request. Raises VirtueError for one that is no input, see `to_request`."""
    if isinstance(value, EmbeddingRequest):
        return value
    if isinstance(value, str):
        if strings == "image" or is_image_uri(value):
            return read_request(EmbeddingRequest, {"image": value})
        if names_image(value):
            raise VirtueError(
                f'found {describe(value)}, the path of an image, expected text: give the image as {{"image": PATH}}'
            )
        return read_request(EmbeddingRequest, {"text": value})
    if isinstance(value, bytes | Path | Image.Image | np.ndarray | Tensor):
        return read_request(EmbeddingRequest, {"image": value})
    if is_message(value):
        return read_conversation([value])
    if isinstance(value, Mapping):
        return read_request(EmbeddingRequest, value)
    if isinstance(value, list | tuple) and value and all(map(is_message, value)):
        return read_conversation(value)
    if is_token_ids(value):
        raise VirtueError(
            f"found {describe(value)}, expected text: token ids are of another model's tokenizer; where LangChain makes"
            " them, set check_embedding_ctx_length=False"
        )
    raise VirtueError(f"found {describe(value)}, expected a text, an image, or a request as a mapping")


def is_token_ids(value: Any) -> bool:
    """Return whether a value is a number, or a list of numbers, which clients send instead of texts."""
    numbers = value if isinstance(value, list | tuple) and value else [value]
    return all(isinstance(each, int | float | np.number) for each in numbers)


def is_message(value: Any) -> bool:
    """Return whether a value is a message of a conversation, as chat models are given it."""
    return isinstance(value, Mapping) and "role" in value and "content" in value


def read_conversation(messages: Sequence[Mapping[str, Any]]) -> EmbeddingRequest:
    """Return the request that a conversation makes, see `EmbeddingRequest.from_messages`.

    An image is a part `{"type": "image_url", ...}` or, as transformers has it, `{"type": "image", "image": IMAGE}`, of
    any form that `to_image` takes. Either may have `regions` and `units`.

    Example:
        >>> content = [{"type": "image", "image": "street.jpg"}, {"type": "text", "text": "What is this?"}]
        >>> read_conversation([{"role": "user", "content": content}]).image
        ['street.jpg']
    """
    images: dict[str, Any] = {}
    read = [read_request(Message, name_images(message, images)) for message in messages]
    request = EmbeddingRequest.from_messages(read)
    return request.model_copy(update={"image": [images.get(name, name) for name in request.images] or None})


def name_images(message: Mapping[str, Any], images: dict[str, Any]) -> Mapping[str, Any]:
    """Return a message whose images have names instead, as its schema needs; adds them to `images` by these names."""
    content = message["content"]
    if not isinstance(content, list | tuple):
        return message
    parts = []
    for part in content:
        if isinstance(part, Mapping) and part.get("type") == "image" and "image" in part:
            rest = {key: value for key, value in part.items() if key not in ("type", "image")}
            name = part["image"] if isinstance(part["image"], str) else f"image {len(images)} in memory"
            images[name] = part["image"]
            part = {"type": "image_url", "image_url": {"url": name}, **rest}
        parts.append(part)
    return {**message, "content": parts}
