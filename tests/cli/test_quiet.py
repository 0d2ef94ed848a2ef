"""What other libraries say while commands run, and which of it a user reads."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from virtue_pl.cli import quiet

STAGES = """
import sys
from pathlib import Path
from virtue_pl.cli.quiet import quieten_libraries
quieten_libraries()
from fixtures.tiny_quickstart import scenes_and_segmenter
scenes_and_segmenter(Path(sys.argv[1]))
"""


def test_stages_print_no_line_of_another_library(tmp_path: Path) -> None:
    """Features and the segmenter of a tiny quickstart, in a process that shows warnings as a user's does."""
    environment = {name: value for name, value in os.environ.items() if name not in quiet.ENVIRONMENT}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", STAGES, str(tmp_path)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    printed = [line for line in (done.stdout + done.stderr).splitlines() if "log_every_n_steps" not in line]  # it helps
    noise = ("site-packages", "Warning", "Tip:", "LOAD REPORT", "Loading weights", "TPU", "weights_only", "FLOPs")
    assert [line for line in printed if any(part in line for part in noise)] == []
    assert any("GPU available" in line for line in printed)


@pytest.mark.parametrize("line, wanted", [("💡 Tip: install litmodels", False), ("Using bfloat16", True)])
def test_lines_of_lightning(line: str, wanted: bool) -> None:
    record = logging.makeLogRecord({"msg": line})
    assert quiet.is_wanted(record) == wanted


def test_other_warnings_are_shown() -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        quiet.quieten_libraries()
        warnings.warn("Found 3 module(s) in eval mode at the start of training. It may ...", stacklevel=1)
        warnings.warn("Checkpoint directory /run/checkpoints exists and is not empty.", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert [str(warning.message) for warning in shown] == ["something else"]


def test_a_users_setting_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    quiet.quieten_libraries()
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "info"
