"""A run's folder: nothing in it is lost, whichever loggers and commands write there, and its settings stand in it."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from fixtures.small_runs import nested
from virtue_pl.cli.main import main
from virtue_pl.cli.run.folder import MetricsWriter, check_writable, is_first_process, lock_file, settings_of
from virtue_pl.types import VirtueError

pytestmark = pytest.mark.filterwarnings("ignore:Attribute .* is an instance of `nn.Module`:UserWarning")
LOGGERS = {name: f"lightning.pytorch.loggers.{name}" for name in ("CSVLogger", "TensorBoardLogger")}


@pytest.fixture
def run(config_file: Path, tmp_path: Path) -> Callable[..., int]:
    """`run("fit", ["CSVLogger"], ...)` runs a command on the dummies, which validate, with such loggers."""
    folder, text = "${shared.run}", config_file.read_text()
    for name in ("Root", "Data"):
        text = text.replace(f"cli_dummies.{name}", f"cli_dummies.Validated{name}")
    config_file.write_text(text)

    def call(command: str, loggers: list[str], *arguments: str) -> int:
        settings = {"save_dir": folder, "name": "", "version": ""}
        checkpoints = {"dirpath": f"{folder}/checkpoints", "save_last": True, "enable_version_counter": False}
        best = {"dirpath": f"{folder}/checkpoints", "monitor": "val/loss", "mode": "min"}
        layer: dict[str, Any] = {
            "trainer.log_every_n_steps": 1,
            "trainer.num_sanity_val_steps": 0,
            "trainer.logger": [{"class_path": LOGGERS[name], "init_args": settings} for name in loggers],
            "trainer.callbacks": [
                {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": checkpoints},
                {"class_path": "virtue_pl.callbacks.BestCheckpoint", "init_args": best},
                {"class_path": "virtue_pl.callbacks.LearningRates"},
            ],
        }
        (tmp_path / "layer.yaml").write_text(yaml.safe_dump(nested(layer)))
        layers = ["--config", str(config_file), "--config", str(tmp_path / "layer.yaml")]
        return main([command, *layers, *arguments])

    return call


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_metrics(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def scalars(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


@pytest.mark.parametrize("loggers", [["CSVLogger"], ["TensorBoardLogger"], ["CSVLogger", "TensorBoardLogger"]], ids=str)
def test_no_other_command_changes_what_fit_wrote(run: Callable[..., int], tmp_path: Path, loggers: list[str]) -> None:
    folder = tmp_path / "run"
    assert run("fit", loggers) == 0
    written = contents(folder)
    assert {"config.yaml", "hparams.yaml", "checkpoints/last.ckpt", "checkpoints/best.ckpt"} <= written.keys()
    for command in ("validate", "test", "predict"):
        assert run(command, loggers, "--ckpt_path", "best") == 0
    after = contents(folder)
    assert {name: after[name] for name in written} == written
    assert {f"config_{command}.yaml" for command in ("validate", "test", "predict")} <= after.keys()
    if "CSVLogger" in loggers:
        assert len(read_metrics(folder / "metrics.csv")) > 8 and read_metrics(folder / "metrics_test.csv")


@pytest.mark.parametrize("logger", LOGGERS)
def test_a_second_run_in_a_folder_is_refused_in_one_line_and_one_that_goes_on_adds_to_it(
    run: Callable[..., int], tmp_path: Path, logger: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert run("fit", [logger]) == 0
    before = contents(folder)
    capsys.readouterr()
    assert run("fit", [logger]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"{folder}/checkpoints holds a run (best.ckpt, " in line
    assert "`--ckpt_path last`" in line and "`--shared.run FOLDER`" in line
    assert run("fit", [logger], "--ckpt_path", str(tmp_path / "elsewhere.ckpt")) == 1
    assert contents(folder) == before
    assert run("fit", [logger], "--ckpt_path", "last", "--trainer.max_epochs", "3") == 0
    after = contents(folder)
    assert after["config.1.yaml"] == before["config.yaml"]
    if logger == "CSVLogger":
        earlier, later = before["metrics.csv"].decode(), after["metrics.csv"].decode()
        assert later.startswith(earlier) and len(later) > len(earlier)
        steps = [int(row["step"]) for row in read_metrics(folder / "metrics.csv") if row["val/loss"]]
        assert steps == [3, 7, 11]
    else:
        assert [event.step for event in scalars(folder).Scalars("val/loss")] == [3, 7, 11]
    assert run("fit", [logger], "--shared.run", str(tmp_path / "other")) == 0


def test_a_run_that_starts_while_another_writes_into_its_folder_is_refused_in_one_line(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run/checkpoints"
    descriptor = os.open(lock_file(folder), os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert run("fit", ["CSVLogger"]) == 1
    told = capsys.readouterr().err
    assert f"fit: another process is writing the checkpoints of {folder}" in told and told.count("\n") <= 2
    assert not folder.exists() and not (tmp_path / "run/config.yaml").exists()
    monkeypatch.setenv("RANK", "1")  # another process of the same run, whose first one holds the folder
    assert is_first_process() is False
    monkeypatch.delenv("RANK")
    os.close(descriptor)
    assert run("fit", ["CSVLogger"]) == 0


def test_check_says_that_the_folder_holds_a_run(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert run("check", []) == 0 and "it holds a run" not in capsys.readouterr().out
    assert run("fit", []) == 0
    capsys.readouterr()
    assert run("check", []) == 0
    assert "it holds a run: fit wants --ckpt_path last, or another --shared.run" in capsys.readouterr().out


def test_an_optimizer_of_other_groups_is_one_line(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", []) == 0
    multipliers = "--model.init_args.optimization.init_args.lr_multipliers"
    arguments = ["--ckpt_path", "last", "--trainer.max_epochs", "3", multipliers, "{connector: 3.0}"]
    assert run("fit", [], *arguments) == 1
    assert "the checkpoint's optimizer groups other parameters than this config's" in capsys.readouterr().err


def test_a_run_that_left_no_checkpoint_is_begun_anew_and_its_config_stays(
    run: Callable[..., int], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("of: a run that failed at once\n")
    (folder / "metrics.csv").write_text("step,a\n1,2\n")
    assert run("fit", ["CSVLogger"]) == 0
    assert (folder / "config.1.yaml").read_text() == "of: a run that failed at once\n"
    assert read_metrics(folder / "metrics.csv")[0]["a"] == "2"


def test_the_best_checkpoint_is_that_of_the_best_validation(run: Callable[..., int], tmp_path: Path) -> None:
    """The dummy's validation loss is the step, which is best at the first."""
    assert run("fit", []) == 0
    steps = {
        name: torch.load(tmp_path / "run" / "checkpoints" / name, weights_only=True)["global_step"]
        for name in ("best.ckpt", "last.ckpt")
    }
    assert steps == {"best.ckpt": 4, "last.ckpt": 8}


