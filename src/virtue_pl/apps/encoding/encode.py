"""Encode the documents of a source, part by part: decoding beside the model, an image's towers once, whole parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from virtue_pl.apps.encoding.documents import Content, Document, decode_ahead
from virtue_pl.apps.encoding.lance_parts import LanceParts
from virtue_pl.apps.encoding.parts import ParquetParts, PartFacts, Parts, check_about, hold_folder
from virtue_pl.apps.encoding.proposals import Proposal, ProposalOptions, box_around, propose_regions, run_lengths
from virtue_pl.apps.encoding.sources import Documents, DocumentSource
from virtue_pl.data.shards.stored_prompts import box_of_points
from virtue_pl.embedder import Embedder, convert_vectors
from virtue_pl.preprocessing.embedding_rows import check_prompt_sizes
from virtue_pl.search import EncodedRow, EncodingFacts, row_schema
from virtue_pl.types import DataError, EmbeddingInput, VirtueError, VisualPrompt, join_instruction

PACKAGES = ("virtue-pl", "torch", "transformers")
"""Packages whose versions the facts of an encoding name."""
NAMED = 100
"""Number of documents left out that a report names for each part."""

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


@dataclass
class EncodingReport:
    """Result of an encoding.

    documents: all of the source, with those left out. rows: all embeddings in the folder. encoded: documents that this
    run encoded. left_out: counts by reason. named: name and problem of the first ones.

    Example:
        >>> EncodingReport(documents=3, rows=2, left_out=Counter({"damaged image": 1})).total_left_out
        1
    """

    documents: int = 0
    rows: int = 0
    encoded: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    named: list[tuple[str, str]] = field(default_factory=list)

    @property
    def total_left_out(self) -> int:
        """The number of documents left out."""
        return self.left_out.total()

    def add(self, part: PartFacts) -> None:
        """Count a part."""
        self.documents += part.documents
        self.rows += part.rows
        self.left_out.update(problem.partition(":")[0] for _, problem in part.left_out)
        self.named += part.left_out[: max(0, NAMED - len(self.named))]


Advance = Callable[[int], object]
"""Called with a number of documents that are in the folder, or that are embedded."""


def encode_source(
    embedder: Embedder,
    source: DocumentSource,
    out: Path,
    options: EncodeOptions = EncodeOptions(),
    advance: Advance = lambda count: None,
) -> EncodingReport:
    """Encode all documents of a source into a folder, and return what is there.

    Parts that are there are not encoded again, nor changed. Raises VirtueError where the folder is of another model,
    source or setting, is in use, or an embedding is not finite.
    """
    facts = encoding_facts(embedder, options)
    with hold_folder(out):
        about = check_about(out, describe_encoding(facts, source, options))
        facts = replace(facts, model=about["notes"]["model"], versions=about["notes"]["versions"])
        parts: Parts = FORMATS[options.format](out, row_schema(facts, source.columns))
        written, report = parts.written(), EncodingReport()
        encoder = PartEncoder(embedder, options)
        remaining = iter(source.documents())
        number = 0
        while documents := list(islice(remaining, options.part_documents)):
            part = written.get(number)
            if part is None:
                part, rows = encoder.encode(documents, advance)
                parts.write(number, part, rows)
                report.encoded += part.documents
            else:
                check_length(part, len(documents), number, out)
                advance(part.documents)
            report.add(part)
            number += 1
        return report


def check_length(part: PartFacts, documents: int, number: int, out: Path) -> None:
    """Raise VirtueError where a part is of another number of documents than the source has there."""
    if part.documents != documents:
        raise VirtueError(
            f"{out}: part {number} is of {part.documents:,} documents, and the source has {documents:,} there: it has"
            " changed, give another --out"
        )


def encoding_facts(embedder: Embedder, options: EncodeOptions) -> EncodingFacts:
    """Return the facts that a search needs. Raises VirtueError for more dimensions than an embedding has."""
    dim = options.truncate_dim or embedder.embed_dim
    if dim > embedder.embed_dim:
        raise VirtueError(f"truncate_dim is {dim}, expected at most {embedder.embed_dim}, the model's")
    versions = {name: version(name) for name in PACKAGES}
    return EncodingFacts(embedder.fingerprint(), options.model, dim, options.instruction, options.documents, versions)


def describe_encoding(facts: EncodingFacts, source: DocumentSource, options: EncodeOptions) -> dict[str, Any]:
    """Return all that the rows in a folder depend on, and notes for people."""
    return {
        "fingerprint": facts.fingerprint,
        "source": source.kind,
        "content": source.digest(),
        "documents": facts.documents,
        "instruction": facts.instruction,
        "dim": facts.dim,
        "proposals": None if options.proposals is None else asdict(options.proposals),
        "row_options": options.row_options,
        "max_pixels": int(options.max_pixels),
        "format": options.format,
        "part_documents": options.part_documents,
        "notes": {"model": facts.model, "source": options.source, "versions": dict(facts.versions)},
    }


@dataclass(frozen=True, eq=False)
class RegionRow:
    """An input, and the row that its embedding makes.

    Example:
        >>> RegionRow(EmbeddingInput("a kettle"), {"id": "captions/0", "document": "captions/0"}).fields["id"]
        'captions/0'
    """

    item: EmbeddingInput
    fields: Mapping[str, Any]


class PartEncoder:
    """An encoder of the documents of one part after the other; a window of a few batches is decoded at a time.

    Example:
        >>> part, rows = PartEncoder(embedder, EncodeOptions()).encode(documents)  # doctest: +SKIP
    """

    def __init__(self, embedder: Embedder, options: EncodeOptions) -> None:
        self.embedder, self.options = embedder, options
        self.batch_size = embedder.check_batch_size(options.batch_size)
        self.window = self.batch_size * (32 if options.documents == "texts" else 2)

    def encode(
        self, documents: Sequence[Document], advance: Advance = lambda count: None
    ) -> tuple[PartFacts, list[EncodedRow]]:
        """Return a part of documents, and its rows in their order."""
        rows: list[EncodedRow] = []
        left_out: list[tuple[str, str]] = []
        waiting: list[RegionRow] = []
        documents_waiting = 0
        for document, content in decode_ahead(documents, self.batch_size, self.options.threads, self.check):
            if isinstance(content, VirtueError):
                left_out.append((document.name, getattr(content, "problem", str(content))))
            elif found := list(self.rows_of(document, content)):
                waiting += found
            else:
                left_out.append((document.name, "no region: the model proposes none"))
            documents_waiting += 1
            if len(waiting) >= self.window:
                rows += self.embed(waiting)
                advance(documents_waiting)
                waiting, documents_waiting = [], 0
        rows += self.embed(waiting)
        advance(documents_waiting)
        return PartFacts(len(documents), len(rows), tuple(left_out)), rows

    def check(self, content: Content) -> None:
        """Raise VirtueError for content that the model cannot read."""
        item = to_item(content, self.options.instruction)
        if not item.text and not item.images:
            raise DataError("", "empty document: it has neither a text nor an image")
        regions = content.regions or ((),)
        check_prompt_sizes([with_prompts(item, prompts) for prompts in regions])
        try:
            self.embedder.collator.check_input(item)
        except DataError:
            raise
        except VirtueError as error:
            raise DataError("", f"unreadable by the model: {error}") from error

    def rows_of(self, document: Document, content: Content) -> Iterator[RegionRow]:
        """Yield a document's rows: one, or one for each region, which are proposed if the options say so."""
        item = to_item(content, self.options.instruction)
        fields: dict[str, Any] = {"document": document.name, "image": document.image, "text": content.text or None}
        fields["columns"] = document.columns
        if self.options.proposals is not None:
            for number, proposal in enumerate(propose_regions(self.embedder, item, self.options.proposals)):
                found = {"id": f"{document.name}#{number}", "region": number, **proposal_fields(proposal)}
                yield RegionRow(with_prompts(item, (proposal.prompt,)), {**fields, **found})
        elif content.regions is None:
            yield RegionRow(item, {**fields, "id": document.name})
        else:
            for number, prompts in enumerate(content.regions):
                found = {"id": f"{document.name}#{number}", "region": number, **region_fields(prompts, item)}
                yield RegionRow(with_prompts(item, prompts), {**fields, **found})

    def embed(self, rows: Sequence[RegionRow]) -> list[EncodedRow]:
        """Return the rows with their embeddings."""
        if not rows:
            return []
        vectors = self.embedder.embed([row.item for row in rows], self.batch_size)
        found = np.asarray(convert_vectors(vectors, self.options.truncate_dim))
        return [EncodedRow(vector=vector, **row.fields) for vector, row in zip(found, rows, strict=True)]


