"""`virtue-pl search`: by words, images, clicks, boxes, masks and requests; as a table, JSON and a sheet."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fixtures.running_server import Running, serving
from fixtures.search_files import BOXES, SIZE, SearchFiles, make_search_files
from virtue_pl.apps.server.index_search import SearchIndex
from virtue_pl.apps.server.options import KEY_VARIABLE, ServerOptions
from virtue_pl.cli.commands.serve import make_routers
from virtue_pl.cli.main import main
from virtue_pl.embedder import Embedder
from virtue_pl.search.queries import read_mask

KEY = "0123456789abcdef"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> SearchFiles:
    return make_search_files(tmp_path_factory.mktemp("search"))


@pytest.fixture(scope="module")
def server(files) -> Iterator[Running]:
    """A server with the index, which wants a key."""
    embedder, index = Embedder.from_pretrained(files.model, device="cpu"), SearchIndex(str(files.index))
    index.check(embedder)
    options = ServerOptions(keys=(KEY,))
    with serving(lambda: embedder, options, make_routers=lambda service: make_routers(service, index)) as running:
        yield running


@pytest.fixture
def ask(server, capsys, monkeypatch):
    """`ask("--text", "a cat")` gives exit code, output and errors of a search through the server."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv(KEY_VARIABLE, KEY)

    def searched(*arguments: object) -> tuple[int, str, str]:
        code = main(["search", "--server", server.url, *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return searched


@pytest.fixture
def run(files, capsys, monkeypatch):
    """`run("--text", "a cat")` gives exit code, output and errors."""
    monkeypatch.setenv("COLUMNS", "200")

    def searched(*arguments: object) -> tuple[int, str, str]:
        code = main(["search", str(files.index), "--device", "cpu", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return searched


def hits_of(output: str, query: int = 0) -> list[dict]:
    return json.loads(output)["answers"][query]["hits"]


def coordinates(box: tuple[float, ...]) -> str:
    return ",".join(map(str, box))


def test_a_region_finds_itself_first(run, files):
    code, output, errors = run("--image", files.images / "1.png", "--box", coordinates(BOXES[1]), "--json", "--top", 3)
    assert (code, errors) == (0, "")
    hits = hits_of(output)
    assert [hit["rank"] for hit in hits] == [1, 2, 3] and hits[0]["id"] == "1.png#1"
    assert hits[0]["score"] == pytest.approx(1, abs=1e-5) and hits[0]["quality"] == 0.75
    assert hits[0]["box"] == pytest.approx([1 / 3, 1 / 6, 8 / 9, 11 / 12], abs=1e-6)
    assert json.loads(output)["answers"][0]["query"]["regions"] == [{"box": list(BOXES[1])}]


def test_every_form_of_a_query_is_that_of_the_schema(run, files, tmp_path, monkeypatch):
    """Options, a file of requests and standard input give the same hits."""
    mask = np.zeros(SIZE, dtype=np.uint8)
    mask[10:40, 20:60] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    image = str(files.images / "2.png")

    runs = dict(read_mask(tmp_path / "mask.png"))
    (tmp_path / "mask.json").write_text(json.dumps(runs))
    forms = [
        (["--text", "a cat", "--instruction", "Find"], {"text": "a cat", "instruction": "Find"}),
        (["--image", image], {"image": image}),
        (
            ["--image", image, "--point", "20,30", "--point", "80,50,0"],
            {"image": image, "regions": [{"points": [[20, 30], [80, 50]], "labels": [1, 0]}]},
        ),
        (["--image", image, "--mask", tmp_path / "mask.png"], {"image": image, "regions": [{"mask": runs}]}),
        (["--image", image, "--mask", tmp_path / "mask.json"], {"image": image, "regions": [{"mask": runs}]}),
        (
            ["--image", image, "--box", "0.25,0.25,0.5,0.75", "--units", "normalized", "--text", "What?"],
            {"image": image, "regions": [{"box": [22.5, 15, 45, 45]}], "text": "What?"},
        ),
    ]
    lines = "\n".join(json.dumps(request) for _, request in forms)
    (tmp_path / "requests.jsonl").write_text(lines + "\n\n")
    code, output, _ = run("--regions", tmp_path / "requests.jsonl", "--json")
    assert code == 0
    for number, (options, _) in enumerate(forms):
        alone = hits_of(run(*options, "--json")[1])
        together = hits_of(output, number)
        assert [hit["id"] for hit in alone] == [hit["id"] for hit in together]
        assert [hit["score"] for hit in alone] == pytest.approx([hit["score"] for hit in together], abs=1e-5)
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    assert hits_of(run("--regions", "-", "--json")[1], 3) == hits_of(output, 3)


def test_each_region_of_a_request_is_a_query(run, files, tmp_path):
    request = {"image": str(files.images / "0.png"), "regions": [{"box": box} for box in BOXES], "regions_as": "each"}
    (tmp_path / "requests.jsonl").write_text(json.dumps(request))
    _, output, _ = run("--regions", tmp_path / "requests.jsonl", "--json", "--top", 1)
    answers = json.loads(output)["answers"]
    assert [(answer["region"], answer["hits"][0]["id"]) for answer in answers] == [(0, "0.png#0"), (1, "0.png#1")]


def test_a_table_names_the_hits_and_their_columns(run, files):
    code, output, _ = run("--image", files.images / "1.png", "--where", "year >= 2021 AND region IS NULL", "--top", 4)
    lines = output.splitlines()
    assert code == 0 and lines[0].strip() == "1.png"
    assert all(column in output for column in ("rank", "score", "name", "year")) and "box" not in output
    assert "1.000" in output and "1.png" in output and "2021" in output and "2020" not in output
    assert "no row answers the filter" in run("--text", "a cat", "--where", "year > 3000")[1]


def test_a_sheet_shows_the_query_and_every_hit(run, files, tmp_path):
    sheet, query = tmp_path / "hits.png", ("--image", files.images / "1.png", "--point", "20,30", "--top", 7)
    code, _, errors = run(*query, "--sheet", sheet, "--images", files.images)
    assert code == 0 and errors == f"wrote {sheet}\n"
    pixels = np.asarray(Image.open(sheet))
    assert pixels.shape[1] == 1448 and pixels.shape[0] > 500
    code, _, errors = run(*query, "--sheet", tmp_path / "none.png")
    assert code == 0 and "3 images of hits were not found, such as" in errors and "--images" in errors


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "there is no query, expected --text, --image or --regions"),
        (["--text", "a", "--regions", "-"], 2, "--regions gives whole requests"),
        (["--text", "a", "--point", "1,2"], 2, "are of an image, expected --image"),
        (["--image", "IMAGE", "--box", "1,2,3"], 2, "expected 4 numbers parted by commas, found '1,2,3'"),
        (["--image", "IMAGE", "--point", "1,2,7"], 2, "expected the label 1 (inside) or 0 (outside)"),
        (["--text", "a", "--storage-option", "region"], 2, "expected KEY=VALUE, found 'region'"),
        (["--image", "IMAGE", "--box", "1,2,300,4"], 1, "regions.0: "),
        (["--image", "no.png"], 1, "there is no image no.png"),
        (["--image", "IMAGE", "--mask", "no.png"], 1, "--mask: there is no file no.png"),
        (["--regions", "no.jsonl"], 1, "--regions: there is no file no.jsonl"),
        (["--text", "a", "--where", "yaer = 3"], 1, "did you mean 'year'?"),
        (["--text", "a", "--model", "no/model"], 1, "no/model"),
    ],
)
def test_a_mistake_is_one_line(run, files, arguments, code, said):
    found, output, errors = run(*(files.images / "0.png" if word == "IMAGE" else word for word in arguments))
    assert (found, output) == (code, "") and said in errors
    assert code == 2 or len(errors.splitlines()) == 1


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("", "there are no requests"),
        ("{", "line 1 is no JSON"),
        ("[1]", "line 1: found [1], expected a request"),
        ('{"text": "a"}\n{"txet": "a"}', "line 2: 'txet' is no key of a request here; did you mean 'text'?"),
        ('{"text": "a"}\n{"image": "IMAGE", "regions": [{"box": [0, 0, 900, 9]}]}', "query 1: regions.0: "),
    ],
)
def test_a_wrong_request_is_named(run, files, tmp_path, lines, said):
    (tmp_path / "requests.jsonl").write_text(lines.replace("IMAGE", str(files.images / "0.png")))
    code, _, errors = run("--regions", tmp_path / "requests.jsonl")
    assert code == 1 and said in errors and len(errors.splitlines()) == 1


