"""Commands fit, validate, test and predict: Lightning's CLI with any model, any data, and configs in layers."""

from __future__ import annotations

import sys
from argparse import ArgumentError
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from pickle import UnpicklingError
from traceback import walk_tb
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, set_parsing_settings
from lightning import LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf.errors import OmegaConfBaseException

from virtue_pl.cli.config.class_names import import_bare_names, with_logger_folder
from virtue_pl.cli.config.parser import ConfigParser
from virtue_pl.cli.config.replaced_classes import clean_replaced_classes
from virtue_pl.cli.errors import UsageError, interpolation, missing_package, one_line
from virtue_pl.cli.progress import LoadingLine
from virtue_pl.cli.run.checks import check_before_fit, check_run
from virtue_pl.cli.run.failures import failures_told
from virtue_pl.cli.run.folder import (
    best_checkpoint,
    check_folder,
    claim_folders,
    keep_earlier,
    keep_metrics,
    log_metric_names,
    log_settings,
    settings_of,
)
from virtue_pl.cli.run.last_checkpoint import describe_saved, replace_damaged_last
from virtue_pl.cli.run.resume import RecordingConnector, check_allowed
from virtue_pl.cli.run.trainer import AutoPrecisionTrainer
from virtue_pl.types import VirtueError, replace_whole

clean_replaced_classes()
STOPPED_BY_SIGTERM = 143
ALLOW = "allow_changes"
"""Option of `fit` that is asked for anew each time, and stands in no saved config."""
RESTORING = {"load_checkpoint", "resume_start", "_restore_modules_and_callbacks", "restore_training_state"}
"""Functions of Lightning that read a checkpoint, and give its content to what is trained."""


class LayeredConfig(ActionConfigFile):
    """Action of `--config`: a file is laid over those before it; `shared`, a plain mapping, is merged entry by entry.

    Example:
        >>> parser.add_argument("--config", action=LayeredConfig)  # doctest: +SKIP
    """

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        before = dict(cfg.get("shared") or {})
        try:
            super().__call__(parser, cfg, values, option_string)
        except (ArgumentError, TypeError) as error:
            raise UsageError(f"{values}: {one_line(str(error), parser_keys(parser))}") from error
        parser.shared.add_file(str(cfg), cfg.get("shared") or {})
        cfg["shared"] = {**before, **(cfg.get("shared") or {})}


class SaveRunConfig(SaveConfigCallback):
    """Callback that writes the resolved config into the run's folder, and gives a training's settings to its loggers.

    The file is written under a temporary name and moved, by `fit` once the checkpoint that it goes on from has been
    taken; another `config.yaml` that is there becomes `config.1.yaml`.

    Example:
        >>> VirtueCLI("fit", ["--config", "configs/virtue_mini.yaml"]).run()  # doctest: +SKIP
        >>> Path("runs/virtue_mini/config.yaml").is_file()
        True
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            self.write(trainer)

    def write(self, trainer: Trainer) -> None:
        """Write the config, once."""
        folder = trainer.log_dir  # on every rank, because it is broadcast
        if self.already_saved or not trainer.is_global_zero or folder is None:
            return
        path = Path(folder) / self.config_filename
        config = self.config.clone()
        config.pop(ALLOW, None)
        text = self.parser.dump(config, skip_unset=False)
        text = f"# started in {Path.cwd()}\n{text}"  # what relative paths are relative to
        with replace_whole(path) as temporary:
            temporary.write_text(text)
            keep_earlier(path, text)
        self.already_saved = True

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.strategy.restore_checkpoint_after_setup:
            self.write(trainer)
            log_settings(trainer, self.settings)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.strategy.restore_checkpoint_after_setup:
            self.write(trainer)
            log_settings(trainer, self.settings)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        log_metric_names(trainer, self.settings)

    @property
    def settings(self) -> dict[str, Any]:
        """Return the run's settings, as its loggers are given them."""
        return settings_of(yaml.safe_load(self.parser.dump(self.config)))


