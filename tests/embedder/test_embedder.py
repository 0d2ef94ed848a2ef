"""The Python interface: the same embeddings however rows are given, batched or repeated, and each image seen once."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from fixtures.tiny_release import published, quickstart_spec, run_checkpoint
from virtue_pl.checkpoints.export import export
from virtue_pl.checkpoints.pretrained import from_pretrained
from virtue_pl.embedder import Embedder
from virtue_pl.embedder.row_batches import sort_into_batches
from virtue_pl.features.frozen import FeatureCache
from virtue_pl.preprocessing.images import pixel_key, to_image
from virtue_pl.preprocessing.input_formatters import CropFormatter, MarkerFormatter, VirtueFormatter
from virtue_pl.types import NO_FEATURES, EmbeddingInput, ImageFeatures, VirtueError, VisualPrompt

IMAGES = [
    np.random.default_rng(number).integers(0, 256, (60 + 8 * number, 90, 3), dtype=np.uint8) for number in range(3)
]
BOX = VisualPrompt.from_pixels(boxes=[[5, 5, 40, 50]], size=(60, 90))
OTHER_BOX = VisualPrompt.from_pixels(boxes=[[30, 10, 80, 55]], size=(60, 90))
POINT = VisualPrompt.from_pixels(points=[[20, 30]], size=(60, 90))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `virtue-pl export` would write."""
    folder = tmp_path_factory.mktemp("face")
    export(run_checkpoint(folder / "run", quickstart_spec(folder)), folder / "exported")
    return folder / "exported"


@pytest.fixture(scope="module")
def loaded(exported: Path) -> Embedder:
    return Embedder.from_pretrained(exported, device="cpu", batch_size=3)


@pytest.fixture
def embedder(loaded: Embedder) -> Iterator[Embedder]:
    loaded.feature_cache = FeatureCache(8)
    loaded.model.segment_unprompted = loaded.collator.segment_unprompted = True
    formatter = loaded.collator.formatter
    yield loaded
    loaded.collator.formatter = formatter


