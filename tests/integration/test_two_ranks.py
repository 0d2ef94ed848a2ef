"""Two ranks train what one process trains, in the shape of every config; and evaluate alike, whoever has the rows.

Every config is built from its YAML with small sizes and random weights. Steps differ in what their rows have: rows
without a prompt, without an image, without negatives, on one rank or on both, in the alignment stage and behind it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning import LightningModule
from lightning.pytorch.callbacks import Callback
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import DataLoader

from fixtures.paper_configs import CONFIGS, without_data
from fixtures.random_weights import forget_weights
from fixtures.rank_processes import run_ranks
from fixtures.scar_files import write_scar
from fixtures.tiny_models import VISION_MODEL, save_text_model
from fixtures.tiny_virtue import make_image
from fixtures.tiny_vlms import DUAL, TINY
from virtue_pl.callbacks.ranking_report import RankingReport
from virtue_pl.cli.lightning import VirtueCLI
from virtue_pl.cli.run.trainer import AutoPrecisionTrainer
from virtue_pl.data.conversion.scar import convert_scar
from virtue_pl.data.datamodules.embeddings import EmbeddingDataModule
from virtue_pl.data.datamodules.scar import SCaRDataModule
from virtue_pl.data.streaming.options import ReaderOptions, SamplingOptions
from virtue_pl.types import EmbeddingBatch, EmbeddingInput, PairIds, Region, Sample

ROWS, STEPS, ALIGNMENT = 4, 10, 4
KINDS = ("prompts", "prompts on the second rank", "texts", "all kinds", "images without prompts")
"""What the rows of a step have, in turn."""


def image_input(text: str, number: int) -> EmbeddingInput:
    return EmbeddingInput(text, (make_image(number),), image_keys=(str(number),))


def sample(number: int, row: int, kind: str) -> Sample:
    mask = torch.zeros(56, 56, dtype=torch.bool)
    mask[8 : 20 + row, 10:40] = True
    region = Region(torch.tensor([10 / 56, 8 / 56, 40 / 56, (20 + row) / 56]), mask)
    prompted = (
        kind == "prompts" or (kind, row // (ROWS // 2)) == (KINDS[1], 1) or (kind == "all kinds" and row % 2 == 0)
    )
    shown = prompted or kind == "images without prompts" or (kind == "all kinds" and row == 1)
    text = f"which {'of these ' * (row % 3)}{number}"
    query = image_input(text, number) if shown else EmbeddingInput(text)
    target = (
        image_input("as here", 50 + number) if kind == "all kinds" and row == 3 else EmbeddingInput(f"thing {number}")
    )
    negatives = tuple(EmbeddingInput(f"wrong {number} {other}") for other in range(0 if row == 2 else 1 + row % 2))
    return Sample(f"s{number}", "t", query, target, negatives, region if prompted else None)


def samples(step: int, kinds: Sequence[str] = KINDS) -> list[Sample]:
    return [sample(ROWS * step + row, row, kinds[step % len(kinds)]) for row in range(ROWS)]


def stored_embeddings(step: int) -> list[EmbeddingBatch]:
    """Eight pairs, of which each rank's have as many negatives."""
    generator = torch.Generator().manual_seed(step)
    parts = []
    for rank in range(2):
        rows = lambda count: normalize(torch.randn(count, 8, generator=generator), dim=-1)  # noqa: E731
        ids = PairIds(
            4 * rank + torch.arange(4), 10 + torch.arange(4), 20 + 4 * rank + torch.arange(4), torch.arange(4)
        )
        parts.append(EmbeddingBatch(rows(4), rows(4), rows(4), ids))
    return parts


