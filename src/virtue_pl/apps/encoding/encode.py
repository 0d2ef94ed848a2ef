"""Encode the documents of a source into a folder, part by part, in this process or on a cluster."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from virtue_pl.apps.encoding.engine import Advance, EncodeOptions, EncodingJob, Engine, Model
from virtue_pl.apps.encoding.local_engine import LocalEngine
from virtue_pl.apps.encoding.parts import PartFacts, check_about, hold_folder
from virtue_pl.apps.encoding.sources import DocumentSource
from virtue_pl.search import EncodingFacts, row_schema
from virtue_pl.types import VirtueError

PACKAGES = ("virtue-pl", "torch", "transformers")
"""Packages whose versions the facts of an encoding name."""
NAMED = 100
"""Number of documents left out that a report names for each part."""


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


def encode_source(
    model: Model,
    source: DocumentSource,
    out: Path,
    options: EncodeOptions = EncodeOptions(),
    advance: Advance = lambda count: None,
    engine: Engine | None = None,
) -> EncodingReport:
    """Encode all documents of a source into a folder, and return what is there.

    Parts that are there are not encoded again, nor changed, whichever engine wrote them.

    Args:
        model: an embedder, or what loads it; engines of several processes need the latter.
        source: the documents.
        out: the folder; every node of a cluster must see it, and the source, under the same path.
        options: what the rows depend on, and sizes.
        advance: is called as documents are done.
        engine: where they are encoded; by default in this process.

    Raises VirtueError where the folder is of another model, source or setting, is in use, an embedding is not finite,
    or a cluster cannot be reached.
    """
    engine = engine or LocalEngine()
    with engine.session(), hold_folder(out):
        facts = encoding_facts(*engine.describe(model), options)
        about = check_about(out, describe_encoding(facts, source, options))
        facts = replace(facts, model=about["notes"]["model"], versions=about["notes"]["versions"])
        job = EncodingJob.resume(source, out, options, row_schema(facts, source.columns), facts.fingerprint)
        for part in job.written.values():
            advance(part.documents)
        encoded = dict(engine.encode(model, job, advance))
        report = EncodingReport(encoded=sum(part.documents for part in encoded.values()))
        for _, part in sorted({**job.written, **encoded}.items()):
            report.add(part)
        return report


def encoding_facts(fingerprint: str, embed_dim: int, options: EncodeOptions) -> EncodingFacts:
    """Return the facts that a search needs. Raises VirtueError for more dimensions than an embedding has."""
    dim = options.truncate_dim or embed_dim
    if dim > embed_dim:
        raise VirtueError(f"truncate_dim is {dim}, expected at most {embed_dim}, the model's")
    versions = {name: version(name) for name in PACKAGES}
    return EncodingFacts(fingerprint, options.model, dim, options.instruction, options.documents, versions)


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
