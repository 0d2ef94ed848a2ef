"""`LanceDBEmbeddings`: a model of this package as LanceDB's embedding function "virtue".

    import virtue_pl.integrations.lancedb  # registers it
    from lancedb.embeddings import get_registry
    from lancedb.pydantic import LanceModel, Vector

    virtue = get_registry().get("virtue").create(name="FOLDER", strings="image")

    class Photo(LanceModel):
        path: str = virtue.SourceField()
        vector: Vector(virtue.ndims()) = virtue.VectorField()

A table then embeds what is added to it, and `table.search` takes a text, an image, or a request with an image, regions
and a text. It needs the extra `search`, as `virtue-pl index` does. A program that opens such a table imports this
module first, since a table names its function by the word "virtue".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import Field, PrivateAttr, ValidationError

from virtue_pl.embedder import Embedder
from virtue_pl.integrations.request_encoder import RequestEncoder, check_names
from virtue_pl.preprocessing.images import MAX_PIXELS
from virtue_pl.types import VirtueError
from virtue_pl.types.requests import EmbeddingRequest, describe_problem

try:
    from lancedb.embeddings import EmbeddingFunction, register
except ModuleNotFoundError as error:
    raise VirtueError(
        f"virtue_pl.integrations needs lancedb, which is not installed ({error}): pip install 'virtue-pl[search]'"
    ) from error

LOADED_MODELS = 2
"""Models that stay in memory: LanceDB makes a new function each time that rows are added."""


@register("virtue")
class LanceDBEmbeddings(EmbeddingFunction):
    """The embedding function "virtue" of LanceDB's registry.

    A source column has texts, paths or bytes of images, or structs with the keys of a request (`text`, `image`,
    `regions`); null stays null. Embeddings have length 1: the distances "cosine", "dot" and "l2" rank alike.

    name: the folder, hub name or run's checkpoint, see `Embedder.from_pretrained`. strings: what the strings of a
    source column are; a query that is a string is a text. instructions: for "query" and "document", what stands before
    each text. truncate_dim: the number of first dimensions, scaled back to length 1. fingerprint: of the model that the
    table's vectors are of, which the table notes and which is compared. device, dtype, batch_size, cached_images and
    max_pixels are the embedder's.

    Raises VirtueError for an unknown option or another type of value, and, where it embeds, for another model than the
    table's.

    Example:
        >>> LanceDBEmbeddings.create(name="exported").ndims()  # doctest: +SKIP
        384
    """

    name: str
    strings: Literal["text", "image"] = "text"
    instructions: dict[str, str] = Field(default_factory=dict)
    truncate_dim: int | None = None
    fingerprint: str | None = None
    device: str = "auto"
    dtype: str = "float32"
    batch_size: int = 16
    cached_images: int = 32
    max_pixels: int = MAX_PIXELS
    _encoder: RequestEncoder | None = PrivateAttr(None)

    def __init__(self, **options: Any) -> None:
        check_names("options", options, list(type(self).model_fields))
        try:
            super().__init__(**options)
        except ValidationError as error:
            raise VirtueError(describe_problem(error.errors(include_url=False))) from error  # type: ignore[arg-type]

    @property
    def encoder(self) -> RequestEncoder:
        """The model, which is loaded when it is first needed. Raises VirtueError for another than the table's."""
        if self._encoder is None:
            embedder, fingerprint = self.load()
            if self.fingerprint not in (None, fingerprint):
                raise VirtueError(
                    f"{self.name} is another model ({fingerprint[:12]}) than that of the table's vectors"
                    f" ({self.fingerprint[:12]}), or of other versions of its libraries: put that model there, or embed"
                    " the rows anew"
                )
            self._encoder = RequestEncoder(embedder, self.instructions, self.truncate_dim)
        return self._encoder

    def load(self) -> LoadedModel:
        """Return the model with its fingerprint; functions of the same options share it."""
        return load_once(
            *(self.name, newest_file(self.name), self.device, self.dtype),
            *(self.batch_size, self.cached_images, self.max_pixels),
        )

    def safe_model_dump(self) -> dict[str, Any]:
        """Return the options that a table notes, with the model's fingerprint."""
        return {**super().safe_model_dump(), "fingerprint": self.load().fingerprint}

    def __eq__(self, other: object) -> bool:
        """Return whether another function has the same options."""
        return isinstance(other, LanceDBEmbeddings) and self.model_dump() == other.model_dump()

    def __hash__(self) -> int:
        """Return a hash of the options."""
        return hash(self.model_dump_json())

    def ndims(self) -> int:
        """Return the length of an embedding."""
        return self.encoder.embed_dim

    def compute_query_embeddings(self, query: Any, *args: Any, **kwargs: Any) -> list[np.ndarray | None]:
        """Return the embedding of a query, in a list: a text, an image, or a request as a mapping.

        Raises VirtueError for anything else.
        """
        return list(self.encoder.encode([query], "query"))

    def compute_source_embeddings(self, values: Any, *args: Any, **kwargs: Any) -> list[np.ndarray | None]:
        """Return an embedding for each value of a column, in order; None for null.

        Raises VirtueError, which names the row, for a value that is no input.
        """
        rows = [without_nulls(value) for value in as_list(values)]
        filled = [number for number, row in enumerate(rows) if row is not None]
        found: list[np.ndarray | None] = [None] * len(rows)
        for number, vector in zip(
            filled, self.encoder.encode([rows[number] for number in filled], "document", self.strings), strict=True
        ):
            found[number] = vector
        return found

    def compute_query_embeddings_with_retry(self, *args: Any, **kwargs: Any) -> list[np.ndarray | None]:
        """Return `compute_query_embeddings`, at once: what fails here fails again, unlike a remote service."""
        return self.compute_query_embeddings(*args, **kwargs)

    def compute_source_embeddings_with_retry(self, *args: Any, **kwargs: Any) -> list[np.ndarray | None]:
        """Return `compute_source_embeddings`, at once, see `compute_query_embeddings_with_retry`."""
        return self.compute_source_embeddings(*args, **kwargs)


