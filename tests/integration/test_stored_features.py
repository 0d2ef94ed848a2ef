"""Stored features: the same numbers as from the frozen networks, each image computed once, and nothing of another
network taken.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer

from fixtures.data_options import DATASET, grouped
from fixtures.scar_files import write_scar
from fixtures.tiny_models import VISION_MODEL, save_text_model, save_vision_model
from virtue_pl.backbones.segmentation.timm_sam import TimmSamBackbone, TimmSamPromptEncoder
from virtue_pl.backbones.vlm.timm_text import TimmTextBackbone
from virtue_pl.callbacks.feature_writer import FeatureWriter
from virtue_pl.data.conversion.scar import convert_scar
from virtue_pl.data.datamodules.scar import SCaRDataModule
from virtue_pl.data.shards.manifest import ShardFolder
from virtue_pl.data.shards.records import content_key
from virtue_pl.data.streaming.image_stream import ImageStream
from virtue_pl.data.streaming.pipeline import ReaderInfo, SkipLog
from virtue_pl.features.fingerprints import fingerprint_of
from virtue_pl.features.store import (
    FeatureIndex,
    FeatureProvenance,
    StoredFeatures,
    features_path,
    to_named_tensors,
    write_features,
)
from virtue_pl.losses.contrastive import InfoNCELoss
from virtue_pl.models.connector import MaskConnector
from virtue_pl.models.embedding_model import FROZEN_CHUNK_SIZE
from virtue_pl.models.fusion_head import VLMFusionHead
from virtue_pl.models.segmentation_extractor import SegmentationExtractor
from virtue_pl.models.virtue import Virtue
from virtue_pl.models.visual_prompt_encoder import VisualPromptEncoder
from virtue_pl.preprocessing.input_formatters import CropFormatter
from virtue_pl.types import NO_FEATURES, ImageBatch, ImageFeatures, ShardImageBatch, VirtueError

pytestmark = pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
SIZE = 64
IMAGES = {"SCAR_mini": 5, "SCaR_eval_mini_val": 3}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    save_text_model(folder / "minilm")
    save_vision_model(folder / "vision.safetensors")
    save_vision_model(folder / "other.safetensors", seed=1)
    return folder


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Training shards of 5 images and 9 rows, evaluation shards of 3 images and 6 rows, two images a shard."""
    convert_scar(
        write_scar(tmp_path / "scar", train=[1, 2, 3, 1, 2], val=[2, 1, 3]), tmp_path / "out", images_per_shard=2
    )
    return tmp_path / "out"


def trunk(weights: Path, name: str = "vision") -> TimmSamBackbone:
    return TimmSamBackbone(VISION_MODEL, weights / f"{name}.safetensors", 32, SIZE, num_heads=2, mlp_dim=64)


def head(weights: Path, **options: Any) -> VLMFusionHead:
    torch.manual_seed(0)
    backbone = TimmTextBackbone(
        str(weights / "minilm"), VISION_MODEL, str(weights / "vision.safetensors"), image_size=SIZE, grid_size=2
    )
    return VLMFusionHead(backbone, loss=InfoNCELoss(0.1), **options)


def virtue(weights: Path, name: str = "vision") -> Virtue:
    torch.manual_seed(0)
    prompt_encoder = VisualPromptEncoder(TimmSamPromptEncoder(embed_dim=32, image_size=SIZE), frozen=True)
    return Virtue(
        prompt_encoder,
        SegmentationExtractor(trunk(weights, name), frozen=True),
        MaskConnector,
        head(weights),
        InfoNCELoss(0.1),
    )


def segmenter(weights: Path, flip: bool = False) -> SegmentationExtractor:
    torch.manual_seed(0)
    return SegmentationExtractor(
        trunk(weights), VisualPromptEncoder(TimmSamPromptEncoder(embed_dim=32, image_size=SIZE)), flip=flip
    )


def module(shards: Path, model: Any, **options: Any) -> SCaRDataModule:
    val = str(shards / "SCaR_eval_mini_val")
    settings = {
        "train": str(shards / "SCAR_mini"),
        "val": val,
        "test": {"seen": val},
        "batch_size": 4,
        "num_negatives": 2,
        "eval_batch_size": 2,
    }
    data = SCaRDataModule(**grouped({**settings, **options}, DATASET))
    data.connect(model.collator)
    return data


