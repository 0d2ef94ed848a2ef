"""The command `encode`: what it prints, its errors in one line, and how a signal ends it."""

from __future__ import annotations

import json
import os
import signal
import threading
from functools import partial
from pathlib import Path

import pyarrow.dataset
import pytest

from fixtures.own_files import png
from fixtures.tiny_release import quickstart_spec, run_checkpoint
from virtue_pl.apps.encoding import part_encoder
from virtue_pl.checkpoints.pretrained import from_pretrained
from virtue_pl.cli.commands import encode as command
from virtue_pl.cli.main import main
from virtue_pl.embedder import Embedder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encode")
    return run_checkpoint(folder / "run", quickstart_spec(folder))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for number in range(6):
        (tmp_path / f"photos/{number}.png").write_bytes(png(number))
    return tmp_path / "photos"


@pytest.fixture
def loaded(model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that is loaded once for all calls."""
    embedder = Embedder(from_pretrained(model), batch_size=4)
    monkeypatch.setattr(Embedder, "from_pretrained", classmethod(lambda cls, name, **options: embedder))
    return model


def test_a_folder_is_encoded_once(model, photos, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["encode", str(photos), "--model", str(model), "--out", str(out), "--part-size", "4"]
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"{out}: 6 rows of 6 documents (6 encoded now, 0 were there)\n"
    assert sorted(path.name for path in out.iterdir()) == [
        *(".lock", "_encoding.json", "part-000000.parquet", "part-000001.parquet")
    ]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["encoded"], found["left_out"]) == (6, 0, {})
    assert pyarrow.dataset.dataset(out, format="parquet").count_rows() == 6
    assert main([*arguments, "--instruction", "Look."]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.splitlines()[-1].startswith(f"virtue-pl: {out} holds an encoding of")


def test_too_many_left_out_are_an_error(loaded, photos, tmp_path, capsys):
    (photos / "cut.png").write_bytes(png()[:40])
    arguments = ["encode", str(photos), "--model", str(loaded), "--out", str(tmp_path / "out")]
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert "1 of 7 documents are left out (14.3%), more than --max-left-out 0.01 allows" in captured.err
    assert "cut.png" in captured.err and "damaged image" in captured.err
    assert main([*arguments, "--max-left-out", "0.2"]) == 0
    assert "6 rows of 6 documents (0 encoded now, 7 were there)" in capsys.readouterr().out
    for path in photos.iterdir():
        path.write_bytes(b"")
    assert main([*arguments[:-1], str(tmp_path / "none"), "--max-left-out", "1"]) == 1
    assert "7 of 7 documents are left out, that is all" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("there is no file or folder", ["none", "--out", "out"]),
        ("found images without regions: give --propose N", ["photos", "--out", "out", "--documents", "regions"]),
        (
            "--propose is given with --documents images",
            ["photos", "--out", "out", "--propose", "4", "--documents", "images"],
        ),
        ("truncate_dim is 4096, expected at most", ["photos", "--out", "out", "--truncate-dim", "4096"]),
        ("photos holds 0.png, and no _encoding.json", ["photos", "--out", "photos"]),
        ("empty.jsonl has no document: expected images", ["empty.jsonl", "--out", "out"]),
    ],
)
def test_mistakes_are_one_line(loaded, photos, tmp_path, monkeypatch, capsys, message, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").touch()
    assert main(["encode", *arguments, "--model", str(loaded)]) == 1
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line.startswith("virtue-pl: ")]
    assert message in line and captured.out == ""


def test_unknown_options_are_named(capsys):
    assert main(["encode", "photos", "--modle", "run", "--out", "out"]) == 2
    assert "did you mean '--model'?" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_whole_parts(loaded, photos, tmp_path, monkeypatch, capsys, request, number, code):
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
    before = signal.getsignal(signal.SIGTERM)
    embed, calls = part_encoder.PartEncoder.embed, []

    def embed_and_stop(self, rows):
        calls.append(len(rows))
        if len(calls) == 3:
            signal.pthread_kill(threading.main_thread().ident, number)
        return embed(self, rows)

    monkeypatch.setattr(part_encoder.PartEncoder, "embed", embed_and_stop)
    out = tmp_path / "out"
    arguments = ["encode", str(photos), "--model", str(loaded), "--out", str(out), "--part-size", "2"]
    assert main(arguments) == code
    assert "the parts that are whole stay" in capsys.readouterr().err
    assert sorted(path.name for path in out.glob("*part*")) == ["part-000000.parquet", "part-000001.parquet"]
    assert signal.getsignal(signal.SIGTERM) is before
    assert main(arguments) == 0
    assert "6 rows of 6 documents (2 encoded now, 4 were there)" in capsys.readouterr().out
    assert os.listdir(out).count("part-000002.parquet") == 1


def test_the_rate_is_shown_as_it_goes(capsys):
    with command.show_rate(3) as advance:
        advance(2)
        advance(1)
    assert "3/3" in capsys.readouterr().err
