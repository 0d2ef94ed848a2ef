"""The rows that bulk encoding writes and an index holds: one embedding each, with where it comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from virtue_pl.search.hits import OWN_COLUMNS
from virtue_pl.types import VirtueError

FACTS = b"virtue_pl"
"""Key of a schema's metadata with the facts of the encoding, as JSON."""


@dataclass(frozen=True)
class EncodingFacts:
    """Facts that embeddings depend on beside what is embedded; embeddings of other facts cannot be compared.

    fingerprint: `Embedder.fingerprint()`. model: where it was loaded from, for people. dim: the length of an embedding,
    after `truncate_dim`. instruction: what stood before the texts. documents: "images", "regions" or "texts".

    Example:
        >>> EncodingFacts("0a1b", "runs/quickstart", 384).instruction
        ''
    """

    fingerprint: str
    model: str
    dim: int
    instruction: str = ""
    documents: str = "images"
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_metadata(self) -> dict[bytes, bytes]:
        """Return the facts as a schema's metadata."""
        return {FACTS: json.dumps(asdict(self), sort_keys=True).encode()}

    @classmethod
    def from_schema(cls, schema: pa.Schema, source: str) -> EncodingFacts:
        """Return the facts of a file or a table. Raises VirtueError, which names `source`, where it has none."""
        try:
            return cls(**json.loads((schema.metadata or {})[FACTS]))
        except (KeyError, TypeError, ValueError) as error:
            raise VirtueError(
                f"{source} does not say by which model it was encoded: write it with `virtue-pl encode`"
            ) from error


@dataclass(frozen=True)
class EncodedRow:
    """One embedding, and where it comes from.

    id: unique; `document` for a whole one, `document#number` for a region. document: a path below the encoded folder,
    or a record's key. image: the path or URI of the image, None for a text. text: its words, if any. region: the
    region's number within its document, None for a whole one. box: xyxy, normalised. mask: COCO's run lengths as JSON.
    quality: the segmentation model's own estimate of a proposed region's IoU. columns: further values of the document,
    which searches filter by.

    Example:
        >>> EncodedRow("street.jpg#0", "street.jpg", np.zeros(4, np.float32), "street.jpg", region=0).region
        0
    """

    id: str
    document: str
    vector: np.ndarray
    image: str | None = None
    text: str | None = None
    region: int | None = None
    box: tuple[float, float, float, float] | None = None
    mask: str | None = None
    quality: float | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


def row_schema(facts: EncodingFacts, columns: Mapping[str, pa.DataType] | None = None) -> pa.Schema:
    """Return the schema of encoded rows. Raises VirtueError for a document's column of a name that the index has.

    Example:
        >>> row_schema(EncodingFacts("0a1b", "runs/quickstart", 384)).field("vector").type
        FixedSizeListType(fixed_size_list<item: float>[384])
    """
    clashing = [name for name in columns or {} if name in OWN_COLUMNS]
    if clashing:
        raise VirtueError(f"a document has a column {clashing[0]!r}, a name of the index's own: give it another name")
    fields = [
        ("id", pa.string()),
        ("document", pa.string()),
        ("image", pa.string()),
        ("text", pa.string()),
        ("region", pa.int32()),
        ("box", pa.list_(pa.float32(), 4)),
        ("mask", pa.string()),
        ("quality", pa.float32()),
        *(columns or {}).items(),
        ("vector", pa.list_(pa.float32(), facts.dim)),
    ]
    return pa.schema(fields, metadata=facts.to_metadata())


def to_table(rows: Sequence[EncodedRow], schema: pa.Schema) -> pa.Table:
    """Return rows as a table of `row_schema`'s schema."""
    own = {name for name in OWN_COLUMNS if name != "vector"}
    columns = {
        name: pa.array([getattr(row, name) if name in own else row.columns.get(name) for row in rows], type=kind)
        for name, kind in zip(schema.names, schema.types, strict=True)
        if name != "vector"
    }
    dim = schema.field("vector").type.list_size
    vectors = np.stack([row.vector for row in rows]) if rows else np.empty((0, dim))
    flat = pa.array(vectors.astype(np.float32).reshape(-1))
    columns["vector"] = pa.FixedSizeListArray.from_arrays(flat, dim)
    return pa.table([columns[name] for name in schema.names], schema=schema)