TIMM = ["--shared.trunk", VISION_MODEL, "--shared.canvas_size", "128", "--shared.embed_dim", "32"]
SAM2 = {
    **{"width": 16, "num_heads": 2, "blocks": "[1,1,1,1]", "global_attention": "[2]", "windows": "[2,2,2,2]"},
    "position_grid": "[2,2]",
}
SAM2_SIZES = [
    *("--shared.canvas_size", "128", "--shared.embed_dim", "32"),
    *(
        word
        for name, value in SAM2.items()
        for word in (f"--model.init_args.segmentation.init_args.backbone.init_args.{name}", str(value))
    ),
]
HEAD = "--model.init_args.fusion.init_args.backbone.init_args"
RUNS: dict[str, list[str]] = {
    "virtue_mini": [
        *TIMM,
        *("--shared.image_size", "128", f"{HEAD}.vision_model", VISION_MODEL, f"{HEAD}.frozen_layers", "0"),
        *("--model.init_args.alignment_steps", str(ALIGNMENT)),
    ],
    "no_segmentation": [
        *("--shared.trunk", VISION_MODEL, "--shared.image_size", "128"),
        *("--model.init_args.backbone.init_args.vision_model", VISION_MODEL),
        *("--model.init_args.backbone.init_args.frozen_layers", "0"),
    ],
    "segmenter": [*TIMM, "--model.init_args.flip", "false", "--model.init_args.box_jitter", "0"],
    "prompt_encoder": ["--shared.canvas_size", "128", "--shared.embed_dim", "32"],
    "contrastive_loss": ["--shared.hidden_size", "8"],
    "virtue_clip": [
        *SAM2_SIZES,
        f"{HEAD}.frozen_layers",
        "1",
        "--model.init_args.gradient_cache.init_args.chunk_size",
        "1",
    ],
    "virtue_2b": [*SAM2_SIZES, f"{HEAD}.dtype", "float32"],
}
"""Every config that trains, but those of the same shape: virtue_7b (virtue_2b), finetune (of what it starts from)."""


def test_every_config_is_here() -> None:
    trained = {path.stem for path in CONFIGS.glob("*.yaml") if not path.stem.startswith("eval_")}
    assert trained == {*RUNS, "virtue_7b", "finetune"}


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LightningModule]:
    folder = tmp_path_factory.mktemp("models")
    text_model = str(save_text_model(folder / "text", hidden_size=64))

    class RandomWeights(VirtueCLI):
        def before_instantiate_classes(self) -> None:
            forget_weights(self.config.model, text_model, lambda cls: str((TINY | DUAL)[cls](folder / cls)))

    def build(config: str) -> LightningModule:
        path = without_data(folder) if config == "virtue_2b" else CONFIGS / f"{config}.yaml"
        (folder / config).mkdir(exist_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder / config)
            arguments = ["--config", str(path), *RUNS[config], "--trainer.accelerator", "cpu"]
            return RandomWeights("fit", [*arguments, "--trainer.precision", "32-true"]).model

    return build


class Noted(Callback):
    """Notes losses, the mean over ranks, and the first step's gradients, as the optimizer gets them."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.gradients: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: LightningModule, outputs: Any, *more: Any) -> None:
        loss = outputs["loss"].detach().clone()
        if dist.is_initialized():
            dist.all_reduce(loss)
            loss /= dist.get_world_size()
        self.losses.append(loss)
        named = pl_module.named_parameters()
        self.gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})


def without_dropout() -> None:
    """Ranks draw other masks than one process: in this process, which ends with the training, nothing is dropped."""
    from torch.nn import functional

    from virtue_pl.adapters.dropout import QuickDropout

    attention = functional.scaled_dot_product_attention
    functional.dropout = lambda input, *_, **__: input  # type: ignore[assignment]
    functional.scaled_dot_product_attention = lambda *a, **o: attention(*a, **{**o, "dropout_p": 0.0})  # type: ignore[assignment]
    QuickDropout.drop_unscaled = lambda self, input: (input, 1.0)  # type: ignore[method-assign]


def train(rank: int, model: LightningModule, batches: list[list[Any]], folder: Path) -> None:
    """batches: of each step, each rank's; one process has them all in one."""
    without_dropout()
    number = int(os.environ["WORLD_SIZE"])
    noted = Noted()
    trainer = AutoPrecisionTrainer(
        accelerator="cpu",
        devices="launcher",
        max_steps=STEPS,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[noted],
    )
    assert trainer.world_size == number
    mine = [of_step[rank] for of_step in batches]
    trainer.fit(model, DataLoader(mine, batch_size=None))  # type: ignore[arg-type]
    result = {"losses": torch.stack(noted.losses), "gradients": noted.gradients, "weights": model.state_dict()}
    result["steps"] = {n: s for n, s in optimizer_steps(trainer, model).items()}
    torch.save(result, folder / f"{number}.{rank}.pt")


