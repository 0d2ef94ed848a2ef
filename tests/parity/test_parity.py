"""Parity: what is recorded is matched, what differs is said, in every kind of recording."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fixtures.tiny_release import DIM, published, quickstart_spec, run_checkpoint
from virtue_pl.checkpoints.keys import LANGUAGE, adapter_name
from virtue_pl.checkpoints.pretrained import from_pretrained
from virtue_pl.cli.commands import export, parity
from virtue_pl.parity.evaluation_rows import read_evaluations
from virtue_pl.parity.golden import read_cases
from virtue_pl.parity.gradients import contrastive_step, pairs, trained_parameters, with_adapters
from virtue_pl.parity.hooks import batch_of, observe
from virtue_pl.preprocessing.input_formatters import PublishedFormatter
from virtue_pl.preprocessing.prompts import grid_points
from virtue_pl.types import VirtueError, VisualPrompt


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published release and cases recorded from it."""
    folder = tmp_path_factory.mktemp("golden")
    published(folder / "model")
    assert parity.main([str(folder), "--record"]) == 0
    return folder


@pytest.fixture
def copy(golden: Path, tmp_path: Path) -> Path:
    shutil.copytree(golden, tmp_path / "golden")
    return tmp_path / "golden"


def change(path: Path, name: str, difference: float) -> None:
    tensors = load_file(path)
    tensors[name] += difference
    save_file(tensors, path)


def test_a_recording_of_a_published_model_is_matched(golden, capsys):
    assert parity.main([str(golden)]) == 0
    said = capsys.readouterr().out
    assert "judged comparisons hold" in said and "differs" not in said
    for case in ("text_only_batch3", "image_bbox", "image_grid5", "mixed_batch3"):
        assert case in said


def test_recorded_rows_are_read_as_they_are_whatever_frame_and_spaces_the_formatter_gives(golden):
    model = from_pretrained(golden / "model")
    row = next(case for case in read_cases(golden) if case.name == "image_bbox").items[0]
    expected, own = batch_of(model, [row]), model.formatter
    model.formatter = PublishedFormatter(True, "canvas", True, own.num_segment_tokens)
    found = batch_of(model, [row])
    assert torch.equal(found.input_ids, expected.input_ids)
    assert torch.equal(found.prompts.prompts[0].boxes, expected.prompts.prompts[0].boxes)
    model.segment_unprompted = False
    assert len(batch_of(model, [replace(row, prompt=VisualPrompt())]).prompts) == 0


@pytest.mark.parametrize(
    ("name", "difference", "code"),
    [
        ("image_bbox/embedding", 2e-4, 1),
        ("image_bbox/embedding", 5e-5, 0),
        ("image_point/seg_tokens", 2e-3, 1),
        ("image_point/seg_tokens", 5e-4, 0),
        ("image_noprompt/position_ids", 1, 1),
        ("image_noprompt/input_ids", 1, 1),
        ("image_noprompt/vision_tokens", 1.0, 0),
    ],
)
def test_what_differs_is_said(copy, capsys, name, difference, code):
    change(copy / "golden_forward.safetensors", name, difference)
    assert parity.main([str(copy)]) == code
    assert (
        "the first that does not: " + ", ".join(name.split("/")) in " ".join(capsys.readouterr().out.split())
    ) == bool(code)


def test_other_weights_or_another_grid_differ(copy, tmp_path):
    published(tmp_path / "other" / "model", seed=1)
    assert parity.main([str(copy), "--model", str(tmp_path / "other" / "model")]) == 1
    path = copy / "model" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "virtue_sam": {**config["virtue_sam"], "points_per_side": 4}}))
    assert parity.main([str(copy)]) == 1


def test_cases_point_in_every_way_of_the_format(golden):
    cases = {case.name: case.items for case in read_cases(golden)}
    assert torch.equal(cases["image_grid5"][0].prompt.points, grid_points(5).points)
    torch.testing.assert_close(
        cases["image_bbox"][0].prompt.boxes * 1024, torch.tensor([[153.6, 292.5, 921.6, 877.75]])
    )
    torch.testing.assert_close(cases["image_point"][0].prompt.points * 1024, torch.tensor([[614.4, 731.5]]))
    assert cases["image_point"][0].prompt.point_labels.tolist() == [1]
    assert [bool(row.images) for row in cases["mixed_batch3"]] == [True, False, True] and cases["mixed_batch3"][
        0
    ].prompt.is_empty


