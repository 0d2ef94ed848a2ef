from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import strategies as st

from fixtures.device_work import DeviceWork
from virtue_pl.types import EncoderBatch, ImageBatch, PromptBatch, RowLayout, VisualPrompt, index_tensors
from virtue_pl.types.layout import rows_index

ROWS, IMAGES = 5, 4


def batch_of(lengths: list[int], uses: list[tuple[int, int]], prompts: list[tuple[int, int]]) -> EncoderBatch:
    """A batch in which each image, and each prompt, can be told from the others."""
    mask = (torch.arange(6) < torch.tensor(lengths)[:, None]).long()
    images = ImageBatch(vision=tuple(torch.full((3, 1, 1), float(number)) for number in range(IMAGES)))
    points = tuple(VisualPrompt(torch.full((1, 4), number / 64)) for number in range(len(prompts)))
    use_rows, use_images, prompt_rows, owners = (
        torch.tensor([pair[part] for pair in pairs], dtype=torch.long) for pairs in (uses, prompts) for part in (0, 1)
    )
    ids = torch.arange(len(lengths) * 6).view(-1, 6)
    return EncoderBatch(ids, mask, images, PromptBatch(points, owners), use_rows, ids, use_images, prompt_rows)


def describe(batch: EncoderBatch) -> dict[str, list]:
    """For each row its ids, and the images and prompts that are its own, read off the tensors alone."""
    image = [float(pixels[0, 0, 0]) for pixels in batch.images.vision]  # type: ignore[index]
    uses = list(zip(batch.use_rows.tolist(), batch.use_image_index.tolist(), strict=True))
    prompts = list(
        zip(batch.prompt_rows.tolist(), batch.prompts.image_index.tolist(), batch.prompts.prompts, strict=True)
    )
    return {
        "ids": [row[mask.bool()].tolist() for row, mask in zip(batch.input_ids, batch.attention_mask, strict=True)],
        "images": [[image[number] for row, number in uses if row == own] for own in range(len(batch))],
        "prompts": [
            [(image[number], float(prompt.boxes[0, 0])) for row, number, prompt in prompts if row == own]
            for own in range(len(batch))
        ],
    }


pairs = st.lists(st.tuples(st.integers(0, ROWS - 1), st.integers(0, IMAGES - 1)), max_size=8)


@drawn(
    st.lists(st.integers(0, 6), min_size=ROWS, max_size=ROWS),
    pairs,
    pairs,
    st.lists(st.integers(0, ROWS - 1), max_size=7),
)
def test_selected_rows_have_just_what_is_theirs(
    lengths: list[int], uses: list[tuple[int, int]], prompts: list[tuple[int, int]], rows: list[int]
) -> None:
    batch = batch_of(lengths, uses, prompts)
    chosen, whole = batch.select(rows), describe(batch)
    assert describe(chosen) == {name: [values[row] for row in rows] for name, values in whole.items()}
    assert chosen.input_ids.shape[1] == max((lengths[row] for row in rows), default=0)
    used = {*chosen.use_image_index.tolist(), *chosen.prompts.image_index.tolist()}
    assert used == set(range(len(chosen.images)))
    assert chosen.layout == replace(chosen).layout and chosen.prompts.owners == replace(chosen.prompts).owners


def test_a_layout_goes_along_with_its_batch() -> None:
    batch = batch_of([3, 2, 4], [(0, 0), (2, 1)], [(2, 1)])
    there = batch.to("meta")
    assert there.layout == batch.layout and there.select([2, 0]).layout == batch.select([2, 0]).layout
    assert pickle.loads(pickle.dumps(batch)).layout == batch.layout
    assert batch.with_images(ImageBatch(batch.images.vision)).layout is batch.layout
    changed = replace(batch, use_rows=torch.tensor([1, 1]))
    assert changed.layout.use_rows == (1, 1)  # a copy is read anew


def test_the_host_is_asked_for_nothing_that_it_has() -> None:
    batch = batch_of([3, 2, 4], [(0, 0), (2, 1)], [(2, 1)])
    with DeviceWork() as done:
        assert batch.layout.token_counts == (3, 2, 4)
    assert done.reads["tolist"] == 2
    with DeviceWork() as done:
        batch.select([1, 2]).split(1)
        batch.to("cpu").prompted_images()
    assert not done.reads


def test_a_layout_knows_what_rows_have() -> None:
    layout = RowLayout((0, 2, 2), (0, 1, 0), (2,), (1,), (3, 2, 4), (3, 1, 4))
    assert layout.only_image == [True, False, False]
    assert layout.is_padded(4) and not layout.select([2]).layout.is_padded(4)
    assert layout.uses_of_row == {0: [0], 2: [1, 2]} and layout.prompts_of_row == {2: [0]}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [([2, 3, 4], slice(2, 5)), (range(3), slice(0, 3)), ([2, 1], [2, 1]), ([1, 1], [1, 1]), ([], [])],
)
def test_rows_that_follow_each_other_are_a_slice(rows: list[int], expected: slice | list[int]) -> None:
    assert rows_index(rows) == expected


def test_lists_of_indices_go_together() -> None:
    with DeviceWork() as done:
        first, none, last = index_tensors([[3, 1], [], [2]], "cpu")
    assert (first.tolist(), none.tolist(), last.tolist()) == ([3, 1], [], [2]) and first.dtype == torch.long
    assert done.operations <= 2


def test_prompts_move_as_one_and_come_back_as_they_were() -> None:
    prompts = (
        VisualPrompt(torch.rand(2, 4), torch.rand(1, 2), torch.tensor([0])),
        VisualPrompt(masks=torch.rand(2, 3, 5) > 0.5),
        VisualPrompt(),
        VisualPrompt(torch.rand(1, 4).double()),
    )
    for chosen in (prompts[:3], prompts, ()):
        batch = PromptBatch(chosen, torch.arange(len(chosen)))
        there = batch.convert(torch.clone)
        assert there.owners == batch.owners
        for old, new in zip(batch.prompts, there.prompts, strict=True):
            for name in ("boxes", "points", "point_labels", "masks"):
                before, after = getattr(old, name), getattr(new, name)
                assert torch.equal(before, after) and before.dtype == after.dtype and before is not after
    assert batch.to("cpu") is batch
