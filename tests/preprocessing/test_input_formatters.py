from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from virtue_pl.preprocessing.images import resize_bicubic
from virtue_pl.preprocessing.input_formatters import (
    CropFormatter,
    InputFormatter,
    MarkerFormatter,
    PublishedFormatter,
    VirtueFormatter,
    ellipse_outline,
)
from virtue_pl.preprocessing.prompts import enclosing_box, pixel_box
from virtue_pl.types import EmbeddingInput, VirtueError, VisualPrompt


def make_image(height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 200, (3, height, width), dtype=torch.uint8)


def pointed(image: torch.Tensor, key: str = "a", **prompt: object) -> EmbeddingInput:
    return EmbeddingInput(
        "find it", (image,), VisualPrompt.from_pixels(**prompt, size=image.shape[1:]), (key,) if key else ()
    )  # type: ignore[arg-type]


@given(st.integers(1, 301), st.integers(1, 301), st.data())
@settings(max_examples=60, deadline=None)
def test_a_box_in_whole_pixels_survives_normalisation(height: int, width: int, data: st.DataObject) -> None:
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    box = VisualPrompt.from_pixels(boxes=[[left, top, right, bottom]], size=(height, width)).boxes[0]
    assert pixel_box(box, (height, width)) == (left, top, right, bottom)


def test_a_box_of_less_than_a_pixel_is_one_pixel() -> None:
    assert pixel_box(torch.tensor([0.999, 0.5, 1.0, 0.5001]), (10, 10)) == (9, 5, 10, 6)


def test_the_enclosing_box_takes_in_all_that_is_meant() -> None:
    mask = torch.zeros(1, 10, 20, dtype=torch.bool)
    mask[0, 8, 2] = True
    prompt = VisualPrompt.from_pixels(
        boxes=[[4, 3, 6, 5]], points=[[10, 5], [19, 9]], labels=[1, 0], masks=mask, size=(10, 20)
    )
    box = enclosing_box(prompt, (10, 20), point_side=0.4)
    assert box is not None and pixel_box(box, (10, 20)) == (2, 3, 12, 9)
    assert enclosing_box(VisualPrompt.from_pixels(points=[[1, 1]], labels=[0], size=(4, 4)), (4, 4), 0.5) is None
    corner = enclosing_box(VisualPrompt.from_pixels(points=[[0, 10]], size=(10, 20)), (10, 20), 0.4)
    assert corner is not None and pixel_box(corner, (10, 20)) == (0, 8, 2, 10)


@pytest.mark.parametrize("box", [(3, 4, 10, 9), (0, 0, 5, 5), (20, 25, 33, 31), (0, 0, 33, 31)])
def test_a_crop_is_the_boxes_pixels(box: tuple[int, int, int, int]) -> None:
    image = make_image(31, 33)
    item = CropFormatter().prepare(pointed(image, boxes=[box]))
    assert torch.equal(item.images[0], image[:, box[1] : box[3], box[0] : box[2]])
    assert item.prompt.is_empty and item.image_keys != ("a",)
    assert CropFormatter().text(item) == "<|image_pad|>\nfind it"


def test_a_point_is_cropped_to_a_square_and_a_mask_to_its_box() -> None:
    image, mask = make_image(40, 60), torch.zeros(1, 40, 60, dtype=torch.bool)
    mask[0, 5:9, 7:20] = True
    assert CropFormatter(point_side=0.5).prepare(pointed(image, points=[[30, 20]])).images[0].shape == (3, 20, 20)
    assert torch.equal(CropFormatter().prepare(pointed(image, masks=mask)).images[0], image[:, 5:9, 7:20])


def test_equal_crops_of_an_image_have_one_key_and_others_another() -> None:
    image = make_image(20, 20)
    keys = [
        CropFormatter().prepare(pointed(image, boxes=[box])).image_keys
        for box in ([1, 1, 5, 5], [1, 1, 5, 5], [1, 1, 5, 6])
    ]
    assert keys[0] == keys[1] != keys[2]
    assert CropFormatter().prepare(pointed(image, key="", boxes=[[1, 1, 5, 5]])).image_keys == ()