def test_cases_that_record_a_defect_are_left_out(copy):
    path = copy / "golden_forward.json"
    content = json.loads(path.read_text())
    content["cases"]["image_bbox"] |= {"compare": False, "why_not": "a defect"}
    path.write_text(json.dumps(content))
    change(copy / "golden_forward.safetensors", "image_bbox/embedding", 1.0)
    assert parity.main([str(copy)]) == 0


def test_a_box_on_a_row_without_an_image_is_one_line(copy):
    path = copy / "golden_forward.json"
    content = json.loads(path.read_text())
    content["cases"]["text_only_1"]["bboxes"] = [[1, 2, 300, 400]]
    path.write_text(json.dumps(content))
    with pytest.raises(
        VirtueError,
        match=(
            r"golden_forward.json: text_only_1 points at row 0, which has no image, expected one in its `images`, or"
            r" null"
        ),
    ):
        parity.main([str(copy)])


def test_left_padding_is_the_same_row(copy):
    """The published implementation pads on the left."""
    path = copy / "golden_forward.safetensors"
    tensors = load_file(path)
    for name in ("input_ids", "attention_mask"):
        tensors[f"text_only_batch3/{name}"] = tensors[f"text_only_batch3/{name}"].flip(1)
    mask = tensors["text_only_batch3/attention_mask"].bool()
    tensors["text_only_batch3/input_ids"][mask] = tensors["text_only_batch3/input_ids"].flip(1)[mask.flip(1)]
    save_file(tensors, path)
    content = json.loads((copy / "golden_forward.json").read_text())
    content["cases"]["text_only_batch3"]["compare_not"] = ["position_ids"]
    (copy / "golden_forward.json").write_text(json.dumps(content))
    assert parity.main([str(copy)]) == 0


def test_the_quickstarts_model_through_the_same_door(tmp_path):
    (tmp_path / "files").mkdir()
    checkpoint = run_checkpoint(tmp_path / "run", quickstart_spec(tmp_path / "files"))
    folder = tmp_path / "golden"
    assert export.main([str(checkpoint), "--out", str(folder / "model")]) == 0
    assert parity.main([str(folder), "--record"]) == 0
    assert parity.main([str(folder)]) == 0
    change(folder / "model" / "model.safetensors", "connector.roles", 0.5)
    assert parity.main([str(folder)]) == 1


def test_a_folder_without_a_recording_is_one_line(tmp_path):
    published(tmp_path / "model")
    with pytest.raises(VirtueError, match=r"has no recorded case to be matched, expected golden_forward.json"):
        parity.main([str(tmp_path)])
    (tmp_path / "golden_forward.json").write_text("{}")
    with pytest.raises(VirtueError, match=r"has no cases"):
        parity.main([str(tmp_path)])
    with pytest.raises(VirtueError, match=r"is there, expected a folder without a recording"):
        parity.main([str(tmp_path), "--record"])


def record_gradients(folder: Path) -> None:
    """A step of the folder's own model in the published format, whose gradients come from adapters merged by hand."""
    case = {
        "query_texts": ["<|image_pad|>\nwhat is this", "<|image_pad|>\nand this"],
        "target_texts": ["a cat", "a dog in a park"],
        "images": ["images/img0.png", "images/img1.png"],
        "bboxes_1024": [[100.0, 100.0, 500.0, 700.0], None],
        "temperature": 0.05,
    }
    config = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "use_dora": True}
    tensors: dict[str, torch.Tensor] = {}
    content = {"lora_config": config, "case": case}
    torch.manual_seed(5)
    for values in ("init", "perturbed"):
        model = from_pretrained(folder / "model")
        modules = {}
        for layer in range(3):
            module = f"{LANGUAGE}layers.{layer}.self_attn.q_proj"
            weight = model.get_submodule(module).weight
            b = torch.zeros(64, 2) if values == "init" else torch.randn(64, 2) * 0.1
            modules[module] = {
                "lora_A": torch.randn(2, 64),
                "lora_B": b,
                "lora_magnitude_vector": weight.detach().norm(dim=1),
            }
        with with_adapters(model, modules, 2.0) as adapters:
            from virtue_pl.engine.gradient_cache import FullBatch

            step = contrastive_step(model, FullBatch(), pairs(folder, case), 0.05, trained_parameters(model, adapters))
        content[values] = {"rowwise": {"loss": step.pop("loss").item()}}
        for name in ("qry", "tgt"):
            tensors[f"reps_{values}_rowwise/{name}"] = step.pop(name)
        for module, parts in modules.items():
            published_module = f"encoder.base_model.model.model.{module.removeprefix(LANGUAGE)}"
            for kind, part in parts.items():
                tensors[f"adapter_{values}/{published_module}.{kind}.default.weight"] = part
                tensors[f"grad_{values}_rowwise/{published_module}.{kind}.default.weight"] = step.pop(
                    f"{module}.{kind}"
                )
        for name in ("reduce", "project.0", "project.2"):
            theirs = name.replace("reduce", "sam2_reducer").replace("project", "sam2vlm_layer")
            for kind in ("weight", "bias"):
                tensors[f"grad_{values}_rowwise/segmentation_model.{theirs}.{kind}"] = step.pop(
                    f"connector.{name}.{kind}"
                )
        assert not step
    save_file(tensors, folder / "golden_grads.safetensors")
    (folder / "golden_grads.json").write_text(json.dumps(content))