@pytest.fixture
def image_counts(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Return the number of images that each tower encoded, which a test adds to."""
    counts = {"segmentation": 0, "vision": 0}

    def counting(name: str, network: Any, method: str) -> None:
        encode = getattr(network, method)

        def encode_and_count(pixels: Any) -> Any:
            counts[name] += len(pixels)
            return encode(pixels)

        monkeypatch.setattr(network, method, encode_and_count)

    counting("segmentation", embedder.model.segmentation.backbone, "image_features")
    counting("vision", embedder.model.fusion.backbone, "vision_features")
    return counts


def alone(embedder: Embedder, item: EmbeddingInput) -> np.ndarray:
    """One input through the model itself, without the embedder."""
    with torch.no_grad():
        return embedder.model.encode(embedder.collator.encoder_batch([item]))[0].numpy()


def test_rows_of_all_kinds_are_what_each_is_alone(embedder):
    texts = [
        "a cat",
        "what is it",
        "what is it",
        "a very long caption of a cat that lies on a mat beside a bowl of milk",
        "what is it",
        "",
    ]
    images = [None, IMAGES[0], IMAGES[1], None, IMAGES[0], IMAGES[2]]
    prompts = [None, BOX, None, None, POINT, None]
    found = embedder.encode(texts, images, prompts)
    assert found.dtype == np.float32 and found.shape == (6, embedder.embed_dim)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    for row, (text, image, prompt) in enumerate(zip(texts, images, prompts, strict=True)):
        shown = () if image is None else (torch.from_numpy(image).permute(2, 0, 1).contiguous(),)
        np.testing.assert_allclose(
            found[row], alone(embedder, EmbeddingInput(text, shown, prompt or VisualPrompt())), atol=1e-5
        )
    np.testing.assert_allclose(embedder.encode(texts, images, prompts, batch_size=1), found, atol=1e-5)
    tensor = embedder.encode(texts, images, prompts, as_tensor=True)
    assert isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32
    assert not np.allclose(found[1], found[4], atol=1e-3)


def test_a_images_towers_run_once_for_all_its_regions(embedder, image_counts):
    together = embedder.encode("what is it", IMAGES[0], [BOX, OTHER_BOX, POINT, None, BOX])
    assert image_counts == {"segmentation": 1, "vision": 1}
    np.testing.assert_array_equal(together[0], together[4])
    following = embedder.encode("what is it", IMAGES[0].copy(), OTHER_BOX)
    assert image_counts == {"segmentation": 1, "vision": 1}
    np.testing.assert_allclose(following[0], together[1], atol=1e-5)
    embedder.encode("another question", [IMAGES[0], IMAGES[1], IMAGES[1].copy()])
    assert image_counts == {"segmentation": 2, "vision": 2}


def test_an_image_that_was_forgotten_is_seen_again(embedder, image_counts):
    embedder.feature_cache = FeatureCache(1)
    for number in (0, 1, 0, 0):
        embedder.encode("what is it", IMAGES[number], BOX)
    assert image_counts["segmentation"] == 3 and len(embedder.feature_cache) == 1


def test_an_unprompted_image_costs_no_segmentation_where_the_model_needs_none(embedder, image_counts):
    embedder.model.segment_unprompted = embedder.collator.segment_unprompted = False
    plain = embedder.encode("what is it", IMAGES[0])
    assert image_counts == {"segmentation": 0, "vision": 1}
    both = embedder.encode("what is it", IMAGES[0], [None, BOX])
    assert image_counts == {"segmentation": 1, "vision": 1}
    np.testing.assert_allclose(both[0], plain[0], atol=1e-5)
    assert not np.allclose(both[1], plain[0], atol=1e-3)


def test_a_formatter_that_changes_images_has_features_of_its_own(embedder, image_counts):
    embedder.collator.formatter = CropFormatter()
    crops = embedder.encode("what is it", IMAGES[0], [BOX, OTHER_BOX, None])
    assert image_counts["vision"] == 3
    again = embedder.encode("what is it", IMAGES[0], [BOX, None])
    assert image_counts["vision"] == 3
    np.testing.assert_allclose(again, crops[[0, 2]], atol=1e-5)
    cut = torch.from_numpy(IMAGES[0][5:50, 5:40]).permute(2, 0, 1).contiguous()
    np.testing.assert_allclose(crops[0], alone(embedder, EmbeddingInput("what is it", (cut,))), atol=1e-5)


class CountedFeatures(FeatureCache):
    def __init__(self) -> None:
        super().__init__(8)
        self.counts: Counter[str] = Counter()

    def get(self, key: str) -> ImageFeatures:
        self.counts[key] += 1
        return super().get(key)


@pytest.mark.parametrize("formatter", [CropFormatter, MarkerFormatter, VirtueFormatter])
def test_each_input_is_prepared_once_and_each_image_looked_up_and_encoded_once(
    embedder, image_counts, formatter, monkeypatch
):
    prepared: Counter[str] = Counter()
    prepare = formatter.prepare
    monkeypatch.setattr(formatter, "prepare", lambda self, item: (prepared.update([item.text]), prepare(self, item))[1])
    embedder.collator.formatter, embedder.feature_cache = formatter(), CountedFeatures()
    texts, images, prompts = list("abcdef"), [IMAGES[0]] * 5 + [None], [BOX, OTHER_BOX, None, BOX, None, None]
    distinct = 1 if formatter is VirtueFormatter else 3
    for _ in range(2):
        embedder.encode(texts, images, prompts, batch_size=6)
        assert prepared == Counter(texts) and image_counts == {"segmentation": distinct, "vision": distinct}
        assert len(embedder.feature_cache.counts) == distinct and set(embedder.feature_cache.counts.values()) == {1}
        prepared.clear()
        embedder.feature_cache.counts.clear()


def test_a_batch_carries_the_keys_of_its_images_as_they_were_prepared(embedder):
    image = torch.from_numpy(IMAGES[0]).permute(2, 0, 1).contiguous()
    items = [
        EmbeddingInput("a", (image,), BOX, ("cat",)),
        EmbeddingInput("b", (image,), image_keys=("cat",)),
        EmbeddingInput("c", (image,)),
    ]
    assert embedder.collator.encoder_batch(items).images.keys == ("cat", "")
    embedder.collator.formatter = CropFormatter()
    batch = embedder.collator.encoder_batch(items)
    assert batch.images.keys == ("cat, crop 5 5 40 50", "cat", "")
    assert (
        batch.select([1]).images.keys == ("cat",)
        and batch.images.with_features((NO_FEATURES,) * 3).keys == batch.images.keys
    )


def test_rows_of_one_length_go_together_and_of_one_image_in_a_row(embedder):
    keys = ["a", "b", "a", "b"]
    image = torch.zeros(3, 60, 90, dtype=torch.uint8)
    items = [EmbeddingInput("x" * length) for length in (400, 4, 300, 8)]
    items += [EmbeddingInput("y" * position, (image,), image_keys=(key,)) for position, key in enumerate(keys)]
    batches = list(sort_into_batches(items, 2, embedder.collator.resized_size))
    assert sorted(row for rows in batches for row in rows) == list(range(8))
    assert {0, 2} in map(set, batches) and {1, 3} in map(set, batches)
    assert {4, 6} in map(set, batches) and {5, 7} in map(set, batches)


def test_images_of_every_form_are_the_same(embedder, tmp_path):
    image = Image.fromarray(IMAGES[0])
    image.save(tmp_path / "image.png")
    tensor = torch.from_numpy(IMAGES[0]).permute(2, 0, 1)
    transparent = np.concatenate([IMAGES[0], np.full((60, 90, 1), 7, np.uint8)], axis=2)
    forms = [
        IMAGES[0],
        image,
        tensor,
        transparent,
        tmp_path / "image.png",
        str(tmp_path / "image.png"),
        (tmp_path / "image.png").read_bytes(),
    ]
    assert len({pixel_key(to_image(form, "row 0")) for form in forms}) == 1
    assert pixel_key(tensor.contiguous()) != pixel_key(tensor.flip(2).contiguous())
    assert pixel_key(torch.zeros(3, 4, 6, dtype=torch.uint8)) != pixel_key(torch.zeros(3, 6, 4, dtype=torch.uint8))
    grey = to_image(IMAGES[0][..., 0], "grey")
    assert torch.equal(grey[0], grey[2]) and grey.shape == (3, 60, 90)
    assert embedder.encode(images=forms).shape == (7, embedder.embed_dim)
    assert len(embedder.feature_cache) == 1
    stacked = embedder.encode(images=np.stack([IMAGES[0], IMAGES[0][::-1]]))
    assert stacked.shape[0] == 2 and not np.allclose(stacked[0], stacked[1], atol=1e-4)


def test_several_regions_in_one_row(embedder):
    found = embedder.encode("what are they", [IMAGES[0]], [[BOX, OTHER_BOX]], as_tensor=True)
    image = torch.from_numpy(IMAGES[0]).permute(2, 0, 1).contiguous()
    item = EmbeddingInput("what are they", (image,), BOX, extra_prompts=(OTHER_BOX,))
    np.testing.assert_allclose(found[0], alone(embedder, item), atol=1e-5)
    assert found.shape == (1, embedder.embed_dim)


def test_nothing_to_embed_and_progress(embedder, capsys):
    assert embedder.encode(texts=[]).shape == (0, embedder.embed_dim)
    embedder.encode(["a", "b"], progress=True)
    assert "embedding" in capsys.readouterr().err
    embedder.encode(["a", "b"])
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"texts": ["a", "b"], "images": [IMAGES[0]]}, "was given 2 texts, 1 images, expected as many of each"),
        ({"texts": "a", "prompts": BOX}, "row 0 has a visual prompt but no image"),
        ({"texts": ["a", ""]}, "row 1 is empty, expected a text, an image, or both"),
        ({"texts": "a", "images": "nowhere.png"}, "there is no image nowhere.png"),
        ({"images": [IMAGES[0], IMAGES[0] / 255]}, r"row 1: an image is float64 \[60, 90, 3\], expected"),
        ({"images": torch.zeros(60, 90, 3, dtype=torch.uint8)}, r"an image is torch.uint8 \[60, 90, 3\], expected"),
        (
            {"images": IMAGES[0], "prompts": [[1, 2, 3, 4]]},
            "row 0: found int, expected VisualPrompt: prompts in pixels are made by VisualPrompt.from_pixels",
        ),
        ({"texts": [3]}, "row 0: found int, expected str"),
    ],
)
def test_mistakes_are_one_line(embedder, arguments, told):
    with pytest.raises(VirtueError, match=told):
        embedder.encode(**arguments)


def test_options_and_numbers_that_cannot_be(exported, embedder):
    with pytest.raises(VirtueError, match=r"batch_size is 0, cached_images 32, expected at least 1 and 0"):
        Embedder(embedder.model, "cpu", batch_size=0)
    with pytest.raises(VirtueError, match=r"dtype is 'int8', expected one of float32, bfloat16, float16"):
        Embedder.from_pretrained(exported, dtype="int8")
    broken = Embedder(from_pretrained(exported), "cpu")
    for parameter in broken.model.fusion.backbone.parameters():
        parameter.data.fill_(float("nan"))
    with pytest.raises(VirtueError, match=r"row 0 has an embedding that is not finite"):
        broken.encode("a cat")


def test_in_bfloat16_embeddings_stay_float32_and_near(exported, embedder):
    half = Embedder.from_pretrained(exported, device="cpu", dtype="bfloat16")
    arguments = {
        "texts": ["a cat", "what is it", "what is it"],
        "images": [None, IMAGES[0], IMAGES[1]],
        "prompts": [None, BOX, None],
    }
    found, expected = half.encode(**arguments), embedder.encode(**arguments)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert (found * expected).sum(axis=1).min() > 0.99


def test_a_published_folder(tmp_path):
    embedder = Embedder.from_pretrained(published(tmp_path / "model"), device="cpu")
    found = embedder.encode("what is it", IMAGES[0], [BOX, POINT])
    assert found.shape == (2, embedder.embed_dim) and not np.allclose(found[0], found[1], atol=1e-4)
    shown = torch.from_numpy(IMAGES[0]).permute(2, 0, 1).contiguous()
    np.testing.assert_allclose(found[0], alone(embedder, EmbeddingInput("what is it", (shown,), BOX)), atol=1e-5)


def test_max_pixels_is_an_option_wherever_images_come_in(exported, embedder, tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(IMAGES[0]).save(path)
    told = r"^row 1{}: image too large: 90x60 pixels, more than max_pixels = 5399$"
    for small in (
        Embedder(embedder.model, "cpu", max_pixels=60 * 90 - 1),
        Embedder.from_pretrained(exported, device="cpu", max_pixels=60 * 90 - 1),
    ):
        for image, where in ((path, rf" \({path}\)"), (str(path), rf" \({path}\)"), (path.read_bytes(), "")):
            for images in ([None, image], (image for image in [None, image])):
                with pytest.raises(VirtueError, match=told.format(where)):
                    small.encode(["a", "b"], images)
        assert small.encode(images=[IMAGES[0], Image.open(path)]).shape[0] == 2, "pixels in memory have no limit"
    enough = Embedder(embedder.model, "cpu", max_pixels=60 * 90)
    np.testing.assert_array_equal(enough.encode(images=path), embedder.encode(images=IMAGES[0]))
    with pytest.raises(VirtueError, match="max_pixels is 0, expected at least 1"):
        Embedder(embedder.model, "cpu", max_pixels=0)


@pytest.fixture
def photos(tmp_path) -> list[Path]:
    """Eleven images of two sizes, of which three have the same pixels."""
    paths = [tmp_path / f"{number:02d}.png" for number in range(11)]
    for number, path in enumerate(paths):
        size = ((60, 90), (60, 90), (120, 200))[number % 3]
        pixels = np.random.default_rng(number % 10).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    Image.open(paths[0]).save(paths[9])
    return paths


@pytest.fixture
def alive(monkeypatch):
    """Images decoded from their files: how many, and how many of them are alive at most."""
    decoded, images = {"total": 0, "most": 0}, weakref.WeakSet()

    def decode(image, *arguments):
        pixels = to_image(image, *arguments)
        images.add(pixels)
        decoded["total"] += 1
        decoded["most"] = max(decoded["most"], len(images))
        return pixels

    monkeypatch.setattr("virtue_pl.preprocessing.image_sources.to_image", decode)
    return decoded


@pytest.mark.parametrize("batch_size", [1, 2, 4, 16])
def test_paths_are_embedded_as_their_pixels_and_decoded_when_their_batch_comes(embedder, photos, alive, batch_size):
    """To the bit what all of them, decoded beforehand, are in one list."""
    texts = ["what is it" + " or where" * (number % 4) for number in range(11)]
    prompts = [None if number % 3 else BOX for number in range(11)]
    found = embedder.encode(texts, photos, prompts, batch_size=batch_size)
    assert alive["most"] <= batch_size and alive["total"] == (11 if batch_size == 16 else 9)
    embedder.feature_cache = FeatureCache(8)
    decoded = [
        EmbeddingInput(text, (to_image(photo, ""),), prompt or VisualPrompt())
        for text, photo, prompt in zip(texts, photos, prompts, strict=True)
    ]
    np.testing.assert_array_equal(found, embedder.embed(decoded, batch_size).numpy())
    for forms in ([np.array(Image.open(photo)) for photo in photos], [photo.read_bytes() for photo in photos]):
        embedder.feature_cache = FeatureCache(8)
        np.testing.assert_array_equal(found, embedder.encode(texts, forms, prompts, batch_size=batch_size))


def test_one_image_of_many_rows_is_decoded_no_more_often_than_one_of_few(embedder, photos, alive):
    embedder.encode([f"text {number}" for number in range(40)], photos[0], batch_size=4)
    assert alive["total"] == 1
    embedder.encode([f"text {number}" for number in range(24)], sorted(photos[:6] * 4), batch_size=4)
    assert alive["total"] == 1 + 6 and alive["most"] <= 4


@pytest.mark.parametrize("batch_size", [1, 3, 20])
def test_an_iterable_is_asked_for_one_batch_at_a_time(embedder, photos, alive, batch_size, monkeypatch):
    asked, ahead, encode_batch = [], [], embedder.encode_batch

    def photo_stream():
        for photo in photos:
            asked.append(photo)
            yield photo

    def encode(items, details=None):
        ahead.append((len(asked), alive["total"]))
        return encode_batch(items, details)

    monkeypatch.setattr(embedder, "encode_batch", encode)
    found = embedder.encode("what is it", photo_stream(), (None for _ in photos), batch_size=batch_size)
    assert ahead == [(min(11, row + batch_size),) * 2 for row in range(0, 11, batch_size)]
    assert alive["most"] <= batch_size and found.shape == (11, embedder.embed_dim)
    np.testing.assert_allclose(found, embedder.encode("what is it", photos, batch_size=batch_size), atol=1e-5)
    items = [EmbeddingInput("what is it", (to_image(photo, ""),)) for photo in photos]
    np.testing.assert_allclose(embedder.embed(iter(items), batch_size), found, atol=1e-5)


@pytest.mark.parametrize("way", ["list of paths", "generator of paths", "generator of images"])
def test_memory_holds_a_batch_however_photographs_are_given(embedder, photos, alive, way, monkeypatch):
    """Counted: of their pixels as the model reads them no more than a batch, of Pillow's own images two."""
    opened, most, load = weakref.WeakValueDictionary(), 0, Image.Image.load

    def count(image):
        nonlocal most
        if isinstance(image, ImageFile.ImageFile):
            opened[id(image)] = image
            most = max(most, len(opened))
        return load(image)

    def images():
        for path in paths:
            image = Image.open(path)
            image.load()
            yield image

    monkeypatch.setattr(Image.Image, "load", count)
    paths = photos * 3
    given = {"list of paths": paths, "generator of paths": iter(paths), "generator of images": images()}[way]
    assert len(embedder.encode("what is it", given, batch_size=4)) == 33
    assert alive["most"] <= 4 and most <= 8


def test_iterables_without_rows_and_with_a_bar(embedder, capsys):
    for empty in ([], iter([]), (text for text in ())):
        assert embedder.encode(empty).shape == (0, embedder.embed_dim)
    assert embedder.encode(images=iter([])).shape == embedder.embed(iter([])).shape == (0, embedder.embed_dim)
    embedder.encode(iter("abcd"), progress=True)
    assert "embedding" in capsys.readouterr().err


def test_what_goes_wrong_in_an_iterable_is_told_with_the_rows_before_it(embedder, photos):
    """Nothing embedded is lost in silence."""
    photos[7].write_bytes(b"no image")
    lost = rf"^row 7 \({photos[7]}\): damaged image: 8 bytes .*; 6 rows before it were embedded and are not returned$"
    with pytest.raises(VirtueError, match=lost):
        embedder.encode(images=iter(photos), batch_size=3)
    with pytest.raises(VirtueError, match=rf"^row 7 \({photos[7]}\): damaged image: 8 bytes [^;]*$"):
        embedder.encode(images=photos, batch_size=3)
    with pytest.raises(VirtueError, match=r"given 4 texts, and more images, .*; 3 rows before it were embedded"):
        embedder.encode(iter("abcd"), iter(photos), batch_size=3)

    def fails():
        yield from photos[:4]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        embedder.encode(images=fails(), batch_size=3)
    with pytest.raises(VirtueError, match="batch_size is -1, expected at least 1"):
        embedder.encode(["a"], batch_size=-1)


def test_recent_features():
    recent = FeatureCache(2)
    vision, segmentation = ImageFeatures(vision=(torch.zeros(1),)), ImageFeatures(segmentation=(torch.ones(1),))
    recent.put("a", vision)
    recent.put("a", segmentation)
    assert recent.get("a").vision == vision.vision and recent.get("a").segmentation == segmentation.segmentation
    recent.put("b", vision)
    recent.get("a")
    recent.put("c", vision)
    assert recent.get("b") is NO_FEATURES and recent.get("a") is not NO_FEATURES and len(recent) == 2
    empty = FeatureCache(0)
    empty.put("a", vision)
    assert empty.get("a") is NO_FEATURES


def test_cached_features_are_those_of_the_networks_as_they_are_now(exported: Path) -> None:
    """Weights that were changed in place, and other sizes of the canvas, are seen."""
    embedder = Embedder.from_pretrained(exported, device="cpu")
    changes = [
        torch.no_grad()(lambda: next(embedder.model.fusion.backbone.vision.parameters()).mul_(1.5)),
        lambda: embedder.model.load_state_dict({name: t * 1.01 for name, t in embedder.model.state_dict().items()}),
        lambda: setattr(embedder.collator.processor, "image_size", 96),
    ]
    embedder.encode("which?", IMAGES[0], BOX)
    for change in changes:
        change()
        found = embedder.encode("which?", IMAGES[0], BOX)
        embedder.feature_cache.clear()
        np.testing.assert_array_equal(found, embedder.encode("which?", IMAGES[0], BOX))