class VirtueCLI(LightningCLI):
    """The parser and the objects of one command.

    There is no sub-command level in the config, so that `${shared.name}` means the same in every file and a saved
    config.yaml serves every command. Interpolation comes last, after all layers and overrides (parser mode
    `omegaconf+`).

    Example:
        >>> VirtueCLI("fit", ["--config", "configs/virtue_mini.yaml"]).run()  # doctest: +SKIP
    """

    def __init__(self, command: str, arguments: list[str], program: str | None = None) -> None:
        self.command = command
        asks_help = any("help" in argument for argument in arguments)
        # help of settings is the docstring under each field, for which every class's source is read: it takes seconds
        set_parsing_settings(docstring_parse_attribute_docstrings=asks_help)
        import_bare_names(arguments)
        arguments = with_logger_folder(arguments)
        super().__init__(
            LightningModule,
            None,
            trainer_class=AutoPrecisionTrainer,
            save_config_callback=SaveRunConfig,
            save_config_kwargs={"config_filename": "config.yaml" if command == "fit" else f"config_{command}.yaml"},
            parser_kwargs={
                "parser_mode": "omegaconf+",
                "exit_on_error": False,
                "allow_abbrev": False,
                "prog": program or f"virtue-pl {command}",
            },
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=arguments,
            run=False,
            auto_configure_optimizers=False,
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = ConfigParser(**kwargs)
        parser.add_argument(
            "-c", "--config", action=LayeredConfig, help="A YAML file; several are laid over each other, left to right."
        )
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--shared",
            type=dict[str, Any],
            default={},
            help="Values that several parts need, stated once; a part says ${shared.NAME}.",
        )
        skip: set[str | int] = {"model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders"}
        self.method_arguments = parser.add_method_arguments(Trainer, self.command, skip=skip)
        parser.set_defaults(weights_only=True)
        if self.command == "fit":
            parser.add_argument(
                f"--{ALLOW}",
                nargs="*",
                type=str,
                default=[],
                help="Training rows that may be others than those of `ckpt_path`: `rows`, or `rows.NAME` for a part of"
                " a mixture. They begin with their first row.",
            )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        try:
            self.config = parser.parse_args(args)  # type: ignore[arg-type]  # a list: `__init__` gives one
        except ArgumentError as error:
            raise UsageError(one_line(error.message, parser_keys(parser))) from error
        except OmegaConfBaseException as error:
            raise UsageError(interpolation(error)) from error
        parser.shared.check(self.config.get("shared") or {})  # type: ignore[attr-defined]
        check_checkpoint(self.config.get("ckpt_path"))
        check_allowed(self.config.get(ALLOW) or [])

    def before_instantiate_classes(self) -> None:
        if self.command == "fit":
            check_folder(self.config)
        if self.config.get("ckpt_path") == "best":
            self.config.ckpt_path = str(best_checkpoint(self.config))
        replace_damaged_last(self.config, self.command)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        # jsonargparse puts what a constructor of an optional part says into a report on types
        except (ValueError, ImportError) as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, VirtueError):
                cause = cause.__cause__
            raise cause or missing_package(error) or error from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        try:
            return super().instantiate_trainer(**kwargs)
        except (ValueError, MisconfigurationException) as error:
            raise VirtueError(f"trainer: {' '.join(str(error).split())}") from error

    def after_instantiate_classes(self) -> None:
        if self.datamodule is not None:
            self.datamodule.connect(self.model.collator)
        if self.command == "fit":
            check_run(self.model, self.datamodule, self.trainer)
            settings = settings_of(yaml.safe_load(self.parser.dump(self.config)))
            self.trainer._checkpoint_connector = RecordingConnector(self.trainer, settings, self.config[ALLOW])

    def run(self) -> None:
        """Run the command, with the options of the trainer's method."""
        if self.command == "fit":
            check_before_fit(self.model, self.datamodule, self.trainer)
        arguments = {name: self.config_init[name] for name in self.method_arguments}
        keep_metrics(self.trainer, self.command)
        with claim_folders(self.config) if self.command == "fit" else nullcontext():
            getattr(self.trainer, self.command)(model=self.model, datamodule=self.datamodule, **arguments)
        if self.command == "fit" and (saved := describe_saved(self.trainer)):
            rank_zero_only(print)(saved)


def parser_keys(parser: Any) -> list[str]:
    """Return the keys of a parser's options."""
    return [action.dest for action in parser._actions]


def check_checkpoint(path: str | None) -> None:
    """Raise VirtueError at once for a checkpoint that is not there.

    Lightning would say so only after setting up the data.
    """
    weights = [path, f"{path}/model.safetensors", f"{path}/model.safetensors.index.json"]
    if any(str(file).endswith((".safetensors", ".index.json")) and Path(str(file)).is_file() for file in weights):
        raise VirtueError(
            f"ckpt_path: {path} holds weights alone, expected a run's checkpoint (.ckpt), which goes on with its"
            " optimizer and step: to start a training from these weights, give them as `weights` of the part or model,"
            " such as --model.init_args.weights FILE, or as --shared.start FILE where the config has that"
        )
    named = path is None or path in ("last", "best", "hpc") or path.startswith("registry") or "://" in path
    if not named and not Path(str(path)).is_file():
        raise VirtueError(f"ckpt_path: {path} is not there; expected a checkpoint file, `last` or `best`")


@contextmanager
def one_line_errors(command: str) -> Iterator[None]:
    """Turn Lightning's complaints about settings and checkpoints into VirtueError."""
    try:
        yield
    except MisconfigurationException as error:
        raise VirtueError(f"{command}: {' '.join(str(error).split())}") from error
    except ValueError as error:  # of torch, while the optimizer of a checkpoint is loaded
        if "parameter group" not in str(error):
            raise
        raise VirtueError(
            f"{command}: the checkpoint's optimizer groups other parameters than this config's (lr_multipliers, what is"
            " trained, or an older version wrote it): start from its weights, with `--model.init_args.weights` and"
            " another `--shared.run`"
        ) from error
    except UnpicklingError as error:
        raise VirtueError(
            f"{command}: ckpt_path is no checkpoint that is read without running code in it: name one of a run (.ckpt),"
            " or give weights of another kind as `weights` of the model or part (--model.init_args.weights FILE)"
        ) from error
    except Exception as error:
        passed = {frame.f_code.co_name for frame, _ in walk_tb(error.__traceback__)}
        if isinstance(error, VirtueError) or not passed & RESTORING:
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if "load_checkpoint" in passed:
            raise VirtueError(
                f"{command}: the checkpoint is cut, empty or of another kind ({reason}): name another one, by"
                " `--ckpt_path FILE`"
            ) from error
        raise VirtueError(
            f"{command}: the checkpoint is not of this config's run ({reason}): give the config.yaml of its run, or"
            " start another run from its weights"
        ) from error


def main(argv: list[str]) -> int:
    """Run a command; returns its exit code. argv: fit, validate, test or predict, then its options."""
    command, *arguments = argv
    try:
        with one_line_errors(command):
            with LoadingLine("the model and what its data needs"):
                cli = VirtueCLI(command, arguments)
            with failures_told("virtue-pl"):
                cli.run()
    except SIGTERMException:
        if getattr(rank_zero_only, "rank", 0) == 0:
            print(
                f"virtue-pl: {command} was stopped by SIGTERM; `--ckpt_path last` goes on from the last checkpoint",
                file=sys.stderr,
            )
        return STOPPED_BY_SIGTERM
    return 0
