"""A LanceDB table embeds what is added to it by the function "virtue", and is searched by text, image and region."""

from __future__ import annotations

import shutil

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from lancedb.embeddings import EmbeddingFunctionConfig, get_registry
from lancedb.pydantic import LanceModel, Vector
from PIL import Image

from fixtures.running_server import BOX, PIXELS
from fixtures.tiny_release import quickstart_spec, run_checkpoint
from virtue_pl.checkpoints.export import export
from virtue_pl.integrations import LanceDBEmbeddings
from virtue_pl.integrations.lancedb import load_once
from virtue_pl.types import VirtueError

TEXTS = ["a cat", "a dog on a mat", "a red house"]
IMAGES = {f"{shift}.png": np.roll(PIXELS, 10 * shift, axis=1) for shift in range(4)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for name, pixels in IMAGES.items():
        Image.fromarray(pixels).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def table(exported, photos, tmp_path_factory):
    """A table of images by their paths, opened again as another program does."""
    virtue = get_registry().get("virtue").create(name=str(exported), strings="image", device="cpu")

    class Photo(LanceModel):
        path: str = virtue.SourceField()
        vector: Vector(virtue.ndims()) = virtue.VectorField()  # type: ignore[valid-type]

    folder = tmp_path_factory.mktemp("table")
    load_once.cache_clear()
    created = lancedb.connect(folder).create_table("photos", schema=Photo)
    created.add([{"path": str(photos / name)} for name in list(IMAGES)[:2]])
    created.add([{"path": str(photos / name)} for name in list(IMAGES)[2:]])
    return lancedb.connect(folder).open_table("photos")


def test_a_table_embeds_its_images(table, embedder):
    rows = table.to_arrow().to_pylist()
    expected = embedder.encode(images=list(IMAGES.values()))
    np.testing.assert_allclose([row["vector"] for row in rows], expected, atol=1e-5)
    assert load_once.cache_info().misses == 1, "the model is loaded once, however often rows are added"


@pytest.mark.parametrize(
    "query",
    [
        "a red house",
        Image.fromarray(IMAGES["2.png"]),
        {"image": IMAGES["2.png"], "regions": [BOX]},
        {"text": "a red house", "image": Image.fromarray(IMAGES["2.png"]), "regions": [BOX]},
    ],
    ids=["text", "image", "region", "text, image and region"],
)
def test_a_search_embeds_its_query(table, embedder, query):
    similarities = embedder.encode(images=list(IMAGES.values())) @ embedder.encode([query])[0]
    hits = table.search(query).distance_type("cosine").limit(4).to_list()
    expected = [list(IMAGES)[number] for number in np.argsort(-similarities)]
    assert [hit["path"].rpartition("/")[2] for hit in hits] == expected
    np.testing.assert_allclose([1 - hit["_distance"] for hit in hits], np.sort(similarities)[::-1], atol=1e-5)


def test_structs_bytes_texts_and_nulls_of_a_column(exported, embedder, photos):
    virtue = LanceDBEmbeddings.create(
        name=str(exported), device="cpu", truncate_dim=8, instructions={"document": "See"}
    )
    requests = [{"image": str(photos / "0.png"), "regions": [{"box": BOX["box"]}]}, None, {"text": "a cat"}]
    found = virtue.compute_source_embeddings(pa.array(requests))
    assert found[1] is None and virtue.ndims() == 8
    same = [{"image": PIXELS, "regions": [BOX], "text": "See"}, "See a cat"]
    np.testing.assert_allclose([found[0], found[2]], embedder.encode(same, truncate_dim=8), atol=1e-5)
    column = pa.chunked_array([pa.array([(photos / name).read_bytes() for name in IMAGES])])
    expected = embedder.encode(["See"] * 4, list(IMAGES.values()), truncate_dim=8)
    np.testing.assert_allclose(virtue.compute_source_embeddings(column), expected, atol=1e-5)
    np.testing.assert_allclose(
        virtue.compute_source_embeddings("a cat"), embedder.encode(["See a cat"], truncate_dim=8), atol=1e-5
    )


def test_vectors_of_another_model_are_refused(exported, tmp_path):
    """The table notes whose vectors it has: where its model is replaced, it is told before any is mixed in."""
    shutil.copytree(exported, tmp_path / "model")
    virtue = LanceDBEmbeddings.create(name=str(tmp_path / "model"), device="cpu")
    functions = [EmbeddingFunctionConfig(source_column="text", vector_column="vector", function=virtue)]
    table = lancedb.connect(tmp_path / "table").create_table(
        "texts", pa.table({"text": TEXTS}), embedding_functions=functions
    )
    assert table.search("a dog on a mat").limit(1).to_list()[0]["text"] == "a dog on a mat"
    shutil.rmtree(tmp_path / "model")
    export(run_checkpoint(tmp_path / "run", quickstart_spec(tmp_path), seed=1), tmp_path / "model")
    again = lancedb.connect(tmp_path / "table").open_table("texts")
    with pytest.raises(VirtueError, match=r"is another model .* than that of the table's vectors") as caught:
        again.search("a cat")
    assert "\n" not in str(caught.value)
    with pytest.raises((VirtueError, RuntimeError), match="is another model"):  # an error of Arrow's reader
        again.add([{"text": "a boat"}])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nam": "x"}, "options: 'nam' is none of this model; did you mean 'name'"),
        ({}, "name: is missing"),
        ({"name": "x", "batch_size": "many"}, "batch_size: found 'many', expected a valid integer"),
        ({"name": "x", "strings": "path"}, "strings: found 'path', expected 'text' or 'image'"),
    ],
)
def test_wrong_options_are_one_line(options, message):
    with pytest.raises(VirtueError, match=message) as caught:
        LanceDBEmbeddings.create(**options)
    assert "\n" not in str(caught.value)


def test_what_is_wrong_is_said_at_once(table, exported, tmp_path):
    """LanceDB's functions try again for minutes, since theirs ask a service."""
    with pytest.raises(VirtueError, match="row 0: 'regons' is no key of a request here; did you mean 'regions'"):
        table.search({"image": PIXELS, "regons": []})
    with pytest.raises((VirtueError, RuntimeError), match=r"row 0.*nowhere.png"):  # an error of Arrow's reader
        table.add([{"path": "nowhere.png"}])
    with pytest.raises(VirtueError, match=r"row 1: found \[1, 2\], expected text: token ids"):
        LanceDBEmbeddings.create(name=str(exported)).compute_source_embeddings(["a cat", [1, 2]])
    with pytest.raises(VirtueError, match="nowhere"):
        LanceDBEmbeddings.create(name=str(tmp_path / "nowhere")).ndims()


def test_functions_of_the_same_options_are_equal(exported):
    one, same = (LanceDBEmbeddings.create(name=str(exported), device="cpu") for _ in range(2))
    assert one.ndims() and one == same and hash(one) == hash(same)
    assert one != LanceDBEmbeddings.create(name=str(exported), device="cpu", truncate_dim=8)
