"""The folder of a run: nothing that is in it is lost, and its settings stand beside its curves."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from virtue_pl.types import VirtueError

Plain = bool | int | float | str
OF_THE_PROGRAM = ("logger", "callbacks", "default_root_dir", "enable_progress_bar", "enable_model_summary")
"""Settings of the trainer that change what is shown, and no number."""


def check_folder(config: Any) -> None:
    """Raise VirtueError where `fit` would write over the checkpoints of another run, or cannot write any.

    config: of the command. `ckpt_path` says that a run goes on: "last", or a checkpoint in the same folder.
    """
    for folder, found in other_runs(config):
        raise VirtueError(
            f"fit: {folder} holds a run ({', '.join(found)}): `--ckpt_path last` goes on with it, `--shared.run FOLDER`"
            " starts another one beside it"
        )
    root = config.trainer.get("default_root_dir")
    for folder in [*([Path(root)] if root and "://" not in str(root) else []), *checkpoint_folders(config)]:
        check_writable(folder)


@contextmanager
def claim_folders(config: Any) -> Iterator[None]:
    """Hold the folders of a run's checkpoints, so that no other `fit` writes into them meanwhile.

    The first process of a run holds them for all, against other runs of this machine. Raises
    VirtueError where another process holds one.
    """
    with ExitStack() as stack:
        for folder in checkpoint_folders(config) if is_first_process() else ():
            if "://" in str(folder):
                continue
            descriptor = hold_file(lock_file(folder))
            if descriptor is None:
                raise VirtueError(
                    f"fit: another process is writing the checkpoints of {folder}: wait for it, or start this run"
                    " beside it, by `--shared.run FOLDER`"
                )
            stack.callback(os.close, descriptor)
            stack.callback(lock_file(folder).unlink, missing_ok=True)
        if is_first_process():
            check_folder(config)  # the other one may have ended since this one looked
        yield


def lock_file(folder: Path) -> Path:
    """Return the file, in this machine's folder for temporary ones, by which a run's folder is held."""
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"virtue-pl-{os.getuid()}-{name}.lock"


def hold_file(path: Path) -> int | None:
    """Return the descriptor of a file that this process holds alone until it is closed; None where another one does."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)  # the one that held it has removed it since


def is_first_process() -> bool:
    """Return whether this is the first of the processes of a run, or the only one."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def check_writable(folder: Path) -> None:
    """Raise VirtueError where a folder is not there and cannot be made, is a file, or cannot be written into."""
    there = next(path for path in (folder, *folder.resolve().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise VirtueError(f"fit: {there} is no folder, expected one for the run: remove it, or change `--shared.run`")
    if not os.access(there, os.W_OK | os.X_OK):
        raise VirtueError(f"fit: {there} cannot be written into: change its permissions, or `--shared.run`")


def other_runs(config: Any) -> Iterator[tuple[Path, list[str]]]:
    """Yield each folder with another run's checkpoints that `fit` would write over, and their names."""
    for folder in checkpoint_folders(config):
        found = sorted(path.name for path in folder.glob("*.ckpt"))
        if found and not goes_on(config.get("ckpt_path"), folder):
            yield folder, found


def checkpoint_folders(config: Any) -> list[Path]:
    """Return the folders that the callbacks of a command's config save checkpoints into."""
    callbacks = config.trainer.get("callbacks") or []
    options = [callback.get("init_args") for callback in callbacks if hasattr(callback, "get")]
    named = [each.get("dirpath") for each in options if each is not None]
    return list(dict.fromkeys(Path(folder) for folder in named if folder))


def goes_on(start: Any, folder: Path) -> bool:
    """Return whether a run that starts from `start` goes on with that in `folder`."""
    return start in ("last", "best", "hpc") or (start is not None and Path(start).resolve().parent == folder.resolve())


def best_checkpoint(config: Any) -> Path:
    """Return the run's `best.ckpt`. Raises VirtueError where there is none."""
    found = [folder / "best.ckpt" for folder in checkpoint_folders(config) if (folder / "best.ckpt").is_file()]
    if not found:
        folders = ", ".join(map(str, checkpoint_folders(config))) or "any folder of the config"
        raise VirtueError(
            f"ckpt_path: there is no best.ckpt in {folders}: BestCheckpoint writes it where a run validates; name a"
            " checkpoint, or `last`"
        )
    return found[0]


def keep_earlier(path: Path, text: str) -> None:
    """Rename a file that is to be replaced by another text: config.yaml becomes config.1.yaml, or the next number."""
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        numbers = (number for number in range(1, 10**6) if not numbered(path, number).exists())
        path.rename(numbered(path, next(numbers)))


