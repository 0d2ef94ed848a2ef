"""The notebooks are committed without outputs, and run from top to bottom on tiny models."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import nbformat
import pytest
import yaml
from nbclient import NotebookClient

from fixtures.tiny_quickstart import ROOT, tiny_plan

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SETTINGS = """
import sys
sys.path.insert(0, {tests!r})
from fixtures import tiny_quickstart
from virtue_pl.pipelines import quickstart
quickstart.fetch = tiny_quickstart.fetch
RUNS, PLAN = Path({folder!r}) / "runs", {folder!r} + "/plan.yaml"
DATA, CACHE = {folder!r} + "/data", {folder!r} + "/cache"
"""


def names(path: Path) -> str:
    return path.stem


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the notebooks keep a tiny quickstart, which the first of them makes."""
    folder = tmp_path_factory.mktemp("notebooks")
    plan = asdict(tiny_plan())
    for run in plan["runs"].values():
        run["configs"] = list(run["configs"])
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    return folder


def test_there_are_the_two_studies() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["prompt_kinds", "segmentation_stream"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_outputs_are_stripped(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")
    assert notebook.metadata.keys() == {"kernelspec", "language_info"}


@pytest.mark.notebooks
@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_it_runs_and_answers(path: Path, folder: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    index = next(number for number, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    notebook.cells.insert(
        index + 1, nbformat.v4.new_code_cell(SETTINGS.format(tests=str(ROOT / "tests"), folder=str(folder)))
    )
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT / "notebooks")}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1
    assert "points (" in outputs[-1].text and "test_held_out" in outputs[-1].text
    assert (folder / "runs" / path.stem / "compare.md").is_file()