def store(shards: Path, model: Any, dtype: str = "float32", **options: Any) -> FeatureWriter:
    writer = FeatureWriter(dtype=dtype)
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    trainer = Trainer(accelerator="cpu", callbacks=[writer], **quiet)  # type: ignore[arg-type]
    assert not trainer.predict(
        model, datamodule=module(shards, model, predict="images", features="features", **options)
    )
    return writer


def index_of(shards: Path, name: str) -> FeatureIndex:
    return FeatureIndex.read(shards / name / "features")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_image_is_stored_once_as_it_is_encoded(weights: Path, shards: Path, num_workers: int) -> None:
    model = virtue(weights)
    store(shards, model, num_workers=num_workers)
    for name, count in IMAGES.items():
        folder = ShardFolder.open(shards / name, "train")
        index = index_of(shards, name)
        assert (index.images, index.dtype, index.finished) == (count, "float32", True)
        assert (
            index.tars == tuple(shard.name for shard in folder.manifest.shards)
            and index.shards == folder.manifest.fingerprint
        )
        assert dict(index.streams) == model.collator.fingerprints
        stored = StoredFeatures(shards / name / "features", ("segmentation", "vision"))
        seen = [batch for batch in stream(folder, model.collator.collate_images, ReaderInfo()) if len(batch)]
        for batch in seen:
            with torch.no_grad():
                live = model.image_features(batch.images)
            for key, expected in zip(batch.keys, live, strict=True):
                found = stored.read(batch.shard, key)
                torch.testing.assert_close(found.segmentation, expected.segmentation)
                torch.testing.assert_close(found.vision, expected.vision)
        assert stored.read(seen[0].shard, "another") is NO_FEATURES


