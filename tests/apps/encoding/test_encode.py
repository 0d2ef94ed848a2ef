"""Bulk encoding gives what `Embedder.encode` gives, for every kind of source, and goes on where it was stopped."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import torch

from fixtures.own_files import CAPTIONED, FORMS, HEIGHT, RUNS, SQUARE, WIDTH, pairs, png, write_images, write_rows
from fixtures.scar_files import write_scar
from virtue_pl.apps.encoding import (
    EncodeOptions,
    ProposalOptions,
    documents,
    encode_source,
    lance_parts,
    open_source,
    parts,
    proposals,
)
from virtue_pl.apps.encoding.sources import SourceOptions
from virtue_pl.data.conversion.scar import convert_scar
from virtue_pl.data.formats.own_rows import RowOptions
from virtue_pl.search import EncodingFacts
from virtue_pl.types import VirtueError, VisualPrompt

SIZE = (HEIGHT, WIDTH)
BOX = [10.0, 8.0, 30.0, 28.0]
INSIDE = np.zeros(SIZE, dtype=bool)
INSIDE[8:28, 10:30] = True


def run(embedder, source: Path, out: Path, documents: Any = "images", rows: RowOptions = RowOptions(), **options: Any):
    """Encode a source; returns the report and the rows, by their ids."""
    options = {"part_documents": 2, **options}
    reading = SourceOptions(documents, options.get("proposals") is not None, rows=rows)
    report = encode_source(embedder, open_source(source, reading), out, EncodeOptions(documents, **options))
    return report, read_rows(out)


def read_rows(out: Path) -> dict[str, dict[str, Any]]:
    rows = pyarrow.dataset.dataset(out, format="parquet").to_table().to_pylist()
    found = {row["id"]: row for row in rows}
    assert len(found) == len(rows), "an id that comes twice"
    return found


def close(row: dict[str, Any], expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(row["vector"]), np.asarray(expected).reshape(-1), atol=1e-5)


def write_photos(root: Path, count: int = 5) -> Path:
    for number in range(count):
        path = root / ("" if number % 2 else "sub/deep") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number, (WIDTH + number, HEIGHT)))
    (root / "readme.txt").write_text("no image")
    (root / ".hidden.png").write_bytes(b"no image")
    return root


def test_a_folder_with_sub_folders(embedder, tmp_path):
    root = write_photos(tmp_path / "photos")
    seen: list[int] = []
    source = open_source(root, SourceOptions())
    assert source.count() == 5
    options = EncodeOptions(part_documents=2, instruction="Look.", source="photos", model="tiny")
    report = encode_source(embedder, source, tmp_path / "out", options, seen.append)
    rows = read_rows(tmp_path / "out")
    assert list(rows) == ["1.png", "3.png", "sub/deep/0.png", "sub/deep/2.png", "sub/deep/4.png"]
    assert (report.documents, report.rows, report.encoded, report.total_left_out, sum(seen)) == (5, 5, 5, 0, 5)
    for name, row in rows.items():
        assert row["image"] == str(root / name) and row["document"] == name
        close(row, embedder.encode("Look.", root / name))
    schema = pq.read_schema(tmp_path / "out/part-000000.parquet")
    facts = EncodingFacts.from_schema(schema, "out")
    assert (facts.fingerprint, facts.model, facts.dim) == (embedder.fingerprint(), "tiny", embedder.embed_dim)
    assert (facts.instruction, facts.documents) == ("Look.", "images") and "torch" in facts.versions


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_rows(embedder, tmp_path, form):
    root = tmp_path / "own"
    FORMS[form](root)
    if form != "class labels":
        _, rows = run(embedder, root, tmp_path / "texts", "texts")
        assert sorted(row["text"] for row in rows.values()) == sorted(caption for _, caption in CAPTIONED)
        close(next(iter(rows.values())), embedder.encode(next(iter(rows.values()))["text"]))
    report, rows = run(embedder, root, tmp_path / "images")
    colours = sorted(row["document"] for row in rows.values())
    assert len(colours) >= 3 and report.total_left_out == 0
    (first,) = [row for name, row in rows.items() if name.endswith("0.png")][:1]
    close(first, embedder.encode(None, png(0)))


def test_images_of_one_name_in_several_folders(embedder, tmp_path):
    for number, name in enumerate(("train", "test")):
        (tmp_path / "own" / name).mkdir(parents=True)
        (tmp_path / "own" / name / "a.png").write_bytes(png(number))
        (tmp_path / "own" / name / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a"}\n')
    _, rows = run(embedder, tmp_path / "own", tmp_path / "out")
    assert list(rows) == ["test/a.png", "train/a.png"]
    close(rows["test/a.png"], embedder.encode(None, png(1)))
    close(rows["train/a.png"], embedder.encode(None, png(0)))


def test_given_regions_of_rows(embedder, tmp_path):
    rows = [
        {"image": "0.png", "boxes": [BOX, [0, 0, 10, 10]], "box_format": "xyxy", "target": "both"},
        {"image": "0.png", "text": "What?", "points": [[20, 18], [2, 2]], "labels": [1, 0]},
        {"image": "1.png", "segmentation": [SQUARE]},
        {"image": "1.png", "target": {"image": "2.png", "boxes": [BOX]}, "box_format": "xyxy"},
        {"image": "1.png"},
    ]
    report, found = run(embedder, write_rows(tmp_path / "own", rows), tmp_path / "out", "regions")
    assert list(found) == ["train/0#0", "train/0#1", "train/1#0", "train/2#0", "train/3/1#0"]
    assert dict(report.left_out) == {"no region": 1} and report.named[0][0] == "train/4"
    box = VisualPrompt.from_pixels([BOX], size=SIZE)
    close(found["train/0#0"], embedder.encode(None, png(0), box))
    close(found["train/0#1"], embedder.encode(None, png(0), VisualPrompt.from_pixels([[0, 0, 10, 10]], size=SIZE)))
    points = VisualPrompt.from_pixels(points=[[20, 18], [2, 2]], labels=[1, 0], size=SIZE)
    close(found["train/1#0"], embedder.encode("What?", png(0), points))
    mask = VisualPrompt.from_pixels(masks=torch.from_numpy(INSIDE)[None], size=SIZE)
    close(found["train/2#0"], embedder.encode(None, png(1), mask))
    close(found["train/3/1#0"], embedder.encode(None, png(2), box))
    share = [0.2, 0.2, 0.6, 0.7]
    np.testing.assert_allclose(found["train/0#0"]["box"], share, atol=1e-6)
    np.testing.assert_allclose(found["train/2#0"]["box"], share, atol=1e-6)
    np.testing.assert_allclose(found["train/1#0"]["box"], [0.36, 0.4, 0.44, 0.5], atol=1e-6)
    assert json.loads(found["train/2#0"]["mask"])["size"] == list(SIZE)
    assert found["train/0#0"]["target"] == "both" and found["train/0#1"]["region"] == 1


def test_requests_are_what_encode_takes_them_for(embedder, tmp_path):
    data_uri = "data:image/png;base64," + base64.b64encode(png(1)).decode()
    requests: list[dict[str, Any]] = [
        {"text": "What?", "image": "0.png", "regions": [{"box": BOX}, {"points": [[20, 18]], "labels": [1]}]},
        {"image": data_uri, "regions": [{"box": [0.2, 0.2, 0.6, 0.7]}], "units": "normalized"},
        {"instruction": "Find it.", "image": "2.png", "regions": [{"mask": RUNS}]},
        {"text": "words", "regions": []},
        {"image": "0.png", "regions": [{"box": BOX}], "unit": "pixel"},
        {"image": "0.png", "regions": [{"box": [10, 8, 300, 28]}]},
    ]
    root = write_rows(tmp_path / "own", requests, "requests")
    report, found = run(embedder, root / "requests.jsonl", tmp_path / "out", "regions")
    assert list(found) == ["requests/0#0", "requests/0#1", "requests/1#0", "requests/2#0"]
    assert dict(report.left_out) == {"no region": 1, "no request": 2}
    assert "unit" in dict(report.named)["requests/4"]
    assert "regions.0" in dict(report.named)["requests/5"]
    for number in range(3):
        request = dict(requests[number], image=[png(0), data_uri, png(2)][number], regions_as="each")
        expected = embedder.encode([request])
        for region, vector in enumerate(expected):
            close(found[f"requests/{number}#{region}"], vector)
    assert found["requests/1#0"]["image"] is None and found["requests/0#0"]["image"] == str(root / "images/0.png")
    _, texts = run(embedder, root / "requests.jsonl", tmp_path / "texts", "texts")
    assert [row["text"] for row in texts.values()] == ["What?", "Find it.", "words"]
    _, images = run(embedder, root / "requests.jsonl", tmp_path / "whole")
    close(images["requests/0"], embedder.encode("What?", png(0)))


def test_shards(embedder, tmp_path):
    convert_scar(write_scar(tmp_path / "scar"), tmp_path / "shards")
    report, regions = run(embedder, tmp_path / "shards", tmp_path / "out", "regions")
    assert report.total_left_out == 0 and len(regions) >= report.documents
    report, images = run(embedder, tmp_path / "shards", tmp_path / "whole")
    assert len(images) == report.documents == open_source(tmp_path / "shards", SourceOptions()).count()
    name, row = next(iter(regions.items()))
    whole = images[row["document"]]
    folder, _, index = whole["image"].partition("#")
    assert (Path(folder) / "manifest.json").is_file() and name.endswith("#0") and int(index) == 0
    path = row["document"].partition(" (")[2].removesuffix(")").removeprefix("images/")
    data = (tmp_path / "scar/images" / path).read_bytes()
    close(whole, embedder.encode(None, data))
    single, _ = run(embedder, Path(folder), tmp_path / "single")
    assert 0 < single.rows <= report.rows
    with pytest.raises(VirtueError, match="texts of shards are not encoded"):
        open_source(tmp_path / "shards", SourceOptions("texts"))


def test_proposed_regions(embedder, tmp_path, monkeypatch):
    root = write_photos(tmp_path / "photos", 3)

    def segment(embedder, items):
        """Return a square around each point, surer further right; nothing in the widest image."""
        logits = torch.full((len(items), 24, 24), -9.0)
        for row, item in enumerate(items):
            x, y = (item.prompt.points[0] * 24).long().tolist()
            if item.images[0].shape[2] < WIDTH + 2:
                logits[row, y - 2 : y + 3, x - 2 : x + 3] = 1.0 + x
        return logits

    monkeypatch.setattr(proposals, "segment", segment)
    report, rows = run(embedder, root, tmp_path / "out", "regions", proposals=ProposalOptions(points=2))
    assert len(rows) == 8 and report.documents == 3
    assert report.named == [("sub/deep/2.png", "no region: the model proposes none")]
    for row in rows.values():
        box = VisualPrompt(boxes=torch.tensor([row["box"]]))
        close(row, embedder.encode(None, root / row["document"], box))
        assert json.loads(row["mask"])["size"][0] == HEIGHT
    found = [row for row in rows.values() if row["document"] == "1.png"]
    qualities = [row["quality"] for row in found]
    assert [row["region"] for row in found] == [0, 1, 2, 3]
    assert qualities == sorted(qualities, reverse=True) and qualities[0] > qualities[-1] > 0.7


def test_damaged_images_are_left_out_by_reason(embedder, tmp_path):
    root = write_photos(tmp_path / "photos", 3)
    (root / "cut.png").write_bytes(png(1)[:60])
    (root / "empty.jpg").write_bytes(b"")
    (root / "text.jpg").write_text("words")
    (root / "huge.png").write_bytes(png(0, (6000, 5000)))
    report, rows = run(embedder, root, tmp_path / "out")
    assert len(rows) == 3 and report.documents == 7 and report.total_left_out == 4
    assert report.left_out["damaged image"] >= 2 and report.left_out["image too large"] == 1
    assert "cut.png" in dict(report.named)
    again, _ = run(embedder, root, tmp_path / "out")
    assert (again.left_out, again.named, again.encoded) == (report.left_out, report.named, 0)


def test_a_rerun_encodes_what_is_missing_and_changes_nothing_else(embedder, tmp_path):
    root, out = write_photos(tmp_path / "photos", 7), tmp_path / "out"
    run(embedder, root, out)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()}
    (out / "part-000001.parquet").unlink()
    (out / ".part-000001.parquet.0123456789ab").write_bytes(b"half")
    report, _ = run(embedder, root, out)
    after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()}
    assert report.encoded == 2 and report.rows == 7 and set(after) == set(before)
    changed = {name for name in before if name != ".lock" and before[name] != after[name]}
    assert changed == {"part-000001.parquet"}
    assert before["part-000001.parquet"][0] == after["part-000001.parquet"][0]


@pytest.mark.parametrize("form", ["parquet", "lance"])
def test_a_killed_process_leaves_whole_parts(embedder, tmp_path, form):
    """A forked process is killed by -9 in the midst of its third part."""
    root, out = write_photos(tmp_path / "photos", 7), tmp_path / "out"
    process = os.fork()
    if not process:
        kind: Any = {"parquet": parts.ParquetParts, "lance": lance_parts.LanceParts}[form]
        write = kind.write

        def kill_third(self: Any, number: int, part: Any, rows: Any) -> None:
            if number == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            write(self, number, part, rows)

        kind.write = kill_third
        try:
            run_plain(embedder, root, out, form)
        finally:
            os._exit(3)
    _, status = os.waitpid(process, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    report = run_plain(embedder, root, out, form)
    assert (report.documents, report.rows, report.encoded) == (7, 7, 3)
    whole = run_plain(embedder, root, tmp_path / "whole", form)
    assert whole.encoded == 7
    first, second = lance_or_parquet(out, form), lance_or_parquet(tmp_path / "whole", form)
    assert list(first) == list(second)
    for name, row in first.items():
        close(row, second[name]["vector"])


def run_plain(embedder, root: Path, out: Path, form: Any):
    options = EncodeOptions(part_documents=2, format=form, threads=1)
    return encode_source(embedder, open_source(root, SourceOptions()), out, options)


def lance_or_parquet(out: Path, form: str) -> dict[str, dict[str, Any]]:
    if form == "parquet":
        return read_rows(out)
    import lancedb

    table = lancedb.connect(out).open_table("rows")
    assert EncodingFacts.from_schema(table.schema, "rows").documents == "images"
    return {row["id"]: row for row in table.to_arrow().to_pylist()}


def test_two_at_once_are_refused(embedder, tmp_path):
    root = write_photos(tmp_path / "photos", 1)
    run(embedder, root, tmp_path / "out")
    with (tmp_path / "out/.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(VirtueError, match=r"another process encodes into .*out"):
            run(embedder, root, tmp_path / "out")


def test_other_facts_are_refused(embedder, tmp_path, monkeypatch):
    root, out = write_photos(tmp_path / "photos", 2), tmp_path / "out"
    run(embedder, root, out)
    for message, change in {
        'of instruction ""': {"instruction": "Look."},
        "of dim": {"truncate_dim": 8},
        "of part documents 2": {"part_documents": 3},
        'of format "parquet"': {"format": "lance"},
    }.items():
        with pytest.raises(VirtueError, match=message):
            run(embedder, root, out, **change)
    with pytest.raises(VirtueError, match="truncate_dim is 100000, expected at most"):
        run(embedder, root, out, truncate_dim=100_000)
    with monkeypatch.context() as patch:
        patch.setattr(embedder, "fingerprint", lambda: "another")
        with pytest.raises(VirtueError, match="of the model"):
            run(embedder, root, out)
    (root / "new.png").write_bytes(png(4))
    with pytest.raises(VirtueError, match="of the source"):
        run(embedder, root, out)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.txt").write_text("mine")
    with pytest.raises(VirtueError, match=r"holds thesis\.txt, and no _encoding.json"):
        run(embedder, root, tmp_path / "other")
    (root / "new.png").unlink()
    (out / "part-000000.parquet").write_bytes(b"PAR1")
    with pytest.raises(VirtueError, match=r"part-000000\.parquet is damaged .* delete it"):
        run(embedder, root, out)


def test_truncated_embeddings_are_units(embedder, tmp_path):
    root = write_photos(tmp_path / "photos", 1)
    _, rows = run(embedder, root, tmp_path / "out", truncate_dim=8)
    close(rows["sub/deep/0.png"], embedder.encode(None, root / "sub/deep/0.png", truncate_dim=8))


def test_no_more_than_a_batch_is_decoded_ahead(embedder, tmp_path, monkeypatch):
    root = write_photos(tmp_path / "photos", 30)
    alive: list[int] = []
    reader = documents.ImageReader.decode
    held: Any = documents.WeakValueDictionary()

    def count(self: Any, data: bytes, name: str) -> Any:
        found = reader(self, data, name)
        held[name] = found
        alive.append(len(held))
        return found

    monkeypatch.setattr(documents.ImageReader, "decode", count)
    run(embedder, root, tmp_path / "out", part_documents=100)
    assert len(alive) == 30 and max(alive) <= 2 * 4 + 4 + 2


def test_sources_that_cannot_be_encoded(tmp_path):
    write_photos(tmp_path / "photos", 1)
    for message, (path, options) in {
        "there is no file or folder .*did you mean": ("photo", SourceOptions()),
        "found a file '.txt', expected .jsonl, .csv, .parquet": ("photos/readme.txt", SourceOptions()),
        "found images without texts": ("photos", SourceOptions("texts")),
        "found images without regions: give --propose": ("photos", SourceOptions("regions")),
        "found no data, expected": ("empty", SourceOptions()),
    }.items():
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(VirtueError, match=message):
            open_source(tmp_path / path, options)
    root = write_rows(tmp_path / "own", [{**row, "colour": "red"} for row in pairs()])
    report = list(open_source(root, SourceOptions()).documents())
    with pytest.raises(VirtueError, match="unknown column: 'colour'"):
        report[0].read()
    ignoring = SourceOptions(rows=RowOptions(ignored_columns=("colour",)))
    assert open_source(root, ignoring).count() == 3


def test_images_are_found_beside_rows(embedder, tmp_path):
    write_images(tmp_path / "own")
    shutil.copytree(tmp_path / "own/images", tmp_path / "own/photos")
    (tmp_path / "own/rows.jsonl").write_text('{"image": "photos/1.png"}\n{"image": "2.png"}\n{"image": "none.png"}\n')
    report, rows = run(embedder, tmp_path / "own/rows.jsonl", tmp_path / "out")
    assert list(rows) == ["photos/1.png", "images/2.png"]
    assert dict(report.left_out) == {"missing image": 1}
