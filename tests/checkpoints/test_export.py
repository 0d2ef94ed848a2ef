"""Runs' checkpoints and the quickstart's model as folders; adapters merged; folders that cannot run code."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file

from fixtures.tiny_release import names_weights, published, quickstart_spec, release, run_checkpoint
from virtue_pl.backbones.vlm.qwen2_vl import Qwen2VLBackbone
from virtue_pl.checkpoints.export import export
from virtue_pl.checkpoints.keys import LANGUAGE, same_tensors
from virtue_pl.checkpoints.pretrained import from_pretrained, read_release
from virtue_pl.checkpoints.release import CheckpointSpec
from virtue_pl.checkpoints.run_checkpoint import with_merged_adapters
from virtue_pl.cli.commands import export as command
from virtue_pl.cli.main import main
from virtue_pl.embedder import Embedder
from virtue_pl.preprocessing.input_formatters import VirtueFormatter
from virtue_pl.types import EmbeddingInput, VirtueError, VisualPrompt

TARGETS = ["q_proj", "down_proj"]


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported folder of a run whose own files of weights are gone."""
    folder = tmp_path_factory.mktemp("quickstart")
    (folder / "files").mkdir()
    checkpoint = run_checkpoint(folder / "run", quickstart_spec(folder / "files"))
    assert command.main([str(checkpoint), "--out", str(folder / "exported"), "--license", "apache-2.0"]) == 0
    (folder / "files").rename(folder / "gone")
    return folder


def rows() -> list[EmbeddingInput]:
    image = torch.arange(3 * 60 * 90).reshape(3, 60, 90).remainder(251).to(torch.uint8)
    box = VisualPrompt.from_pixels(boxes=[[5, 5, 40, 50]], size=(60, 90))
    return [EmbeddingInput("a cat"), EmbeddingInput("what is it", (image,), box)]


def test_the_quickstarts_model_is_its_checkpoints(quickstart):
    model = from_pretrained(quickstart / "exported")
    state = torch.load(quickstart / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert same_tensors(model.state_dict(), state)
    assert isinstance(model.formatter, VirtueFormatter) and model.formatter.prompt_text
    assert model.encode(model.collator.encoder_batch(rows())).shape == (2, 32)
    assert from_pretrained(quickstart / "exported", formatter="virtue").formatter.prompt_text
    with pytest.raises(
        VirtueError, match=r"formatter is 'published', but the weights of .* were trained with VirtueFormatter"
    ):
        from_pretrained(quickstart / "exported", formatter="published")


def test_the_folder_is_whole_and_says_what_it_is(quickstart):
    folder = quickstart / "exported"
    content = yaml.safe_load((folder / "virtue.yaml").read_text())
    assert names_weights(content) == [] and str(quickstart) not in (folder / "virtue.yaml").read_text()
    assert not list((folder / "language_model").glob("*.safetensors"))
    card = (folder / "README.md").read_text()
    for said in (
        "license: apache-2.0",
        "virtue_pl.preprocessing.VirtueFormatter",
        "MaskConnector",
        "| torch | ",
        "last.ckpt",
    ):
        assert said in card
    export(folder, quickstart / "again")
    for name in ("model.safetensors", "virtue.yaml"):
        assert (quickstart / "again" / name).read_bytes() == (folder / name).read_bytes()
    assert "license: apache-2.0" in (quickstart / "again" / "README.md").read_text()


def test_nothing_is_overwritten_and_nothing_half_written(quickstart, tmp_path):
    with pytest.raises(VirtueError, match=r"is there and not empty, expected a new folder"):
        export(quickstart / "exported", quickstart / "exported")
    with pytest.raises(
        VirtueError,
        match=r"fusion.backbone is TimmTextBackbone, expected Qwen2VLBackbone: the published layout holds no other",
    ):
        export(quickstart / "exported", tmp_path / "published", layout="published")
    assert list(tmp_path.iterdir()) == []


def write_spec(folder: Path, spec: object) -> Path:
    folder.mkdir()
    (folder / "virtue.yaml").write_text(yaml.safe_dump({"format": 1, "model": spec}))
    save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (
            {"class_path": "os.system", "init_args": {"command": "true"}},
            "names the class os.system, expected one of virtue_pl",
        ),
        (
            {"class_path": "virtue_pl.cli.main.import_module", "init_args": {"name": "antigravity"}},
            "is no class of virtue_pl",
        ),
        (
            {"class_path": "virtue_pl.models.virtue.Path", "init_args": {}},
            "virtue_pl.models.virtue.Path is no class of virtue_pl",
        ),
        (
            {"class_path": "virtue_pl.models.virtue.Virtual", "init_args": {}},
            "there is no class virtue_pl.models.virtue.Virtual",
        ),
        (
            {"class_path": "virtue_pl.models.Virtue", "init_args": {"formatter": {"class_path": "subprocess.Popen"}}},
            "names the class subprocess.Popen",
        ),
        (
            {"class_path": "virtue_pl.models.Virtue", "init_args": {"formatters": None}},
            "Virtue has no argument 'formatters'",
        ),
        (
            {"class_path": "virtue_pl.preprocessing.VirtueFormatter", "init_args": {}},
            "its model is a VirtueFormatter, expected one that embeds",
        ),
        (
            {"class_path": "virtue_pl.models.Virtue", "init_args": {"weights": "/etc/passwd"}},
            "weights is '/etc/passwd', expected null",
        ),
        (
            {"class_path": "virtue_pl.preprocessing.VirtueFormatter", "init_args": {"prompt_text": "./../.."}},
            "expected a path inside the folder",
        ),
    ],
)
def test_a_folder_cannot_run_code_nor_lead_out(tmp_path, spec, told):
    with pytest.raises(VirtueError, match=told):
        from_pretrained(write_spec(tmp_path / "folder", spec))