def test_records_with_many_images_are_not_encoded_all_at_once(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = virtue(weights), []
    images = model.collator.collate_images(
        [torch.full((3, SIZE, SIZE), number, dtype=torch.uint8) for number in range(FROZEN_CHUNK_SIZE + 3)]
    )
    with torch.no_grad():
        expected = [model.image_features(one)[0] for one in images.split(1)]
        encode = model.image_features
        monkeypatch.setattr(model, "image_features", lambda group: (sizes.append(len(group)), encode(group))[1])
        found = model.predict_step(ShardImageBatch("", "", "", tuple(map(str, range(len(images)))), images, True), 0)
    assert sizes == [FROZEN_CHUNK_SIZE, 3] and isinstance(found, tuple)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close([*one.segmentation, *one.vision], [*other.segmentation, *other.vision])


def stream(folder: ShardFolder, collate: Callable[..., ImageBatch], reader: ReaderInfo, **options: Any) -> list[Any]:
    """This reader's batches of every shard of the folder."""
    settings: dict[str, Any] = {"batch_size": 2, "features": None, "fingerprints": {}, "max_pixels": 10_000, **options}
    images = ImageStream([(folder, shard) for shard in folder.manifest.shards], collate, reader=reader, **settings)
    return list(images.batches(reader, 0, SkipLog(reader.limits)))


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize(("world_size", "workers"), [(1, 1), (2, 1), (1, 2), (3, 2), (5, 1)])
def test_over_ranks_and_workers_every_image_comes_once(
    shards: Path, world_size: int, workers: int, batch_size: int
) -> None:
    folder = ShardFolder.open(shards / "SCAR_mini", "train")
    readers = [ReaderInfo(rank, world_size, worker, workers) for rank in range(world_size) for worker in range(workers)]
    batches = [batch for reader in readers for batch in stream(folder, no_pixels, reader, batch_size=batch_size)]
    expected = [content_key(path.read_bytes()) for path in (shards.parent / "scar/images/mini_train").iterdir()]
    assert sorted(key for batch in batches for key in batch.keys) == sorted(expected)
    assert sorted(batch.shard for batch in batches if batch.last) == [shard.name for shard in folder.manifest.shards]


def step(model: Any, data: SCaRDataModule) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradients of the first training batch."""
    model.zero_grad()
    model.train()
    model.log = model.log_dict = lambda *arguments, **options: None
    loss = model.training_step(next(iter(data.train_dataloader())), 0)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def forbid(model: torch.nn.Module) -> None:
    """No frozen network may be run any more."""

    def refuse(*arguments: Any) -> None:
        raise AssertionError("a frozen network saw an image")

    for name, part in model.named_modules():
        if name.endswith(("vision", "trunk")):
            part.register_forward_pre_hook(refuse)


@pytest.mark.parametrize("build", [virtue, head, segmenter])
def test_losses_and_gradients_are_those_of_live_features(
    weights: Path, shards: Path, build: Callable[[Path], Any]
) -> None:
    """Also where the features that were stored are of more streams than the part has."""
    store(shards, virtue(weights))
    model = build(weights)
    model._trainer = None
    live_loss, live = step(model, module(shards, model))
    forbid(model)
    stored_loss, stored = step(model, module(shards, model, features="features"))
    torch.testing.assert_close(stored_loss, live_loss, rtol=1e-6, atol=1e-6)
    assert live.keys() == stored.keys() and live
    for name, gradient in live.items():
        torch.testing.assert_close(stored[name], gradient, rtol=1e-4, atol=1e-6)


def test_rankings_are_those_of_live_features(weights: Path, shards: Path) -> None:
    store(shards, virtue(weights))
    model = virtue(weights).eval()
    live = next(iter(module(shards, model).val_dataloader()))
    stored = next(iter(module(shards, model, features="features").val_dataloader()))
    assert all(pixels is None for pixels in (*stored.queries.images.vision, *stored.queries.images.segmentation))
    assert stored.samples[0].query.images[0].shape[0] == 3, "a panel draws it"
    with torch.no_grad():
        torch.testing.assert_close(model.encode(stored.queries), model.encode(live.queries), rtol=1e-6, atol=1e-6)


def test_a_batch_may_mix_what_is_stored_with_what_is_not(weights: Path, shards: Path) -> None:
    store(shards, virtue(weights))
    model = virtue(weights).eval()
    stored = next(iter(module(shards, model, features="features").train_dataloader())).queries
    live = next(iter(module(shards, model).train_dataloader())).queries
    count = len(live.images)
    assert count > 1
    half = [number % 2 == 0 for number in range(count)]
    features = tuple(
        one if is_stored else NO_FEATURES for one, is_stored in zip(stored.images.stored_features, half, strict=True)
    )
    vision = tuple(None if is_stored else pixels for pixels, is_stored in zip(live.images.vision, half, strict=True))
    segmentation = tuple(
        None if is_stored else pixels for pixels, is_stored in zip(live.images.segmentation, half, strict=True)
    )
    mixed = type(live)(
        live.input_ids, live.attention_mask, ImageBatch(vision, segmentation, features), live.prompts, live.use_rows
    )
    with torch.no_grad():
        torch.testing.assert_close(model.encode(mixed), model.encode(live), rtol=1e-6, atol=1e-6)
        chunks = torch.cat([model.encode(chunk) for chunk in mixed.split(2)])
        torch.testing.assert_close(chunks, model.encode(live), rtol=1e-5, atol=1e-5)


def test_a_crop_is_encoded_and_the_rest_is_not(weights: Path, shards: Path) -> None:
    store(shards, head(weights))
    model = head(weights, formatter=CropFormatter(), evaluation_modes=["box", "no_prompt"]).eval()
    live = next(iter(module(shards, model).val_dataloader()))
    stored = next(iter(module(shards, model, features="features").val_dataloader()))
    has_features = [bool(features.vision) for features in stored.queries.images.stored_features]
    assert any(has_features) and not all(has_features)
    with torch.no_grad():
        torch.testing.assert_close(model.encode(stored.queries), model.encode(live.queries), rtol=1e-6, atol=1e-6)


def test_data_workers_read_what_is_stored(weights: Path, shards: Path) -> None:
    model = segmenter(weights)
    store(shards, model)
    stored = StoredFeatures(shards / "SCaR_eval_mini_val/features", ("segmentation",))
    folder = ShardFolder.open(shards / "SCaR_eval_mini_val", "val")
    read_alone = [
        stored.read(batch.shard, key) for batch in stream(folder, no_pixels, ReaderInfo()) for key in batch.keys
    ]
    read: list[ImageFeatures] = []
    for batch in module(shards, model, features="features", num_workers=2, eval_batch_size=3).val_dataloader():
        read += batch.images.stored_features
    assert (
        all(any(torch.equal(found.segmentation[0], one.segmentation[0]) for one in read_alone) for found in read)
        and len(read) >= 3
    )


def no_pixels(images: Any) -> ImageBatch:
    return ImageBatch()


def test_a_mirrored_image_is_encoded(weights: Path, shards: Path) -> None:
    store(shards, segmenter(weights))
    model = segmenter(weights, flip=True)
    live_loss, _ = step(model, module(shards, model))
    data = module(shards, model, features="features")
    has_features = [
        bool(features.segmentation) for batch in data.train_dataloader() for features in batch.images.stored_features
    ]
    assert any(has_features) and not all(has_features)
    torch.testing.assert_close(step(model, data)[0], live_loss, rtol=1e-6, atol=1e-6)


def test_features_of_another_network_are_refused(weights: Path, shards: Path) -> None:
    store(shards, virtue(weights))
    with pytest.raises(
        VirtueError,
        match=r"features: .*SCAR_mini/features holds stream segmentation of network \w{12}, the model's is \w{12}",
    ) as caught:
        module(shards, virtue(weights, "other"), features="features")
    assert "\n" not in str(caught.value) and "data.init_args.features" in str(caught.value)
    with pytest.raises(VirtueError, match=r"holds stream segmentation of network .*, expected .*: delete the folder"):
        store(shards, virtue(weights, "other"))
    with pytest.raises(VirtueError, match="holds dtype float32, expected float16: delete the folder"):
        store(shards, virtue(weights), "float16")


def test_features_of_no_stream_or_no_shards_are_refused(weights: Path, shards: Path) -> None:
    with pytest.raises(
        VirtueError, match=r"SCAR_mini/features holds none .*configs/overlays/features/store_features.yaml"
    ):
        module(shards, head(weights), features="features").train_dataloader()
    store(shards, segmenter(weights))
    with pytest.raises(VirtueError, match="holds stream segmentation, the model has vision"):
        module(shards, head(weights), features="features")
    index = json.loads((shards / "SCAR_mini/features/features.json").read_text())
    (shards / "SCAR_mini/features/features.json").write_text(json.dumps({**index, "tars": index["tars"][:1]}))
    with pytest.raises(VirtueError, match=r"lacks 2 of 3 shards, e.g. shard-000001.tar"):
        module(shards, segmenter(weights), features="features").train_dataloader()
    (shards / "SCAR_mini/features/features.json").write_text(json.dumps({**index, "shards": "x"}))
    with pytest.raises(VirtueError, match="is of other shards"):
        module(shards, segmenter(weights), features="features").train_dataloader()


def test_a_stopped_run_goes_on_with_what_is_missing(
    weights: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = segmenter(weights)
    encode, seen = model.encode_images, []

    def stop_after_three(pixels: Any) -> Any:
        seen.append(len(pixels))
        if sum(seen) > 3:
            raise KeyError("killed")
        return encode(pixels)

    monkeypatch.setattr(model, "encode_images", stop_after_three)
    with pytest.raises(KeyError, match="killed"):
        store(shards, model)
    features = shards / "SCAR_mini/features"
    first = features_path(features, "shard-000000.tar")
    assert [path.name for path in features.iterdir()] == [first.name]
    before = first.stat().st_mtime_ns

    monkeypatch.setattr(model, "encode_images", lambda pixels: seen.append(len(pixels)) or encode(pixels))
    seen.clear()
    store(shards, model)
    assert first.stat().st_mtime_ns == before
    assert sum(seen) == sum(IMAGES.values()) - 2
    assert {name: index_of(shards, name).images for name in IMAGES} == IMAGES
    seen.clear()
    store(shards, model)
    assert not seen


def test_only_the_shards_that_are_tested_need_features(weights: Path, shards: Path) -> None:
    model = segmenter(weights)
    store(shards, model, train=None, val=None, test_rows=2)
    assert index_of(shards, "SCaR_eval_mini_val").tars == ("shard-000000.tar",)
    assert (
        len(list(module(shards, model, train=None, val=None, test_rows=2, features="features").test_dataloader())) == 1
    )
    with pytest.raises(VirtueError, match="lacks 1 of 2 shards"):
        module(shards, model, train=None, val=None, features="features").test_dataloader()


def test_pairs_are_no_images(weights: Path, shards: Path) -> None:
    model = head(weights)
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[FeatureWriter()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.raises(VirtueError, match=r"found a PairBatch: set data.init_args.predict to images"):
        trainer.predict(model, datamodule=module(shards, model))


def test_half_precision_takes_half_the_space_and_stays_near(weights: Path, shards: Path) -> None:
    model = segmenter(weights)
    store(shards, model, "float16")
    live, _ = step(model, module(shards, model))
    stored, _ = step(model, module(shards, model, features="features"))
    torch.testing.assert_close(stored, live, rtol=1e-2, atol=1e-2)
    features = ImageFeatures(segmentation=(torch.full((1, 2, 2), 1e5),))
    with pytest.raises(VirtueError, match="too large for dtype float16"):
        to_named_tensors(features, "float16")
    assert to_named_tensors(features, "bfloat16")["segmentation/0"].dtype == torch.bfloat16
    with pytest.raises(VirtueError, match=r"FeatureWriter.dtype is 'int8', expected one of float32"):
        FeatureWriter(dtype="int8")


def test_a_reader_keeps_few_files_open_and_copies_what_it_gives(tmp_path: Path) -> None:
    provenance = FeatureProvenance("float32", {"vision": "a"}, "b")
    for number in range(70):
        features = ImageFeatures(vision=(torch.full((2,), float(number)),))
        write_features(
            features_path(tmp_path, f"shard-{number}.tar"),
            {"key": to_named_tensors(features, "float32")},
            provenance,
            0.5,
        )
    reader = StoredFeatures(tmp_path, ("segmentation", "vision"))
    for number in [*range(70), 0]:
        (found,) = reader.read(f"shard-{number}.tar", "key").vision
        assert found.tolist() == [number, number] and found.untyped_storage().nbytes() == 8
    assert len(reader._open) == 64 and not reader.__getstate__()["_open"]
    index = FeatureIndex.from_files(tmp_path, provenance)
    assert index.images == len(index.tars) == 70 and math.isclose(index.seconds, 35.0)


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "shard-0.safetensors").write_bytes(b"nothing")
    with pytest.raises(VirtueError, match=r"shard-0.safetensors is no file of stored features .*: delete it") as caught:
        FeatureIndex.from_files(tmp_path, FeatureProvenance("float32", {}, "b"))
    assert "\n" not in str(caught.value)


def test_a_file_of_features_is_not_believed_by_its_name(tmp_path: Path) -> None:
    provenance = FeatureProvenance("float32", {"vision": "a"}, "b")
    image = {"key": to_named_tensors(ImageFeatures(vision=(torch.ones(2),)), "float32")}
    first, second = (features_path(tmp_path, f"shard-{number}.tar") for number in range(2))
    for path in (first, second):
        write_features(path, image, provenance, 0.5)
    whole = first.read_bytes()
    assert StoredFeatures(tmp_path, ("vision",), provenance).read("shard-0.tar", "key").vision
    others = {
        "cut": whole[:-4],
        "of another shard": second.read_bytes(),
        "of another network": (FeatureProvenance("float32", {"vision": "c"}, "b"),),
        "of other shards": (FeatureProvenance("float32", {"vision": "a"}, "c"),),
        "gone": None,
    }
    for what, content in others.items():
        if isinstance(content, bytes):
            first.write_bytes(content)
        elif content is None:
            first.unlink()
        else:
            write_features(first, image, content[0], 0.5)
        with pytest.raises(VirtueError, match=r"features: .*shard-0.safetensors") as caught:
            StoredFeatures(tmp_path, ("vision",), provenance).read("shard-0.tar", "key")
        assert "\n" not in str(caught.value), what


def test_a_fingerprint_changes_with_tensors_and_sizes(weights: Path) -> None:
    first, other = trunk(weights), trunk(weights, "other")
    assert first.fingerprint() == trunk(weights).fingerprint() != other.fingerprint()
    assert fingerprint_of(first.trunk, 64) != fingerprint_of(first.trunk, 96)
    before = first.fingerprint()
    torch.nn.init.zeros_(first.mask_token.weight)
    assert first.fingerprint() == before, "what is trained on top of the features does not change them"


def test_features_move_and_are_selected_with_their_images() -> None:
    features = ImageFeatures(segmentation=(torch.zeros(1, 2, 2),), vision=(torch.ones(3),))
    images = ImageBatch((None, torch.zeros(3, 4, 4)), (None, torch.zeros(3, 8, 8)), (features, NO_FEATURES))
    assert len(images) == 2 and images.select([1, 0]).stored_features == (NO_FEATURES, features)
    moved = images.to("meta")
    assert moved.features[0].vision[0].device.type == moved.vision[1].device.type == "meta" and moved.vision[0] is None  # type: ignore[union-attr]
    assert ImageBatch((torch.zeros(3, 4, 4),)).stored_features == (NO_FEATURES,)
