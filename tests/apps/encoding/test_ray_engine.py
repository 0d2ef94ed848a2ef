"""Bulk encoding on Ray gives the desk's rows, also where a node is killed, and each goes on where the other stopped."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from fixtures.own_files import png, write_rows
from fixtures.ray_cluster import load_dying, load_noting, read_notes
from fixtures.scar_files import write_scar
from virtue_pl.apps.encoding import EncodeOptions, LocalEngine, RayEngine, encode_source, open_source, ray_engine
from virtue_pl.apps.encoding.engine import EncodingJob, missing_parts
from virtue_pl.apps.encoding.parts import begin_attempt
from virtue_pl.apps.encoding.ray_engine import PartReader, PartWorker
from virtue_pl.apps.encoding.sources import SourceOptions
from virtue_pl.cli.main import main
from virtue_pl.cluster import RayOptions
from virtue_pl.data.conversion.scar import convert_scar
from virtue_pl.embedder import Embedder
from virtue_pl.search import (
    EncodingFacts,
    row_schema,
)
from virtue_pl.types import VirtueError

pytestmark = pytest.mark.ray

IMAGES = 40
BOXES = [[10, 8, 30, 28], [0, 0, 20, 20]]
ROWS = IMAGES * len(BOXES)
DIM = 16


@pytest.fixture(scope="module")
def regions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two boxes in each of 40 images, and a row with a damaged one."""
    rows = [{"image": f"{n:03d}.png", "boxes": BOXES, "box_format": "xyxy", "target": str(n)} for n in range(IMAGES)]
    root = write_rows(tmp_path_factory.mktemp("regions"), [*rows, {**rows[0], "image": "cut.png"}])
    for number in range(IMAGES):
        (root / f"images/{number:03d}.png").write_bytes(png(number, (50 + number, 40)))
    (root / "images/cut.png").write_bytes(png()[:60])
    return root


class DescribedEngine(RayEngine):
    """The engine for a model that is described already, which spares a process that loads it.

    Example:
        >>> report = encode(load, regions, out, DescribedEngine(RayOptions(), embedder))  # doctest: +SKIP
    """

    def __init__(self, options: RayOptions, embedder: Embedder) -> None:
        super().__init__(options)
        self.embedder = embedder

    def describe(self, model: Any) -> tuple[str, int]:
        """Return the fingerprint and the length of the embeddings of the model."""
        return self.embedder.fingerprint(), self.embedder.embed_dim


def encode(model: Any, root: Path, out: Path, engine: Any = None, **options: Any) -> Any:
    options = {"part_documents": 2, "batch_size": 4, **options}
    source = open_source(root, SourceOptions("regions"))
    advance = options.pop("advance", lambda count: None)
    return encode_source(model, source, out, EncodeOptions("regions", **options), advance, engine)


def read_table(out: Path, form: str) -> pa.Table:
    """Return the rows of a folder; of a Lance table, whose parts come as they are done, by their parts' order."""
    if form == "parquet":
        return pyarrow.dataset.dataset(out, format="parquet").to_table()
    import lancedb

    table = lancedb.connect(out).open_table("rows")
    assert EncodingFacts.from_schema(table.schema, "rows").documents == "regions"
    return table.to_arrow()


def check_equal(found: pa.Table, expected: pa.Table, in_order: bool) -> None:
    """Check that two tables have the same rows, all values the same and vectors to 1e-5."""
    if not in_order:
        found, expected = found.sort_by("id"), expected.sort_by("id")
    assert found.drop_columns("vector").to_pylist() == expected.drop_columns("vector").to_pylist()
    vectors = [np.array(table["vector"].to_pylist(), dtype=np.float32) for table in (found, expected)]
    np.testing.assert_allclose(*vectors, atol=1e-5)


@pytest.mark.parametrize("form", ["parquet", "lance"])
def test_a_killed_node_costs_no_row(ray_nodes, regions, checkpoint, embedder, tmp_path, form):
    """One of two nodes is killed in the midst: no row is missing or there twice, at most a tenth is encoded twice."""
    ray_nodes.start_second()
    notes, out = tmp_path / "notes.txt", tmp_path / "out"
    notes.touch()
    load = partial(load_noting, checkpoint, notes)
    done = [0]

    def kill_midway(count: int) -> None:
        done[0] += count
        if done[0] >= IMAGES // 3 and ray_nodes.second is not None:
            ray_nodes.kill_second()

    engine = DescribedEngine(RayOptions(actors=2), embedder)
    report = encode(partial(load, actors=2), regions, out, engine, format=form, advance=kill_midway)
    assert ray_nodes.second is None and len(read_notes(notes)) >= 2, "both nodes had work, and one of them was killed"
    assert (report.documents, report.rows, report.encoded, done[0]) == (IMAGES + 1, ROWS, IMAGES + 1, IMAGES + 1)
    assert ROWS <= read_notes(notes).total() <= 1.1 * ROWS

    desk = encode(embedder, regions, tmp_path / "desk", format=form)
    assert (desk.rows, desk.left_out, desk.named) == (report.rows, report.left_out, report.named)
    assert dict(desk.left_out) == {"damaged image": 1}
    check_equal(read_table(out, form), read_table(tmp_path / "desk", form), form == "parquet")

    before = notes.read_text()
    assert encode(load, regions, out, engine, format=form).encoded == 0
    assert encode(load_noting(checkpoint, notes), regions, out, format=form).encoded == 0
    assert notes.read_text() == before, "a rerun encodes nothing"
    assert not list(out.glob(".part*"))


