"""What is imported when: nothing heavy for help, no model library for the embedder, no metrics to compare runs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from virtue_pl.cli.main import COMMANDS

OWN_PARSERS = [name for group in COMMANDS.values() for name, command in group.items() if not command.prefix]
"""Commands whose help is this package's own; the others' is written by Lightning's parser."""
FOR_HELP = {
    "torch",
    "numpy",
    "lightning",
    "torchmetrics",
    "torchvision",
    "transformers",
    "timm",
    "peft",
    "pyarrow",
    "PIL",
}
FOR_HELP |= {"jsonargparse", "omegaconf", "rich", "matplotlib", "scipy", "skimage", "webdataset", "safetensors"}
"""What no help needs."""
FOR_EMBEDDER = {
    "torchmetrics",
    "torchvision",
    "torch._dynamo",
    "transformers",
    "timm",
    "peft",
    "accelerate",
    "segment_anything",
}
FOR_EMBEDDER |= {
    "pyarrow",
    "pandas",
    "matplotlib",
    "scipy",
    "skimage",
    "sklearn",
    "webdataset",
    "tensorboard",
    "pycocotools",
    "jsonargparse",
}
"""What `virtue_pl.embedder` adds none of to what torch and lightning import; a model brings what it consists of."""
SCRIPT = """
import contextlib, io, json, sys
from virtue_pl.cli.main import main

found, seen = {}, set(sys.modules)

def note(name):
    found[name] = sorted(set(sys.modules) - seen)
    seen.update(sys.modules)

for command in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        code = main([command, "--help"])
    assert code == 0 and f"usage: virtue-pl {command}" in shown.getvalue(), command
    note(command)
import virtue_pl.evaluation.statistics.compare
import virtue_pl.evaluation.reports.comparison_tables, virtue_pl.evaluation.reports.plots
note("comparison")
import torch, lightning
note("torch and lightning")
import virtue_pl.embedder
note("embedder")
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def imported() -> dict[str, list[str]]:
    """The modules that each step imports beyond those of the steps before it, in one new process."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, *OWN_PARSERS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    modules: dict[str, list[str]] = json.loads(done.stdout)
    return modules


def among(modules: list[str], packages: set[str]) -> list[str]:
    """The modules that are one of the packages or lie in one."""
    return [name for name in modules if any(f"{name}.".startswith(f"{package}.") for package in packages)]


@pytest.mark.parametrize("command", OWN_PARSERS)
def test_a_commands_help_imports_nothing_heavy(imported, command):
    assert among(imported[command], FOR_HELP) == []


def test_the_embedder_imports_no_model_library(imported):
    assert "virtue_pl.embedder" in imported["embedder"] and "lightning" in imported["torch and lightning"]
    assert among(imported["embedder"], FOR_EMBEDDER) == []


def test_comparing_runs_imports_no_training(imported):
    assert "torch" in imported["comparison"]
    assert among(imported["comparison"], FOR_EMBEDDER | {"lightning"}) == []