class LoadedModel(NamedTuple):
    """An embedder with its fingerprint, which takes a look at every tensor.

    Example:
        >>> embedder, fingerprint = LanceDBEmbeddings.create(name="exported").load()  # doctest: +SKIP
    """

    embedder: Embedder
    fingerprint: str


@lru_cache(LOADED_MODELS)
def load_once(
    name: str, changed: int, device: str, dtype: str, batch_size: int, cached_images: int, max_pixels: int
) -> LoadedModel:
    """Return a model, loading it where these options are new, or its files have `changed`."""
    embedder = Embedder.from_pretrained(
        name, device=device, dtype=dtype, batch_size=batch_size, cached_images=cached_images, max_pixels=max_pixels
    )
    return LoadedModel(embedder, embedder.fingerprint())


def newest_file(name: str) -> int:
    """Return when a model's files last changed, in nanoseconds; 0 for a name of the hub."""
    path = Path(name)
    return max((one.stat().st_mtime_ns for one in (path, *path.rglob("*")) if one.exists()), default=0)


def as_list(values: Any) -> list[Any]:
    """Return the values of a column; one value alone is a list of one."""
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return list(values.to_pylist())
    if isinstance(values, Sequence) and not isinstance(values, str | bytes):
        return list(values)
    return [values]


def without_nulls(value: Any) -> Any:
    """Return a struct of a column without its nulls, which stand for keys that a row does not have."""
    if isinstance(value, Mapping) and not isinstance(value, EmbeddingRequest):
        return {key: without_nulls(each) for key, each in value.items() if each is not None} or None
    return [without_nulls(each) for each in value] if isinstance(value, list) else value
