"""A config folder for the dummy model, and a way to build a command's objects without running it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CONFIG = """
shared: {width: 4, run: %s}
seed_everything: 1
model:
  class_path: fixtures.cli_dummies.Root
  init_args:
    encoder: parts/encoder.yaml
    connector: parts/connector.yaml
    segmentation: parts/encoder.yaml
    scales: {box: 1.0}
    optimization:
      class_path: virtue_pl.engine.Optimization
      init_args: {lr: 0.1, weight_decay: 0.0, warmup_steps: 0, schedule: constant}
data:
  class_path: fixtures.cli_dummies.Data
  init_args: {folder: "${shared.run}/data", batch_size: 4, rows: 16}
trainer:
  default_root_dir: ${shared.run}
  accelerator: cpu
  max_epochs: 2
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {dirpath: "${shared.run}/checkpoints", save_last: true, save_on_exception: true}
"""
PARTS = {
    "encoder": "{class_path: fixtures.cli_dummies.Encoder, init_args: {width: '${shared.width}'}}",
    "wide": "{class_path: fixtures.cli_dummies.WideEncoder, init_args: {width: '${shared.width}', factor: 10}}",
    "connector": "{class_path: fixtures.cli_dummies.Joint, init_args: {kernel: '${shared.width}'}}",
    "none": "null",
}


@pytest.fixture(scope="session")
def write_config() -> Callable[[Path], Path]:
    """`write_config(folder)` writes a runnable config whose parts are files beside it, and whose run is in `folder`."""

    def write(folder: Path) -> Path:
        (folder / "parts").mkdir()
        for name, text in PARTS.items():
            (folder / "parts" / f"{name}.yaml").write_text(text)
        (folder / "config.yaml").write_text(CONFIG % (folder / "run"))
        return folder / "config.yaml"

    return write


@pytest.fixture
def config_file(write_config: Callable[[Path], Path], tmp_path: Path) -> Path:
    """A runnable config whose parts are files beside it, and whose run folder is `tmp_path / "run"`."""
    return write_config(tmp_path)


@pytest.fixture
def build(config_file: Path) -> Callable[..., Any]:
    """`build("--shared.width", "5")` gives the parsed and instantiated fit."""

    def built(*arguments: str) -> Any:
        from virtue_pl.cli.lightning import VirtueCLI

        return VirtueCLI("fit", ["--config", str(config_file), *arguments])

    return built