def test_the_published_formatter_on_another_backbone_is_refused_before_it_is_written(quickstart, tmp_path):
    shutil.copytree(quickstart / "exported", tmp_path / "model")
    path = tmp_path / "model" / "virtue.yaml"
    path.write_text(path.read_text().replace("VirtueFormatter", "PublishedFormatter"))
    for use in (from_pretrained, lambda folder: export(folder, tmp_path / "out")):
        with pytest.raises(
            VirtueError,
            match=r"has PublishedFormatter, but a TimmTextBackbone, expected a Qwen2-VL under it: use VirtueFormatter",
        ):
            use(tmp_path / "model")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("now", "before", "problem"),
    [
        (
            "virtue_pl.losses.InfoNCELoss",
            "virtue_pl.parts.contrastive_loss.InfoNCELoss",
            "it is virtue_pl.losses.InfoNCELoss",
        ),
        (
            "virtue_pl.preprocessing.VirtueFormatter",
            "virtue_pl.recipes.ReferenceRecipe",
            "expected one of virtue_pl.preprocessing.CropFormatter, virtue_pl.preprocessing.MarkerFormatter, ",
        ),
        (
            "virtue_pl.models.MaskConnector",
            "virtue_pl.connector.MaskJoint",
            "the closest is virtue_pl.models.MaskConnector",
        ),
        ("virtue_pl.models.Virtue", "virtue_pl.parts.virtue.Virtue", "it is virtue_pl.models.Virtue"),
    ],
    ids=["moved", "renamed", "factory", "root"],
)
def test_a_class_path_of_before_is_one_line(quickstart, tmp_path, capsys, now, before, problem):
    """In an exported folder and in a run's config; through the commands and through Python."""
    expected = f"there is no class {before}: {problem}"
    shutil.copytree(quickstart / "exported", tmp_path / "exported")
    shutil.copytree(quickstart / "run", tmp_path / "run")
    for path in (tmp_path / "exported" / "virtue.yaml", tmp_path / "run" / "config.yaml"):
        text = path.read_text()
        assert f"class_path: {now}\n" in text
        text = text.replace(str(quickstart / "files"), str(quickstart / "gone"))
        path.write_text(text.replace(f"class_path: {now}\n", f"class_path: {before}\n"))
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    for source in (tmp_path / "exported", checkpoint):
        with pytest.raises(VirtueError) as caught:
            Embedder.from_pretrained(source)
        assert expected in str(caught.value) and "\n" not in str(caught.value)
        assert main(["export", str(source), "--out", str(tmp_path / "out")]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("virtue-pl: ") and expected in line
    assert not (tmp_path / "out").exists()


def test_an_argument_of_before_in_a_folder_is_one_line(quickstart, tmp_path):
    shutil.copytree(quickstart / "exported", tmp_path / "exported")
    path = tmp_path / "exported" / "virtue.yaml"
    path.write_text(path.read_text().replace("    formatter:\n", "    recipe:\n"))
    with pytest.raises(VirtueError, match=r"^[^\n]*: Virtue has no argument 'recipe', expected those of this version"):
        Embedder.from_pretrained(tmp_path / "exported")


def test_other_classes_are_allowed_by_name(tmp_path):
    folder = write_spec(tmp_path / "folder", {"class_path": "fixtures.cli_dummies.Root", "init_args": {}})
    with pytest.raises(VirtueError, match=r"allow it by `--allow-classes fixtures.cli_dummies`"):
        from_pretrained(folder)
    with pytest.raises(VirtueError, match=r"Root cannot be built of"):
        from_pretrained(folder, allow_classes=["fixtures.cli_dummies."])


def peft_checkpoint(folder: Path, base: Path, dora: bool) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A published training checkpoint: peft's files and the connector. Returns the adapters in peft's file, and what
    peft merges them to.
    """
    model = Qwen2VLBackbone(str(base)).model.language_model
    torch.manual_seed(3)
    config = LoraConfig(
        r=4, lora_alpha=16, target_modules=TARGETS, use_dora=dora, lora_dropout=0.1, base_model_name_or_path=str(base)
    )
    inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "magnitude" in name:
            parameter.data += torch.randn_like(parameter) * 0.05
    config.save_pretrained(folder)
    shutil.copy(base / "sam2_reducer_and_vlm_layer.pth", folder)
    in_file = {
        name.replace("vector.default.weight", "vector").replace(".default", ""): value
        for name, value in model.state_dict().items()
        if "lora_" in name
    }
    tensors = {f"base_model.model.model.{name}": value.clone() for name, value in in_file.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    layers = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    for module in layers.values():
        module.merge()
    return tensors, {
        f"{LANGUAGE}{name}.weight": module.get_base_layer().weight.detach() for name, module in layers.items()
    }


@pytest.mark.parametrize("dora", [True, False], ids=["dora", "lora"])
def test_a_training_checkpoints_adapters_are_merged_as_peft_does(tmp_path, dora):
    base, folder = published(tmp_path / "model"), tmp_path / "checkpoint"
    _, wanted = peft_checkpoint(folder, base, dora)
    found, plain = read_release(folder), read_release(base)
    for name, value in wanted.items():
        torch.testing.assert_close(found.tensors[name], value, atol=1e-6, rtol=0)
    assert len(wanted) == 3 * len(TARGETS)
    changed = {name for name in found.tensors if not torch.equal(found.tensors[name], plain.tensors[name])}
    assert changed == wanted.keys()
    from_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "nobody/nothing"}))
    with pytest.raises(
        VirtueError,
        match=r"the base model 'nobody/nothing' is no folder and cannot be fetched: give its folder by `--base`",
    ):
        from_pretrained(folder)
    assert same_tensors(read_release(folder, base=base).tensors, found.tensors)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda tensors, config: tensors.pop(next(name for name in tensors if "lora_B" in name)),
            "has lora_A, expected lora_A, lora_B",
        ),
        (
            lambda tensors, config: config.update(target_modules=[*TARGETS, "v_proj"]),
            "lacks the adapter of .*layers.0.self_attn.v_proj",
        ),
        (
            lambda tensors, config: config.update(target_modules=["q_proj"]),
            "has an adapter of .*layers.0.mlp.down_proj",
        ),
        (
            lambda tensors, config: config.update(r=5),
            r"lora_[AB] of .* is \[.*\], expected \[.*\]: it was trained on another model",
        ),
        (lambda tensors, config: config.update(use_dora=True), "expected lora_A, lora_B, lora_magnitude_vector"),
        (
            lambda tensors, config: config.update(modules_to_save=["lm_head"]),
            "modules_to_save .* merge the adapters with peft first",
        ),
        (
            lambda tensors, config: tensors.update({"x.lora_A.weight": torch.zeros(1)}),
            "has an unknown tensor x.lora_A.weight",
        ),
    ],
)
def test_every_adapter_is_accounted_for(tmp_path, change, told):
    base, folder = published(tmp_path / "model"), tmp_path / "checkpoint"
    tensors, _ = peft_checkpoint(folder, base, dora=False)
    config = json.loads((folder / "adapter_config.json").read_text())
    change(tensors, config)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(VirtueError, match=told):
        read_release(folder)


def adapted_run(dora: bool) -> tuple[CheckpointSpec, str]:
    """A run's release in which one module has an adapter, under the names that peft gives in place."""
    plain = release()
    module = f"{LANGUAGE}layers.0.self_attn.q_proj"
    spec = {"class_path": plain.spec["class_path"], "init_args": {**plain.spec["init_args"]}}
    settings = {"rank": 2, "alpha": 6, "dora": dora, "targets": ["q_proj"], "dropout": 0.1}
    fusion = spec["init_args"]["fusion"]
    adapter = {"class_path": "virtue_pl.adapters.LoRA", "init_args": settings}
    spec["init_args"]["fusion"] = {**fusion, "init_args": {**fusion["init_args"], "adapter": adapter}}
    tensors = {
        name.replace(f"{module}.", f"{module}.base_layer.") if name.startswith(module) else name: value
        for name, value in plain.tensors.items()
    }
    parts = {"lora_A.default.weight": torch.randn(2, 64), "lora_B.default.weight": torch.randn(64, 2)}
    parts |= {"lora_magnitude_vector.default.weight": torch.rand(64)} if dora else {}
    return CheckpointSpec(
        plain.folder, spec, {**tensors, **{f"{module}.{name}": value for name, value in parts.items()}}
    ), module


@pytest.mark.parametrize("dora", [True, False], ids=["dora", "lora"])
def test_a_runs_adapters_are_merged_by_the_papers_formula(dora):
    run, module = adapted_run(dora)
    merged = with_merged_adapters(run)
    weight = run.tensors[f"{module}.base_layer.weight"]
    wanted = torch.empty_like(weight)
    a, b = run.tensors[f"{module}.lora_A.default.weight"], run.tensors[f"{module}.lora_B.default.weight"]
    for row in range(64):
        changed = weight[row] + 6 / 2 * sum(b[row, rank] * a[rank] for rank in range(2))
        length = run.tensors[f"{module}.lora_magnitude_vector.default.weight"][row] / changed.norm() if dora else 1
        wanted[row] = length * changed
    torch.testing.assert_close(merged.tensors[f"{module}.weight"], wanted)
    assert merged.tensors.keys() == release().tensors.keys()
    assert merged.build(None).state_dict().keys() == merged.tensors.keys()
    with pytest.raises(
        VirtueError, match=r"has 0 tensors of adapters, 0 stated in its config: leave out `--merge-adapters`"
    ):
        with_merged_adapters(merged)


def test_a_run_of_the_papers_model_in_the_published_layout(tmp_path):
    """Ours to published to ours: a learned formatter and temperature come through, too."""
    spec = release().spec
    spec["init_args"]["formatter"] = {
        "class_path": "virtue_pl.preprocessing.VirtueFormatter",
        "init_args": {"prompt_text": False},
    }
    spec["init_args"]["loss"]["init_args"] = {"temperature": 0.07, "learn_temperature": True}
    spec["init_args"]["fusion"]["init_args"]["backbone"]["init_args"]["vlm_model"] = str(release().folder)
    checkpoint = run_checkpoint(tmp_path / "run", spec)
    assert command.main([str(checkpoint), "--out", str(tmp_path / "published"), "--layout", "published"]) == 0
    found = read_release(tmp_path / "published")
    assert same_tensors(found.tensors, torch.load(checkpoint, weights_only=True)["state_dict"])
    model = from_pretrained(tmp_path / "published")
    assert type(model.formatter) is VirtueFormatter and not model.formatter.prompt_text


def test_a_checkpoint_without_its_config_is_one_line(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "last.ckpt")
    with pytest.raises(
        VirtueError,
        match=r"has no config.yaml in the folders above it, expected that of its run: give it by `--config`",
    ):
        export(tmp_path / "last.ckpt", tmp_path / "out")
    torch.save({"weights": {}}, tmp_path / "other.ckpt")
    with pytest.raises(VirtueError, match=r"has no entry 'state_dict', expected the checkpoint of a run"):
        export(tmp_path / "other.ckpt", tmp_path / "out")


def relative_run(folder: Path, started_in: bool) -> Path:
    """A run whose config names its files from the folder that it was started in; returns its checkpoint."""
    spec = quickstart_spec(folder / "files")
    checkpoint = run_checkpoint(folder / "runs" / "one", spec)
    config = folder / "runs" / "one" / "config.yaml"
    text = config.read_text().replace(f"{folder}/", "")
    config.write_text(f"# started in {folder}\n{text}" if started_in else text)
    assert str(folder) not in text and "files/text" in text
    return checkpoint


@pytest.mark.parametrize("started_in", [True, False], ids=["the config says where", "a folder above"])
def test_an_export_is_the_same_from_every_folder(tmp_path, monkeypatch, started_in):
    checkpoint = relative_run(tmp_path / "home", started_in)
    written = {}
    decoy = tmp_path / "elsewhere" / "files" / "text"
    decoy.mkdir(parents=True)  # of the same name, and not the model
    (decoy / "config.json").write_text("{}")
    for name in ("home", "elsewhere"):
        monkeypatch.chdir(tmp_path / name)
        assert main(["export", str(checkpoint), "--out", f"{tmp_path}/{name}.exported"]) == 0
        files = sorted(path for path in (tmp_path / f"{name}.exported").rglob("*") if path.name != "README.md")
        written[name] = {path.name: path.read_bytes() for path in files if path.is_file()}
    assert written["home"] == written["elsewhere"] and "tokenizer.json" in written["home"]


def test_a_run_that_was_moved_says_what_it_misses(tmp_path, monkeypatch, capsys):
    checkpoint = relative_run(tmp_path / "home", started_in=True)
    (tmp_path / "home" / "files").rename(tmp_path / "gone")
    config = tmp_path / "home" / "runs" / "one" / "config.yaml"
    config.write_text(config.read_text().replace("files/text", "old/files/text"))
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "exported")]) == 1
    told = capsys.readouterr().err
    assert "names the language model old/files/text, which is not there" in told and f"({tmp_path}/home)" in told
    assert not (tmp_path / "exported").exists()


DAMAGES = (b"", b"hello", b"[]", b'{"a": ')


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *itertools.product(("config.json", "tokenizer.json", "tokenizer_config.json"), DAMAGES),
        ("config.json", None),
        ("tokenizer.json", None),
    ],
)
def test_a_damaged_description_is_one_line(quickstart, tmp_path, name, how):
    """Files that transformers reads, and over which it raises whatever comes."""
    folder = tmp_path / "model"
    shutil.copytree(quickstart / "exported", folder)
    file = folder / "language_model" / name
    file.unlink()
    if how is not None:
        file.write_bytes(how)
    with pytest.raises(
        VirtueError, match=r"language_model(: its config or tokenizer is missing or damaged| cannot be loaded)"
    ) as caught:
        from_pretrained(folder)
    assert "\n" not in str(caught.value)
