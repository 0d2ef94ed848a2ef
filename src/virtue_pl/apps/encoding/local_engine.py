"""The engine of one process: part after part, decoding beside the model."""

from __future__ import annotations

from collections.abc import Iterator

from virtue_pl.apps.encoding.engine import Advance, EncodingJob, Engine, Model
from virtue_pl.apps.encoding.part_encoder import PartEncoder
from virtue_pl.apps.encoding.parts import PartFacts
from virtue_pl.embedder import Embedder


class LocalEngine(Engine):
    """The engine that encodes in this process, with an embedder that is loaded already.

    Example:
        >>> fingerprint, dim = LocalEngine().describe(embedder)  # doctest: +SKIP
    """

    def describe(self, model: Model) -> tuple[str, int]:
        """Return a model's fingerprint, and the length of its embeddings."""
        embedder = load(model)
        return embedder.fingerprint(), embedder.embed_dim

    def encode(self, model: Model, job: EncodingJob, advance: Advance) -> Iterator[tuple[int, PartFacts]]:
        """Yield the number and facts of each missing part, in order, once it is committed."""
        encoder = PartEncoder(load(model), job.options)
        for number, documents in job.missing_parts():
            part, rows = encoder.encode(documents, advance)
            job.parts.write(number, part, rows)
            yield number, part


def load(model: Model) -> Embedder:
    """Return the embedder, which is loaded where it is not yet."""
    return model if isinstance(model, Embedder) else model()