def test_gradients_are_matched_plain_and_cached(copy, capsys):
    record_gradients(copy)
    assert parity.main([str(copy)]) == 0
    assert "gradients, perturbed, cached" in capsys.readouterr().out
    tensors = load_file(copy / "golden_grads.safetensors")
    name = next(name for name in sorted(tensors) if name.startswith("grad_perturbed") and "lora_B" in name)
    assert adapter_name(name.partition("/")[2]) is not None
    tensors[name] *= 1.01
    save_file(tensors, copy / "golden_grads.safetensors")
    assert parity.main([str(copy)]) == 1


def test_adapters_are_gone_after_the_step(golden):
    model = from_pretrained(golden / "model")
    module = f"{LANGUAGE}layers.0.self_attn.q_proj"
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with with_adapters(
        model, {module: {"lora_A": torch.randn(2, DIM), "lora_B": torch.randn(DIM, 2)}}, 2.0
    ) as adapters:
        assert sorted(adapters) == [f"{module}.lora_A", f"{module}.lora_B"]
        assert (model.get_submodule(module).weight - before[f"{module}.weight"]).abs().max() > 0.1
    assert model.state_dict().keys() == before.keys() and all(
        torch.equal(value, before[name]) for name, value in model.state_dict().items()
    )


def record_evaluation(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    (folder / "scar" / "data").mkdir(parents=True)
    (folder / "scar" / "images").mkdir()
    Image.effect_noise((80, 50), 60).convert("RGB").save(folder / "scar" / "images" / "photo.png")
    parquet.write_table(
        pa.table({"qry_image_path": ["photo.png"]}), folder / "scar" / "data" / "SCaR_eval_Tiny.parquet"
    )
    query = {"query_text": "<|image_pad|> \nwhat is it", "sam_box": [10, 10, 40.5, 30]}
    dataset = {"queries": [query], "cand_texts": ["a cat", "a dog"], "cand_names": ["a cat", "a dog"]}
    (folder / "scar_native.json").write_text(json.dumps({"settings": {}, "datasets": {"SCaR_Tiny": dataset}}))
    save_file(
        {"SCaR_Tiny/qry": torch.zeros(1, DIM), "SCaR_Tiny/cand": torch.zeros(2, DIM)},
        folder / "scar_native.safetensors",
    )
    model = from_pretrained(folder / "model")
    queries, candidates = read_evaluations(folder)
    embedded = [torch.cat([observe(model, [row])["embedding"] for row in case.items]) for case in (queries, candidates)]
    save_file({"SCaR_Tiny/qry": embedded[0], "SCaR_Tiny/cand": embedded[1]}, folder / "scar_native.safetensors")


def test_rows_of_an_evaluation_are_matched(copy, capsys):
    record_evaluation(copy)
    queries, candidates = read_evaluations(copy)
    torch.testing.assert_close(queries.items[0].prompt.boxes * 1024, torch.tensor([[10.0, 10.0, 40.5, 30.0]]))
    assert queries.items[0].images[0].shape == (3, 50, 80) and not candidates.items[0].images
    assert parity.main([str(copy)]) == 0
    assert "scar_native, SCaR_Tiny" in capsys.readouterr().out
    change(copy / "scar_native.safetensors", "SCaR_Tiny/cand", 0.01)
    assert parity.main([str(copy)]) == 1


def test_an_evaluation_that_resizes_images_to_squares(copy):
    record_evaluation(copy)
    content = json.loads((copy / "scar_native.json").read_text())
    content["settings"] = {"resize_use_processor": False, "image_resolution": "high"}
    (copy / "scar_native.json").write_text(json.dumps(content))
    assert next(read_evaluations(copy)).items[0].images[0].shape == (3, 1344, 1344)
