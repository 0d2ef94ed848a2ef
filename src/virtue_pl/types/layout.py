"""The layout of a batch's rows on the host, which no device is asked for: owners of images and prompts, lengths."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

Owner = TypeVar("Owner", bound=Hashable)


@dataclass(frozen=True)
class RowLayout:
    """The images and prompts that the rows of an `EncoderBatch` have, and the rows' lengths: integers on the host.

    use_rows, use_images: of each use of an image, its row and its image. prompt_rows, prompt_images: of each prompt.
    lengths: the number of columns up to each row's last real token. token_counts: each row's number of real tokens.

    Example:
        >>> layout = RowLayout((0, 2), (0, 1), (2,), (1,), (3, 2, 4), (3, 2, 4))
        >>> selection = layout.select([2, 1])
        >>> selection.images, selection.layout.use_rows, selection.layout.prompt_images, selection.layout.lengths
        ([1], (0,), (0,), (4, 2))
    """

    use_rows: tuple[int, ...]
    use_images: tuple[int, ...]
    prompt_rows: tuple[int, ...]
    prompt_images: tuple[int, ...]
    lengths: tuple[int, ...]
    token_counts: tuple[int, ...]

    @classmethod
    def read(
        cls,
        use_rows: Int[Tensor, " uses"],
        use_images: Int[Tensor, " uses"],
        prompt_rows: Int[Tensor, " prompts"],
        prompt_images: Sequence[int],
        attention_mask: Int[Tensor, "rows tokens"],
    ) -> RowLayout:
        """Return the layout that tensors describe, which are read at once."""
        columns = torch.arange(1, attention_mask.shape[1] + 1, device=attention_mask.device)
        real = torch.cat([attention_mask.new_zeros(len(attention_mask), 1), (attention_mask != 0) * columns], dim=1)
        parts = [use_rows, use_images, prompt_rows, real.amax(dim=1), attention_mask.sum(dim=1)]
        values, sizes = iter(torch.cat(parts).tolist()), [len(part) for part in parts]
        rows, images, rows_of_prompts, lengths, counts = (tuple(next(values) for _ in range(size)) for size in sizes)
        return cls(rows, images, rows_of_prompts, tuple(prompt_images), lengths, counts)

    @cached_property
    def uses_of_row(self) -> dict[int, list[int]]:
        """The numbers of each row's uses of images, in order; only of rows that have any."""
        return group_by_owner(self.use_rows)

    @cached_property
    def prompts_of_row(self) -> dict[int, list[int]]:
        """The numbers of each row's prompts, in order; only of rows that have any."""
        return group_by_owner(self.prompt_rows)

    @property
    def only_image(self) -> list[bool]:
        """For each use of an image, whether its row uses no other."""
        return [len(self.uses_of_row[row]) == 1 for row in self.use_rows]

    def is_padded(self, columns: int) -> bool:
        """Return whether any row has fewer real tokens than the batch has columns."""
        return any(count < columns for count in self.token_counts)

    def select(self, rows: Sequence[int]) -> RowSelection:
        """Return what a batch of the given rows, in that order, has of this one."""
        owned = [(use, number) for number, row in enumerate(rows) for use in self.uses_of_row.get(row, ())]
        chosen = [(prompt, number) for number, row in enumerate(rows) for prompt in self.prompts_of_row.get(row, ())]
        used = [self.use_images[use] for use, _ in owned]
        prompted = [self.prompt_images[prompt] for prompt, _ in chosen]
        numbers = {image: number for number, image in enumerate(dict.fromkeys([*used, *prompted]))}
        layout = RowLayout(
            tuple(number for _, number in owned),
            tuple(numbers[image] for image in used),
            tuple(number for _, number in chosen),
            tuple(numbers[image] for image in prompted),
            tuple(self.lengths[row] for row in rows),
            tuple(self.token_counts[row] for row in rows),
        )
        return RowSelection(list(numbers), [prompt for prompt, _ in chosen], layout)


class RowSelection(NamedTuple):
    """Some rows of a batch: their images and prompts, by number, and their layout among themselves.

    Example:
        >>> RowLayout((0, 1), (0, 1), (), (), (3, 2), (3, 2)).select([1]).images
        [1]
    """

    images: list[int]
    prompts: list[int]
    layout: RowLayout


def group_by_owner(owners: Sequence[Owner]) -> dict[Owner, list[int]]:
    """Return the numbers of each owner's items, in order. owners: of each item."""
    groups: dict[Owner, list[int]] = {}
    for item, owner in enumerate(owners):
        groups.setdefault(owner, []).append(item)
    return groups


def rows_index(rows: Sequence[int]) -> slice | list[int]:
    """Return a slice for rows that follow each other, which a device is given without a list; else the list."""
    chosen = list(rows)
    if chosen and chosen[0] >= 0 and chosen == list(range(chosen[0], chosen[0] + len(chosen))):
        return slice(chosen[0], chosen[0] + len(chosen))
    return chosen