def test_a_marker_is_a_red_ring_around_the_box() -> None:
    image = make_image(100, 120)
    formatter = MarkerFormatter(line_width=0.03)
    item = formatter.prepare(pointed(image, boxes=[[40, 30, 80, 60]]))
    red = (item.images[0] == torch.tensor([255, 0, 0])[:, None, None]).all(dim=0)
    assert torch.equal(item.images[0][:, ~red], image[:, ~red])
    rows, columns = red.any(dim=1).nonzero().flatten(), red.any(dim=0).nonzero().flatten()
    across, down = 20 * 2**0.5, 15 * 2**0.5
    assert (columns[0], columns[-1]) == (pytest.approx(60 - across, abs=1), pytest.approx(60 + across, abs=1.5))
    assert (rows[0], rows[-1]) == (pytest.approx(45 - down, abs=1), pytest.approx(45 + down, abs=1.5))
    assert red[45].nonzero().flatten().tolist() == [32, 33, 34, 85, 86, 87]
    assert not red[35:55, 45:75].any()
    assert formatter.text(item).endswith("Referring object bbox: [40, 30, 80, 60]") and item.image_keys != ("a",)


def test_a_marker_at_the_edge_stays_in_the_image() -> None:
    image = make_image(30, 50)
    red = (MarkerFormatter().prepare(pointed(image, boxes=[[0, 0, 50, 30]])).images[0][0] == 255).nonzero()
    assert red.amin(dim=0).tolist() == [0, 0] and red.amax(dim=0).tolist() == [29, 49]
    assert ellipse_outline((3, 3, 4, 4), (6, 6), 1).nonzero().tolist() == [[3, 3]]


@pytest.mark.parametrize("formatter", [VirtueFormatter(), CropFormatter(), MarkerFormatter()])
def test_what_points_at_nothing_is_left_alone(formatter: InputFormatter) -> None:
    for item in (
        EmbeddingInput("a red fox"),
        EmbeddingInput("look", (make_image(4, 4),)),
        EmbeddingInput("lost", prompt=VisualPrompt(boxes=torch.rand(1, 4))),
    ):
        assert formatter.prepare(item) is item


MARKS = ("<|vision_start|>", "<|vision_end|>")


def test_the_models_marks_stand_around_each_image_but_not_for_the_published_weights() -> None:
    item = pointed(make_image(400, 500), boxes=[[10, 20, 110, 220]])
    lines = "find it\nReferring object bbox: [10, 20, 110, 220]"
    for formatter, expected in (
        (VirtueFormatter(), f"<|vision_start|><|image_pad|><|vision_end|>\n{lines}"),
        (PublishedFormatter(), f"<|image_pad|>\n{lines}"),
        (PublishedFormatter(space_after_image=True), f"<|image_pad|> \n{lines}"),
    ):
        assert formatter.delimit_images(formatter.text(item), MARKS) == expected
    assert VirtueFormatter().delimit_images(VirtueFormatter().text(item), ("", "")) == PublishedFormatter().text(item)


def test_in_the_canvas_frame_pixels_of_the_image_are_pixels_of_the_canvas() -> None:
    item = pointed(make_image(170, 230), boxes=[[30, 50, 150, 160]], points=[[23, 17]])
    prompt = PublishedFormatter(prompt_frame="canvas").visual_prompt(item, 1024)
    torch.testing.assert_close(prompt.boxes * 1024, torch.tensor([[30.0, 50, 150, 160]]))
    torch.testing.assert_close(prompt.points * 1024, torch.tensor([[23.0, 17]]))
    assert all(
        formatter.visual_prompt(item, 1024) is item.prompt for formatter in (VirtueFormatter(), PublishedFormatter())
    )
    assert PublishedFormatter(prompt_frame="canvas").text(item) == VirtueFormatter().text(item)


