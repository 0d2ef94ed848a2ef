"""The DataModule of own pairs, as shards store them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from virtue_pl.data.datamodules.mmeb import MMEBDataModule
from virtue_pl.data.shards.records import RecordImage, Row
from virtue_pl.data.shards.stored_prompts import first_number, has_region, read_own_region, read_prompt, split_prompts
from virtue_pl.types import EmbeddingInput, RankingSample, Sample


class PairDataModule(MMEBDataModule):
    """Pairs and rankings of texts, images or both (`virtue-pl shards pairs`), with or without a region.

    The region is one of the query's image; targets, negatives and candidates may have prompts of their own.

    Example:
        >>> PairDataModule("shards/train", test={"test": "shards/test"}, batch_size=8).batch_size
        8
    """

    @staticmethod
    def to_sample(row: Row, images: Sequence[RecordImage]) -> Sample | RankingSample:
        prompted, fields = split_prompts(row.fields)
        sample = MMEBDataModule.to_sample(replace(row, fields=fields), images)
        if has_region(row):
            size = images[first_number(row, row["query"])].size
            sample = replace(sample, region=read_own_region(row, size))
        if not prompted:
            return sample
        answers = _prompt_answers(row, [*_answers(sample)], prompted, images)
        if isinstance(sample, RankingSample):
            return replace(sample, candidates=answers)
        return replace(sample, target=answers[0], negatives=answers[1:])


def _answers(sample: Sample | RankingSample) -> tuple[EmbeddingInput, ...]:
    return sample.candidates if isinstance(sample, RankingSample) else (sample.target, *sample.negatives)


def _prompt_answers(
    row: Row, answers: Sequence[EmbeddingInput], prompts: Mapping[int, Any], images: Sequence[RecordImage]
) -> tuple[EmbeddingInput, ...]:
    """Return the answers, with the stored prompts on their images."""
    stored = row.fields["candidates"] if "candidates" in row.fields else [row["target"], *row["negatives"]]
    found = list(answers)
    for number, prompt in prompts.items():
        size = images[first_number(row, stored[number][:2])].size
        found[number] = replace(found[number], prompt=read_prompt(row, prompt, size))
    return tuple(found)