def optimizer_steps(trainer: Any, model: LightningModule) -> dict[str, int]:
    state = trainer.optimizers[0].state
    return {name: int(state[p]["step"]) for name, p in model.named_parameters() if p in state}


def ranks_batches(model: Any, config: str) -> tuple[list[list[Any]], list[list[Any]]]:
    """The batches of two ranks, and of one process."""
    half = ROWS // 2
    if config == "contrastive_loss":
        both = [stored_embeddings(step) for step in range(STEPS)]
        return both, [[join_embeddings(parts)] for parts in both]
    regions = config in ("segmenter", "prompt_encoder")
    two, one = [], []
    for step in range(STEPS):
        rows = samples(step, KINDS[:1] if regions else KINDS)
        if regions:
            mode = "mask" if config == "segmenter" and step % 3 == 2 else "box"
            model.prompt_modes = {mode: 1.0}
        else:
            model.train_modes = {"box": 1.0}
        collator = model.collator
        collator.flip = False
        collate = collator.collate_train
        two.append([collate(rows[:half]), collate(rows[half:])])
        one.append([collate(rows)])
    return two, one


def join_embeddings(parts: Sequence[EmbeddingBatch]) -> EmbeddingBatch:
    joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in ("queries", "targets", "negatives")}
    ids = [
        torch.cat([getattr(part.ids, name) for part in parts]) for name in ("query_ids", "target_ids", "negative_ids")
    ]
    rows = torch.cat([part.ids.negative_rows + 4 * number for number, part in enumerate(parts)])
    return EmbeddingBatch(*joined.values(), PairIds(*ids, rows))


def flatten(gradients: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients.values()])


@pytest.mark.ddp
@pytest.mark.parametrize("config", RUNS)
def test_two_ranks_train_what_one_process_trains(
    build: Callable[[str], LightningModule], tmp_path: Path, config: str
) -> None:
    model = build(config)
    two, one = ranks_batches(model, config)
    run_ranks(tmp_path, train, deepcopy(model), one, tmp_path, number=1)
    run_ranks(tmp_path, train, model, two, tmp_path)
    alone, first, second = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1.0", "2.0", "2.1"))
    for step, (expected, found) in enumerate(zip(alone["gradients"], first["gradients"], strict=True)):
        assert expected.keys() == found.keys(), (step, expected.keys() ^ found.keys())
    expected, found = (flatten(one["gradients"][0]) for one in (alone, first))
    assert (found - expected).norm() <= 1e-6 * expected.norm()
    torch.testing.assert_close(first["losses"], alone["losses"], rtol=1e-5, atol=1e-5)
    most = expected.abs().max()
    for name, weight in alone["weights"].items():
        seen = [step[name].abs().max() for step in alone["gradients"] if name in step]
        if seen and max(seen) <= 1e-6 * most:
            continue  # a softmax does not see a key's bias: Adam makes steps of the rounding in its gradient
        torch.testing.assert_close(
            first["weights"][name], weight, rtol=2e-5, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
        assert torch.equal(first["weights"][name], second["weights"][name]), name
    assert first["steps"] == alone["steps"]


def evaluate(rank: int, model: LightningModule, shards: Path, split: str, folder: Path) -> None:
    data = SCaRDataModule(
        str(shards / "SCAR_mini"),
        str(shards / "SCaR_eval_mini_val"),
        {"a": str(shards / "SCaR_eval_mini_val")},
        batch_size=2,
        eval_batch_size=3,
        sampling=SamplingOptions(num_negatives=1, shuffle_buffer=1, sample_buffer=1),
        reader=ReaderOptions(num_workers=0),
    )
    data.connect(model.collator)
    report = RankingReport(str(folder / "report"))
    trainer = AutoPrecisionTrainer(
        accelerator="cpu",
        devices="launcher",
        max_steps=2,
        val_check_interval=1,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[report] if split == "test" else [],
    )
    if split == "fit":
        trainer.fit(model, data)
    else:
        getattr(trainer, split)(model, datamodule=data, verbose=False)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if not name.startswith("train")}
    (folder / f"{trainer.world_size}.{rank}.json").write_text(json.dumps(metrics))