def test_published_positions_do_not_count_padding() -> None:
    found = PublishedFormatter(num_segment_tokens=256).position_ids(
        torch.zeros(3, 2, 4, dtype=torch.long), [True, False]
    )
    assert (
        found is not None
        and found[:, 0].tolist() == [[256, 257, 258, 259]] * 3
        and found[:, 1].tolist() == [[0, 1, 2, 3]] * 3
    )
    assert VirtueFormatter().position_ids(None, [True]) is None
    with pytest.raises(VirtueError, match="PublishedFormatter gives positions, but the language model takes none"):
        PublishedFormatter().position_ids(None, [True])


def test_the_published_weights_know_one_image_a_row() -> None:
    item = EmbeddingInput("both", (make_image(4, 4), make_image(4, 4)))
    assert VirtueFormatter().prepare(item) is item
    with pytest.raises(
        VirtueError, match="a row has 2 images, but the published weights take one a row: use VirtueFormatter"
    ):
        PublishedFormatter().prepare(item)


@pytest.mark.parametrize("size", [(24, 90), (90, 27), (1, 300), (27, 27), (4, 3)])
def test_an_image_with_a_side_under_28_is_a_square_of_56_in_the_published_format(size: tuple[int, int]) -> None:
    image, formatter = make_image(*size), PublishedFormatter()
    assert formatter.first_size(size) == (56, 56) and VirtueFormatter().first_size(size) == size
    resized = resize_bicubic(image, (56, 56))
    assert torch.equal(formatter.resize_first(image), resized) and VirtueFormatter().resize_first(image) is image
    assert torch.equal(formatter.segmentation_pixels(image, 64), formatter.segmentation_pixels(resized, 64))
    item = pointed(image, boxes=[[0, 0, size[1], size[0]]])
    assert formatter.text(item).endswith(f"[0, 0, {size[1]}, {size[0]}]"), "words are in pixels of the image itself"
    frame = PublishedFormatter(prompt_frame="canvas").visual_prompt(item, 1024)
    torch.testing.assert_close(frame.boxes * 1024, torch.tensor([[0.0, 0, size[1], size[0]]]))


@pytest.mark.parametrize("size", [(28, 28), (28, 500), (56, 56), (200, 600)])
def test_another_image_keeps_its_size(size: tuple[int, int]) -> None:
    assert PublishedFormatter().first_size(size) == size


def test_stored_features_of_the_published_canvas_are_not_taken_for_others() -> None:
    """What changes the text alone changes no canvas."""
    formatters = VirtueFormatter(), PublishedFormatter(), PublishedFormatter(max_pixels=784)
    plain, published, smaller = (formatter.segmentation_settings() for formatter in formatters)
    assert plain != published != smaller
    for same in (VirtueFormatter(prompt_text=False), CropFormatter(), MarkerFormatter(line_width=0.1)):
        assert same.segmentation_settings() == plain
    assert PublishedFormatter(prompt_frame="canvas").segmentation_settings() == published


def test_the_size_that_an_image_is_first_given_is_known_by_its_vision_features() -> None:
    assert VirtueFormatter().vision_settings() != PublishedFormatter().vision_settings()
    assert VirtueFormatter(prompt_text=False).vision_settings() == MarkerFormatter().vision_settings()
    assert PublishedFormatter().vision_settings() == PublishedFormatter(max_pixels=784).vision_settings()


def test_another_canvas_of_a_formatter_of_ones_own_is_known_by_all_its_attributes() -> None:
    class Darker(VirtueFormatter):
        def __init__(self, share: float) -> None:
            super().__init__()
            self.share = share

        def segmentation_pixels(self, image: torch.Tensor, size: int) -> torch.Tensor:
            return (super().segmentation_pixels(image, size) * self.share).to(torch.uint8)

    assert Darker(0.5).segmentation_settings() != Darker(0.6).segmentation_settings()
    assert Darker(0.5).segmentation_settings() != VirtueFormatter().segmentation_settings()


@pytest.mark.parametrize(
    ("formatter", "option"),
    [(MarkerFormatter, "line_width"), (MarkerFormatter, "point_side"), (CropFormatter, "point_side")],
)
@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_beyond_the_image_is_refused(formatter: type, option: str, share: float) -> None:
    with pytest.raises(VirtueError, match=rf"formatter\.{option} is {share}, expected a share of the image's side"):
        formatter(**{option: share})
