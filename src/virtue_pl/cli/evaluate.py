"""`virtue-pl eval`: a model on sets of SCaR and MMEB, with a report."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def main(argv: list[str]) -> int:
    """Evaluates, and leaves a report in `--out`."""
    arguments = _parser().parse_args(argv)
    import os

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from lightning import Trainer
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from virtue_pl.cli.lightning import STOPPED_BY_SIGTERM, one_line_errors
    from virtue_pl.data.evaluation import EvaluationDataModule
    from virtue_pl.evaluation.evaluator import Evaluator

    data = EvaluationDataModule(
        root=arguments.data,
        sets=arguments.sets,
        form=arguments.form,
        resize_to_square=arguments.resize_to_square,
        limit=arguments.limit,
        allow_missing=arguments.allow_missing,
        images=arguments.images,
        batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
    )
    evaluator = Evaluator(
        arguments.model,
        arguments.out,
        store=arguments.store,
        recipe=arguments.recipe,
        mode=arguments.mode,
        prompt_frame=arguments.prompt_frame,
        chunk_size=arguments.chunk_size,
        cost=arguments.cost,
        robustness=arguments.robustness,
        full_lists=arguments.full_lists,
        sam_checkpoint=arguments.sam_checkpoint,
        base=arguments.base,
        dtype=arguments.dtype,
        allow_classes=arguments.allow_classes,
    )
    data.connect(evaluator.preprocess)
    silent: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = Trainer(accelerator=arguments.accelerator, devices=arguments.devices, precision=arguments.precision, **silent)
    try:
        with one_line_errors("eval"):
            trainer.test(evaluator, datamodule=data, verbose=False)
    except SIGTERMException:
        print("virtue-pl: eval was stopped by SIGTERM; the same command goes on behind what is embedded", file=sys.stderr)
        return STOPPED_BY_SIGTERM
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="virtue-pl eval",
        description="Ranks the candidates of every query of evaluation sets. Leaves predictions.jsonl, report.json, report.md and report.html. "
        "What was embedded before is not embedded again, whichever sets it occurs in. "
        "More settings, and baselines: `lightning test` with configs/eval_scar.yaml.",
    )
    parser.add_argument("--model", required=True, help="folder or hub name of a model, or a run's checkpoint (.ckpt)")
    parser.add_argument(
        "--sets", nargs="+", required=True, metavar="SET", help="scar, mmeb, scar_mini, mmeb_mini, or names of their sets (ADE20K, ImageNet-1K)"
    )
    parser.add_argument("--data", required=True, metavar="ROOT", help="folder of folders of shards, or an official folder")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the report")
    parser.add_argument("--recipe", choices=("reference", "virtue"), help="insist on a recipe; by default it is the one that the weights were trained with")
    parser.add_argument("--form", choices=("instruct", "v1"), help="of MMEB's files, where both are there")
    square = "every picture becomes a square of so many pixels a side first (1344 in the published evaluation); default: its own size"
    parser.add_argument("--resize-to-square", type=int, metavar="SIDE", help=square)
    frame = "where a box lies for the segmentation model: canvas, on its object; pixels, as published (default with recipe reference)"
    parser.add_argument("--prompt-frame", choices=("canvas", "pixels"), help=frame)
    parser.add_argument("--mode", default="box", choices=("box", "point", "mask", "no_prompt", "blind"), help="how regions are pointed at (default box)")
    parser.add_argument("--limit", type=int, help="of each set only the first rows")
    parser.add_argument("--allow-missing", action="store_true", help="sets whose files are missing are left out, and the tables say so")
    parser.add_argument("--cost", action="store_true", help="measure latency, throughput and memory of every kind of query, too")
    robust = "rank the first ROWS queries with a region of each set with imprecise boxes, clicks and masks, too: about 37 times each"
    parser.add_argument("--robustness", type=int, default=0, metavar="ROWS", help=robust)
    full = "queries with more candidates have only the best 1000 in predictions.jsonl; their ranks are of all (default 10000)"
    parser.add_argument("--full-lists", type=int, default=10_000, metavar="N", help=full)
    parser.add_argument("--store", type=Path, help="folder of embeddings by content (default `embeddings` beside DIR)")
    parser.add_argument("--images", action="append", metavar="FOLDER", help="look for pictures here first; may be repeated")
    parser.add_argument("--batch-size", type=int, default=16, help="inputs read at once (default 16)")
    parser.add_argument("--chunk-size", type=int, default=8, help="rows encoded at once (default 8)")
    parser.add_argument("--num-workers", type=int, default=0, help="processes that read pictures (default 0)")
    parser.add_argument("--sam-checkpoint", help="SAM's checkpoint of a published release, or the folder that it is in")
    parser.add_argument("--base", help="folder of the model under a checkpoint's adapters")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of the weights (default float32)")
    parser.add_argument("--precision", default="32-true", help="Lightning's name of a precision, as bf16-mixed (default 32-true)")
    parser.add_argument("--accelerator", default="auto", help="Lightning's name of an accelerator (default auto)")
    parser.add_argument("--devices", default="auto", help="how many (default auto)")
    parser.add_argument("--allow-classes", action="append", default=[], metavar="PREFIX", help="an exported folder may name classes that begin so")
    return parser