@pytest.mark.parametrize("form", ["parquet", "lance"])
def test_each_engine_goes_on_where_the_other_stopped(ray_nodes, regions, checkpoint, embedder, tmp_path, form):
    def stop_at(documents: int) -> Any:
        """Return what interrupts once that many documents are there or embedded."""
        done = [0]

        def advance(count: int) -> None:
            done[0] += count
            if done[0] >= documents:
                raise KeyboardInterrupt

        return advance

    load = partial(load_noting, checkpoint, tmp_path / "notes.txt")
    (tmp_path / "notes.txt").touch()
    ray, out = RayEngine(RayOptions(actors=1)), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        encode(embedder, regions, out, format=form, part_documents=10, advance=stop_at(12))
    with pytest.raises(KeyboardInterrupt):
        encode(load, regions, out, ray, format=form, part_documents=10, advance=stop_at(20))
    report = encode(embedder, regions, out, format=form, part_documents=10)
    assert report.rows == ROWS and 0 < report.encoded <= IMAGES + 1 - 20
    assert len(read_notes(tmp_path / "notes.txt")) == 1
    encode(embedder, regions, tmp_path / "desk", format=form, part_documents=10)
    check_equal(read_table(out, form), read_table(tmp_path / "desk", form), form == "parquet")
    with pytest.raises(VirtueError, match=r"out holds an encoding of instruction .* give another --out"):
        encode(load, regions, out, ray, format=form, part_documents=10, instruction="Look.")


def test_the_command_and_the_index_find_what_those_of_the_desk_find(ray_nodes, regions, checkpoint, tmp_path, capsys):
    found = {}
    for name, engine in (("ray", ["--engine", "ray", "--ray-address", ray_nodes.address]), ("desk", [])):
        rows, index = str(tmp_path / f"{name}_rows"), str(tmp_path / f"{name}_index")
        arguments = [str(regions), "--model", str(checkpoint), "--out", rows, "--documents", "regions"]
        assert main(["encode", *arguments, "--part-size", "10", "--max-left-out", "0.1", *engine]) == 0
        captured = capsys.readouterr()
        assert captured.out == f"{rows}: {ROWS} rows of {IMAGES} documents ({IMAGES + 1} encoded now, 0 were there)\n"
        assert "damaged image" in captured.err and "ray" not in captured.err.replace(str(tmp_path), "").lower()
        assert main(["index", rows, "--out", index, *engine]) == 0
        assert "searched exactly" in capsys.readouterr().out
        query = ["--image", str(regions / "images/007.png"), "--box", "10,8,30,28", "--json"]
        assert main(["search", index, *query]) == 0
        found[name] = json.loads(capsys.readouterr().out)["answers"]
    scores = [[hit.pop("score") for hit in answers[0]["hits"]] for answers in found.values()]
    np.testing.assert_allclose(*scores, atol=1e-5)
    assert found["ray"] == found["desk"] and found["ray"][0]["hits"][0]["id"] == "train/7#0"


def test_what_a_node_lacks_is_one_line(ray_nodes, regions, checkpoint, embedder, tmp_path):
    with pytest.raises(VirtueError, match="no node of the cluster has room for an actor of 64 CPUs and 0 GPUs: there"):
        encode(partial(load_noting, checkpoint), regions, tmp_path / "out", RayEngine(RayOptions(cpus=64)))
    with pytest.raises(VirtueError, match="loads a model on every node, expected what loads it"):
        encode(embedder, regions, tmp_path / "out", RayEngine())
    missing = partial(Embedder.from_pretrained, "/no/such/model.ckpt")
    with pytest.raises(VirtueError, match=r"/no/such/model\.ckpt"):
        encode(missing, regions, tmp_path / "out", RayEngine())


def test_a_model_or_a_part_that_ends_its_processes_is_one_line(ray_nodes, regions, embedder, tmp_path, monkeypatch):
    """Each is given to another process by Ray, and the last time to the user."""
    monkeypatch.setattr(ray_engine, "MAX_ATTEMPTS", 2)  # of loading; nodes have their own
    (notes := tmp_path / "notes.txt").touch()
    load = partial(load_dying, notes)
    with pytest.raises(VirtueError, match="loading the model has ended 2 processes, out of memory or by a fault of a"):
        RayEngine(RayOptions(actors=1)).describe(load)
    assert len(read_notes(notes)) == 2
    engine = DescribedEngine(RayOptions(actors=1), embedder)
    with pytest.raises(VirtueError, match=r"part 0 \(41 documents, train/0 to train/40\) has ended 3 actors, out of"):
        encode(load, regions, tmp_path / "out", engine, part_documents=64)
    assert len(read_notes(notes)) == 2 + 3