ROWS_OF_IMAGES = {"7 rows and 6": [4, 3, 6], "7 rows and 1": [7, 1], "1 and none": [1], "none but one image's": [7]}
"""The validation rows of each image; ranks have whole images."""


EVALUATIONS = [("no_segmentation", "validate"), ("no_segmentation", "test"), ("segmenter", "validate")]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def write(name: str) -> Path:
        folder = tmp_path_factory.mktemp("shards")
        write_scar(folder / "scar", train=[1, 2, 1, 2, 1, 2], val=ROWS_OF_IMAGES[name])
        convert_scar(folder / "scar", folder / "out", images_per_shard=2)
        return folder / "out"

    return write


@pytest.fixture(scope="module")
def models(build: Callable[[str], LightningModule]) -> Callable[[str], LightningModule]:
    return cache(build)


@pytest.mark.ddp
@pytest.mark.parametrize("rows", ROWS_OF_IMAGES)
@pytest.mark.parametrize(("config", "split"), EVALUATIONS)
def test_two_ranks_evaluate_what_one_process_evaluates(
    models: Callable[[str], LightningModule],
    shards: Callable[[str], Path],
    tmp_path: Path,
    config: str,
    split: str,
    rows: str,
) -> None:
    model, folder = models(config), shards(rows)
    model.evaluation_modes = ("box",)  # type: ignore[assignment]
    model.prompt_modes = {"box": 1.0}  # type: ignore[assignment]
    run_ranks(tmp_path / "one", evaluate, model, folder, split, tmp_path, number=1)
    report = tmp_path / "report"
    before, written = predictions(report), (report / "report.json").is_file() and results(report)
    run_ranks(tmp_path / "two", evaluate, model, folder, split, tmp_path, seconds=40)
    alone, first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1.0", "2.0", "2.1"))
    assert (split == "test") == (not alone)
    assert first == pytest.approx(alone, abs=1e-6) and second == first
    assert predictions(report) == before and (not written or results(report) == written)


def results(report: Path) -> Any:
    return json.loads((report / "report.json").read_text())["results"]


def predictions(report: Path) -> dict[tuple[str, str], list[float]]:
    file = report / "predictions.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return {(line["key"], line["mode"]): line for line in lines}


def evaluate_pairs(rank: int, model: LightningModule, file: Path, folder: Path) -> None:
    data = EmbeddingDataModule(str(file), batch_size=3, validation_share=float(os.environ["SHARE"]))
    trainer = AutoPrecisionTrainer(
        accelerator="cpu", devices="launcher", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.validate(model, datamodule=data, verbose=False)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    (folder / f"{trainer.world_size}.{rank}.json").write_text(json.dumps(metrics))


@pytest.mark.ddp
@pytest.mark.parametrize("held_out", [5, 1])
def test_two_ranks_evaluate_stored_pairs_as_one_process(
    models: Callable[[str], LightningModule], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held_out: int
) -> None:
    model, file = models("contrastive_loss"), tmp_path / "pairs.safetensors"
    save_file(join_embeddings(stored_embeddings(0)).to_tensors(), file)
    monkeypatch.setenv("SHARE", str(held_out / 8))
    for number in (1, 2):
        run_ranks(tmp_path, evaluate_pairs, model, file, tmp_path, number=number)
    alone, first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1.0", "2.0", "2.1"))
    assert set(alone) >= {"val/loss", "val/in_batch_accuracy"} and first == second == pytest.approx(alone, abs=1e-6)
