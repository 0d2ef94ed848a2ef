"""`virtue-pl eval` on tiny sets: against a literal loop, and again, interrupted, in several processes; and what it says
of bad input.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from lightning import Trainer
from safetensors.torch import load_file, save_file

from fixtures.evaluation_files import WORDS, predictions, report, write_mmeb_sets, write_scar_set
from fixtures.mmeb_files import write_table
from fixtures.tiny_release import published, quickstart_spec, run_checkpoint
from virtue_pl.backbones.segmentation.sam2 import Sam2Backbone
from virtue_pl.backbones.vlm.qwen2_vl import Qwen2VLBackbone
from virtue_pl.checkpoints.pretrained import from_pretrained
from virtue_pl.cli.main import main
from virtue_pl.data.conversion.scar import convert_scar
from virtue_pl.data.datamodules.evaluation import EvaluationDataModule
from virtue_pl.data.eval_sets.options import EvaluationDataOptions
from virtue_pl.evaluation.evaluator import Evaluator
from virtue_pl.evaluation.settings import QueryFormat, ReportOptions
from virtue_pl.parity.hooks import batch_of
from virtue_pl.preprocessing.images import decode, resize_to_square
from virtue_pl.types import EmbeddingInput, VirtueError, VisualPrompt

IMAGE = "<|image_pad|>"
CANVAS = 128
"""Of the tiny release's segmentation model."""
CPU = ("--accelerator", "cpu", "--devices", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published(tmp_path_factory.mktemp("release") / "model")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of SCaR and three of MMEB, in one official folder."""
    folder = tmp_path_factory.mktemp("sets")
    write_scar_set(folder, "ADE20K", rows=6, regions=3)
    write_scar_set(folder, "RefCOCOg", rows=4, first=10)
    return write_mmeb_sets(folder)


def evaluate(model: Path, root: Path, out: Path, *arguments: str) -> int:
    return main(["eval", "--model", str(model), "--data", str(root), "--out", str(out), *CPU, *arguments])


@pytest.fixture(scope="module")
def first(model: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation of all that is there."""
    out = tmp_path_factory.mktemp("first") / "run"
    assert (
        evaluate(
            model,
            root,
            out,
            "--sets",
            "scar",
            "OK-VQA",
            "MSCOCO_t2i",
            "RefCOCO-Matching",
            "--allow-missing",
            "--formatter",
            "published",
        )
        == 0
    )
    return out


def table(root: Path, file: str) -> list[dict[str, Any]]:
    return pq.read_table(root / file).to_pylist()


def literal_scores(model: Any, query: EmbeddingInput, candidates: list[EmbeddingInput]) -> list[float]:
    with torch.no_grad():
        rows = [model.encode(batch_of(model, [item]))[0] for item in (query, *candidates)]
    return [float(rows[0] @ candidate) for candidate in rows[1:]]


def query_input(
    root: Path, text: str, path: str, prompt: VisualPrompt | None = None, length: int | None = None
) -> EmbeddingInput:
    image = decode((root / "images" / path).read_bytes(), path)
    return EmbeddingInput(
        text, (image if length is None else resize_to_square(image, length),), prompt or VisualPrompt(), (path,)
    )


def scar_query(root: Path, row: dict[str, Any], frame: str, length: int | None = None) -> EmbeddingInput:
    """The published string; its box where the segmentation model is shown it."""
    x, y, width, height = row["bbox"]
    box, size = [x, y, x + width, y + height], (96, 72)
    scale = [CANVAS] * 4 if frame == "pixels" else [*size, *size]
    text = f"{IMAGE} \nFind the caption that best describes the segmented object.\nReferring object bbox: {box}"
    prompt = VisualPrompt(boxes=torch.tensor([[value / by for value, by in zip(box, scale, strict=True)]]))
    return query_input(root, text, row["qry_image_path"], prompt, length)


@pytest.mark.parametrize(("frame", "length"), [("pixels", None), ("canvas", None), ("pixels", 1344)])
def test_scar_is_ranked_as_a_literal_loop_ranks_it(model, root, first, tmp_path, frame, length):
    out = first
    if frame != "pixels" or length:
        out = tmp_path / "run"
        pixels = ["--resize-to-square", str(length)] if length else []
        assert (
            evaluate(model, root, out, "--sets", "SCaR_ADE20K", "--prompt-frame", frame, "--limit", "2", *pixels) == 0
        )
    found = [line for line in predictions(out) if line["set"] == "SCaR_ADE20K"]
    loaded, rows = from_pretrained(model), table(root, "data/SCaR_eval_ADE20K.parquet")
    assert [line["row"] for line in found] == list(range(len(found))) and len(found) == (6 if out is first else 2)
    for line in found[:2]:
        row = rows[line["row"]]
        scores = literal_scores(
            loaded, scar_query(root, row, frame, length), [EmbeddingInput(caption) for caption in row["tgt_text"]]
        )
        assert line["scores"] == pytest.approx(scores, abs=1e-4)
        assert line["ranking"] == sorted(range(5), key=lambda index: -scores[index])
    hits = sum(line["ranking"][0] == 0 for line in found) / len(found)
    assert report(out)["sets"]["SCaR_ADE20K"]["hit@1"] == pytest.approx(hits)


def test_mmeb_is_ranked_as_a_literal_loop_ranks_it(model, root, first):
    loaded = from_pretrained(model)
    found = {(line["set"], line["row"]): line for line in predictions(first)}
    for name in ("OK-VQA", "MSCOCO_t2i", "RefCOCO-Matching"):
        row = table(root, f"v1/{name}/test-00000-of-00001.parquet")[1]
        items = [(row["qry_text"], row["qry_img_path"]), *zip(row["tgt_text"], row["tgt_img_path"], strict=True)]
        query, *candidates = [
            query_input(root, text.replace("<|image_1|>", IMAGE), path) if path else EmbeddingInput(text)
            for text, path in items
        ]
        assert found[name, 1]["scores"] == pytest.approx(literal_scores(loaded, query, candidates), abs=1e-4), name


def test_both_forms_of_mmeb_are_the_same_strings(model, root, first):
    """The other form embeds nothing that was not embedded."""
    out = first.parent / "v1"
    assert evaluate(model, root, out, "--sets", "OK-VQA", "MSCOCO_t2i", "--form", "v1") == 0
    assert report(out)["embeddings"]["encoded"] == 0
    mine = {(line["set"], line["row"]): line["scores"] for line in predictions(first)}
    assert all(mine[line["set"], line["row"]] == line["scores"] for line in predictions(out))


def test_averages_are_over_sets_and_say_how_many(first):
    found = report(first)
    names = ("OK-VQA", "MSCOCO_t2i", "RefCOCO-Matching")
    everything, ood = found["averages"]["mmeb"]["all"], found["averages"]["mmeb"]["OOD"]
    assert everything["precision@1"] == pytest.approx(sum(found["sets"][name]["precision@1"] for name in names) / 3)
    assert (everything["sets"], everything["of"], ood["sets"], ood["of"]) == (3, 36, 1, 16)
    assert (
        ood["recall@5"] == found["sets"]["RefCOCO-Matching"]["recall@5"] and found["averages"]["scar"]["all"]["of"] == 5
    )
    assert found["missing"].keys() == {"SCaR_RefCOCO_plus", "SCaR_VisualGenome", "SCaR_COCO_Stuff"}
    text = (first / "report.md").read_text()
    assert (
        "mean, all (3 of 36)" in text
        and "VIRTUE-2B" in text
        and "because files are missing: SCaR_RefCOCO_plus, SCaR_VisualGenome, SCaR_COCO_Stuff (no files)" in text
    )


def test_what_occurs_twice_is_embedded_once(first):
    """The captions of SCaR's sets are the same words, and sets of MMEB share images."""
    captions = {
        f"a {WORDS[(row + step) % 12]} beside the {WORDS[(row + 5 * step) % 12]}"
        for row in range(6)
        for step in range(5)
    }
    answers = {WORDS[(row + 2 * step) % 12] for row in range(4) for step in range(4)}
    found = report(first)["embeddings"]
    others = 6 + 4 + 4 + 4 + 6 + 4 + 4 * 4  # queries of five sets, MSCOCO's six images, candidates of RefCOCO-Matching
    assert found["unique"] == found["encoded"] == len(captions) + len(answers) + others
    assert found["total"] == 10 * 6 + 3 * 4 * 5 and found["unique_pictures"] == 4 + 6


def test_an_image_goes_through_the_towers_once(model, root, tmp_path, monkeypatch):
    seen: dict[str, int] = {"segmentation": 0, "vision": 0}

    def counting(method: Any, stream: str) -> Any:
        def count_images(self: Any, images: Any, *rest: Any) -> Any:
            seen[stream] += len(images)
            return method(self, images, *rest)

        return count_images

    monkeypatch.setattr(Sam2Backbone, "image_features", counting(Sam2Backbone.image_features, "segmentation"))
    monkeypatch.setattr(Qwen2VLBackbone, "vision_features", counting(Qwen2VLBackbone.vision_features, "vision"))
    assert evaluate(model, root, tmp_path / "run", "--sets", "ADE20K", "--batch-size", "2", "--chunk-size", "1") == 0
    assert seen == {"segmentation": 2, "vision": 2}


def test_a_second_evaluation_embeds_nothing_and_says_the_same(model, root, first, monkeypatch):
    monkeypatch.setattr("virtue_pl.evaluation.QueryEncoder.encode", None)
    assert evaluate(model, root, first.parent / "again", "--sets", "ADE20K", "OK-VQA") == 0
    kept = [line for line in predictions(first) if line["set"] in ("SCaR_ADE20K", "OK-VQA")]
    assert predictions(first.parent / "again") == kept and report(first.parent / "again")["embeddings"]["encoded"] == 0


def test_a_stopped_evaluation_goes_on(model, root, first, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        whole, calls = Evaluator.test_step, iter(range(100))

        def stopping(self: Evaluator, *arguments: Any) -> None:
            if next(calls) == 3:
                raise KeyboardInterrupt
            whole(self, *arguments)

        patch.setattr(Evaluator, "test_step", stopping)
        assert evaluate(model, root, tmp_path / "run", "--sets", "ADE20K", "--batch-size", "4") != 0
    assert not (tmp_path / "run/report.json").exists()
    assert evaluate(model, root, tmp_path / "run", "--sets", "ADE20K", "--batch-size", "4") == 0
    embedded = report(tmp_path / "run")["embeddings"]
    assert 0 < embedded["encoded"] < embedded["unique"]
    scores = {line["row"]: line["scores"] for line in predictions(first) if line["set"] == "SCaR_ADE20K"}
    assert all(line["scores"] == pytest.approx(scores[line["row"]], abs=1e-5) for line in predictions(tmp_path / "run"))


def test_a_terminated_evaluation_keeps_what_it_has_and_more_sets_go_on(model, root, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "received_sigterm", True)
        assert evaluate(model, root, tmp_path / "run", "--sets", "ADE20K") == 143
    assert "stopped by SIGTERM" in capsys.readouterr().err
    encoded = []
    for names in (["ADE20K"], ["ADE20K", "RefCOCOg"]):
        assert evaluate(model, root, tmp_path / "run", "--sets", *names) == 0
        encoded.append(report(tmp_path / "run")["embeddings"])
    assert (
        0 < encoded[0]["encoded"] < encoded[0]["unique"]
        and encoded[1]["encoded"] == encoded[1]["unique"] - encoded[0]["unique"]
    )


@pytest.mark.ddp
@pytest.mark.parametrize("rows", [1, 5])
def test_two_processes_say_what_one_says(model, tmp_path, rows):
    """One row leaves one batch, and nothing for the second process; five do not divide."""
    write_scar_set(tmp_path, "ADE20K", rows=rows, candidates=3 if rows == 1 else 5)
    for devices, out in ((2, "two"), (1, "one")):
        data = EvaluationDataModule(str(tmp_path), ["ADE20K"], EvaluationDataOptions(batch_size=2 if rows > 1 else 16))
        evaluator = Evaluator(model, tmp_path / out / "run")
        data.connect(evaluator.collator)
        strategy = {"strategy": "ddp_fork"} if devices == 2 else {}
        options = {
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
        }
        Trainer(accelerator="cpu", devices=devices, **strategy, **options).test(
            evaluator, datamodule=data, verbose=False
        )  # type: ignore[arg-type]
    one, two = tmp_path / "one/run", tmp_path / "two/run"
    assert predictions(one) == predictions(two) and len(predictions(one)) == rows
    for name in ("sets", "averages", "results", "chance"):
        assert report(one)[name] == report(two)[name]
    assert sorted(path.name for path in two.iterdir()) == [
        "predictions.jsonl",
        "report.html",
        "report.json",
        "report.md",
    ]


def test_shards_give_the_scores_of_the_official_folder(model, root, first, tmp_path):
    """The conversion shuffles rows; the report has them by their number."""
    (tmp_path / "official/SCaR-eval").mkdir(parents=True)
    write_table(tmp_path / "official/SCaR-eval/SCaR_eval_ADE20K.parquet", table(root, "data/SCaR_eval_ADE20K.parquet"))
    convert_scar(tmp_path / "official", tmp_path / "shards", images=[str(root / "images")])
    out = first.parent / "shards"
    assert evaluate(model, tmp_path / "shards", out, "--sets", "scar", "--allow-missing") == 0
    assert predictions(out) == [line for line in predictions(first) if line["set"] == "SCaR_ADE20K"]
    assert report(out)["embeddings"]["encoded"] == 0


def test_what_is_left_out_stands_beside_the_mean_whatever_the_source(model, tmp_path, capsys):
    write_scar_set(tmp_path, "ADE20K", edit=spoiled(0, qry_image_path="set/none.png"))
    (tmp_path / "data").rename(tmp_path / "SCaR-eval")
    convert_scar(tmp_path, tmp_path / "shards")
    for root in (tmp_path, tmp_path / "shards"):
        assert evaluate(model, root, tmp_path / "run/none", "--sets", "ADE20K") == 1
        assert "missing image" in said(capsys)
        out = tmp_path / "run" / root.name
        assert evaluate(model, root, out, "--sets", "ADE20K", "--allow-missing") == 0
        counts = "1 of 4 (1 missing image)"
        assert report(out)["left_out"] == {"SCaR_ADE20K": {"missing image": 1}}
        for file in ("report.md", "report.html"):
            text = (out / file).read_text()
            assert text.count(counts) == 5 and f"left out of SCaR_ADE20K: {counts}" in text
        assert f"left out of SCaR_ADE20K: {counts}" in capsys.readouterr().out.replace("\n", " ")
    one, two = predictions(tmp_path / "run" / tmp_path.name), predictions(tmp_path / "run/shards")
    assert one == two and [line["row"] for line in one] == [1, 2, 3]


def test_the_page_needs_nothing_else(first):
    page = (first / "report.html").read_text()
    assert (
        "http" not in page.replace("http://www.w3.org/2000/svg", "")
        and "<script" not in page
        and 'src="data:image/jpeg;base64,' in page
    )
    wrong = [line for line in predictions(first) if line["ranking"][0] != 0]
    assert wrong and page.count('class="failure"') == len(wrong) and "VIRTUE-2B" in page
    assert all(f"{line['set']}, row {line['row']}" in page for line in wrong)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's checkpoint, evaluated from another folder than it was trained in, with cost and robustness."""
    folder = tmp_path_factory.mktemp("measured")
    checkpoint = run_checkpoint(folder / "clone/runs/tiny", quickstart_spec(folder / "clone/files"))
    spec = yaml.safe_load((folder / "clone/runs/tiny/config.yaml").read_text())
    relative = json.loads(json.dumps(spec["model"]).replace(f"{folder}/clone/", ""))
    (folder / "clone/runs/tiny/config.yaml").write_text(
        yaml.safe_dump({"model": relative, "trainer": {"default_root_dir": "runs/tiny"}})
    )
    write_scar_set(folder, "ADE20K", rows=3)
    assert evaluate(checkpoint, folder, folder / "run", "--sets", "ADE20K", "--cost", "--robustness", "2") == 0
    return folder


def test_cost_and_robustness_stand_in_the_report(measured):
    found = report(measured / "run")
    assert found["cost"]["modes"].keys() == {"text", "image", "point", "box", "mask", "crop"} and found["cost"][
        "image"
    ] == [96, 72]
    curves = found["robustness"]["scar/SCaR_ADE20K"]
    assert curves.keys() == {"box_jitter", "box_scale", "click_offset"} and {
        row["n"] for kind in curves.values() for row in kind["levels"]
    } == {2}
    as_annotated = [line["ranks"]["hit@1"][0] == 0 for line in predictions(measured / "run")][:2]
    assert curves["box_jitter"]["levels"][0]["hit@1"] == sum(as_annotated) / 2
    text, page = (measured / "run/report.md").read_text(), (measured / "run/report.html").read_text()
    assert "| crop |" in text and "| click_offset | 0 |" in text
    assert page.count("<polyline") == 3 and "queries a second" in page and "Not measured" not in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


def test_curves_need_regions_and_say_so_first(measured, root, capsys):
    checkpoint = measured / "clone/runs/tiny/checkpoints/last.ckpt"
    assert evaluate(checkpoint, root, measured / "none", "--sets", "OK-VQA", "--robustness", "2") == 1
    assert "robustness: no query of OK-VQA has a region" in said(capsys) and not list(measured.glob("none/report.*"))
    with pytest.raises(VirtueError, match="robustness is measured of the whole model, not of a baseline"):
        Evaluator(checkpoint, measured / "none", QueryFormat(stream="none"), reporting=ReportOptions(robustness=2))


def test_a_checkpoint_that_embeds_nothing_or_is_none(measured, root, tmp_path, capsys):
    segmenter = quickstart_spec(tmp_path / "files")["init_args"]["segmentation"]
    segmenter["init_args"]["prompt_encoder"] = quickstart_spec(tmp_path / "files")["init_args"]["prompt_encoder"]
    assert evaluate(run_checkpoint(tmp_path / "part", segmenter), root, tmp_path / "run", "--sets", "ADE20K") == 1
    assert "its model is a SegmentationExtractor, expected one that embeds" in said(capsys)
    assert evaluate(tmp_path / "absent.ckpt", root, tmp_path / "run", "--sets", "ADE20K") == 1
    assert "absent.ckpt is not there, expected a run's checkpoint, a folder or a hub name" in said(capsys)
    spec = (measured / "clone/runs/tiny/config.yaml").read_text()
    (tmp_path / "part/config.yaml").write_text(spec.replace("files/text", "gone/with/text"))
    assert evaluate(tmp_path / "part/checkpoints/last.ckpt", root, tmp_path / "run", "--sets", "ADE20K") == 1
    assert "the run's config names the language model gone/with/text, which is not there" in said(capsys)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("virtue-pl: ")]
    assert len(lines) == 1
    return lines[0]


def spoiled(row: int, **values: Any) -> Any:
    return lambda rows: rows[row].update(values)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (spoiled(2, tgt_text=[]), "SCaR_ADE20K row 2: the query has no candidate"),
        (spoiled(1, tgt_text=["a", "", "c"]), "SCaR_ADE20K row 1: missing candidate: number 1"),
        (spoiled(3, bbox=[90.0, 6.0, 30.0, 41.0]), "SCaR_ADE20K row 3: box outside the image"),
        (spoiled(0, qry_image_path="set/none.png"), "SCaR_ADE20K row 0: missing image"),
        (spoiled(0, qry_image_path="../../etc/passwd"), "SCaR_ADE20K row 0: no image"),
    ],
)
def test_a_bad_row_is_named(model, tmp_path, capsys, edit, message):
    write_scar_set(tmp_path, "ADE20K", edit=edit)
    assert evaluate(model, tmp_path, tmp_path / "run", "--sets", "ADE20K") == 1
    assert message in said(capsys) and not (tmp_path / "run/report.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sets", "scar"), "has no files of SCaR_RefCOCO_plus, SCaR_VisualGenome, SCaR_COCO_Stuff"),
        (("--sets", "ADE21K"), "--sets ADE21K: no such set, expected scar, scar_mini, mmeb"),
        (("--sets", "ImageNet-1K", "--allow-missing"), "has no files of ImageNet-1K"),
        (("--sets", "ADE20K", "--mode", "mask"), "SCaR_ADE20K row 0: prompt mode 'mask' needs regions with masks"),
        (("--sets", "ADE20K", "--formatter", "virtue"), "formatter is 'virtue', but the weights"),
        (("--sets", "ADE20K", "--limit", "0"), "limit is 0"),
    ],
)
def test_what_cannot_be_is_one_line(model, root, tmp_path, capsys, arguments, message):
    assert evaluate(model, root, tmp_path / "run", *arguments) == 1
    assert message in said(capsys)


