"""What `check` and `fit` promise before a run holds in the run: what would fail later is refused first, at its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fixtures.own_files import write_rows
from fixtures.paper_configs import without_data
from fixtures.tiny_models import VISION_MODEL, save_text_model, save_vision_model
from virtue_pl.cli.main import main
from virtue_pl.data.conversion.pairs import convert_pairs

CONFIGS = Path(__file__).parents[2] / "configs"
FUSION = "--model.init_args.fusion.init_args.backbone.init_args"
ON_CPU = "--trainer.accelerator=cpu"
STOPPING = ["--trainer.callbacks+", "EarlyStopping", "--trainer.callbacks.monitor"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of rows with boxes alone, and tiny weights."""
    folder = tmp_path_factory.mktemp("home")
    boxes = [{"image": f"{row % 2}.png", "bbox": [5 + row, 8, 20, 20], "target": f"thing {row}"} for row in range(8)]
    write_rows(folder / "own", [{**row, "negatives": ["another"]} for row in boxes])
    ranked = [{"image": "0.png", "bbox": [5, 8, 20, 20], "candidates": ["a thing", "no thing"]}] * 2
    write_rows(folder / "own", ranked, "val")
    convert_pairs(folder / "own", folder / "shards")
    save_text_model(folder / "weights" / "minilm")
    save_vision_model(folder / "weights" / f"{VISION_MODEL}.safetensors")
    return folder


