"""Configs in layers, parts swapped by file, runs that are stopped and go on."""

from __future__ import annotations

import os
import signal

import pytest
import torch
import yaml

from fixtures.cli_dummies import Root
from virtue_pl.cli.main import main


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Lightning looks at SLURM's variables, and at the warnings of the machine's core count."""
    for name in [name for name in os.environ if name.startswith("SLURM")]:
        monkeypatch.delenv(name)


def test_shared_values_reach_their_users_in_every_file(build):
    cli = build()
    assert (cli.model.encoder.width, cli.model.segmentation.width, cli.model.connector.kernel) == (4, 4, 4)
    assert cli.datamodule.folder == f"{cli.trainer.default_root_dir}/data"


def test_an_override_of_a_shared_value_reaches_its_users(build):
    cli = build("--shared.width=6", "--shared.run=elsewhere")
    assert (cli.model.encoder.width, cli.model.connector.kernel) == (6, 6)
    assert cli.datamodule.folder == "elsewhere/data"


def test_a_later_file_changes_what_it_names(build, tmp_path):
    (tmp_path / "later.yaml").write_text("shared: {width: 8}\ndata: {init_args: {rows: 32}}\n")
    cli = build("--config", str(tmp_path / "later.yaml"))
    assert (cli.model.encoder.width, cli.datamodule.rows, cli.datamodule.batch_size) == (8, 32, 4)
    assert cli.datamodule.folder == str(tmp_path / "run" / "data")


def test_the_model_tells_the_data_how_batches_look(build):
    assert build("--shared.width=5").datamodule.connected == 5


def test_a_part_is_swapped_by_another_file(build, tmp_path):
    cli = build("--model.init_args.encoder", str(tmp_path / "parts" / "wide.yaml"))
    assert cli.model.encoder.width == 40


def test_a_part_is_swapped_in_a_later_file(build, tmp_path):
    (tmp_path / "later.yaml").write_text(
        "model: {init_args: {encoder: parts/wide.yaml, segmentation: parts/none.yaml}}"
    )
    cli = build("--config", str(tmp_path / "later.yaml"))
    assert (cli.model.encoder.width, cli.model.segmentation) == (40, None)


def test_a_part_is_left_out_by_null(build):
    assert build("--model.init_args.segmentation", "null").model.segmentation is None


def test_print_config_shows_the_resolved_config(config_file, capsys):
    assert main(["fit", "--config", str(config_file), "--shared.width=6", "--print_config"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["model"]["init_args"]["encoder"]["init_args"]["width"] == 6


def test_checkpoints_are_read_without_running_code(build):
    assert build().config.weights_only is True


def test_a_checkpoint_that_is_not_there(config_file, capsys):
    assert main(["fit", "--config", str(config_file), "--ckpt_path", "gone.ckpt"]) == 1
    assert (
        capsys.readouterr().err
        == "virtue-pl: ckpt_path: gone.ckpt is not there; expected a checkpoint file, `last` or `best`\n"
    )


def test_a_run_saves_its_config(config_file, tmp_path):
    assert main(["fit", "--config", str(config_file)]) == 0
    saved = tmp_path / "run" / "config.yaml"
    assert yaml.safe_load(saved.read_text())["shared"]["width"] == 4
    assert [path.name for path in saved.parent.iterdir() if path.name.startswith(".")] == []


def test_the_saved_config_runs_again_and_serves_other_commands(config_file, tmp_path):
    assert main(["fit", "--config", str(config_file)]) == 0
    saved = str(tmp_path / "run" / "config.yaml")
    assert main(["test", "--config", saved, "--ckpt_path", str(tmp_path / "run" / "checkpoints" / "last.ckpt")]) == 0
    assert (tmp_path / "run" / "config_test.yaml").is_file()


@pytest.mark.filterwarnings("ignore:Attribute .* is an instance of `nn.Module`:UserWarning")  # said anew while loading
def test_a_checkpoint_rebuilds_its_model(config_file, tmp_path):
    assert main(["fit", "--config", str(config_file)]) == 0
    model = Root.load_from_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert (model.encoder.width, model.connector.kernel) == (4, 4)


def test_sigterm_saves_and_the_run_goes_on_from_there(config_file, tmp_path, capsys):
    before = signal.getsignal(signal.SIGTERM)
    assert main(["fit", "--config", str(config_file), "--model.init_args.sigterm_at", "5"]) == 143
    assert "--ckpt_path last" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 6
    from virtue_pl.cli.lightning import VirtueCLI

    again = VirtueCLI("fit", ["--config", str(config_file), "--ckpt_path", "last"])
    again.run()
    assert again.model.seen == [6, 7]
