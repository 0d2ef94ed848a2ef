"""`virtue-pl eval`: rank sets of SCaR and MMEB, or your own, with a model, and write a report."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from virtue_pl.cli.arguments import add_max_pixels
from virtue_pl.cli.command_parser import CommandParser
from virtue_pl.cli.dataclass_options import add_options, read_options
from virtue_pl.cli.progress import LoadingLine
from virtue_pl.data.eval_sets.options import EvaluationDataOptions
from virtue_pl.evaluation.settings import EncodingOptions, LoadingOptions, QueryFormat, ReportOptions

GROUP = "results"

SHARDS = "shards"
"""Folder, in that of the report, of the shards that one's own rows become."""
SETTINGS = (QueryFormat, ReportOptions, EvaluationDataOptions, EncodingOptions, LoadingOptions)
TRAINER = {
    "accelerator": "Lightning's name of an accelerator, as cpu",
    "devices": "how many",
    "precision": "Lightning's name of a precision, as bf16-mixed",
}
"""Options that are handed to Lightning's Trainer, whose defaults hold."""


def main(argv: list[str]) -> int:
    """Evaluate, and leave a report in `--out`. Returns the exit code: 0, or 143 after SIGTERM."""
    arguments = _parser().parse_args(argv)

    loading = LoadingLine("libraries").start()
    from lightning import Trainer
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from virtue_pl.cli.lightning import STOPPED_BY_SIGTERM, one_line_errors
    from virtue_pl.data.datamodules.evaluation import EvaluationDataModule
    from virtue_pl.data.eval_sets.own import ranked_shards
    from virtue_pl.evaluation.evaluator import Evaluator

    loading.stop()
    options = read_options(EvaluationDataOptions, arguments)
    root = arguments.data
    if arguments.sets is None:
        root = str(ranked_shards(Path(root), arguments.out / SHARDS, options.candidates, arguments.max_pixels))
    data = EvaluationDataModule(root, arguments.sets, options, arguments.max_pixels)
    evaluator = Evaluator(
        arguments.model,
        arguments.out,
        read_options(QueryFormat, arguments),
        loading=read_options(LoadingOptions, arguments),
        encoding=read_options(EncodingOptions, arguments),
        reporting=read_options(ReportOptions, arguments),
    )
    data.connect(evaluator.collator)
    given: dict[str, Any] = {name: getattr(arguments, name) for name in TRAINER if hasattr(arguments, name)}
    trainer = Trainer(logger=False, enable_checkpointing=False, enable_model_summary=False, **given)
    try:
        with one_line_errors("eval"):
            trainer.test(evaluator, datamodule=data, verbose=False)
    except SIGTERMException:
        message = "virtue-pl: eval was stopped by SIGTERM; the same command goes on behind what is embedded"
        print(message, file=sys.stderr)
        return STOPPED_BY_SIGTERM
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="virtue-pl eval",
        description="Ranks the candidates of every query of evaluation sets. Leaves predictions.jsonl, report.json, "
        "report.md and report.html. What was embedded before is not embedded again, whichever sets it occurs in. "
        "The same settings in YAML, and baselines: `lightning test` with configs/eval_scar.yaml.",
    )
    model = "folder or hub name of a model, or a run's checkpoint (.ckpt)"
    sets = (
        "scar, mmeb, scar_mini, mmeb_mini, or names of their sets (ADE20K, ImageNet-1K), or of folders of your own"
        " shards in ROOT; default: all that is there"
    )
    data = "folder of folders of shards, an official folder, or one of your own rows (test.jsonl, images/)"
    parser.add_argument("--model", required=True, help=model)
    parser.add_argument("--sets", nargs="+", metavar="SET", help=sets)
    parser.add_argument("--data", required=True, metavar="ROOT", help=data)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the report")
    for settings in SETTINGS:
        add_options(parser, settings)
    add_max_pixels(parser)
    for name, text in TRAINER.items():
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS, help=text)
    return parser
