"""Curves under the neutral level are the main table's values, bit by bit, whatever form queries have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer

from fixtures.evaluation_files import report, write_scar_set
from fixtures.scar_files import write_scar
from fixtures.tiny_release import published, quickstart_spec, run_checkpoint
from virtue_pl.backbones.segmentation.timm_sam import TimmSamBackbone
from virtue_pl.cli.commands import robustness as command
from virtue_pl.data.conversion.scar import convert_scar
from virtue_pl.data.datamodules.evaluation import EvaluationDataModule
from virtue_pl.embedder import Embedder
from virtue_pl.evaluation.evaluator import Evaluator
from virtue_pl.evaluation.probes.measurements import region_samples
from virtue_pl.evaluation.probes.perturbations import PERTURBATIONS
from virtue_pl.evaluation.probes.robustness import perturbed_queries, robustness
from virtue_pl.evaluation.settings import LoadingOptions, QueryFormat, ReportOptions
from virtue_pl.preprocessing.input_formatters import CropFormatter, InputFormatter, MarkerFormatter, VirtueFormatter
from virtue_pl.types import VirtueError

ROWS = 6
MODES = {kind: about.mode for kind, about in PERTURBATIONS.items()}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "published": published(root / "release" / "model"),
        "virtue": run_checkpoint(root / "runs/tiny", quickstart_spec(root / "files")),
    }


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scar_set(tmp_path_factory.mktemp("sets"), "ADE20K", rows=ROWS, regions=3)


def evaluated(
    model: Path, sets: Path, out: Path, query_format: QueryFormat, formatter: InputFormatter | None = None
) -> tuple[Evaluator, dict[str, Any]]:
    """An evaluation with its curves, and its report."""
    data = EvaluationDataModule(str(sets), ["ADE20K"])
    loading, reporting = LoadingOptions(formatter=formatter), ReportOptions(robustness=ROWS)
    evaluator = Evaluator(model, out, query_format, loading=loading, reporting=reporting)
    data.connect(evaluator.collator)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    Trainer(accelerator="cpu", devices=1, enable_checkpointing=False, **quiet).test(evaluator, data, verbose=False)
    return evaluator, report(out)


FORMATS = {
    "as the model": QueryFormat(),
    "without words": QueryFormat(describe_region=False),
    "on the canvas": QueryFormat(prompt_frame="canvas"),
    "a click": QueryFormat(mode="point"),
    "a click without words": QueryFormat(mode="point", describe_region=False, prompt_frame="canvas"),
}
FORMATTERS = {"its own": None, "crop": CropFormatter(), "marker": MarkerFormatter(), "plain": VirtueFormatter(False)}


@pytest.mark.parametrize(
    ("model", "name", "formatter"),
    [("published", name, "its own") for name in FORMATS] + [("virtue", "as the model", name) for name in FORMATTERS],
)
def test_a_curve_at_its_neutral_level_is_the_main_table(model, name, formatter, models, sets, tmp_path, monkeypatch):
    compared = []
    monkeypatch.setattr(
        "virtue_pl.evaluation.probes.measurements.robustness",
        lambda embed, samples, **options: (
            compared.append((embed, list(samples), options["with_prompt"]))
            or robustness(embed, compared[-1][1], **options)
        ),
    )
    query_format = FORMATS[name]
    evaluator, found = evaluated(models[model], sets, tmp_path / "run", query_format, FORMATTERS[formatter])
    curves = found["robustness"]["scar/SCaR_ADE20K"]
    same = {kind for kind in curves if MODES[kind] == query_format.mode}
    assert same
    for kind in same:
        neutral = next(row for row in curves[kind]["levels"] if row["level"] == PERTURBATIONS[kind].neutral)
        assert neutral["hit@1"] == found["sets"]["SCaR_ADE20K"]["hit@1"] and neutral["n"] == ROWS
        assert neutral["same_first"] == 1
    ((embed, samples, with_prompt),) = compared
    plan = evaluator.trainer.datamodule.plan
    ranked = evaluator.store.get([plan.keys[index] for index in plan.sets[0].queries.tolist()])
    for kind in same:
        queries = [
            query.query
            for sample in samples
            for query in perturbed_queries(sample, [kind], 0, with_prompt)
            if query.level == PERTURBATIONS[kind].neutral
        ]
        assert torch.equal(embed(queries), ranked)


@pytest.mark.parametrize(
    "query_format",
    [
        QueryFormat(stream="none"),
        QueryFormat(stream="roi"),
        QueryFormat(baseline="random"),
        QueryFormat(image_transform=CropFormatter()),
    ],
)
def test_baselines_have_no_curves(query_format, models, tmp_path):
    with pytest.raises(VirtueError, match="robustness is measured of the whole model, not of a baseline"):
        Evaluator(models["virtue"], tmp_path, query_format, reporting=ReportOptions(robustness=2))


def test_without_what_was_ranked_the_embeddings_are_the_same_to_rounding(models, sets, tmp_path):
    """Nothing but the store makes the neutral level equal: the form of a query alone does."""
    for model in ("published", "virtue"):
        evaluator, _ = evaluated(models[model], sets, tmp_path / model, QueryFormat())
        data, collator = evaluator.trainer.datamodule, evaluator.query_collator
        from virtue_pl.evaluation.probes.measurements import queries_in_format
        from virtue_pl.evaluation.retrieval.query_embedder import QueryEmbedder

        embedder, with_prompt = QueryEmbedder(evaluator.encoder, collator, "cpu"), queries_in_format(collator)
        samples = list(region_samples(data.plan.sets, data.library, ROWS))
        queries = [next(perturbed_queries(sample, ["box_jitter"], 0, with_prompt)).query for sample in samples]
        ranked = evaluator.store.get([data.plan.keys[index] for index in data.plan.sets[0].queries.tolist()])
        torch.testing.assert_close(embedder.embed(queries), ranked, atol=1e-5, rtol=0)


@pytest.mark.parametrize("model", ["published", "virtue"])
def test_the_command_reads_queries_as_the_evaluation_does(model, models, tmp_path):
    convert_scar(write_scar(tmp_path / "scar"), tmp_path / "shards")
    folder = (tmp_path / "shards" / "SCaR_eval_mini_val").rename(tmp_path / "shards" / "SCaR_eval_mini_test_seen")
    data = EvaluationDataModule(str(tmp_path / "shards"), ["SCaR_mini_test_seen"])
    evaluator = Evaluator(models[model], tmp_path / "run", QueryFormat())
    data.connect(evaluator.collator)
    evaluator.configure_model()
    (rows,) = (ranked.rows for ranked in data.plan.sets)
    embedder = Embedder.from_pretrained(models[model], device="cpu")
    with_prompt = command.evaluation_queries(embedder)
    samples = {sample.row.row: sample for sample in command.ranking_samples({"mini": str(folder)}, None)}
    for row in rows:
        expected = evaluator.query_collator.query(row)
        found = next(perturbed_queries(samples[row.row], ["box_jitter"], 0, with_prompt)).query
        assert found.text == expected.text and torch.equal(found.prompt.boxes, expected.prompt.boxes)
        batches = [collator.encoder_batch([found]) for collator in (embedder.collator, evaluator.query_collator)]
        assert torch.equal(batches[0].input_ids, batches[1].input_ids)
        moved = list(perturbed_queries(samples[row.row], ["box_jitter"], 0, with_prompt))[-1].query
        assert moved.text != found.text or model == "virtue"


@pytest.mark.parametrize("query_format", [QueryFormat(stream="none"), QueryFormat(image_transform=CropFormatter())])
def test_cost_is_that_of_the_evaluations_own_queries(query_format, models, sets, tmp_path, monkeypatch):
    """Without segment tokens the segmentation model costs nothing."""
    encoded: list[int] = []
    whole = TimmSamBackbone.image_features
    monkeypatch.setattr(
        TimmSamBackbone,
        "image_features",
        lambda self, pixels: encoded.append(len(pixels)) or whole(self, pixels),
    )
    data = EvaluationDataModule(str(sets), ["ADE20K"])
    evaluator = Evaluator(models["virtue"], tmp_path / "run", query_format, reporting=ReportOptions(cost=True))
    data.connect(evaluator.collator)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    Trainer(accelerator="cpu", devices=1, enable_checkpointing=False, **quiet).test(evaluator, data, verbose=False)
    assert report(tmp_path / "run")["cost"]["modes"].keys() >= {"box", "image", "text"}
    assert bool(encoded) == (query_format.stream == "whole")
