"""`LangChainEmbeddings`: a model of this package as LangChain's embedding class, with images and regions.

    from virtue_pl.integrations import LangChainEmbeddings

    embeddings = LangChainEmbeddings("FOLDER")
    embeddings.embed_query("a cat")
    embeddings.embed_documents([{"image": "street.jpg", "regions": [{"box": [10, 20, 200, 240]}]}])

It runs the model in this process, and needs the extra `langchain`. A model that `virtue-pl serve` answers with is
reached by langchain-openai's own class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from virtue_pl.embedder import Embedder
from virtue_pl.integrations.request_encoder import RequestEncoder
from virtue_pl.types import VirtueError

try:
    from langchain_core.embeddings import Embeddings
except ModuleNotFoundError as error:
    raise VirtueError(
        f"virtue_pl.integrations needs langchain-core, which is not installed ({error}):"
        " pip install 'virtue-pl[langchain]'"
    ) from error


class LangChainEmbeddings(Embeddings):
    """A LangChain embedding class around an `Embedder`.

    An input is a text, or an image or a request with regions (see `RequestEncoder`), where LangChain itself only gives
    texts. Embeddings have length 1: cosine similarity and inner product rank alike.

    Args:
        model: the folder, hub name or run's checkpoint, see `Embedder.from_pretrained`; or an embedder.
        instructions: for "query" and "document", what stands before each text; by default those of the embedder.
        truncate_dim: the number of first dimensions, scaled back to length 1; None for all.
        options: of `Embedder.from_pretrained`, such as device, dtype or max_pixels.

    Raises VirtueError for an unknown option.

    Example:
        >>> embeddings = LangChainEmbeddings("exported", instructions={"query": "Find."})  # doctest: +SKIP
        >>> len(embeddings.embed_query("a cat"))
        384
    """

    def __init__(
        self,
        model: str | Path | Embedder,
        *,
        instructions: Mapping[str, str] | None = None,
        truncate_dim: int | None = None,
        **options: Any,
    ) -> None:
        self.encoder = RequestEncoder(model, instructions, truncate_dim, **options)

    def embed_documents(self, texts: Sequence[Any]) -> list[list[float]]:
        """Return an embedding for each document, in order. Raises VirtueError, which names the row, for a wrong one."""
        return self.encoder.encode(texts, "document").tolist()

    def embed_query(self, text: Any) -> list[float]:
        """Return the embedding of a query: a text, an image, or a request. Raises VirtueError for anything else."""
        return self.encoder.encode([text], "query")[0].tolist()

    def embed_image(self, uris: Sequence[str | Path]) -> list[list[float]]:
        """Return an embedding for each image, by its path or data URI, as LangChain's vector stores add images."""
        return self.encoder.encode([{"image": uri} for uri in uris], "document").tolist()
