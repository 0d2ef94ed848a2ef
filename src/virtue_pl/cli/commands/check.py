"""`virtue-pl check`: build what `fit` needs, try two rows, train nothing, and print a summary of the run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from virtue_pl.types import VirtueError

if TYPE_CHECKING:
    from virtue_pl.cli.run.trial import Trial

from virtue_pl.cli.progress import LoadingLine

GROUP = "runs"


def main(argv: list[str]) -> int:
    """Build a run, print its summary, and try a training and a validation batch of two rows; argv as for fit.

    Returns 1, after one line on stderr, if training cannot start.

    A model whose sizes are stated (a backbone's `vlm_sizes`) is built by them, without its weights; its data may be
    missing, too. Raises VirtueError for a part that cannot be built.
    """
    # for --help alone: the options are those of fit, which the parser of fit reads below
    _parser().parse_known_args(argv)
    loading = LoadingLine("libraries, the model and what its data needs").start()
    from rich.console import Console

    from virtue_pl.cli.described import DescribedCLI
    from virtue_pl.cli.lightning import one_line_errors
    from virtue_pl.cli.run.checks import check_run, check_trial
    from virtue_pl.cli.run.summary import adapter_tables, facts_table, parts_table, run_facts, show_data, show_described

    with one_line_errors("check"):
        cli = DescribedCLI("fit", argv, program="virtue-pl check")
        loading.stop()
        if cli.is_described:
            connect_where_possible(cli.datamodule, cli.model)
            check_run(cli.model, cli.datamodule, cli.trainer)
        console = Console()
        console.print(parts_table(cli.model))
        for table in adapter_tables(cli.model):
            console.print(table)
        print_data = show_described if cli.is_described else show_data
        problem = print_data(console, cli.trainer, cli.model, cli.datamodule)
        if cli.unread:
            console.print(facts_table("not read: the model is built on the meta device", cli.unread.items()))
        console.print(facts_table("run", run_facts(cli.trainer, cli.config, cli.model)))
        if not problem:
            trial = check_trial(cli.model, cli.datamodule, cli.trainer)
            console.print(facts_table("tried with two rows", trial_facts(trial)))
    if problem:
        print(f"virtue-pl: check: {problem}", file=sys.stderr)
    return 1 if problem else 0


def connect_where_possible(data: Any, model: Any) -> None:
    """Connect data to a model on the meta device, where no stored features would be compared to its weights."""
    if data is not None:
        with suppress(VirtueError):
            data.connect(model.collator)


def trial_facts(trial: Trial) -> Iterator[tuple[str, str]]:
    """Yield name and value of the facts about a trial: what was logged, and what was not tried."""
    yield "metrics", ", ".join(sorted(trial.metrics)) or "none"
    if trial.untried:
        yield "not tried", trial.untried


def _parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog="virtue-pl check",
        usage="virtue-pl check [-h] -c FILE [-c FILE ...] [--NAME VALUE ...]",
        description=(
            "Builds everything that `virtue-pl fit` would need, trains nothing, writes nothing, and prints what would"
            " happen: parameters, data, steps, checkpoints."
        ),
        epilog=(
            "Takes what fit takes: -c/--config FILE, of which several are laid over each other, and dotted overrides,"
            " as --trainer.max_steps 100 or --shared.NAME VALUE. `virtue-pl fit --help` lists them."
        ),
        allow_abbrev=False,
    )
