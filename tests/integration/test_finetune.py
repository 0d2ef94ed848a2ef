"""Fine-tuning by one config: from an export, a checkpoint and a release, on rows without masks or negatives; back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from fixtures.tiny_release import published, quickstart_spec, run_checkpoint
from virtue_pl.adapters.lora import LoRA
from virtue_pl.callbacks.checkpoint import LastCheckpoint
from virtue_pl.checkpoints.folder import MODEL_FILE, save_tensors
from virtue_pl.checkpoints.pretrained import from_pretrained, start_from
from virtue_pl.cli.lightning import VirtueCLI
from virtue_pl.cli.main import main
from virtue_pl.embedder import Embedder
from virtue_pl.losses.sigmoid import SigmoidLoss
from virtue_pl.models.embedding_model import EmbeddingModel

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs/finetune.yaml")
LORA = str(ROOT / "configs/adapters/lora.yaml")
FLOAT = torch.float32
SMALL = {
    "shared.batch_size": "4",
    "shared.max_steps": "2",
    "trainer.accelerator": "cpu",
    "trainer.val_check_interval": "1",
}
pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One tiny model as a run's checkpoint and as an export, and a release."""
    folder = tmp_path_factory.mktemp("starts")
    spec = quickstart_spec(folder)
    spec["init_args"]["alignment_steps"] = 100
    checkpoint = run_checkpoint(folder / "run", spec)
    assert main(["export", str(checkpoint), "--out", str(folder / "export")]) == 0
    return {"checkpoint": checkpoint, "export": folder / "export", "release": published(folder / "release")}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows with and without a mask, a point, negatives; two rows of each image, and no split but `train`."""
    root = write_own(tmp_path_factory.mktemp("own") / "rows")
    assert main(["shards", "pairs", "--root", str(root), "--out", str(root.parent / "shards")]) == 0
    return root.parent / "shards"


def write_own(root: Path, name: str = "train", images: int = 10, ranked: bool = False) -> Path:
    """Write JSON Lines of one's own, and their images."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for number in range(images):
        noise = np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / f"images/{number}.png")
        image = {"image": f"{number}.png", "instruction": "Find the caption."}
        box = {"boxes": [4, 6, 40, 30], "box_format": "xyxy"}
        mask = {"masks": [[4, 6, 40, 6, 40, 30, 4, 30]]} if number % 2 else {}
        found = [image | box | mask, image | {"points": [[10 + number, 20]]}]
        for position, row in enumerate(found):
            caption = f"thing {number} {position}"
            wrong = [f"wrong {number}"] if number % 3 == 0 else []
            answers = (
                {"candidates": [caption, "another", *wrong]} if ranked else {"target": caption, "negatives": wrong}
            )
            rows.append(row | answers)
    (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return root


def command(name: str, start: Path, shards: Path, run: Path, options: Mapping[str, str] = {}) -> list[str]:
    settings = {"shared.start": str(start), "shared.shards": str(shards), "shared.run": str(run), **SMALL, **options}
    return [name, "--config", CONFIG, *(word for key, value in settings.items() for word in (f"--{key}", value))]


@pytest.fixture(scope="module")
def tuned(starts: dict[str, Path], shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of a run from each start; the release's language model gets adapters."""
    folder = tmp_path_factory.mktemp("runs")
    for kind, start in starts.items():
        options = {"model.init_args.adapter": LORA} if kind == "release" else {}
        assert main(command("fit", start, shards, folder / kind, options)) == 0
    return {kind: folder / kind for kind in starts}


@pytest.mark.parametrize("kind", ["export", "checkpoint", "release"])
def test_every_start_is_trained_exported_and_embeds(kind, starts, tuned, tmp_path):
    last = tuned[kind] / "checkpoints/last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 2
    assert main(["export", str(last), "--out", str(tmp_path / "tuned")]) == 0
    spec = yaml.safe_load((tmp_path / "tuned/virtue.yaml").read_text())["model"]
    assert spec["class_path"] == "virtue_pl.models.Virtue" and "alignment_steps" not in spec["init_args"]
    assert spec["init_args"]["evaluation_modes"] == ["box", "point", "no_prompt"]
    assert (tmp_path / "tuned/language_model/tokenizer.json").is_file()
    before, after = from_pretrained(starts[kind]), from_pretrained(tmp_path / "tuned")
    changed = changed_tensors(before, after)
    assert [name for name in changed if name.startswith("fusion.")]
    assert not [name for name in changed if name.startswith(("segmentation.", "prompt_encoder."))]
    assert type(after.formatter) is type(before.formatter)
    embedding = Embedder.from_pretrained(tmp_path / "tuned").encode(["a caption"])
    assert np.isfinite(np.asarray(embedding)).all()


def changed_tensors(before: EmbeddingModel, after: EmbeddingModel) -> set[str]:
    """The names of tensors that are new or have other values."""
    old = before.state_dict()
    return {name for name, found in after.state_dict().items() if name not in old or not torch.equal(old[name], found)}


def test_an_export_and_its_checkpoint_start_alike(tuned):
    first, second = (load_state(tuned[kind]) for kind in ("export", "checkpoint"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def load_state(run: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    return found


def test_new_adapters_are_trained_alone_and_merged_on_request(starts, tuned, tmp_path):
    last = str(tuned["release"] / "checkpoints/last.ckpt")
    assert main(["export", last, "--out", str(tmp_path / "plain")]) == 0
    assert main(["export", last, "--out", str(tmp_path / "merged"), "--merge-adapters"]) == 0
    plain, merged = from_pretrained(tmp_path / "plain"), from_pretrained(tmp_path / "merged")
    before = from_pretrained(starts["release"])
    assert merged.state_dict().keys() == before.state_dict().keys()
    new = {name for name in plain.state_dict() if "lora" in name}
    old = {name.replace(".base_layer.", "."): found for name, found in plain.state_dict().items() if name not in new}
    language = "fusion.backbone.model.language_model."
    assert new and all(
        torch.equal(old[name], found) for name, found in before.state_dict().items() if name.startswith(language)
    )
    captions = ["a caption", "another one"]
    pair = [np.asarray(Embedder.from_pretrained(tmp_path / name).encode(captions)) for name in ("plain", "merged")]
    np.testing.assert_allclose(*pair, atol=1e-5)


def test_a_start_with_adapters_goes_on_with_them_or_has_them_merged(tuned, shards, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    last = tuned["release"] / "checkpoints/last.ckpt"
    own, new = start_from(str(last)), start_from(str(last), adapter=LoRA(rank=2, targets=["q_proj"], dropout=0.0))
    assert own.started_from is not None and own.started_from["adapters"] == "its own"
    trained = {name for name, parameter in own.named_parameters() if parameter.requires_grad}
    assert [name for name in trained if "lora_A" in name] and not [name for name in trained if "base_layer" in name]
    ranks = {parameter.shape[0] for name, parameter in new.named_parameters() if "lora_A" in name}
    assert ranks == {2} and {parameter.dtype for parameter in new.parameters() if parameter.requires_grad} == {FLOAT}
    assert main(command("check", last, shards, tmp_path / "run")) == 0
    assert "adapters that are trained: its own" in capsys.readouterr().out


def test_check_says_what_it_starts_from(starts, shards, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    said = {}
    for kind in ("export", "checkpoint"):
        assert main(command("check", starts[kind], shards, tmp_path / "run")) == 0
        shown = capsys.readouterr().out
        (said[kind],) = [line for line in shown.splitlines() if "starts from" in line]
        assert f"{starts[kind]}: Virtue, fingerprint " in said[kind] and "trained: none" in said[kind]
        assert "val: 0.1 of train" in shown
    fingerprints = {line.partition("fingerprint ")[2][:12] for line in said.values()}
    assert len(fingerprints) == 1 and not (tmp_path / "run").exists()


def test_a_stopped_run_goes_on_and_its_own_config_runs_again(starts, shards, tmp_path):
    assert main(command("fit", starts["export"], shards, tmp_path / "run")) == 0
    more = {"shared.max_steps": "3", "ckpt_path": "last"}
    assert main(command("fit", starts["export"], shards, tmp_path / "run", more)) == 0
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 3
    saved = ["--config", str(tmp_path / "run/config.yaml"), "--trainer.max_steps", "4", "--ckpt_path", "last"]
    assert main(["fit", *saved]) == 0
    last = tmp_path / "run/checkpoints/last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 4
    again = start_from(str(last))
    assert again.started_from is not None and again.started_from["class_path"] == "virtue_pl.models.Virtue"


def test_rankings_of_ones_own_are_tested(starts, shards, tuned, tmp_path, capsys):
    shutil.copytree(shards, tmp_path / "shards")
    root = write_own(tmp_path / "rows", "test", 3, ranked=True)
    assert main(["shards", "pairs", "--root", str(root), "--out", str(tmp_path / "shards")]) == 0
    last = {"ckpt_path": str(tuned["export"] / "checkpoints/last.ckpt")}
    test = command("test", starts["export"], tmp_path / "shards", tmp_path / "run", last)
    assert main(test) == 0 and "no_prompt" in capsys.readouterr().out


def test_a_head_alone_is_trained_too(starts, shards, tmp_path):
    spec = quickstart_spec(tmp_path)["init_args"]
    head = spec["fusion"] | {"init_args": spec["fusion"]["init_args"] | {"loss": spec["loss"]}}
    start = run_checkpoint(tmp_path / "head", head)
    assert main(command("fit", start, shards, tmp_path / "run")) == 0
    assert main(["export", str(tmp_path / "run/checkpoints/last.ckpt"), "--out", str(tmp_path / "tuned")]) == 0
    assert type(from_pretrained(tmp_path / "tuned")).__name__ == "VLMFusionHead"


def test_parts_are_frozen_and_losses_replaced_on_request(starts):
    model = start_from(str(starts["export"]), SigmoidLoss(temperature=0.2), frozen=["fusion", "segmentation"])
    trained = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"prompt_encoder", "connector", "loss"}
    assert isinstance(model.loss, SigmoidLoss) and float(model.loss.temperature.detach()) == pytest.approx(0.2)
    kept = start_from(str(starts["export"])).loss
    before = from_pretrained(starts["export"]).loss
    assert torch.equal(kept.log_temperature, before.log_temperature)


def test_what_is_frozen_keeps_the_type_of_the_start_and_what_is_trained_is_float32(starts, tmp_path):
    spec = yaml.safe_load((starts["export"] / "virtue.yaml").read_text())
    shutil.copytree(starts["export"], tmp_path / "half")
    tensors = {name: found.to(torch.bfloat16) for name, found in load_file(starts["export"] / MODEL_FILE).items()}
    save_tensors(tensors, tmp_path / "half" / MODEL_FILE)
    assert spec["format"] == 1
    model = start_from(str(tmp_path / "half"))
    assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {FLOAT}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shared.start": "null"}, "start is not set, expected an exported or published folder or a checkpoint"),
        ({"shared.start": "/nowhere/model"}, "/nowhere/model is no folder, expected one with a model"),
        ({"shared.start": "gone.ckpt"}, "gone.ckpt is not there, expected a run's checkpoint, a folder or a hub name"),
        ({"shared.start": "OTHER"}, "model_type 'bert', expected 'qwen2_vl': it is another model's folder"),
        ({"shared.start": "EMPTY"}, "holds nothing, expected virtue.yaml (exported), config.json (published)"),
        ({"shared.start": "SEGMENTER"}, "its model is a SegmentationExtractor, expected one that embeds"),
        (
            {"shared.start": "FROZEN"},
            "all its parts are frozen, expected one to train: set `frozen`, or give `adapter`",
        ),
        ({"model.init_args.frozen": "[fusio]"}, "has no part 'fusio', expected some of prompt_encoder, segmentation,"),
        ({"shared.max_steps": "-1"}, "trainer.max_steps and trainer.max_epochs are both -1, a run without end"),
        ({"shared.val_share": "1.5"}, "val_share is 1.5, expected a share of the images of `train`"),
        ({"shared.shards": "EMPTY"}, "holds no shards"),
        ({"shared.shards": "null"}, "shards is not set, expected a folder with train/: --shared.shards"),
    ],
)
def test_bad_input_is_one_line(options, message, starts, shards, tmp_path, capsys):
    (tmp_path / "EMPTY").mkdir()
    if options.get("shared.start") == "OTHER":
        (tmp_path / "OTHER").mkdir()
        (tmp_path / "OTHER/config.json").write_text('{"model_type": "bert"}')
    spec = quickstart_spec(tmp_path)["init_args"]
    if options.get("shared.start") == "SEGMENTER":
        options = options | {"shared.start": str(run_checkpoint(tmp_path / "SEGMENTER", spec["segmentation"]))}
    if options.get("shared.start") == "FROZEN":
        head = spec["fusion"] | {"init_args": spec["fusion"]["init_args"] | {"loss": spec["loss"], "frozen": True}}
        options = options | {"shared.start": str(run_checkpoint(tmp_path / "FROZEN", head))}
    settings = {key: str(tmp_path / value) if value.isupper() else value for key, value in options.items()}
    assert main(command("fit", starts["export"], shards, tmp_path / "run", settings)) in (1, 2)
    assert message in capsys.readouterr().err.splitlines()[-1]
    found_late = {"shared.shards", "shared.max_steps"} & options.keys()
    assert found_late or not (tmp_path / "run").exists()


def test_a_checkpoint_is_exported_after_its_start_is_gone(starts, shards, tmp_path):
    shutil.copytree(starts["checkpoint"].parents[1], tmp_path / "start")
    start = tmp_path / "start/checkpoints/last.ckpt"
    assert main(command("fit", start, shards, tmp_path / "run")) == 0
    shutil.rmtree(tmp_path / "start")
    assert main(["export", str(tmp_path / "run/checkpoints/last.ckpt"), "--out", str(tmp_path / "tuned")]) == 0


def test_an_export_that_is_gone_is_looked_for_in_no_hub(starts, shards, tmp_path, monkeypatch, capsys):
    """A relative path of one folder looks as a name of the hub does."""
    shutil.copytree(starts["export"], tmp_path / "start")
    monkeypatch.chdir(tmp_path)
    assert main(command("fit", Path("start"), shards, tmp_path / "run")) == 0
    shutil.rmtree(tmp_path / "start")
    assert main(["export", "run/checkpoints/last.ckpt", "--out", "tuned"]) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert "the language model start/language_model, which is not there" in told and "put it there" in told
    shutil.copytree(starts["export"], tmp_path / "start")
    monkeypatch.chdir(tmp_path / "run")
    assert main(["export", "checkpoints/last.ckpt", "--out", "../tuned", "--config", "config.yaml"]) in (0, 1)


def test_the_config_says_what_a_run_must_say(starts, shards, tmp_path):
    cli = VirtueCLI("fit", command("fit", starts["export"], shards, tmp_path / "run")[1:])
    assert any(one.save_last and not one._enable_version_counter for one in cli.trainer.checkpoint_callbacks)
    assert any(isinstance(callback, LastCheckpoint) for callback in cli.trainer.callbacks)
    assert Path(cli.trainer.log_dir).resolve() == (tmp_path / "run").resolve()
    assert cli.model.optimization.parameter_groups(cli.model) and getattr(cli.model, "alignment_steps", 0) == 0
    assert cli.datamodule.val_share == 0.1 and not cli.datamodule.sampling.negatives_required