def test_another_models_folder_and_weights_that_are_no_numbers(model, root, tmp_path, capsys):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/config.json").write_text(json.dumps({"model_type": "bert"}))
    assert evaluate(tmp_path / "bert", root, tmp_path / "run", "--sets", "ADE20K") == 1
    assert "model_type 'bert', expected 'qwen2_vl'" in said(capsys)
    broken = published(tmp_path / "broken" / "model")
    tensors = load_file(broken / "model.safetensors")
    name = next(
        name for name in tensors if name.endswith("norm.weight") and "visual" not in name and "layers" not in name
    )
    save_file({**tensors, name: tensors[name] * float("nan")}, broken / "model.safetensors", {"format": "pt"})
    assert evaluate(broken, root, tmp_path / "run", "--sets", "ADE20K") == 1
    message = said(capsys)
    assert "SCaR_ADE20K row " in message and "its embedding is not finite" in message
    assert not list(tmp_path.rglob("part-*.safetensors"))


def test_other_weights_are_stored_apart(model, root, first, tmp_path):
    other = published(tmp_path / "other" / "model", seed=1)
    out = first.parent / "other"
    assert evaluate(other, root, out, "--sets", "OK-VQA") == 0
    assert report(out)["embeddings"]["encoded"] == report(out)["embeddings"]["unique"]
    assert report(out)["settings"]["store"] != report(first)["settings"]["store"]


def test_a_candidate_equal_to_the_right_one_counts_neither_way(model, tmp_path):
    """Lists stay as they are; what is the right thing in another place is no mistake."""
    write_scar_set(
        tmp_path, "ADE20K", rows=1, edit=lambda rows: rows[0].update(tgt_text=["a fox", "a boat", "a fox", "a boat"])
    )
    assert evaluate(model, tmp_path, tmp_path / "run", "--sets", "ADE20K") == 0
    (line,) = predictions(tmp_path / "run")
    assert (
        len(line["scores"]) == 4 and sorted(line["ranking"]) == [0, 1, 2, 3] and line["scores"][0] == line["scores"][2]
    )
    assert line["ranks"]["hit@1"] == [2 * (line["scores"][1] > line["scores"][0]), 3]
