"""Engines of bulk encoding: what each is given, and what all of them do alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from virtue_pl.apps.encoding.documents import Document
from virtue_pl.apps.encoding.lance_parts import LanceParts
from virtue_pl.apps.encoding.parts import ParquetParts, PartFacts, Parts
from virtue_pl.apps.encoding.proposals import ProposalOptions
from virtue_pl.apps.encoding.sources import Documents, DocumentSource
from virtue_pl.embedder import Embedder
from virtue_pl.types import VirtueError

Model = Embedder | Callable[[], Embedder]
"""An embedder, or what loads it."""
Advance = Callable[[int], object]
"""Called with a number of documents that are in the folder, or that are embedded."""

Format = Literal["parquet", "lance"]
FORMATS: dict[str, type[Any]] = {"parquet": ParquetParts, "lance": LanceParts}
"""Writers of parts, by the name of their format."""


@dataclass(frozen=True)
class EncodeOptions:
    """Settings of an encoding.

    documents: "images", "texts" or "regions". instruction: stands before each text. truncate_dim: of the embeddings.
    proposals: how regions are proposed; None where they are given. part_documents: documents of a part. batch_size:
    rows of a batch; None for the embedder's. threads: of decoding. model: where it was loaded from, for people.
    source: of the documents, for people.

    Example:
        >>> EncodeOptions("regions", proposals=ProposalOptions(points=8)).format
        'parquet'
    """

    documents: Documents = "images"
    instruction: str = ""
    truncate_dim: int | None = None
    proposals: ProposalOptions | None = None
    format: Format = "parquet"
    part_documents: int = 512
    batch_size: int | None = None
    threads: int = 2
    model: str = ""
    source: str = ""
    max_pixels: int = 25_000_000
    row_options: str = ""


@dataclass(frozen=True, eq=False)
class EncodingJob:
    """One encoding: what is to be in the folder, and what is there.

    source, out, options: see `encode_source`. schema: of the rows. fingerprint: of the model. parts: those of the
    folder. written: the facts of those that were there, by number.

    Example:
        >>> job = EncodingJob.resume(source, Path("out"), EncodeOptions(), schema, fingerprint)  # doctest: +SKIP
        >>> [number for number, documents in job.missing_parts()]  # doctest: +SKIP
        [2, 3]
    """

    source: DocumentSource
    out: Path
    options: EncodeOptions
    schema: pa.Schema
    fingerprint: str
    parts: Parts
    written: Mapping[int, PartFacts]

    @classmethod
    def resume(
        cls, source: DocumentSource, out: Path, options: EncodeOptions, schema: pa.Schema, fingerprint: str
    ) -> EncodingJob:
        """Return the job of a folder that is held, with the parts that are in it."""
        parts: Parts = FORMATS[options.format](out, schema)
        return cls(source, out, options, schema, fingerprint, parts, parts.written())

    def missing_parts(self) -> Iterator[tuple[int, list[Document]]]:
        """Yield the number and the documents of each part that was not there, see `missing_parts`."""
        sizes = {number: part.documents for number, part in self.written.items()}
        return missing_parts(self.source, self.options.part_documents, sizes, self.out)


def missing_parts(
    source: DocumentSource, part_documents: int, written: Mapping[int, int], out: Path
) -> Iterator[tuple[int, list[Document]]]:
    """Yield the number and the documents of each part of a source that is not written yet.

    written: the documents of those that are. Raises VirtueError where one is of another number of documents than the
    source has there.
    """
    remaining = iter(source.documents())
    number = 0
    while documents := list(islice(remaining, part_documents)):
        if number not in written:
            yield number, documents
        elif written[number] != len(documents):
            raise VirtueError(
                f"{out}: part {number} is of {written[number]:,} documents, and the source has {len(documents):,}"
                " there: it has changed, give another --out"
            )
        number += 1


class Engine(ABC):
    """A place where documents are encoded: all do it by `PartEncoder`, and write the same parts.

    Example:
        >>> report = encode_source(embedder, source, out, options, engine=LocalEngine())  # doctest: +SKIP
    """

    def session(self) -> AbstractContextManager[object]:
        """Return a context in which `describe` and `encode` may be called; it may be entered within itself."""
        return nullcontext()

    @abstractmethod
    def describe(self, model: Model) -> tuple[str, int]:
        """Return a model's fingerprint, and the length of its embeddings."""

    @abstractmethod
    def encode(self, model: Model, job: EncodingJob, advance: Advance) -> Iterator[tuple[int, PartFacts]]:
        """Yield the number and facts of each missing part of a job, in any order, once it is committed."""
