"""A checkpoint is whole under its name, whatever ends the process that writes it."""

from __future__ import annotations

import fcntl
import io
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from fixtures.cli_dummies import Encoder
from virtue_pl.engine.checkpoint_io import WholeCheckpointIO
from virtue_pl.engine.weight_files import describe_damage
from virtue_pl.types import replace_whole
from virtue_pl.types.whole_files import LEFT_BEHIND

SAVE = torch.save


def content(step: int) -> dict[str, Any]:
    return {"global_step": step, "state_dict": {"weight": torch.full((64, 64), float(step))}}


def step_of(path: Path) -> int:
    return int(torch.load(path, weights_only=True)["global_step"])


def killed_while(saving: Callable[[], object], share: float) -> int:
    """Save in a forked process that kills itself when a share of the bytes is on the disk; return its signal."""

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def save(value: Any, file: Any) -> None:
        whole = io.BytesIO()
        SAVE(value, whole)
        data = whole.getvalue()
        if isinstance(file, io.BytesIO):
            file.write(data)
            return
        file.write(data[: int(share * len(data))])
        file.flush()
        die()

    def send(out: int, source: int, offset: int, count: int) -> int:  # how a file is copied to another disk
        size = os.fstat(source).st_size
        os.write(out, os.pread(source, int(share * size), 0))
        die()
        return 0

    child = os.fork()
    if not child:
        torch.save, os.sendfile = save, send
        saving()
        os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999, 1.0])
def test_a_process_killed_while_it_saves_leaves_the_last_checkpoint(
    tmp_path: Path, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.stat("/dev/shm").st_dev != os.stat(tmp_path).st_dev:
        monkeypatch.setattr(tempfile, "tempdir", "/dev/shm")  # the temporary folder on another disk
    path = tmp_path / "checkpoints/last.ckpt"
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    model = Encoder(2)
    model.trainer = trainer
    model.setup("fit")
    writer = trainer.strategy.checkpoint_io
    writer.save_checkpoint(content(1), path)
    assert killed_while(lambda: writer.save_checkpoint(content(2), path), share) == signal.SIGKILL
    assert step_of(path) == 1 and not describe_damage(path)

    (left,) = [other for other in path.parent.iterdir() if other != path]
    writer.save_checkpoint(content(3), path)
    assert left.exists() and step_of(path) == 3  # it may be of a process that has just begun
    os.utime(left, (0, 0))
    writer.save_checkpoint(content(4), path)
    assert [other.name for other in path.parent.iterdir()] == ["last.ckpt"] and step_of(path) == 4


def test_what_another_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    with replace_whole(path) as temporary, temporary.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        os.utime(temporary, (0, 0))
        WholeCheckpointIO().save_checkpoint(content(2), path)
        assert temporary.exists() and LEFT_BEHIND > 0
    assert path.stat().st_size == 0


def test_a_trainer_that_was_given_another_way_keeps_it(tmp_path: Path) -> None:
    class Own(TorchCheckpointIO):
        pass

    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, plugins=[Own()])
    model = Encoder(2)
    model.trainer = trainer
    model.setup("fit")
    assert type(trainer.strategy.checkpoint_io) is Own


@pytest.mark.parametrize("number", range(12))
def test_a_cut_checkpoint_is_damaged_and_a_whole_one_is_not(tmp_path: Path, number: int) -> None:
    path = tmp_path / "last.ckpt"
    WholeCheckpointIO().save_checkpoint(content(1), path)
    assert not describe_damage(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: number * len(whole) // 12 or 1])
    assert "cut, empty or no checkpoint" in describe_damage(path)
    start = whole.index(content(1)["state_dict"]["weight"].numpy().tobytes()[:64])
    path.write_bytes(whole[:start] + bytes(4096) + whole[start + 4096 :])  # of the same length
    assert "other bytes than were written" in describe_damage(path)


def test_a_folder_of_parts_is_whole_where_its_last_files_are_there(tmp_path: Path) -> None:
    for name in (".metadata", "meta.pt"):
        assert f"it lacks {name}" in describe_damage(tmp_path)
        (tmp_path / name).touch()
    assert not describe_damage(tmp_path)
