"""`virtue-pl serve` as it is typed: mistakes are one line before anything is loaded."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import fields

import pytest

from fixtures.search_files import make_search_files
from fixtures.tiny_release import quickstart_spec, run_checkpoint
from virtue_pl.apps.server.options import Limits
from virtue_pl.apps.server.run import bind
from virtue_pl.apps.server.service import Service
from virtue_pl.cli.commands import serve
from virtue_pl.cli.main import main


def test_the_limits_are_those_of_the_server():
    defaults = {field.name.replace("_", "-"): field.default for field in fields(Limits)}
    assert {name: default for name, (default, _) in serve.LIMITS.items()}.items() <= defaults.items()
    arguments = serve._parser().parse_args(["--model", "mini", "--regions", "7", "--max-pixels", "100"])
    limits = serve.read_options(arguments).limits
    assert limits == Limits(regions=7, pixels=100)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "without a key: give --api-key-file, or set VIRTUE_API_KEY"),
        (["--api-key-file", "missing"], "--api-key-file missing cannot be read"),
        (["--index", "missing"], "there is no index missing"),
        (["--max-pixels", "500000000"], "pixels is 500000000, expected at most pixels_in_flight = 400000000"),
        (["--queued-rows", "8"], "request_rows is 512, expected at most queued_rows = 8"),
    ],
)
def test_mistakes_are_one_line(options, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["serve", "--model", "mini", *options]) == 1
    assert message in capsys.readouterr().err


def test_a_missing_extra_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert main(["serve", "--model", "mini"]) == 1
    assert "serve needs prometheus_client: pip install 'virtue_pl[serve]'" in capsys.readouterr().err


def test_a_taken_port_and_a_missing_model_end_it(capsys, tmp_path):
    listening = bind("127.0.0.1", 0)
    port = str(listening.getsockname()[1])
    try:
        assert main(["serve", "--model", "mini", "--port", port]) == 1
        assert "give another --port or --host" in capsys.readouterr().err
    finally:
        listening.close()
    assert main(["serve", "--model", str(tmp_path / "missing.ckpt"), "--port", "0"]) == 1
    assert "missing.ckpt" in capsys.readouterr().err.splitlines()[-1]


def test_a_model_or_an_index_is_named(capsys):
    assert main(["serve"]) == 2
    assert "there is no model, expected --model, or --index, whose model is taken" in capsys.readouterr().err


def test_an_index_is_served_by_its_own_model_and_refused_by_another(capsys, monkeypatch, tmp_path):
    """The server ends in one line where it cannot search; else it says what it searches."""
    files = make_search_files(tmp_path)
    arguments = ["serve", "--index", str(files.index), "--port", "0", "--device", "cpu"]
    moved = files.model.rename(tmp_path / "moved")
    assert main(arguments) == 1
    assert "was encoded by that model: say where it is" in capsys.readouterr().err
    other = run_checkpoint(tmp_path / "other", quickstart_spec(tmp_path), seed=1)
    assert main([*arguments, "--model", str(other)]) == 1
    assert "and the server's model is another model" in capsys.readouterr().err
    ready = Service.start

    def start_and_stop(service, *given):
        ready(service, *given)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Service, "start", start_and_stop)
    assert main([*arguments, "--model", str(moved), "--calibration", str(files.rows)]) == 0
    errors = capsys.readouterr().err
    assert f"searches {files.index} (9 rows)" in errors and "stopped: all accepted requests are answered" in errors