def to_item(content: Content, instruction: str) -> EmbeddingInput:
    """Return what a document holds as an input, behind the instruction, without its regions."""
    text = join_instruction(instruction, content.text)
    images = tuple(image.pixels for image in content.images)
    return EmbeddingInput(text, images, image_keys=tuple(image.key for image in content.images))


def with_prompts(item: EmbeddingInput, prompts: Sequence[VisualPrompt]) -> EmbeddingInput:
    """Return an input with the prompts of one region."""
    first, *further = prompts or (VisualPrompt(),)
    return replace(item, prompt=first, extra_prompts=tuple(further))


def proposal_fields(proposal: Proposal) -> dict[str, Any]:
    """Return a proposal's box, mask and quality as a row has them."""
    return {"box": proposal.box, "mask": run_lengths(proposal.mask), "quality": proposal.quality}


def region_fields(prompts: Sequence[VisualPrompt], item: EmbeddingInput) -> dict[str, Any]:
    """Return the box around a region, and its mask if it has one, as a row has them."""
    masks = [mask.numpy() for prompt in prompts for mask in prompt.masks]
    corners = [*torch.cat([prompt.boxes for prompt in prompts]).tolist(), *map(box_around, masks)]
    inside = torch.cat([prompt.points[prompt.point_labels == 1] for prompt in prompts])
    if not corners and len(inside):
        corners = [box_of_points(inside, (item.images[0].shape[1], item.images[0].shape[2])).tolist()]
    found: dict[str, Any] = {}
    if corners:
        low = [max(0.0, min(box[axis] for box in corners)) for axis in (0, 1)]
        found["box"] = (*low, *(min(1.0, max(box[axis] for box in corners)) for axis in (2, 3)))
    if masks:
        found["mask"] = run_lengths(np.any(masks, axis=0) if len({mask.shape for mask in masks}) == 1 else masks[0])
    return found
