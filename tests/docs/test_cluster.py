"""The commands of docs/cluster.md, run as they are typed: on a Ray of this machine alone, and on two nodes.

`ray start` and `ray stop` are left out: the latter ends every Ray of a machine.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.dataset
import pytest
from PIL import Image

from fixtures.pages import blocks
from fixtures.ray_cluster import TwoNodes
from fixtures.tiny_release import quickstart_spec, run_checkpoint
from virtue_pl.cli.main import main

pytestmark = pytest.mark.ray

ON_ONE_MACHINE, ON_SEVERAL = (
    [command for command in block.commands if command[0] == "virtue-pl"]
    for block in blocks()
    if block.page.name == "cluster.md" and block.text.startswith("virtue-pl")
)
IMAGES = 40
PROGRESS = re.compile(r"encoding .* 40/40 100% .*")
DESK = {"runs/ray_encoded": "runs/encoded", "runs/encoded_by_many": "runs/encoded", "runs/ray_index": "runs/index"}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands read: images and a quickstart's model, and what they write without Ray."""
    folder = tmp_path_factory.mktemp("clone")
    run_checkpoint(folder / "runs/quickstart/virtue", quickstart_spec(folder))
    (images := folder / "data/scar_mini_stamps/images").mkdir(parents=True)
    for number in range(IMAGES):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{number:03d}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in ON_ONE_MACHINE[:2]:
            arguments = [DESK.get(word, word) for word in command[1:]]
            start = arguments.index("--engine")
            assert main(arguments[:start]) == 0
    return folder


def run(command: list[str], folder: Path, **environment: str) -> tuple[str, str]:
    """Run a command in a process of its own; returns what it prints, and what it says on stderr but for its bar."""
    arguments = [sys.executable, "-m", "virtue_pl", *command[1:]]
    done = subprocess.run(arguments, cwd=folder, env=os.environ | environment, capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if line.strip() and not PROGRESS.fullmatch(line.strip())]
    assert done.returncode == 0, done.stderr
    return done.stdout, "\n".join(said)


def check_rows(found: Path, expected: Path) -> None:
    """Check that two folders have the same rows in the same order, vectors to 1e-5."""
    tables = [pyarrow.dataset.dataset(folder, format="parquet").to_table() for folder in (found, expected)]
    assert tables[0].num_rows == IMAGES
    assert tables[0].drop_columns("vector").equals(tables[1].drop_columns("vector"))
    np.testing.assert_allclose(*(np.array(table["vector"].to_pylist()) for table in tables), atol=1e-5)


def test_on_a_ray_of_this_machine_alone(clone):
    encode, index, search = ON_ONE_MACHINE
    assert run(encode, clone) == ("runs/ray_encoded: 40 rows of 40 documents (40 encoded now, 0 were there)\n", "")
    check_rows(clone / "runs/ray_encoded", clone / "runs/encoded")
    printed, said = run(index, clone)
    assert printed.endswith("searched exactly: every row is compared\n") and not said
    answers = [
        json.loads(run([*(folders.get(word, word) for word in search), "--json"], clone)[0])["answers"]
        for folders in ({}, DESK)
    ]
    scores = [[hit.pop("score") for hit in found[0]["hits"]] for found in answers]
    np.testing.assert_allclose(*scores, atol=1e-5)
    assert answers[0] == answers[1] and len(answers[0][0]["hits"]) == 10


def test_on_several_machines(clone, ray_nodes: TwoNodes):
    """The address `auto` is that of this test's cluster, by RAY_ADDRESS, and not of one that a user may have here."""
    encode, index = ON_SEVERAL
    printed, said = run(encode, clone, RAY_ADDRESS=ray_nodes.address)
    assert printed == "runs/encoded_by_many: 40 rows of 40 documents (40 encoded now, 0 were there)\n" and not said
    assert len(list((clone / "runs/encoded_by_many").glob("part-*.parquet"))) == 3
    check_rows(clone / "runs/encoded_by_many", clone / "runs/encoded")
    printed, said = run(index, clone, RAY_ADDRESS=ray_nodes.address)
    assert printed.startswith(f"{clone / 'runs/index_by_many'}: 40 images of 32 numbers") and not said