def numbered(path: Path, number: int) -> Path:
    """Return a file's path with a number before its suffix."""
    return path.with_name(f"{path.stem}.{number}{path.suffix}")


class MetricsWriter(ExperimentWriter):
    """Writer of a CSVLogger that adds to the file it finds, where Lightning's deletes it.

    Args:
        log_dir: the logger's folder.
        command: other commands than `fit` write metrics_COMMAND.csv beside the training's metrics.csv.

    Example:
        >>> logger._experiment = MetricsWriter(logger.log_dir, "test")  # doctest: +SKIP
    """

    def __init__(self, log_dir: str, command: str) -> None:
        of_command = "" if command == "fit" else f"_{command}"
        self.NAME_METRICS_FILE = f"metrics{of_command}.csv"
        self.NAME_HPARAMS_FILE = f"hparams{of_command}.yaml"
        super().__init__(log_dir)
        path = Path(self.metrics_file_path)
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                header = next(csv.reader(file), [])
            self.metrics_keys = sorted(header)
            if header != self.metrics_keys:
                self._rewrite_with_new_header(self.metrics_keys)

    def _check_log_dir_exists(self) -> None:
        """Delete nothing."""

    def save(self) -> None:
        """Write what was logged; without settings there is no file of them."""
        if self.hparams:
            super().save()
        else:
            super(ExperimentWriter, self).save()


def keep_metrics(trainer: Trainer, command: str) -> None:
    """Have every CSVLogger whose folder holds files leave them, and add its own."""
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger) and trainer.is_global_zero and list(Path(logger.log_dir).glob("*")):
            logger._experiment = MetricsWriter(logger.log_dir, command)


def settings_of(config: Mapping[str, Any]) -> dict[str, Plain]:
    """Return a run's settings as one flat mapping: `model.connector.grid_size`, by the option without `init_args`.

    A part's own entry is the name of its class. Empty options, and what changes only what is shown, are left out; so is
    `shared`, whose entries stand where they are used.

    Example:
        >>> settings_of({"model": {"class_path": "virtue_pl.models.Virtue", "init_args": {"weights": None}}})
        {'model': 'Virtue'}
    """
    trainer = {name: value for name, value in (config.get("trainer") or {}).items() if name not in OF_THE_PROGRAM}
    chosen = {"seed_everything": config.get("seed_everything"), "trainer": trainer}
    return dict(flatten({**{name: config.get(name) for name in ("model", "data")}, **chosen}))


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, Plain]]:
    """Yield the dotted name and the value of everything plain in nested settings."""
    if isinstance(value, Mapping):
        if "class_path" in value:
            yield name, str(value["class_path"]).rpartition(".")[2]
            value = {**(value.get("init_args") or {}), **(value.get("dict_kwargs") or {})}
        for key, each in value.items():
            yield from flatten(each, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        yield name, json.dumps(value, default=str)
    elif value is not None:
        yield name, value if isinstance(value, bool | int | float | str) else str(value)


def log_settings(trainer: Trainer, settings: Mapping[str, Plain]) -> None:
    """Give a run's settings to its loggers, before the first step.

    TensorBoard is not given the metrics beside them, which it would show as curves of one made-up point: its table
    shows the curves' last values. What the model and the data have noted of their own arguments is among the settings.
    """
    for part in (trainer.lightning_module, trainer.datamodule):  # type: ignore[attr-defined]
        if part is not None:
            part._log_hyperparams = False
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.hparams.update(settings)
            if trainer.is_global_zero:
                write_session(logger, settings, [])
        else:
            logger.log_hyperparams(dict(settings))


def log_metric_names(trainer: Trainer, settings: Mapping[str, Plain]) -> None:
    """Tell TensorBoard which curves are columns of its table of settings: those of validation, and the loss."""
    names = [name for name in sorted(trainer.callback_metrics) if name.startswith("val/") or name == "train/loss"]
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero and names:
            write_session(logger, settings, names)


def write_session(logger: TensorBoardLogger, settings: Mapping[str, Plain], metrics: Sequence[str]) -> None:
    """Write a run's row of TensorBoard's table: its settings, or, once `metrics` are known, its columns and its end."""
    from torch.utils.tensorboard.summary import hparams

    columns, start, end = hparams(dict(settings), dict.fromkeys(metrics, 0.0))
    writer = logger.experiment._get_file_writer()
    for summary in (columns, end) if metrics else (start,):
        writer.add_summary(summary)
    writer.flush()
