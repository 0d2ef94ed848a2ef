"""A tiny run through every callback, and what each leaves behind."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.utils.data import DataLoader

from virtue_pl.callbacks.checkpoint import LastCheckpoint
from virtue_pl.callbacks.prompt_images import PromptImages
from virtue_pl.callbacks.ranking_report import RankingReport, resolved_config
from virtue_pl.callbacks.skip_report import SkipReport, describe_skipped
from virtue_pl.callbacks.throughput import Throughput
from virtue_pl.evaluation.retrieval.predictions import read_predictions
from virtue_pl.metrics.rank_metrics import HitRate, RankTable
from virtue_pl.metrics.ranking import sample_ranks, set_blind_ranks
from virtue_pl.types import (
    EmbeddingInput,
    EncoderBatch,
    ImageBatch,
    PromptBatch,
    RankingBatch,
    RankingOutput,
    RankingSample,
    VirtueError,
    VisualPrompt,
)

MODES = ("box", "none", "blind")
BOX = VisualPrompt(boxes=torch.tensor([[0.2, 0.2, 0.6, 0.8]]))


def ranking_batch(first: int, count: int, task: str = "test_seen") -> RankingBatch:
    """Queries in three modes, the last without their image; the row's token is the number of its sample, the
    candidates' tokens are theirs.
    """
    captions = tuple(EmbeddingInput(f"caption {number}") for number in range(4))
    query = EmbeddingInput("find", (torch.full((3, 24, 32), 90, dtype=torch.uint8),))
    samples = tuple(
        RankingSample(f"key-{first + i}", task, query, captions, {"hit@1": (0, 1, 2, 3), "object": (0, 3)})
        for i in range(count)
    )
    rows = torch.arange(count * len(MODES))
    uses = rows[: 2 * count]
    prompts = PromptBatch(
        tuple(BOX if row < count else VisualPrompt() for row in uses.tolist()), torch.zeros(len(uses), dtype=torch.long)
    )
    image = ImageBatch((torch.zeros(3, 8, 8),), ())
    queries = EncoderBatch(
        (first + rows % count)[:, None], torch.ones(len(rows), 1, dtype=torch.long), image, prompts, uses
    )
    nothing = torch.zeros(0, dtype=torch.long)
    candidates = EncoderBatch(
        torch.arange(4)[:, None], torch.ones(4, 1, dtype=torch.long), ImageBatch(), PromptBatch((), nothing), nothing
    )
    return RankingBatch(samples, MODES, queries, candidates, ((0, 1, 2, 3),) * count)


class TinyData(LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.problems: dict[str, str] = {}

    def fingerprint(self) -> str:
        return "sha256:1234"

    @property
    def skipped(self) -> dict[str, str]:
        return self.problems

    def loader(self, batches: list[Any]) -> DataLoader:
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]

    def train_dataloader(self) -> Steps:
        self.problems["shard-0/7"] = "a box outside its image"
        return Steps()

    def val_dataloader(self) -> DataLoader:
        return self.loader([ranking_batch(0, 2, "validation"), ranking_batch(2, 3, "validation")])

    def test_dataloader(self) -> list[DataLoader]:
        return [
            self.loader([ranking_batch(0, 2), ranking_batch(2, 3)]),
            self.loader([ranking_batch(0, 2, "test_held_out")]),
        ]


class Steps:
    """Four different batches; a run that goes on starts at the next one."""

    def __init__(self) -> None:
        self.next = 0

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[Tensor]:
        for step in range(self.next, 4):
            self.next = step + 1
            yield torch.full((3, 8), 1.0 + step)
        self.next = 0

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next = state["next"]


class TinyModel(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(8, 8)

    def setup(self, stage: str) -> None:
        self.hit, self.rank_table = HitRate(), RankTable()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = (batch @ self.embed.weight.T).square().mean()
        self.log("train/loss", loss, batch_size=1)
        return loss

    def rank(self, batch: RankingBatch) -> RankingOutput:
        queries = self.embed(batch.queries.input_ids[:, 0])
        candidates = self.embed(batch.candidates.input_ids[:, 0])
        rows = range(len(queries))
        scores = tuple(candidates[list(batch.candidate_rows[row % len(batch)])] @ queries[row] for row in rows)
        return RankingOutput(scores, torch.randn(len(rows), 16, 16), torch.arange(len(rows)))

    def validation_step(self, batch: RankingBatch, batch_idx: int) -> Any:
        output = self.rank(batch)
        self.hit.update(sample_ranks(batch.samples, output.scores[: len(batch)]).in_ranking("hit@1"))
        self.log("val/hit@1", self.hit, batch_size=1)
        return output

    def test_step(self, batch: RankingBatch, batch_idx: int, dataloader_idx: int = 0) -> Any:
        output = self.rank(batch)
        for number, mode in enumerate(batch.modes):
            self.rank_table.update(
                mode, sample_ranks(batch.samples, output.scores[number * len(batch) : (number + 1) * len(batch)])
            )
        embeddings = self.embed(batch.candidates.input_ids[:, 0])
        self.rank_table.update(
            "set_blind", set_blind_ranks(batch.samples, [embeddings[list(rows)] for rows in batch.candidate_rows])
        )
        self.log("test/rows", float(len(batch)), batch_size=1)
        return output

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def tiny_trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu", logger=TensorBoardLogger(folder, name="tiny", version=0), callbacks=list(callbacks),
        log_every_n_steps=1, enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip


def test_a_run_leaves_images_speed_and_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "11")
    torch.manual_seed(0)
    trainer = tiny_trainer(
        tmp_path,
        Throughput(window=2),
        PromptImages(num=3),
        RankingReport(),
        SkipReport(),
        max_steps=2,
        val_check_interval=2,
    )
    model, data = TinyModel(), TinyData()
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data)
    folder = tmp_path / "tiny" / "version_0"

    events = EventAccumulator(str(folder)).Reload()
    drawn = {f"{stage}/retrieved/{number}" for stage in ("val", "test") for number in ("00_box", "01_none", "02_box")}
    assert drawn == set(events.Tags()["images"])
    assert {"train/loss", "train/samples_per_second", "val/hit@1"} <= set(events.Tags()["scalars"])
    assert events.Images("val/retrieved/00_box")[0].encoded_image_string.startswith(b"\x89PNG")

    report = json.loads((folder / "report.json").read_text())
    assert set(report["results"]) == {"test_seen", "test_held_out"}
    assert set(report["results"]["test_seen"]) == {"box", "none", "blind", "set_blind"}
    assert (report["results"]["test_seen"]["box"]["n"], report["results"]["test_held_out"]["box"]["n"]) == (5, 2)
    assert report["chance"]["test_seen"] == {"hit@1": 0.25, "object": 0.5}
    assert any(name.startswith("test/rows") for name in report["metrics"])
    assert (report["context"]["seed"], report["context"]["data_fingerprint"], report["context"]["config"]) == (
        11,
        "sha256:1234",
        None,
    )
    assert "### test_seen" in (folder / "report.md").read_text()

    read, table = read_predictions(folder / "predictions.jsonl"), model.rank_table.compute()
    assert [row[:6] for row in read] == [row[:6] for row in table if row.mode != "set_blind"]
    assert all(row.content for row in read)
    assert not list(folder.glob(".*"))
    printed = capsys.readouterr().out
    assert (
        "test_seen, % right" in printed
        and printed.count("skipped 1 bad sample so far, the latest: shard-0/7: a box outside its image\n") == 1
    )


def test_a_second_test_does_not_remember_the_first(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, RankingReport(out=str(tmp_path / "reports")), enable_checkpointing=False)
    model = TinyModel()
    for _ in range(2):
        torch.nn.init.normal_(model.embed.weight)
        trainer.test(model, datamodule=TinyData(), verbose=False)
    assert [row[:6] for row in read_predictions(tmp_path / "reports" / "predictions.jsonl")] == [
        row[:6] for row in model.rank_table.compute() if row.mode != "set_blind"
    ]


class Kill(Callback):
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_saves_the_step_under_way_and_the_run_goes_on_from_it(tmp_path: Path) -> None:
    def saver() -> ModelCheckpoint:
        return ModelCheckpoint(dirpath=tmp_path / "checkpoints", every_n_train_steps=100)

    options: dict[str, Any] = {"max_epochs": 1, "limit_val_batches": 0}
    torch.manual_seed(0)
    whole = TinyModel()
    stopped = TinyModel()
    stopped.load_state_dict(whole.state_dict())
    tiny_trainer(tmp_path, enable_checkpointing=False, **options).fit(whole, datamodule=TinyData())
    with pytest.raises(SIGTERMException):
        tiny_trainer(tmp_path, saver(), LastCheckpoint(), Kill(), **options).fit(stopped, datamodule=TinyData())
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 2
    trainer = tiny_trainer(tmp_path, saver(), LastCheckpoint(), **options)
    resumed = TinyModel()
    trainer.fit(resumed, datamodule=TinyData(), ckpt_path=str(last), weights_only=True)
    assert trainer.global_step == 4
    assert resumed.embed.weight.equal(whole.embed.weight)


class TinyPart(LightningModule):
    def test_step(self, batch: RankingBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("test/mask_iou", 0.75, batch_size=len(batch))
        self.log("test/nothing", float("nan"), batch_size=len(batch))


def test_a_part_that_ranks_nothing_leaves_its_metrics(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, RankingReport(out=str(tmp_path)), enable_checkpointing=False)
    trainer.test(TinyPart(), TinyData().test_dataloader()[0], verbose=False)
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["metrics"], report["results"]) == ({"test/mask_iou": 0.75, "test/nothing": None}, {})
    assert "- test/mask_iou: 0.75" in (tmp_path / "report.md").read_text()
    assert not (tmp_path / "predictions.jsonl").exists()


def test_a_report_knows_the_settings_of_the_command_line() -> None:
    parser = LightningArgumentParser()
    parser.add_argument("--model.dim", type=int, default=8)
    parser.add_argument("--model.weights", type=str, default=None)
    trainer = SimpleNamespace(
        callbacks=[Throughput(), SaveConfigCallback(parser, parser.parse_args(["--model.dim=16"]))]
    )
    assert resolved_config(trainer) == {"model": {"dim": 16, "weights": None}}  # type: ignore[arg-type]
    assert resolved_config(SimpleNamespace(callbacks=[])) is None  # type: ignore[arg-type]


def test_the_last_step_is_saved_though_it_is_no_multiple(tmp_path: Path) -> None:
    saving = ModelCheckpoint(dirpath=tmp_path, save_last=True, every_n_train_steps=2)
    options = {"logger": False, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    model = TinyModel()
    Trainer(max_steps=3, max_epochs=-1, callbacks=[saving, LastCheckpoint()], **options).fit(
        model, datamodule=TinyData()
    )
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3


def test_an_error_saves_nothing(tmp_path: Path) -> None:
    trainer = SimpleNamespace(checkpoint_callback=None)
    LastCheckpoint().on_exception(trainer, TinyModel(), ValueError("the loss is not finite"))  # type: ignore[arg-type]


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(VirtueError, match=r"Throughput\.window is 0"):
        Throughput(window=0)
    with pytest.raises(VirtueError, match=r"PromptImages\.num is 0"):
        PromptImages(num=0)
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", enable_progress_bar=False)
    with pytest.raises(VirtueError, match="enable_checkpointing"):
        LastCheckpoint().setup(trainer, LightningModule(), "fit")


def test_images_of_a_mode_or_ranking_that_is_not_evaluated_are_refused() -> None:
    with pytest.raises(VirtueError, match="modes are mask, expected some of those evaluated: box, none, blind"):
        PromptImages(modes=["mask"])._modes(MODES)


def test_the_latest_problems_are_named() -> None:
    problems = {"a": "no box", "b": "truncated", "c": "empty mask"}
    assert (
        describe_skipped(9, problems, num_latest=2)
        == "skipped 9 bad samples so far, the latest: b: truncated; c: empty mask"
    )
    assert describe_skipped(2, {}) == "skipped 2 bad samples so far"
