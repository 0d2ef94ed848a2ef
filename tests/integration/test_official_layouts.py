"""Every dataset of MMEB and SCaR, in its published layout: converted, streamed, trained on and evaluated."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer

from fixtures.official_files import MMEB, ROWS, SCAR, TRAINED, write_official_mmeb, write_official_scar
from fixtures.recorded import GOLDEN
from fixtures.scar_files import runs
from fixtures.tiny_models import VISION_MODEL, save_text_model, save_vision_model
from virtue_pl.backbones.vlm.timm_text import TimmTextBackbone
from virtue_pl.data.conversion.mmeb import convert_mmeb
from virtue_pl.data.conversion.scar import convert_scar
from virtue_pl.data.datamodules.mixture import MixedDataModule
from virtue_pl.data.datamodules.mmeb import MMEBDataModule
from virtue_pl.data.datamodules.scar import PublishedSCaRDataModule, SCaRDataModule
from virtue_pl.data.formats.catalogue import MMEBSet, mmeb_sets
from virtue_pl.data.formats.mmeb_instructions import query_string, target_string
from virtue_pl.data.formats.scar import xyxy
from virtue_pl.data.formats.scar_queries import published_query
from virtue_pl.data.shards.manifest import Manifest
from virtue_pl.data.streaming.options import ReaderOptions, SamplingOptions
from virtue_pl.engine.optimizer import Optimization
from virtue_pl.losses.contrastive import InfoNCELoss
from virtue_pl.models.fusion_head import VLMFusionHead
from virtue_pl.preprocessing.input_formatters import PublishedFormatter
from virtue_pl.types import EmbeddingInput

pytestmark = pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
RECORDED = json.loads((GOLDEN / "parsers.json").read_text())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_official_scar(write_official_mmeb(tmp_path_factory.mktemp("official")))


@pytest.fixture(scope="module")
def manifests(root: Path) -> dict[str, Manifest]:
    return convert_mmeb(root, root / "shards") | convert_scar(root, root / "shards")


def rows_of(folder: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found += [json.loads(tar.extractfile(info).read()) for info in tar if info.name.endswith(".json")]  # type: ignore[union-attr]
    return sorted((row for record in found for row in record["rows"]), key=lambda row: row["row"])


def test_the_benchmarks_have_as_many_sets_as_their_papers_say(manifests: dict[str, Manifest]) -> None:
    assert (len(TRAINED), len(MMEB), 2 * len(SCAR)) == (20, 36, 10)
    assert len(manifests) == 20 + 36 + 36 + 10
    of = {
        kind: [name for name in manifests if name.startswith(kind)]
        for kind in ("MMEB_eval_", "MMEB_instruct_", "SCAR_", "SCaR_eval_")
    }
    assert {kind: len(names) for kind, names in of.items()} == {
        "MMEB_eval_": 36,
        "MMEB_instruct_": 36,
        "SCAR_": 5,
        "SCaR_eval_": 5,
    }
    counted = [manifests[name].meta_task for name in of["MMEB_eval_"]]
    assert [counted.count(meta) for meta in ("classification", "vqa", "retrieval", "grounding")] == [10, 10, 12, 4]


def test_every_row_of_every_set_is_converted(manifests: dict[str, Manifest]) -> None:
    for name, manifest in manifests.items():
        assert (manifest.rows, manifest.skipped) == (ROWS, {}), (name, manifest.skipped_rows)
    assert [manifests[f"MMEB_eval_{name}"].distribution for name in ("ImageNet_1K", "Wiki_SS_NQ")] == ["IND", "OOD"]
    assert manifests["MMEB_ImageNet_1K"].task == manifests["MMEB_eval_ImageNet_1K"].task == "mmeb_ImageNet_1K"
    assert manifests["SCAR_COCO_Stuff"].task == manifests["SCaR_eval_COCO_Stuff"].task == "scar_COCO_Stuff"


@pytest.mark.parametrize("dataset", MMEB, ids=lambda dataset: dataset.task)
def test_both_forms_of_evaluation_say_the_same(root: Path, manifests: dict[str, Manifest], dataset: MMEBSet) -> None:
    joined, apart = (rows_of(root / "shards" / f"{prefix}_{dataset.task}") for prefix in ("MMEB_eval", "MMEB_instruct"))
    assert joined == apart and len(joined) == ROWS


@pytest.mark.parametrize("dataset", SCAR, ids=lambda dataset: dataset.task)
def test_masks_are_kept_however_they_are_written(root: Path, manifests: dict[str, Manifest], dataset: Any) -> None:
    for row in rows_of(root / "shards" / f"SCAR_{dataset.task}"):
        number = row["row"]
        assert row["mask"] == runs([1 + number, 2, 5, 4 + number]) and row["box"] == [
            1 + number,
            2,
            6 + number,
            6 + number,
        ]


def test_the_other_wording_of_mmeb_train(root: Path, tmp_path: Path) -> None:
    made = convert_mmeb(root, tmp_path, train_split="diverse_instruction")
    assert "Tell what OK_VQA shows" in rows_of(tmp_path / "MMEB_OK_VQA")[0]["query"][0] and len(made) == 92


def test_the_hubs_names_of_scar(root: Path, tmp_path: Path) -> None:
    (tmp_path / "SCaR-Eval/data").mkdir(parents=True)
    (tmp_path / "SCaR-Eval/data/ADE20K-00000-of-00001.parquet").write_bytes(
        (root / "SCaR-eval/SCaR_eval_ADE20K.parquet").read_bytes()
    )
    (tmp_path / "SCaR-Eval/data/._ADE20K.parquet").write_bytes(b"\0\5\x16\7")
    made = convert_scar(tmp_path, tmp_path / "out", images=[str(root / "images")])
    assert {name: (manifest.rows, manifest.task) for name, manifest in made.items()} == {
        "SCaR_eval_ADE20K": (ROWS, "scar_ADE20K")
    }


def mixture(shards: Path) -> MixedDataModule:
    parts: dict[str, Any] = {}
    for dataset in MMEB:
        train = str(shards / f"MMEB_{dataset.task}") if dataset.train_folder else None
        parts[dataset.task] = MMEBDataModule(
            train, test={"test": str(shards / f"MMEB_eval_{dataset.task}")}, eval_batch_size=ROWS
        )
    for scar in SCAR:
        test = {"test": str(shards / scar.eval_file)}
        parts[f"scar_{scar.task}"] = SCaRDataModule(
            str(shards / scar.train_file), test=test, eval_batch_size=ROWS, sampling=SamplingOptions(num_negatives=2)
        )
    return MixedDataModule(parts, batch_size=2, block_size=2, steps_per_epoch=120, reader=ReaderOptions(seed=1))


class Counting(VLMFusionHead):
    """Notes what it is given."""

    seen: tuple[list[str], list[str]]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen[0].extend(batch.keys)
        return super().training_step(batch, batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen[1].extend(sample.key for sample in batch.samples)
        return super().test_step(batch, batch_idx)


def test_all_sets_are_trained_on_and_evaluated_once(root: Path, manifests: dict[str, Manifest], tmp_path: Path) -> None:
    save_text_model(tmp_path / "minilm")
    save_vision_model(tmp_path / "vision.safetensors")
    torch.manual_seed(0)
    backbone = TimmTextBackbone(
        str(tmp_path / "minilm"), VISION_MODEL, str(tmp_path / "vision.safetensors"), image_size=32, grid_size=1
    )
    head = Counting(
        backbone,
        loss=InfoNCELoss(0.1),
        optimization=Optimization(lr=1e-3, weight_decay=0.0, warmup_steps=0, schedule="constant"),
    )
    head.seen = ([], [])
    data = mixture(root / "shards")
    data.connect(head.collator)
    options: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, limit_val_batches=0, **options)
    before = torch.cat([weight.detach().flatten().clone() for weight in head.parameters() if weight.requires_grad])
    trainer.fit(head, datamodule=data)
    after = torch.cat([weight.detach().flatten() for weight in head.parameters() if weight.requires_grad])
    assert not torch.equal(before, after) and bool(torch.isfinite(after).all())
    trainer.test(head, datamodule=data, verbose=False)
    evaluated = [
        f"{name}/{row}" for name in manifests if name.startswith(("MMEB_eval_", "SCaR_eval_")) for row in range(ROWS)
    ]
    assert sorted(head.seen[1]) == sorted(evaluated) and not data.skipped
    assert {key.split("/")[0] for key in head.seen[0]} == {
        name for name, manifest in manifests.items() if manifest.kind == "pairs"
    }


def test_training_strings_are_the_published_ones() -> None:
    for name in ("train_mmeb", "train_mmeb_neg"):
        inputs, outputs = RECORDED[name]["input_rows"], RECORDED[name]["output"]
        kept = [row for row, text in enumerate(inputs["qry"]) if text or inputs["qry_image_path"][row]]
        for index, row in enumerate(kept):
            for column, result in (("qry", "query_text"), ("pos_text", "pos_text")):
                assert formatted_text(inputs[column][row]) == outputs[result][index]


def formatted_text(stored: str) -> str:
    """Return a stored string as the module and the reference formatter make it."""
    from virtue_pl.data.formats.mmeb import PUBLISHED_TOKEN
    from virtue_pl.types import IMAGE_TOKEN

    formatter = PublishedFormatter(prompt_text=False)
    shown = (torch.zeros(3, 4, 4, dtype=torch.uint8),) if PUBLISHED_TOKEN.search(stored) else ()
    return formatter.delimit_images(
        formatter.text(EmbeddingInput(PUBLISHED_TOKEN.sub(IMAGE_TOKEN, stored), shown)), ("", "")
    )


PARSERS = (
    ("eval_image_cls_dataset", "ImageNet_1K"),
    ("eval_image_qa_dataset", "OK_VQA"),
    ("eval_image_i2t_eval", "MSCOCO_i2t"),
    ("eval_image_t2i_VisDial", "VisDial"),
    ("eval_image_t2i_MSCOCO_t2i", "MSCOCO_t2i"),
    ("eval_image_i2i_vg", "NIGHTS"),
)


@pytest.mark.parametrize(("parser", "task"), PARSERS)
def test_evaluation_strings_are_the_published_ones(parser: str, task: str) -> None:
    inputs, outputs, dataset = RECORDED[parser]["input_rows"], RECORDED[parser]["output"], mmeb_sets()[task]
    for row, instruction in enumerate(inputs["qry_inst"]):
        query = query_string(dataset, instruction, inputs["qry_text"][row])
        assert [formatted_text(query)] == outputs["query_text"][row]
        said = inputs["tgt_inst"][row] if "tgt_inst" in inputs else ""
        targets = [formatted_text(target_string(dataset, said, text)) for text in inputs["tgt_text"][row]]
        assert targets == outputs["cand_text"][row]


@pytest.mark.parametrize("case", ["train_scar", "eval_scar", "eval_scar_res_high"])
def test_scar_queries_are_the_published_ones(case: str) -> None:
    inputs, outputs, ranked = RECORDED[case]["input_rows"], RECORDED[case]["output"], case != "train_scar"
    formatter = PublishedFormatter(prompt_text=False, space_after_image=ranked)
    for row, query in enumerate(inputs["qry_text" if ranked else "qry"]):
        box = xyxy(inputs["bbox"][row], "key", (1000, 1000))
        item = EmbeddingInput(published_query(query, box, ranked), (torch.zeros(3, 4, 4, dtype=torch.uint8),))
        text = formatter.delimit_images(formatter.text(item), ("", ""))
        assert text == (outputs["query_text"][row][0] if ranked else outputs["query_text"][row])


def test_the_published_scar_module_keeps_numbers_as_they_are(root: Path, manifests: dict[str, Manifest]) -> None:
    data = PublishedSCaRDataModule(
        str(root / "shards/SCAR_ADE20K"), batch_size=2, sampling=SamplingOptions(sample_buffer=1)
    )

    class Keep:
        def collate_train(self, samples: Any) -> Any:
            return list(samples)

    data.connect(Keep())  # type: ignore[arg-type]
    texts = {sample.key: sample.query.text for batch in data.train_dataloader() for sample in batch}
    assert texts["SCAR_ADE20K/1"].startswith("<|image_pad|>\nFind") and texts["SCAR_ADE20K/1"].endswith(
        "\nReferring object bbox: [2, 2, 7, 7]"
    )
