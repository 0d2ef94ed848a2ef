"""Galleries of named regions: what is read of shards, each view's items in order, and embeddings of each alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fixtures.scar_files import write_scar
from fixtures.tiny_virtue import tiny_virtue
from virtue_pl.apps.region_gallery import (
    View,
    describe_gallery,
    encode_views,
    open_gallery,
    read_gallery,
    spoken_names,
    to_retrieval,
)
from virtue_pl.data.conversion.scar import convert_scar
from virtue_pl.embedder import Embedder
from virtue_pl.preprocessing.input_formatters import CropFormatter
from virtue_pl.types import VirtueError

NAMES = ["owl", "rat", "owl", "rat snake", "eel"]
SET = "SCaR_eval_mini_val"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gallery")

    def name(pairs: list[dict[str, Any]], rankings: list[dict[str, Any]]) -> None:
        for row, its_name in zip(rankings, NAMES, strict=True):
            row["category"] = its_name
            caption = f"a {its_name} above a rat snake, on grass"
            row["tgt_text"] = [caption, *row["tgt_text"][1:]]
            row["tgt_text_published"] = [caption, *row["tgt_text_published"][1:]]

    convert_scar(write_scar(folder / "scar", val=[2, 1, 2], edit=name), folder / "out")
    return folder / "out"


def test_regions_have_names_and_images_also_those_of_their_captions(shards: Path) -> None:
    images = list(read_gallery(open_gallery({"seen": shards / SET})))
    regions, wholes = describe_gallery(images)
    by_number = {region.key: region.name for image in images for region in image.regions}
    assert by_number == {f"{SET}/{number}": name for number, name in enumerate(NAMES)}
    assert [item.names for item in regions] == [
        frozenset({region.name}) for image in images for region in image.regions
    ]
    assert [item.names for item in wholes] == [
        frozenset({region.name for region in image.regions} | {"rat snake"}) for image in images
    ]
    assert {item.path for item in wholes} == {f"mini_val/{number:04d}.jpg" for number in range(3)}
    assert all(item.set_name == "seen" and item.box is not None for item in regions)
    assert to_retrieval(regions, np.zeros((5, 2), np.float32)).images == tuple(item.image for item in regions)


def test_the_longest_name_is_the_one_that_is_spoken_of() -> None:
    spoken = spoken_names(["rat", "rat snake", "eel (fish)"])
    assert spoken("a rat snake below an eel (fish), on a ratty rug") == ["rat snake", "eel (fish)"]
    assert spoken("the rat") == []


def test_items_are_embedded_as_each_alone_is(shards: Path) -> None:
    embedder = Embedder(tiny_virtue().eval(), device="cpu")
    images = list(read_gallery(open_gallery({"seen": shards / SET})))
    views = [View("box"), View("point", "Find it."), View("image"), View("crop"), View("mask")]
    done: list[int] = []
    by_model = encode_views(
        {"tiny": embedder, "again": embedder}, images, {"tiny": views, "again": views[:1]}, done.append
    )
    found = {view: by_model["tiny", view] for view in views}
    counts = {view.prompt: len(vectors) for view, vectors in found.items()}
    assert np.array_equal(by_model["again", views[0]], found[views[0]]) and len(by_model) == 6
    assert counts == {"box": 5, "point": 5, "image": 3, "crop": 5, "mask": 5}
    assert sum(done) == 3
    number = 0
    for row, image in enumerate(images):
        alone = embedder.encode(images=image.pixels)
        assert found[View("image")][row] == pytest.approx(np.asarray(alone)[0], abs=1e-5)
        for region in image.regions:
            box, point = region.prompt("box"), region.prompt("point")
            crop = CropFormatter().prepare(next(image.items(View("box")))).images[0] if number == 0 else None
            assert found[View("box")][number] == pytest.approx(
                np.asarray(embedder.encode(images=image.pixels, prompts=box))[0], abs=1e-5
            )
            assert found[View("point", "Find it.")][number] == pytest.approx(
                np.asarray(embedder.encode("Find it.", image.pixels, point))[0], abs=1e-5
            )
            if crop is not None and region is images[0].regions[0]:
                assert found[View("crop")][0] == pytest.approx(np.asarray(embedder.encode(images=crop))[0], abs=1e-5)
            number += 1


def test_what_is_no_gallery_is_told(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(VirtueError, match=r"gallery\.seen: .* holds pairs, expected rankings"):
        open_gallery({"seen": shards / "SCAR_mini"})
    with pytest.raises(VirtueError, match=r"gallery\.seen: .* holds no shards"):
        open_gallery({"seen": shards / "none"})
    with pytest.raises(VirtueError, match="prompt 'boxes', expected one of box, point, mask, image, crop"):
        View("boxes")  # type: ignore[arg-type]

    def unnamed(pairs: list[dict[str, Any]], rankings: list[dict[str, Any]]) -> None:
        rankings[0]["category"] = None

    convert_scar(write_scar(tmp_path / "scar", edit=unnamed), tmp_path / "out")
    with pytest.raises(VirtueError, match=r"SCaR_eval_mini_val/0 has no `category`"):
        list(read_gallery(open_gallery({"seen": tmp_path / "out" / SET})))