@pytest.fixture
def run(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("COLUMNS", "300")
    shared = {"run": tmp_path / "run", "shards": home / "shards", "weights": home / "weights", "trunk": VISION_MODEL}
    shared |= {"segmenter": "null", "canvas_size": 128, "embed_dim": 32, "image_size": 128, "batch_size": 4}
    options = ["--config", str(CONFIGS / "virtue_mini.yaml"), "--data", str(CONFIGS / "data" / "pairs.yaml")]
    options += ["--model.init_args.connector", str(CONFIGS / "connector" / "mask_alone.yaml")]
    options += [f"--shared.{name}={value}" for name, value in {**shared, "num_negatives": 1}.items()]
    options += ["--model.init_args.train_modes={box: 1.0}", "--model.init_args.evaluation_modes=[box]"]
    options += [f"{FUSION}.frozen_layers=0", "--trainer.accelerator=cpu", "--trainer.max_steps=2"]
    options += ["--trainer.val_check_interval=2", "--data.init_args.test=null"]

    def ran(command: str, *more: str) -> tuple[int, str, str]:
        code = main([command, *options, *more])
        found = capsys.readouterr()
        told = [line for line in found.err.splitlines() if line.startswith("virtue-pl: ")]
        return code, " ".join(found.out.split()), " ".join(told)

    return ran


def test_what_is_checked_fits(run: Any, tmp_path: Path) -> None:
    code, shown, told = run("check", *STOPPING, "val/hit@1", "--trainer.callbacks.mode", "max")
    assert (code, told) == (0, "") and not (tmp_path / "run").exists()
    assert "tried with two rows" in shown and "train/alignment_loss" in shown and "val/hit@1" in shown
    assert run("fit", *STOPPING, "val/hit@1", "--trainer.callbacks.mode", "max")[0] == 0


def test_a_run_that_validates_on_nothing_has_no_best_checkpoint_and_is_no_mistake(run: Any) -> None:
    code, shown, told = run("check", "--data.init_args.val=null")
    assert (
        (code, told) == (0, "") and "the best 1 by val/hit@1" in shown and "val/hit@1" not in shown.split("metrics")[1]
    )


REFUSED: dict[str, tuple[list[str], str]] = {
    "boxes alone, trained by masks": (
        ["--model.init_args.train_modes={mask: 1.0}"],
        "a training batch: prompt mode 'mask' needs regions with masks, found a region with a box only",
    ),
    "a metric that nobody logs": (
        [*STOPPING, "val/hit@l"],
        "trainer.callbacks: EarlyStopping monitors 'val/hit@l', which nobody logs; did you mean 'val/hit@1'? There are",
    ),
    "a metric of a validation that there is not": (
        [*STOPPING, "val/hit@1", "--data.init_args.val=null"],
        "monitors 'val/hit@1', which nobody logs (the run validates on nothing); there are train/",
    ),
    "an alignment without a summary": (
        ["--model.init_args.connector", str(CONFIGS / "connector" / "convolution.yaml")],
        "model.init_args.alignment_steps is 100, but the connector (ConvolutionConnector) makes no summary to align",
    ),
    "no end, and a rate that falls until then": (
        ["--trainer.max_steps=-1"],
        "trainer.max_steps and trainer.max_epochs are both -1, a run without end, but the learning rate falls",
    ),
    "more negatives than the rows have": (
        ["--shared.num_negatives=3"],
        "num_negatives is 3, but rows of",
    ),
    "class names of another trunk": (
        [
            "--model.init_args.connector",
            str(CONFIGS / "connector" / "mask.yaml"),
            "--model.init_args.connector.init_args.class_names.init_args.trunk=test_resnet",
            "--model.init_args.connector.init_args.class_names.init_args.weights=null",
        ],
        "model.connector: its class names are those of the trunk test_resnet, but the segmentation model",
    ),
    "an entry of `shared` that nobody reads": (
        ["--shared.batchsize=32"],
        "shared.batchsize: nothing reads it; did you mean 'batch_size'?",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_check_and_fit_refuse_alike_and_before_the_run(run: Any, tmp_path: Path, case: str) -> None:
    options, expected = REFUSED[case]
    for command in ("check", "fit"):
        code, _, told = run(command, *options)
        assert code in (1, 2) and expected in told and told.count("virtue-pl: ") == 1
    assert not (tmp_path / "run").exists()


def test_processes_of_another_number_than_was_started(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    started = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "0", "RANK": "0", "TORCHELASTIC_RUN_ID": "1"}
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    for command in ("check", "fit", "validate"):
        code, _, told = run(command, "--trainer.devices=1")
        assert code == 1 and "but torchrun has started 2 processes: leave both out" in told


PAPER: dict[str, tuple[list[str], str]] = {
    "a connector of masks over a segmenter without": (
        ["--model.init_args.connector", str(CONFIGS / "connector" / "mask_alone.yaml")],
        "set model.init_args.segmentation.init_args.backbone.init_args.predict_masks to true",
    ),
    "a connector of areas that nobody draws": (
        ["--model.init_args.connector", "RoiConnector"],
        "model.connector: RoiConnector reads the prompt's area, but Sam2PromptEncoder draws none",
    ),
    "an alignment of a sharded model": (
        [
            "--config",
            str(CONFIGS / "overlays" / "strategies" / "fsdp2.yaml"),
            "--shared.devices=2",
            "--model.init_args.alignment_steps=10",
        ],
        "model.init_args.alignment_steps is 10, but trainer.strategy shards the model over 2 processes",
    ),
    "lengths beyond the model's": (
        [
            "--model.init_args.loss",
            str(CONFIGS / "loss" / "matryoshka.yaml"),
            "--model.init_args.loss.init_args.dims=[2048]",
            "--model.init_args.loss.init_args.loss.init_args.own_negatives_weight=0",
        ],
        "a training batch: ",
    ),
    "sizes of another model": (
        ["--model.init_args.fusion.init_args.backbone.init_args.vlm_sizes={model_type: smolvlm}"],
        "vlm_sizes are those of a smolvlm, expected a qwen2_vl",
    ),
}


@pytest.mark.parametrize("case", PAPER)
def test_check_of_the_papers_model_without_weights_or_data(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options, expected = PAPER[case]
    data = ["--data", str(CONFIGS / "data" / "pairs.yaml"), "--shared.num_negatives=0", "--shared.shards=gone"]
    code = main(["check", "--config", str(without_data(tmp_path)), *data, "--shared.batch_size=4", *options, ON_CPU])
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("virtue-pl: ")]
    assert code == 1 and len(told) == 1 and expected in told[0]