def test_another_model_is_refused_and_a_mask_of_another_size(run, files, tmp_path, monkeypatch):
    from virtue_pl.embedder import Embedder

    Image.fromarray(np.full((10, 10), 255, dtype=np.uint8)).save(tmp_path / "mask.png")
    code, _, errors = run("--image", files.images / "0.png", "--mask", tmp_path / "mask.png")
    assert code == 1 and "mask of another size: [10, 10], the image has [60, 90]" in errors
    (tmp_path / "mask.json").write_text("[1]")
    assert "holds no run lengths" in run("--image", files.images / "0.png", "--mask", tmp_path / "mask.json")[2]
    monkeypatch.setattr(Embedder, "fingerprint", lambda self: "f" * 64)
    code, _, errors = run("--text", "a cat")
    assert code == 1 and "is another model (ffffffffffff): name the index's with --model" in errors


def test_a_moved_model_is_asked_for(run, files, tmp_path):
    moved = files.model.rename(tmp_path / "moved")
    try:
        assert "say where it is now with --model" in run("--text", "a cat")[2]
        assert run("--text", "a cat", "--model", moved)[0] == 0
    finally:
        moved.rename(files.model)


def test_the_path_of_an_index_is_checked_before_the_model_is_loaded(files, capsys):
    assert main(["search", str(Path(files.index).with_name("indxe")), "--text", "a cat"]) == 1
    assert "did you mean" in capsys.readouterr().err