def test_a_metric_that_validation_does_not_log_is_named_once_with_those_there_are(
    run: Callable[..., int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    best = {"dirpath": str(tmp_path / "run" / "checkpoints"), "monitor": "val/hit@1", "mode": "max"}
    callback = json.dumps({"class_path": "virtue_pl.callbacks.BestCheckpoint", "init_args": best})
    assert run("fit", [], f"--trainer.callbacks+={callback}") == 0
    told = [record.getMessage() for record in caplog.records if "there is no best.ckpt" in record.getMessage()]
    assert len(told) == 1 and "validation logs val/loss, and not val/hit@1; set BestCheckpoint's monitor" in told[0]


def test_best_where_there_is_none_is_one_line(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("test", "fit"):
        assert run(command, [], "--ckpt_path", "best") == 1
        assert "there is no best.ckpt in" in capsys.readouterr().err


def test_a_run_goes_on_from_its_best_checkpoint(run: Callable[..., int], tmp_path: Path) -> None:
    assert run("fit", []) == 0
    assert run("fit", [], "--ckpt_path", "best", "--trainer.max_epochs", "3") == 0
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 12


def test_settings_and_final_metrics_are_a_row_of_tensorboards_table(run: Callable[..., int], tmp_path: Path) -> None:
    assert run("fit", ["TensorBoardLogger"]) == 0
    events = scalars(tmp_path / "run")
    found = {
        tag: plugin_data_pb2.HParamsPluginData.FromString(content)
        for tag, content in events.PluginTagToContent("hparams").items()
    }
    start = found["_hparams_/session_start_info"].session_start_info.hparams
    assert start["model"].string_value == "ValidatedRoot" and start["model.encoder.width"].number_value == 4
    assert start["model.optimization.lr"].number_value == pytest.approx(0.1)
    columns = {info.name.tag for info in found["_hparams_/experiment"].experiment.metric_infos}
    assert columns == {"val/loss"} and "_hparams_/session_end_info" in found
    assert columns <= set(events.Tags()["scalars"]), "the table shows the curves' last values"
    assert "hp_metric" not in events.Tags()["scalars"]
    assert {"lr/base", "lr/base.no_decay"} <= set(events.Tags()["scalars"])
    assert yaml.safe_load((tmp_path / "run" / "hparams.yaml").read_text())["data.batch_size"] == 4


def test_settings_are_named_by_their_options_without_what_is_only_shown() -> None:
    part = {"class_path": "a.b.Part", "init_args": {"size": 3, "of": None, "inner": {"class_path": "c.D"}}}
    config = {"model": part, "trainer": {"max_steps": 5, "logger": part, "callbacks": [part]}, "shared": {"x": 1}}
    assert settings_of(config) == {"model": "Part", "model.size": 3, "model.inner": "D", "trainer.max_steps": 5}


def test_a_metrics_file_of_another_order_keeps_its_rows(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,b,a\n0,1,2\n")
    writer = MetricsWriter(str(tmp_path), "fit")
    writer.log_metrics({"c": 3.0}, step=1)
    writer.save()
    assert read_metrics(tmp_path / "metrics.csv") == [
        {"a": "2", "b": "1", "c": "", "step": "0"},
        {"a": "", "b": "", "c": "3.0", "step": "1"},
    ]


@pytest.mark.parametrize("where", ["", "/under", "/checkpoints"])
def test_a_run_folder_that_is_a_file_is_found_before_the_first_step(
    run: Callable[..., int], tmp_path: Path, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not by the checkpoint at the end of a training."""
    folder = tmp_path / "taken"
    file = folder / "checkpoints" if where == "/checkpoints" else folder
    file.parent.mkdir(exist_ok=True)
    file.write_text("a file")
    chosen = folder / "under" if where == "/under" else folder
    assert run("fit", ["TensorBoardLogger"], "--shared.run", str(chosen)) == 1
    assert f"fit: {file} is no folder, expected one for the run" in capsys.readouterr().err.splitlines()[-1]
    assert [path for path in tmp_path.rglob("*") if "taken" in str(path) and path.is_file()] == [file]


def test_a_run_folder_that_cannot_be_written_is_found_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_writable(tmp_path / "not/there/yet")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(VirtueError, match=r"cannot be written into: change its permissions, or `--shared\.run`"):
        check_writable(tmp_path / "not/there/yet")


@pytest.mark.parametrize("how", ["empty", "half", "nearly", "folder", "zip"])
@pytest.mark.parametrize("command", ["fit", "validate"])
def test_a_damaged_checkpoint_is_one_line(
    run: Callable[..., int], tmp_path: Path, how: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", []) == 0
    last = tmp_path / "run/checkpoints/last.ckpt"
    damage(last, how)
    capsys.readouterr()
    longer = ("--trainer.max_epochs", "3") if command == "fit" else ()
    assert run(command, [], "--ckpt_path", str(last), *longer) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert f"{command}: the checkpoint is cut, empty or of another kind" in told or "last.ckpt is not there" in told


def damage(path: Path, how: str) -> None:
    """Cut a checkpoint, or put something else in its place."""
    whole = path.read_bytes()
    path.unlink()
    parts = {"empty": b"", "half": whole[: len(whole) // 2], "nearly": whole[:-1], "zip": b"PK\x03\x04"}
    path.mkdir() if how == "folder" else path.write_bytes(parts[how])


@pytest.mark.parametrize("how", ["half", "folder"])
def test_where_the_last_checkpoint_is_damaged_the_newest_whole_one_is_taken(
    run: Callable[..., int], tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", []) == 0
    folder = tmp_path / "run/checkpoints"
    last, best = folder / "last.ckpt", folder / "best.ckpt"
    (newest,) = (path for path in folder.glob("epoch*.ckpt"))
    assert [torch.load(path, weights_only=True)["global_step"] for path in (best, newest)] == [4, 8]
    damage(last, how)
    (folder / "notes.ckpt").write_text("no checkpoint")
    for chosen, step in ((newest, 8), (best, 4)):
        for command in ("validate", "fit"):
            capsys.readouterr()
            assert run(command, [], "--ckpt_path", "last", "--trainer.max_steps", str(step)) == 0
            told = capsys.readouterr().err
            assert f"virtue-pl: {command}: {last} is damaged (it" in told
            assert f"going on from {chosen}, of step {step}" in told
        damaged = last if last.exists() else folder
        assert damaged.exists()
        if chosen == newest:
            again = [path for path in folder.glob("*.ckpt") if path not in (best, last)]
            for path in again:
                path.write_bytes(b"")
            shutil.rmtree(last) if last.is_dir() else last.unlink()
            last.write_bytes(b"")
    best.write_bytes(b"")
    last.write_bytes(b"")
    capsys.readouterr()
    assert run("fit", [], "--ckpt_path", "last", "--trainer.max_epochs", "3") == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert f"fit: {last} is damaged (it is cut, empty or no checkpoint" in told and "the 3 others beside it" in told
    assert "`--shared.run FOLDER`" in told


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "nothing": lambda content: content.clear(),
    "no version": lambda content: content.pop("pytorch-lightning_version"),
    "no tensors": lambda content: content.pop("state_dict"),
    "no optimizer": lambda content: content.pop("optimizer_states"),
    "a tensor less": lambda content: content["state_dict"].popitem(),
    "a tensor more": lambda content: content["state_dict"].update(more=torch.zeros(1)),
    "other sizes": lambda content: content["state_dict"].update(
        {name: torch.zeros(2, 3, 4) for name in content["state_dict"]}
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_checkpoint_of_another_run_is_one_line(
    run: Callable[..., int], tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", []) == 0
    last = tmp_path / "run/checkpoints/last.ckpt"
    content = torch.load(last, weights_only=True)
    CHANGES[change](content)
    torch.save(content, last)
    capsys.readouterr()
    assert run("fit", [], "--ckpt_path", "last", "--trainer.max_epochs", "3") == 1
    assert "fit: the checkpoint is not of this config's run (" in capsys.readouterr().err.splitlines()[-1]
