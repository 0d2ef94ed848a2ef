"""The encoder of one part: decoding beside the model, an image's towers once; the same in every engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from virtue_pl.apps.encoding.documents import Content, Document, decode_ahead
from virtue_pl.apps.encoding.engine import Advance, EncodeOptions
from virtue_pl.apps.encoding.parts import PartFacts
from virtue_pl.apps.encoding.proposals import Proposal, box_around, propose_regions, run_lengths
from virtue_pl.data.shards.stored_prompts import box_of_points
from virtue_pl.embedder import Embedder, convert_vectors
from virtue_pl.preprocessing.embedding_rows import check_prompt_sizes
from virtue_pl.search import EncodedRow
from virtue_pl.types import DataError, EmbeddingInput, VirtueError, VisualPrompt, join_instruction


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
