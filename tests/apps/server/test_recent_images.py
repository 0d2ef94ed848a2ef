"""Images by their uuids, and the room for the pixels of all requests."""

from __future__ import annotations

import pytest
import torch

from virtue_pl.apps.server.batching import QueueFull
from virtue_pl.apps.server.errors import UnknownImage
from virtue_pl.apps.server.recent_images import PixelBudget, RecentImages
from virtue_pl.preprocessing.image_sources import KeyedPixels
from virtue_pl.types import VirtueError


def image(key: str, length: int = 8) -> KeyedPixels:
    return KeyedPixels(key, torch.zeros(3, length, length, dtype=torch.uint8))


def test_images_are_found_by_their_uuid_until_others_take_their_room():
    recent = RecentImages(images=2, pixels=1000)
    for name in "ab":
        recent.put(0, name, image(name))
    assert recent.get(0, "a").key == "a"
    recent.put(0, "c", image("c"))
    assert (recent.get(0, "a").key, recent.get(0, "c").key, len(recent)) == ("a", "c", 2)
    with pytest.raises(UnknownImage, match="found 'b', under which no image was sent lately: send the image with it"):
        recent.get(0, "b")


def test_an_image_that_is_sent_again_replaces_the_one_before_and_its_pixels():
    recent = RecentImages(images=2, pixels=130)
    for key in "abcd":
        recent.put(0, "same", image(key))
    recent.put(0, "other", image("e"))
    assert (recent.get(0, "same").key, recent.get(0, "other").key) == ("d", "e")
    recent.put(0, "large", image("f", 20))
    assert len(recent) == 0, "400 pixels are more than there is room for, and nothing else is left"


def test_each_key_has_uuids_of_its_own():
    recent = RecentImages(images=4, pixels=1000)
    recent.put(0, "x", image("a"))
    recent.put(1, "x", image("b"))
    assert (recent.get(0, "x").key, recent.get(1, "x").key) == ("a", "b")
    with pytest.raises(UnknownImage):
        recent.get(2, "x")


def test_pixels_are_bounded_for_now_and_for_ever():
    budget = PixelBudget(100)
    budget.take(60)
    with pytest.raises(QueueFull, match="images of 60 pixels are being answered, of at most 100"):
        budget.take(41)
    with pytest.raises(VirtueError, match="images and masks have 101 pixels together, expected at most 100"):
        budget.take(101)
    with pytest.raises(VirtueError, match="101 pixels together"):
        budget.take(41, before=60)
    budget.release(60)
    budget.take(100)
