"""Two processes, started as the documentation says, train one model: on one machine, and on two over loopback."""

from __future__ import annotations

import os
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, get_args_parser

from fixtures.pages import blocks
from fixtures.rank_processes import free_port, started
from virtue_pl.cli.lightning import VirtueCLI
from virtue_pl.cli.main import main

CONFIG = """
shared: {run: %s}
seed_everything: 1
model:
  class_path: fixtures.cli_dummies.Root
  init_args:
    encoder: {class_path: fixtures.cli_dummies.Encoder, init_args: {width: 4}}
    connector: {class_path: fixtures.cli_dummies.Joint, init_args: {kernel: 1}}
    optimization:
      class_path: virtue_pl.engine.Optimization
      init_args: {lr: 0.1, weight_decay: 0.0, warmup_steps: 0, schedule: constant}
data:
  class_path: fixtures.cli_dummies.Data
  init_args: {folder: "${shared.run}/data", batch_size: 4, rows: 16}
trainer:
  default_root_dir: ${shared.run}
  accelerator: cpu
  devices: launcher
  max_epochs: 2
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {dirpath: "${shared.run}/checkpoints", save_last: true}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG % (tmp_path / "run"))
    return path


def documented(nodes: int) -> list[list[str]]:
    """The documentation's torchrun commands for so many machines, without the program."""
    commands = [command[1:] for block in blocks() if block.language == "sh" for command in block.commands]
    found = [arguments for arguments in commands if "-m" in arguments and "virtue_pl" in arguments]
    parsed = [(get_args_parser().parse_args(each), each) for each in found if "--nproc_per_node" in each]
    return [each for options, each in parsed if int(options.nnodes.split(":")[-1]) == nodes]


def fit(arguments: list[str], folder: str) -> None:
    """Train, and write down what this rank has come to."""
    torch.set_num_threads(1)
    cli = VirtueCLI("fit", arguments)
    cli.run()
    state = {"ranks": cli.trainer.world_size, "nodes": cli.trainer.num_nodes, "steps": cli.trainer.global_step}
    torch.save({**state, **cli.model.state_dict()}, Path(folder) / f"{cli.trainer.global_rank}.pt")


def be_agent(arguments: list[str], config: Path, folder: Path) -> None:
    """Do what torchrun does, with workers forked from this process: what it would start has been imported here."""
    (folder / "logs").mkdir(exist_ok=True)
    options = get_args_parser().parse_args(["--log_dir", str(folder / "logs"), *arguments])
    settings, _, program = config_from_args(options)
    settings.start_method = "fork"
    assert program[:4] == ["-u", "-m", "virtue_pl", "fit"], program
    elastic_launch(settings, fit)(["--config", str(config)], str(folder))


def replace_options(arguments: list[str], **instead: Any) -> list[str]:
    """The arguments, with other values of some options."""
    before = [f"--{name}" for name in instead]
    values = {f"--{name}": str(value) for name, value in instead.items()}
    return [values[last] if last in before else word for last, word in zip(["", *arguments], arguments, strict=False)]


@pytest.mark.ddp
@pytest.mark.parametrize("nodes", [1, 2])
def test_the_documented_commands_train_one_model(config: Path, tmp_path: Path, nodes: int) -> None:
    commands = documented(nodes)
    assert len(commands) == nodes
    here = {"nproc_per_node": 2 // nodes, "master_addr": "127.0.0.1"}
    port = ["--master_port", str(free_port())]
    context = get_context("fork")
    agents = [
        context.Process(target=be_agent, args=([*port, *replace_options(arguments, **here)], config, tmp_path))
        for arguments in commands
    ]
    for agent in agents:
        agent.start()
    for agent in agents:
        agent.join(90)
    codes = [agent.exitcode for agent in agents]
    for agent in agents:
        agent.kill()
    assert codes == [0] * nodes
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert (first["ranks"], first["nodes"], first["steps"]) == (2, nodes, 4)
    assert first.keys() == second.keys()
    assert all(torch.equal(torch.as_tensor(first[name]), torch.as_tensor(second[name])) for name in first)


def fit_with(rank: int, config: Path, options: list[str]) -> int:
    return main(["fit", "--config", str(config), *options])


@pytest.mark.ddp
@pytest.mark.parametrize("options", [["--trainer.devices", "1"], ["--trainer.num_nodes", "2"]])
def test_other_devices_than_the_launcher_s_are_one_line(config: Path, tmp_path: Path, options: list[str]) -> None:
    with started(tmp_path / "printed", fit_with, config, options) as ranks:
        assert ranks.wait(60) == [1, 1]
    assert "but torchrun has started 2 processes: leave both out" in ranks.printed(0).splitlines()[-1]
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_slurm_s_numbers_are_those_of_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    from virtue_pl.cli.run.launcher import Launcher, find_launcher
    from virtue_pl.types import VirtueError

    for name in [name for name in os.environ if name.startswith(("SLURM", "TORCHELASTIC"))]:
        monkeypatch.delenv(name)
    assert find_launcher() is None
    found = {"SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_PROCID": "3", "SLURM_JOB_NAME": "train"}
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(VirtueError, match="--nodes 2 --ntasks-per-node 4"):
        find_launcher()
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "4")
    assert find_launcher() == Launcher("srun", nodes=2, processes=4)
    monkeypatch.setenv("SLURM_NTASKS", "7")
    with pytest.raises(VirtueError, match="7 processes on 2 nodes, expected as many on each"):
        find_launcher()
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")
    assert find_launcher() is None
