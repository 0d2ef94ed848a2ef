from __future__ import annotations

import pytest
import torch

from virtue_pl.types import EncoderBatch, ImageBatch, PromptBatch, TokenSequence, VirtueError, VisualPrompt


def test_pixels_become_normalised_coordinates() -> None:
    prompt = VisualPrompt.from_pixels(boxes=[[10, 20, 30, 40]], points=[[5, 50]], labels=[0], size=(100, 50))
    assert prompt.boxes.tolist() == [pytest.approx([0.2, 0.2, 0.6, 0.4])]
    assert prompt.points.tolist() == [pytest.approx([0.1, 0.5])]
    assert prompt.point_labels.tolist() == [0] and not prompt.is_empty and VisualPrompt().is_empty


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"boxes": [[0, 0, 60, 10]]}, r"box \[0, 0, 60, 10\] lies outside the image of 50x100"),
        ({"boxes": [[10, 10, 10, 20]]}, "has no area"),
        ({"points": [[-1, 5]]}, r"point \[-1, 5\] lies outside"),
        ({"points": [[1, 5]], "labels": [3]}, "expected 1"),
        ({"points": [[1, 5]], "labels": [1, 1]}, "one label a point"),
        ({"masks": torch.zeros(1, 4, 4)}, "mask is empty"),
        ({"masks": torch.ones(4, 4)}, r"\[masks, height, width\]"),
    ],
)
def test_bad_prompts_are_refused_with_one_line(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(VirtueError, match=message) as caught:
        VisualPrompt.from_pixels(**arguments, size=(100, 50))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def encoder_batch() -> EncoderBatch:
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]])
    images = ImageBatch(
        vision=(torch.zeros(3, 2, 2), torch.ones(3, 2, 2)), segmentation=(torch.zeros(3, 4, 4), torch.ones(3, 4, 4))
    )
    prompts = PromptBatch(
        (VisualPrompt(), VisualPrompt.from_pixels(boxes=[[0, 0, 1, 1]], size=(2, 2))), torch.tensor([1, 1])
    )
    return EncoderBatch(torch.arange(12).view(3, 4), mask, images, prompts, torch.tensor([0, 2]))


def test_chunks_hold_their_rows_with_just_their_images() -> None:
    first, second = encoder_batch().split(2)
    assert (len(first), len(second)) == (2, 1)
    assert first.input_ids.tolist() == [[0, 1, 2], [4, 5, 6]]
    assert len(first.images) == 1 and first.images.vision[0].sum() == 12
    assert first.use_rows.tolist() == [0] and second.use_rows.tolist() == [0]
    assert second.prompts.image_index.tolist() == [0] and len(second.prompts.prompts[0].boxes) == 1


def test_rows_can_be_taken_in_another_order() -> None:
    batch = encoder_batch().select([2, 1, 0])
    assert batch.use_rows.tolist() == [0, 2]
    assert len(batch.prompts.prompts[0].boxes) == 1 and batch.prompts.prompts[1].is_empty


def test_prepending_moves_embeddings_mask_and_positions_together() -> None:
    sequence = TokenSequence(
        torch.ones(3, 2, 4), torch.tensor([[1, 1], [1, 0], [1, 1]]), torch.tensor([[0, 1], [0, 0], [0, 1]])
    )
    longer = sequence.prepend(torch.full((2, 3, 4), 7.0), torch.tensor([0, 2]))
    assert longer.embeds[:, :3, 0].tolist() == [[7, 7, 7], [0, 0, 0], [7, 7, 7]]
    assert longer.attention_mask.tolist() == [[1, 1, 1, 1, 1], [0, 0, 0, 1, 0], [1, 1, 1, 1, 1]]
    assert longer.position_ids.tolist() == [[0, 0, 0, 0, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1]]
    several_axes = TokenSequence(sequence.embeds, sequence.attention_mask, sequence.position_ids.expand(3, 3, 2))
    assert several_axes.prepend(torch.zeros(2, 3, 4), torch.tensor([0, 2])).position_ids.shape == (3, 3, 5)


def test_a_row_given_several_times_has_all_tokens_in_order_next_to_its_own() -> None:
    visual_pos_mask = torch.tensor([[False, True], [False, False], [True, True]])
    deepstack_embeds = (torch.arange(3.0)[:, None].expand(3, 4),)
    sequence = TokenSequence(
        torch.ones(3, 2, 4),
        torch.ones(3, 2, dtype=torch.long),
        torch.zeros(3, 2, dtype=torch.long),
        deepstack_embeds,
        visual_pos_mask,
    )
    tokens = torch.tensor([5.0, 6, 7])[:, None, None].expand(3, 1, 4)
    longer = sequence.prepend(tokens, torch.tensor([0, 2, 2]))
    assert longer.embeds[..., 0].tolist() == [[0, 5, 1, 1], [0, 0, 1, 1], [6, 7, 1, 1]]
    assert longer.attention_mask.tolist() == [[0, 1, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1]]
    assert longer.deepstack_embeds is deepstack_embeds and longer.visual_pos_mask is not None
    assert longer.visual_pos_mask.tolist() == [[False, False, False, True], [False] * 4, [False, False, True, True]]
    assert sequence.prepend(tokens[:0], torch.tensor([], dtype=torch.long)) is sequence


def test_batches_move_whole() -> None:
    moved = encoder_batch().to("meta")
    assert (
        moved.input_ids.device.type
        == moved.prompts.prompts[1].boxes.device.type
        == moved.images.vision[1].device.type
        == "meta"
    )
