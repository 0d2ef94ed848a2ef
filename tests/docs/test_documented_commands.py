"""Every command and block of Python of the documentation is run small, as fixtures/small_runs.py says.

What downloads something, and the quickstart in full, has the marker `network`: `make test-network`.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import re
import shlex
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.documented_server import ADDRESS, stop_server, with_port
from fixtures.pages import ROOT, Block, blocks
from fixtures.small_runs import make_clone, rule_for, run_small
from fixtures.tiny_quickstart import fetch
from virtue_pl.cli.main import main
from virtue_pl.pipelines import quickstart

pytestmark = [
    pytest.mark.docs,
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]
SHELL = [block for block in blocks() if block.language == "sh"]
PYTHON = [block for block in blocks() if block.language == "python"]
OWN_DATA = [block for block in blocks() if block.page.name == "own-data.md" and block.language in ("sh", "python")]
NETWORK = sorted({shlex.join(command) for block in SHELL for command in block.commands if rule_for(command) is None})
NUMBER = re.compile(r"-?\d+\.\d*")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder as a clone is after a quickstart; blocks run there in the order of the pages."""
    folder = tmp_path_factory.mktemp("clone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quickstart, "fetch", fetch)
        with pytest.MonkeyPatch.context() as inside:
            inside.chdir(folder)
            make_clone(folder)
        yield folder
        stop_server()


@pytest.fixture(scope="module")
def done() -> set[str]:
    """The commands that were run: what several pages show is run once."""
    return set()


def test_every_block_is_of_a_kind_that_is_run_or_drawn() -> None:
    assert {block.language for block in blocks()} <= {"sh", "python", "json", ""}
    assert all(len(block.commands) for block in SHELL)


def test_a_command_without_a_rule_is_found() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"no rule in small_runs\.py says how to run small: virtue-pl fly"):
        rule_for(["virtue-pl", "fly"])
    with pytest.raises(AssertionError, match="rsync: command not found"):
        _ = Block(ROOT / "README.md", 1, "sh", "rsync -a here there\n").commands


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_shell(block: Block, clone: Path, done: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone)
    monkeypatch.setenv("COLUMNS", "200")
    for arguments in block.commands:
        run_small(arguments, done)


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python(block: Block, clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs on the tiny model, and prints as many numbers as the comments behind it show."""
    monkeypatch.chdir(clone)
    assert len(NUMBER.findall(printed(block))) == len(NUMBER.findall(comments(block)))


def printed(block: Block) -> str:
    """Run the block; return what it prints. Its clients end with it, as with the program that a block stands for."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), warnings.catch_warnings(action="ignore", category=ResourceWarning):
        exec(compile(with_port(block.text), str(block), "exec", dont_inherit=True), {"__name__": "documented"})
        gc.collect()
    return output.getvalue()


def comments(block: Block) -> str:
    """Return the lines of the block that show what it prints."""
    return "\n".join(line for line in block.text.splitlines() if line.startswith("#"))


@pytest.mark.network
@pytest.mark.parametrize("command", NETWORK)
def test_what_is_downloaded(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do what the command does, but for what it would change outside of the clone: this is only simulated."""
    monkeypatch.chdir(ROOT)
    program, *rest = shlex.split(command)
    if program == "virtue-pl":
        assert main(rest) == 0
        return
    simulated = {
        "sudo": ["apt-get", "--simulate", *rest[1:]],
        "pip": [str(ROOT / ".venv/bin/pip"), "install", "--dry-run", *rest[1:]],
        "conda": ["conda", *rest, "--dry-run"],
        "make": ["make", *rest],
    }[program]
    if shutil.which(simulated[0]) is None:
        pytest.skip(f"{simulated[0]} is not here")
    subprocess.run(simulated, cwd=ROOT, check=True)


@pytest.mark.network
def test_the_whole_quickstart_and_what_follows_on_its_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The captions that the documentation shows first are first, and the page on own data runs as it stands there."""
    monkeypatch.chdir(ROOT)
    subprocess.run(["make", "quickstart"], cwd=ROOT, check=True)
    shutil.rmtree(ROOT / "mini", ignore_errors=True)
    assert main(["export", "runs/quickstart/virtue/checkpoints/last.ckpt", "--out", "mini"]) == 0
    for block in (block for block in PYTHON if block not in OWN_DATA and ADDRESS not in block.text):
        rows = [NUMBER.findall(line) for line in printed(block).splitlines()]
        shown = [NUMBER.findall(line) for line in comments(block).splitlines()]
        assert [best(row) for row in rows if row] == [best(row) for row in shown if row]
    for name in ("configs", "docs", "runs/quickstart", *(f"data/{one.name}" for one in (ROOT / "data").iterdir())):
        if name != "data/shards":
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).symlink_to(ROOT / name)
    run_own_data(tmp_path, monkeypatch)


def run_own_data(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the page on own data as it stands there, in a folder with the quickstart's model."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", f"{ROOT / '.venv/bin'}:{os.environ['PATH']}")
    for block in OWN_DATA:
        if block.language == "sh":
            subprocess.run(["bash", "-euc", block.text], check=True)
        else:
            assert len(NUMBER.findall(printed(block))) == len(NUMBER.findall(comments(block)))


def best(row: list[str]) -> int:
    """Return the place of a row's largest number."""
    return max(range(len(row)), key=lambda index: float(row[index]))