def make_worker(embedder: Embedder, root: Path, out: Path, fingerprint: str | None = None) -> PartWorker:
    """Return a worker as an actor has it, in this process, with a folder that a run has begun."""
    encode(embedder, root, out)
    schema = pq.read_schema(out / "part-000000.parquet").with_metadata(
        row_schema(EncodingFacts.from_schema(pq.read_schema(out / "part-000000.parquet"), "")).metadata
    )
    options = EncodeOptions("regions", part_documents=2, batch_size=4)
    fingerprint = fingerprint or embedder.fingerprint()
    return PartWorker(
        lambda: embedder, out, options, schema, fingerprint, open_source(root, SourceOptions("regions")).paths
    )


def test_a_part_that_ends_its_actors_is_given_up(regions, embedder, tmp_path):
    worker = make_worker(embedder, regions, tmp_path / "out")
    part = tmp_path / "out/part-000003.parquet"
    source = open_source(regions, SourceOptions("regions"))
    documents = dict(missing_parts(source, 2, {}, tmp_path))[3]
    written = part.stat().st_mtime_ns
    assert worker.encode(3, documents)[0].rows == 4 and part.stat().st_mtime_ns == written
    part.unlink()
    for _ in range(3):
        assert begin_attempt(tmp_path / "out", 3, 3) is not None
    with pytest.raises(VirtueError, match=r"part 3 \(2 documents, train/6 to train/7\) has ended 3 actors"):
        worker.encode(3, documents)
    assert encode(embedder, regions, tmp_path / "out").encoded == 2, "the next run begins anew"
    assert not list((tmp_path / "out").glob(".part*"))


def test_another_model_or_folder_on_a_node_is_one_line(regions, embedder, tmp_path):
    worker = make_worker(embedder, regions, tmp_path / "out", fingerprint="ffff")
    with pytest.raises(VirtueError, match=r"node [\d.]+ loads another model \(\w+\) than the others \(ffff\)"):
        _ = worker.encoder
    with pytest.raises(VirtueError, match=r"does not see .*/elsewhere: expected the source and --out in a folder that"):
        PartWorker(lambda: embedder, tmp_path / "out", worker.options, worker.schema, "", (tmp_path / "elsewhere",))


def test_documents_of_every_source_travel(regions, tmp_path):
    """What is read on a node is what is read here, also where the image is in the document itself."""
    from ray import cloudpickle

    convert_scar(write_scar(tmp_path / "scar"), tmp_path / "shards")
    shutil.copytree(regions / "images", tmp_path / "photos")
    roots = [
        (regions, "regions"),
        (regions, "texts"),
        (tmp_path / "shards", "regions"),
        (tmp_path / "photos", "images"),
    ]
    for root, kind in roots:
        source = cloudpickle.loads(cloudpickle.dumps(open_source(root, SourceOptions(kind))))
        assert source.paths and all(path.exists() for path in source.paths)
        written = {1: min(4, source.count() - 4)}
        reader = PartReader(source, 4, written, tmp_path / "out")
        sent = {
            row["number"]: cloudpickle.loads(row["documents"]) for table in reader(None) for row in table.to_pylist()
        }
        here = dict(missing_parts(open_source(root, SourceOptions(kind)), 4, written, tmp_path / "out"))
        assert list(sent) == list(here) and 0 in sent and 1 not in sent
        for number, documents in here.items():
            for document, other in zip(documents, sent[number], strict=True):
                assert (document.name, document.image, document.columns) == (other.name, other.image, other.columns)
                assert describe(document) == describe(other)


def describe(document: Any) -> Any:
    """Return what a document holds, or what is wrong with it."""
    try:
        content = document.read()
    except VirtueError as error:
        return str(error)
    regions = (
        None if content.regions is None else [[prompt.boxes.tolist() for prompt in one] for one in content.regions]
    )
    return content.text, [image.key for image in content.images], regions


def test_the_local_engine_loads_a_model_that_is_not_loaded_yet(regions, checkpoint, embedder, tmp_path):
    load = partial(Embedder.from_pretrained, checkpoint, batch_size=4)
    assert LocalEngine().describe(load) == (embedder.fingerprint(), embedder.embed_dim)
    assert encode(load, regions, tmp_path / "out").rows == ROWS


def test_a_source_that_has_changed_is_one_line(regions, embedder, tmp_path):
    source = open_source(regions, SourceOptions("regions"))
    schema = row_schema(EncodingFacts(embedder.fingerprint(), "", embedder.embed_dim), source.columns)
    job = EncodingJob(source, tmp_path, EncodeOptions(part_documents=2), schema, "", None, {})  # type: ignore[arg-type]
    assert len(list(job.missing_parts())) == IMAGES // 2 + 1
    with pytest.raises(VirtueError, match="part 1 is of 7 documents, and the source has 2 there: it has changed"):
        list(missing_parts(source, 2, {1: 7}, tmp_path))
