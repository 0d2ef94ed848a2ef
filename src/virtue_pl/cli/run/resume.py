"""Record of what a run is made of, written into its checkpoints, and compared where it goes on from one.

Settings count by name, whatever they are; training rows by their shards and order, which a place in them is a place of.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.console import Console
from rich.table import Table

from virtue_pl.cli.run.folder import Plain
from virtue_pl.types import VirtueError
from virtue_pl.types.fingerprints import library_versions

KEY = "made_of"
"""Entry of a checkpoint: what its run is made of, one flat mapping."""
ROWS = "rows"
"""Name, or beginning of the names, of the training rows in that mapping."""
NONE = "-"
COUNTS = "counts from here on"
SEED_STAYS = "no effect: the checkpoint's seed goes on"
WEIGHTS_STAY = "no effect: the checkpoint's weights go on"
BEGINS = "begins with its first row"
REFUSED = "refused"


@dataclass(frozen=True)
class Difference:
    """A thing that was another in the checkpoint's run, and what becomes of it.

    Example:
        >>> Difference("data.batch_size", "8", "16", COUNTS).then
        'counts from here on'
    """

    name: str
    was: str
    now: str
    then: str


class RecordingConnector(_CheckpointConnector):
    """Lightning's reader and writer of checkpoints, which writes what a run is made of, and compares it.

    Args:
        trainer: of the run.
        settings: of the run, flat (`settings_of`).
        allowed: names of training rows that may differ, "rows" for all.

    Example:
        >>> trainer._checkpoint_connector = RecordingConnector(trainer, settings, [])  # doctest: +SKIP
    """

    def __init__(self, trainer: Trainer, settings: Mapping[str, Plain], allowed: Sequence[str]) -> None:
        super().__init__(trainer)
        self.settings = settings
        self.allowed = allowed

    def dump_checkpoint(self, weights_only: bool | None = None) -> dict[str, Any]:
        """Return a checkpoint with what its run is made of."""
        return {**super().dump_checkpoint(weights_only), KEY: self.describe()}

    def restore_model(self) -> None:
        """Say what differs from the checkpoint's run before anything is taken from it.

        Raises VirtueError for a model of other sizes, and for other training rows that are not allowed.
        """
        if self._loaded_checkpoint and self.trainer.state.fn == TrainerFn.FITTING:
            before = self._loaded_checkpoint.get(KEY)
            if before is None:
                say("virtue-pl: the checkpoint does not say what its run was made of: no difference can be told")
            differences = compare(before, self.describe(), self.allowed) if before is not None else []
            print_differences(differences)
            check_sizes(self._loaded_checkpoint.get("state_dict", {}), self.trainer.lightning_module)
            check_rows(differences)
            begin_rows(self._loaded_checkpoint, [each.name for each in differences if each.then == BEGINS])
        super().restore_model()

    def describe(self) -> dict[str, Plain]:
        """Return what the run is made of, by name: its settings, its rows, and what was chosen for this machine."""
        return describe_run(self.settings, self.trainer, self.trainer.lightning_module, self.trainer.datamodule)  # type: ignore[attr-defined]


def describe_run(
    settings: Mapping[str, Plain], trainer: Trainer, model: LightningModule, data: Any
) -> dict[str, Plain]:
    """Return what a run is made of, by name: its settings as they were resolved, its rows, and versions."""
    resolved: dict[str, Plain | None] = {
        "trainer.accelerator": trainer.strategy.root_device.type,
        "trainer.devices": trainer.num_devices,
        "trainer.num_nodes": trainer.num_nodes,
        "trainer.precision": str(trainer.precision),
        "data.reader.num_workers": getattr(data, "num_workers", None),
        "steps_per_epoch": getattr(data, "steps", None),
        "trained_parameters": sum(each.numel() for each in model.parameters() if each.requires_grad),
    }
    rows: Mapping[str, str] = data.training_rows() if hasattr(data, "training_rows") else {}
    return {
        **settings,
        **{name: value for name, value in resolved.items() if value is not None},
        **{f"{ROWS}.{name}" if name else ROWS: text for name, text in rows.items()},
        **{f"version.{name}": found for name, found in library_versions().items() if found is not None},
    }


def compare(before: Mapping[str, Any], now: Mapping[str, Any], allowed: Sequence[str]) -> list[Difference]:
    """Return what differs, by name; what was or is not there is `-`."""
    names = [*now, *(name for name in before if name not in now)]
    return [
        Difference(
            name, describe_cell(before.get(name)), describe_cell(now.get(name)), describe_outcome(name, now, allowed)
        )
        for name in names
        if before.get(name) != now.get(name)
    ]


def describe_cell(value: Any) -> str:
    """Return a value as it stands in the table."""
    return NONE if value is None else str(value)


def describe_outcome(name: str, now: Mapping[str, Any], allowed: Sequence[str]) -> str:
    """Return what becomes of a thing that differs."""
    last = name.rpartition(".")[2]
    if is_within(name, ROWS):
        return BEGINS if any(is_within(name, each) for each in allowed) else REFUSED
    if name == "seed_everything":
        return SEED_STAYS
    if last in ("weights", "weights_prefix") or last.endswith("_weights") or name == "model.start":
        return WEIGHTS_STAY
    if last == "temperature" and now.get(f"{name.removesuffix(last)}learn_temperature"):
        return WEIGHTS_STAY
    return COUNTS


def is_within(name: str, whole: str) -> bool:
    """Return whether a dotted name is `whole`, or of something in it."""
    return name == whole or name.startswith(f"{whole}.")


def check_allowed(names: Sequence[str]) -> None:
    """Raise VirtueError for a name in `--allow_changes` that is not of training rows."""
    for name in names:
        if not is_within(name, ROWS):
            closest = get_close_matches(name, [ROWS], 1, cutoff=0.3)
            hint = f"did you mean {closest[0]!r}? " if closest else ""
            raise VirtueError(
                f"allow_changes: {name!r} is nothing that is refused: {hint}expected {ROWS}, or {ROWS}.NAME for a part"
                " of a mixture; all other settings may change, but for the model's sizes"
            )


def print_differences(differences: Sequence[Difference]) -> None:
    """Print what differs as a table on stderr, by the first rank."""
    if not differences:
        return
    table = Table(title="goes on with what differs from the checkpoint's run", title_justify="left", box=None)
    for column in ("", "was", "is", "then"):
        table.add_column(column, overflow="fold")
    for each in differences:
        table.add_row(each.name, each.was, each.now, each.then)
    rank_zero_only(Console(stderr=True).print)(table)


def say(line: str) -> None:
    """Print a line on stderr, by the first rank."""
    rank_zero_only(print)(line, file=sys.stderr)


def check_rows(differences: Iterable[Difference]) -> None:
    """Raise VirtueError for training rows that differ without being allowed."""
    refused = [each for each in differences if each.then == REFUSED]
    if refused:
        first = refused[0]
        others = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        names = " ".join(each.name for each in refused) if len(refused) < 4 else ROWS
        raise VirtueError(
            f"fit: {first.name} was {first.was}, is {first.now}{others}: the checkpoint's place in them means nothing."
            f" Give the shards, `sampling` and `seed` of its run, or begin with their first row by `--allow_changes"
            f" {names}`, or start another run from its weights"
        )


def check_sizes(saved: Mapping[str, Any], model: LightningModule) -> None:
    """Raise VirtueError where tensors of a checkpoint have other sizes than the model's."""
    own = model.state_dict()
    other = [name for name in own if name in saved and saved[name].shape != own[name].shape]
    if other:
        name = other[0]
        others = f", and {len(other) - 1} more" if len(other) > 1 else ""
        raise VirtueError(
            f"fit: the checkpoint is not of this config's run ({name} was {list(saved[name].shape)}, is"
            f" {list(own[name].shape)}{others}): give the config.yaml of its run, or start another run from its weights"
        )


def begin_rows(checkpoint: Mapping[str, Any], names: Sequence[str]) -> None:
    """Have training begin with the first row of some rows, in a checkpoint's state of the loaders."""
    sources = [name.removeprefix(ROWS).removeprefix(".") for name in names]
    loop = checkpoint.get("loops", {}).get("fit_loop", {}).get("state_dict", {})
    for state in loop.get("combined_loader", ()):
        plans = state.get("cursor", {}).get("plans", {})
        for source in sources:
            plans.pop(source, None)
