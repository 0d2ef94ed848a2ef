"""Images of the page: odd files, uploads, and paths that lead elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from virtue_pl.apps.demo.images import KEPT, ImageShelf, choose_names
from virtue_pl.types import VirtueError


def write(path: Path, mode: str = "RGB", turn: int = 1, size: tuple[int, int] = (40, 20)) -> Path:
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(np.full((size[1], size[0], 3), 90, np.uint8)).convert(mode).save(path, exif=exif)
    return path


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L"])
@pytest.mark.parametrize(("turn", "size"), [(1, (20, 40)), (6, (40, 20)), (8, (40, 20)), (3, (20, 40))])
def test_an_upload_is_upright_in_three_colours(tmp_path, mode, turn, size):
    image = ImageShelf(None).add(write(tmp_path / "a.jpg", mode, turn), "holiday.jpg")
    assert (image.size, image.name, tuple(image.pixels.shape)) == (size, "holiday.jpg", (3, *size))
    assert image.data_uri().startswith("data:image/jpeg;base64,")


def test_equal_uploads_are_one_image_and_others_are_not(tmp_path):
    shelf = ImageShelf(None)
    first = shelf.add(write(tmp_path / "a.png"), "a.png")
    again = shelf.add(write(tmp_path / "b.png"), "b.png")
    other = shelf.add(write(tmp_path / "c.png", size=(20, 40)), "c.png")
    assert first.key == again.key != other.key
    assert shelf.find(other.key).name == "c.png"


def test_an_upload_beyond_those_that_are_held_is_asked_for_again(tmp_path):
    shelf = ImageShelf(None)
    first = shelf.add(write(tmp_path / "a.png"), "a.png")
    for number in range(KEPT):
        shelf.add(write(tmp_path / "b.png", size=(50 + number, 20)), "b.png")
    with pytest.raises(VirtueError, match="upload it again"):
        shelf.find(first.key)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_image_is_named(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(VirtueError, match=r"a\.png"):
        ImageShelf(None).add(tmp_path / "a.png", "a.png")


def test_a_large_image_is_refused_from_its_header(tmp_path):
    with pytest.raises(VirtueError, match="pixels"):
        ImageShelf(None, max_pixels=500).add(write(tmp_path / "a.png"), "a.png")


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "gone.png", ""])
def test_only_images_of_the_folder_are_read(tmp_path, name):
    (tmp_path / "images").mkdir()
    write(tmp_path / "secret.png")
    with pytest.raises(VirtueError, match="is not in"):
        ImageShelf(tmp_path / "images").load(name)


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(VirtueError, match="--images: there is no folder"):
        ImageShelf(tmp_path / "none")


def test_images_of_sub_folders_are_found_and_hidden_files_are_not(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.png", "sub/a.JPG", "._c.png", "note.txt"):
        write(tmp_path / "x.png").rename(tmp_path / name)
    assert ImageShelf(tmp_path).names == ["b.png", "sub/a.JPG"]


def test_a_draw_of_names_is_the_same_each_time():
    names = [f"{number:03}" for number in range(100)]
    chosen = choose_names(names, {}, 10, seed=3)
    assert chosen == sorted(chosen) == choose_names(names, {}, 10, seed=3) != choose_names(names, {}, 10, seed=4)
    assert len(set(chosen)) == 10
