"""Classes by their bare names, on the command line and in a config; and classes whose package is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from virtue_pl.checkpoints.class_paths import public_classes
from virtue_pl.cli.config.class_names import import_bare_names, with_logger_folder
from virtue_pl.cli.main import main


def test_data_by_its_bare_name(build: Any) -> None:
    data = build("--data", "PairDataModule", "--data.init_args.train", "shards").config.data
    assert data.class_path.endswith("PairDataModule") and data.init_args.train == "shards"


def test_in_a_config_too(build: Any, tmp_path: Path) -> None:
    (tmp_path / "layer.yaml").write_text("data: {class_path: SCaRDataModule, init_args: {train: shards}}")
    assert build("--config", str(tmp_path / "layer.yaml")).config.data.class_path.endswith("SCaRDataModule")


def test_every_public_class_can_be_named_so() -> None:
    import_bare_names([*public_classes(), "--x=InfoNCELoss", "Nonsense", "--y", "3"])


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["--data", "PairsDataModule"], "data: there is no class 'PairsDataModule'; did you mean"),
        (["--data", "Unheard"], "data: there is no class 'Unheard', expected a class by its path"),
    ],
)
def test_another_name_is_one_line(
    config_file: Path, capsys: pytest.CaptureFixture[str], typed: list[str], told: str
) -> None:
    assert main(["fit", "--config", str(config_file), *typed]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("logger", "package"), [("WandbLogger", "wandb"), ("CometLogger", "comet-ml"), ("MLFlowLogger", "mlflow")]
)
def test_a_logger_without_its_package_is_one_line(
    config_file: Path, capsys: pytest.CaptureFixture[str], logger: str, package: str
) -> None:
    path = f"lightning.pytorch.loggers.{logger}"
    assert main(["fit", "--config", str(config_file), "--trainer.logger", path]) == 1
    assert capsys.readouterr().err == (
        f"virtue-pl: {path} needs the package {package}, which is not installed: `pip install {package}`, or name"
        " another class\n"
    )


@pytest.mark.parametrize("name", ["model.safetensors", "folder"])
def test_weights_are_no_checkpoint_to_go_on_with(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "folder").mkdir()
    for file in ("model.safetensors", "folder/model.safetensors"):
        (tmp_path / file).write_bytes(b"")
    assert main(["fit", "--config", str(config_file), "--ckpt_path", str(tmp_path / name)]) == 1
    told = capsys.readouterr().err
    assert "holds weights alone, expected a run's checkpoint (.ckpt)" in told and "--model.init_args.weights" in told
    assert "weights_only" not in told


@pytest.mark.parametrize("logger", ["CSVLogger", "lightning.pytorch.loggers.CSVLogger", "TensorBoardLogger"])
@pytest.mark.parametrize("form", ["apart", "joined"])
def test_a_logger_that_is_named_alone_writes_into_the_run_folder(
    build: Any, tmp_path: Path, logger: str, form: str
) -> None:
    options = ["--trainer.logger", logger] if form == "apart" else [f"--trainer.logger={logger}"]
    (found,) = build(*options).trainer.loggers
    assert Path(found.log_dir) == tmp_path / "run"
    (found,) = build(*options, "--trainer.logger.init_args.save_dir", str(tmp_path / "own")).trainer.loggers
    assert Path(found.log_dir).parent != tmp_path / "run" and tmp_path / "own" in Path(found.log_dir).parents


@pytest.mark.parametrize("typed", [[], ["--trainer.logger", "false"], ["--trainer.logger", "WandbLogger"]])
def test_other_words_stay_as_they_were_typed(typed: list[str]) -> None:
    assert with_logger_folder(typed) == typed
