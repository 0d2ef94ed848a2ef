"""A page on a tiny model, a few images and their index."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures.search_files import SearchFiles, make_search_files
from virtue_pl.apps.demo.answers import Answerer
from virtue_pl.apps.demo.images import ImageShelf
from virtue_pl.apps.demo.page import Page, Sources
from virtue_pl.embedder import Embedder
from virtue_pl.search import VectorIndex

CAPTIONS = ("a cat", "a <b>dog</b>", "two birds")


@pytest.fixture(scope="session")
def searched(tmp_path_factory) -> SearchFiles:
    return make_search_files(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="session")
def embedder(searched: SearchFiles) -> Embedder:
    return Embedder.from_pretrained(searched.model, device="cpu")


@pytest.fixture
def answerer(embedder: Embedder) -> Answerer:
    return Answerer(embedder, "Find the caption.")


@pytest.fixture
def shelf(searched: SearchFiles) -> ImageShelf:
    return ImageShelf(Path(searched.images), {"1.png": ["a kite", "a tree"]})


@pytest.fixture
def page(answerer: Answerer, searched: SearchFiles) -> Page:
    return Page(Sources(answerer, ImageShelf(searched.images), VectorIndex.open(searched.index), captions=CAPTIONS))