def test_through_a_server_the_answers_are_those_of_the_folder(run, ask, files, tmp_path):
    """As a table, as JSON and as a sheet, for each form of a query."""
    image, mask = files.images / "2.png", np.zeros(SIZE, dtype=np.uint8)
    mask[10:40, 20:60] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    each = {"image": str(image), "regions": [{"box": box} for box in BOXES], "regions_as": "each"}
    (tmp_path / "requests.jsonl").write_text(json.dumps({"text": "a cat"}) + "\n\n" + json.dumps(each))
    for query in (
        ["--text", "a cat", "--instruction", "Find"],
        ["--image", image, "--point", "20,30", "--point", "80,50,0", "--where", "year > 2020", "--exact"],
        ["--image", image, "--mask", tmp_path / "mask.png", "--top", 2],
        ["--image", image, "--box", "0.25,0.25,0.5,0.75", "--units", "normalized", "--text", "What?"],
        ["--regions", tmp_path / "requests.jsonl"],
    ):
        own, found = run(*query, "--json"), ask(*query, "--json")
        assert own[0] == found[0] == 0 and found[2] == ""
        expected, answers = (json.loads(output)["answers"] for output in (own[1], found[1]))
        for one, other in zip(expected, answers, strict=True):
            assert one["query"] == other["query"] and one["region"] == other["region"]
            assert [hit.pop("score") for hit in one["hits"]] == pytest.approx(
                [hit.pop("score") for hit in other["hits"]], abs=1e-5
            )
            assert one["hits"] == other["hits"]
        assert run(*query)[1] == ask(*query)[1]
    sheets = tmp_path / "own.png", tmp_path / "asked.png"
    for call, sheet in zip((run, ask), sheets, strict=True):
        sent = ("--regions", tmp_path / "requests.jsonl", "--sheet", sheet, "--images", files.images)
        assert call(*sent)[2] == f"wrote {sheet}\n"
    assert np.abs(np.asarray(Image.open(sheets[0])).astype(int) - np.asarray(Image.open(sheets[1]))).max() == 0
    assert "images of hits were not found" in ask("--image", image, "--sheet", tmp_path / "none.png")[2]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--text", "a", "--device", "cpu"], 2, "--device is set where the server starts"),
        (["--text", "a", "--dtype", "float16"], 2, "--dtype is set where the server starts"),
        (["FOLDER", "--text", "a"], 2, "found both of FOLDER and --server"),
        (["--image", "no.png"], 1, "there is no image no.png"),
        (["--text", "a", "--where", "yaer = 3"], 1, "did you mean 'year'?"),
        (["--image", "IMAGE", "--box", "1,2,300,4"], 1, "virtue-pl: regions.0: "),
        (["--text", "a", "--top", "100000"], 1, "k: found 100,000 hits"),
        (["--regions", "LINES"], 1, "requests.jsonl, line 3: 'txet' is no key of a request here; did you mean 'text'?"),
        (["--text", "a", "--api-key-file", "missing"], 1, "--api-key-file missing cannot be read"),
    ],
)
def test_a_mistake_of_a_search_through_a_server_is_one_line(ask, files, tmp_path, arguments, code, said):
    (tmp_path / "requests.jsonl").write_text('{"text": "a"}\n\n{"txet": "a"}')
    named = {"IMAGE": files.images / "0.png", "LINES": tmp_path / "requests.jsonl", "FOLDER": files.index}
    found, output, errors = ask(*(named.get(word, word) for word in arguments))
    assert (found, output) == (code, "") and said in errors
    assert code == 2 or len(errors.splitlines()) == 1


def test_the_key_comes_from_the_environment_or_a_file(ask, tmp_path, monkeypatch):
    (tmp_path / "key").write_text(f"{KEY}\n")
    monkeypatch.setenv(KEY_VARIABLE, "another key that is wrong")
    assert ask("--text", "a cat", "--api-key-file", tmp_path / "key")[0] == 0


def test_a_wrong_key_is_said(server, capsys, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "another key that is wrong")
    assert main(["search", "--server", server.url, "--text", "a cat"]) == 1
    assert "set VIRTUE_API_KEY, or name its file with --api-key-file" in capsys.readouterr().err


def test_a_process_that_asks_a_server_loads_no_heavy_library(server, files):
    """It answers in a fraction of the time that importing torch takes."""
    heavy = ("torch", "lightning", "numpy", "pydantic", "pyarrow", "httpx")
    code = (
        "import sys; from virtue_pl.cli.main import main; code = main();"
        f" assert not set(sys.modules).intersection({heavy}); sys.exit(code)"
    )
    box = ("--image", str(files.images / "1.png"), "--box", coordinates(BOXES[1]))
    done = subprocess.run(
        [sys.executable, "-c", code, "search", "--server", server.url, *box],
        env={**os.environ, KEY_VARIABLE: KEY},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "1.png#1" in done.stdout, done.stderr
