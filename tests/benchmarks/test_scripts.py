"""Every script in benchmarks/ still runs: with tiny sizes where that takes seconds, else as far as its options."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from fixtures.pages import ROOT
from fixtures.tiny_models import VISION_MODEL
from fixtures.tiny_release import published
from virtue_pl.cli import memory

SCRIPTS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text())
LARGE = {"demo", "encode", "estimate", "gpu", "handle", "serve", "start", "train_step"}
"""Those that run a mid-size model, a browser, a server under load or whole commands: their options are read alone.
test_gpu.py runs gpu.py, and `make test-apps` serve.py.
"""
SMALL = {
    "bulk_encode": "--model MODEL --images 3 --rounds 1 --batch-size 2",
    "evaluate": "--model absent --ranking 20x5 --rounds 1",
    "latency": "--model MODEL --height 56 --width 84 --rows 2 --repeats 1",
    "memory": "--count 4 --first 2 --size 64 48 --batch-size 2",
    "resume": "--rows 128 --batch-size 8 --rounds 1",
    "stored_features": f"--steps 1 --scenes 4 --batch_size 4 --segmenter_batch_size 4 --trunk {VISION_MODEL}",
    "stream": "--rounds 1 --images 8 --batch_size 4 --rows 8",
}
SEARCHES = {"index": "--sizes 400 --dim 8 --clusters 4 --queries 4 --exact-queries 2 --turns 2"}
"""Those that need the packages of an index."""

Script = Callable[..., Any]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A script as a module; the scripts beside it are found from there."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for name in ("join_freed_memory", "keep_freed_memory"):  # which start this process anew, or change it for good
        monkeypatch.setattr(memory, name, lambda: None)

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def measure(script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> Callable[[str, list[str]], Any]:
    """What a script prints; a process that it would start for itself runs in this one."""

    def run(name: str, options: list[str]) -> Any:
        module = script(name)

        start = subprocess.run

        def call(command: list[str], **options: Any) -> Any:
            if command[:2] != [sys.executable, module.__file__]:
                return start(command, **options)
            return SimpleNamespace(stdout=printed_by(module, command[2:]), returncode=0)

        monkeypatch.setattr(subprocess, "run", call)
        printed = printed_by(module, options)
        return json.loads(printed[printed.index("{") :])  # Lightning may have said something before

    def printed_by(module: ModuleType, options: list[str]) -> str:
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as printed:
            patch.setattr(sys, "argv", [str(module.__file__), *map(str, options)])
            module.main()
        return printed.getvalue()

    return run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published(tmp_path_factory.mktemp("release") / "model")


def test_every_script_is_one_of_these() -> None:
    assert set(SCRIPTS) == {*LARGE, *SMALL, *SEARCHES}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_says_its_options(
    name: str,
    script: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = script(name)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    assert stopped.value.code == 0 and "usage" in capsys.readouterr().out


@pytest.mark.parametrize("name", SMALL)
def test_a_script_measures_with_tiny_sizes(name: str, measure: Callable[[str, list[str]], Any], model: Path) -> None:
    assert measure(name, SMALL[name].replace("MODEL", str(model)).split())


@pytest.mark.apps
@pytest.mark.parametrize("name", SEARCHES)
def test_a_script_searches_with_tiny_sizes(name: str, measure: Callable[[str, list[str]], Any]) -> None:
    assert measure(name, SEARCHES[name].split())
