"""MMEB's DataModule: what its samples hold, and what becomes of them in a model's collator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fixtures.data_options import DATASET, grouped
from fixtures.mmeb_files import write_mmeb
from fixtures.scar_files import jpeg
from virtue_pl.data.conversion.mmeb import convert_mmeb
from virtue_pl.data.datamodules.mmeb import MMEBDataModule, embedding_input
from virtue_pl.data.shards.records import RecordImage, Row
from virtue_pl.preprocessing.contrastive_collator import ContrastiveCollator
from virtue_pl.preprocessing.input_formatters import VirtueFormatter
from virtue_pl.preprocessing.processor import VLMProcessor
from virtue_pl.types import IMAGE_TOKEN, DataError


class Keep:
    """A collator whose batches are the samples."""

    def collate_train(self, samples: Any) -> Any:
        return list(samples)

    def collate_eval(self, samples: Any) -> Any:
        return list(samples)


class Letters(VLMProcessor):
    """Keeps the texts that it is given; a token is a letter."""

    def __init__(self) -> None:
        self.texts: list[list[str]] = []

    def tokenize(self, texts: Any, sizes: Any) -> Any:
        self.texts.append(list(texts))
        longest = max(map(len, texts))
        ids = torch.tensor([[ord(letter) for letter in text.ljust(longest)] for text in texts])
        return ids, torch.ones_like(ids)

    def resize(self, image: Any) -> Any:
        return image

    def resized_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mmeb_module")
    convert_mmeb(write_mmeb(folder / "mmeb"), folder / "out")
    return folder / "out"


def module(shards: Path, dataset: str, collator: Any = None, **options: Any) -> MMEBDataModule:
    settings = {
        "train": str(shards / f"MMEB_{dataset}"),
        "val": str(shards / f"MMEB_eval_{dataset}"),
        "batch_size": 8,
        **options,
    }
    data = MMEBDataModule(**grouped(settings, DATASET))
    data.connect(collator or Keep())
    return data


def test_a_question_about_an_image(shards: Path) -> None:
    (batch,) = module(shards, "OK_VQA").train_dataloader()
    sample = {sample.key: sample for sample in batch}["MMEB_OK_VQA/3"]
    assert sample.query.text == f"{IMAGE_TOKEN}\nRepresent the given image with the following question: What is 3?\n"
    assert sample.target.text == "answer 3\n" and sample.target.images == () and sample.negatives == ()
    assert (
        len(sample.query.images) == len(sample.query.image_keys) == 1
        and abs(int(sample.query.images[0][0, 0, 0]) - 30) <= 3
    )
    assert sample.task == "mmeb_OK_VQA" and sample.region is None and sample.query.prompt.is_empty


def test_an_image_to_be_found_for_a_caption(shards: Path) -> None:
    (batch,) = module(shards, "MSCOCO_t2i", num_negatives=2).train_dataloader()
    sample = {sample.key: sample for sample in batch}["MMEB_MSCOCO_t2i/5"]
    assert (
        sample.query.text == "Find me an everyday image that matches the given caption. Caption 5\n"
        and sample.query.images == ()
    )
    assert sample.target.text == f"{IMAGE_TOKEN}\nRepresent the given image." and len(sample.target.images) == 1
    assert len({*sample.target.image_keys, *(key for negative in sample.negatives for key in negative.image_keys)}) == 3


def test_an_evaluation_sample(shards: Path) -> None:
    (batch,) = module(shards, "MSCOCO_t2i").val_dataloader()
    assert {sample.task for sample in batch} == {"mmeb_MSCOCO_t2i/val"} and len(batch) == 8
    for sample in batch:
        assert (
            sample.rankings == {"hit@1": (0, 1, 2, 3)}
            and len({candidate.image_keys for candidate in sample.candidates}) == 4
        )


@pytest.mark.parametrize(
    ("stored", "problem"),
    [
        ("text", "expected a text and the number of its image"),
        (["text"], "expected a text and the number of its image"),
        (["text", 2], "image 2 of 'text' is not there: the record has 1"),
        (["<|image_1|> a <|image_2|>", 0], "2 image tokens in .*, expected 1"),
        (["<|image_1|> a", None], "1 image tokens in .*, expected 0"),
    ],
)
def test_what_is_no_text_with_its_image_is_a_bad_sample(stored: Any, problem: str) -> None:
    row, images = Row("folder/3", "task", {}), [RecordImage(jpeg(1), "key", "folder/3", 10_000)]
    with pytest.raises(DataError, match=rf"folder/3: .*{problem}"):
        embedding_input(row, stored, images)


def evaluated(shards: Path, dataset: str, modes: tuple[str, ...]) -> tuple[Any, list[list[str]]]:
    processor = Letters()
    collator = ContrastiveCollator(processor, VirtueFormatter(), None, {"box": 1.0}, modes)
    (batch,) = module(shards, dataset, collator).val_dataloader()
    return batch, processor.texts


def test_queries_without_a_region_are_ranked_with_and_without_their_image(shards: Path) -> None:
    batch, (queries, candidates) = evaluated(shards, "OK_VQA", ("box", "point", "no_prompt", "blind"))
    assert batch.modes == ("no_prompt", "blind") and len(queries) == 16
    question = "Represent the given image with the following question: What is"
    assert all(text.startswith(f"{IMAGE_TOKEN}\n{question}") for text in queries[:8]) and all(
        text.startswith(question) for text in queries[8:]
    )
    assert set(batch.queries.use_rows.tolist()) == set(range(8)) and "yes" in candidates
    assert evaluated(shards, "OK_VQA", ("box",))[0].modes == ("no_prompt",) and evaluated(shards, "OK_VQA", ("blind",))[
        0
    ].modes == ("blind",)


def test_queries_of_text_alone_are_ranked_once(shards: Path) -> None:
    batch, (queries, candidates) = evaluated(shards, "MSCOCO_t2i", ("box", "blind"))
    assert batch.modes == ("no_prompt",) and len(queries) == 8 and len(batch.queries.images) == 0
    assert candidates == [f"{IMAGE_TOKEN}\nRepresent the given image."] * 4 and len(batch.candidates.images) == 4
    assert all(sorted(rows) == [0, 1, 2, 3] for rows in batch.candidate_rows)
