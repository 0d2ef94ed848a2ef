"""LangChain's embedding class gives the embeddings of Python, and a vector store searches with it."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore
from PIL import Image

from fixtures.running_server import BOX, PIXELS, URI
from virtue_pl.integrations import LangChainEmbeddings
from virtue_pl.types import VirtueError

TEXTS = ["a cat", "a dog on a mat", "a red house"]


@pytest.fixture(scope="module")
def embeddings(embedder):
    return LangChainEmbeddings(embedder, instructions={"query": "Find."})


def test_texts_images_and_regions(embeddings, embedder, tmp_path):
    assert isinstance(embeddings, Embeddings)
    found = embeddings.embed_documents(TEXTS)
    assert isinstance(found, list) and isinstance(found[0][0], float)
    np.testing.assert_allclose(found, embedder.encode(TEXTS), atol=1e-5)
    region = {"image": PIXELS, "regions": [BOX]}
    np.testing.assert_allclose(embeddings.embed_documents([region]), embedder.encode([region]), atol=1e-5)
    query = embeddings.embed_query(region)
    np.testing.assert_allclose(query, embedder.encode([{**region, "text": "Find."}])[0], atol=1e-5)
    np.testing.assert_allclose(embeddings.embed_query("a cat"), embedder.encode("Find. a cat")[0], atol=1e-5)
    Image.fromarray(PIXELS).save(tmp_path / "street.png")
    images = embeddings.embed_image([URI, str(tmp_path / "street.png"), tmp_path / "street.png"])
    np.testing.assert_allclose(images, np.repeat(embedder.encode(images=PIXELS), 3, axis=0), atol=1e-5)
    assert embeddings.embed_documents([]) == []


def test_a_vector_store_searches_with_it(embedder):
    store = InMemoryVectorStore(LangChainEmbeddings(embedder))
    store.add_texts(TEXTS)
    assert store.similarity_search("a dog on a mat", k=1)[0].page_content == "a dog on a mat"


def test_from_a_folder_and_asynchronously(exported, embedder):
    embeddings = LangChainEmbeddings(exported, truncate_dim=8, device="cpu")

    async def both():
        return await asyncio.gather(*(embeddings.aembed_query(text) for text in TEXTS))

    np.testing.assert_allclose(asyncio.run(both()), embedder.encode(TEXTS, truncate_dim=8), atol=1e-5)


def test_what_is_wrong_is_one_line(embeddings, exported):
    with pytest.raises(VirtueError, match="options: 'batchsize' is none of this model; did you mean 'batch_size'"):
        LangChainEmbeddings(exported, batchsize=3)
    with pytest.raises(VirtueError, match=r"row 0: found \[9707, 11\], expected text: token ids"):
        embeddings.embed_documents([[9707, 11]])
    with pytest.raises(VirtueError, match="found 'a cat' alone, expected a list"):
        embeddings.embed_documents("a cat")
