from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from fixtures.tiny_models import VISION_MODEL, save_text_model
from virtue_pl.backbones import class_names
from virtue_pl.backbones.class_names import STORED_NAMES, ClassNames, class_descriptions, described_classes
from virtue_pl.models.connector import CLASS_NAME_WEIGHT, MaskConnector
from virtue_pl.types import FeatureWidths, SegmentFeatures, VirtueError


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_text_model(tmp_path_factory.mktemp("text_model")))


@pytest.fixture(scope="module")
def names(text_model: str) -> ClassNames:
    torch.manual_seed(0)
    return ClassNames(VISION_MODEL, text_model)


def test_the_classes_are_described_as_in_wordnet() -> None:
    found = class_descriptions(VISION_MODEL)
    assert len(found) == 1000 and found[17] == "a jay, crested largely blue bird" and len(set(found)) == 1000


def test_a_sure_classifier_says_the_name_of_its_class(names: ClassNames) -> None:
    with torch.no_grad():
        names.classify.weight.zero_()
        names.classify.bias.zero_().index_fill_(0, torch.tensor([7]), 50.0)
    assert torch.allclose(names(torch.randn(2, names.width)), names.names[7].expand(2, -1), atol=1e-5)
    assert torch.allclose(names.names.norm(dim=1), torch.ones(1000), atol=1e-5)


def test_a_temperature_lets_the_second_guess_be_heard(text_model: str) -> None:
    torch.manual_seed(0)
    names = ClassNames(VISION_MODEL, text_model, temperature=2.0)
    with torch.no_grad():
        names.classify.weight.zero_()
        names.classify.bias.fill_(-100.0)[:2] = torch.tensor([1.0, 0.0])
    share = torch.tensor(0.5).sigmoid()
    assert torch.allclose(
        names(torch.randn(1, names.width))[0], share * names.names[0] + (1 - share) * names.names[1], atol=1e-5
    )


def test_it_stays_frozen_and_in_eval_mode(names: ClassNames) -> None:
    names.train()
    assert not names.training and not any(parameter.requires_grad for parameter in names.parameters())


@pytest.mark.parametrize("trunk", [VISION_MODEL, "test_resnet"])
def test_it_reads_the_whole_networks_classifier(trunk: str, text_model: str, tmp_path: Path) -> None:
    network = timm.create_model(trunk).eval()
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    names = ClassNames(trunk, text_model, tmp_path / "weights.safetensors")
    pooled = torch.randn(2, names.width)
    head = names.expand(pooled[:, :, None, None])
    expected = (
        network.forward_head(head if trunk == VISION_MODEL else pooled[:, :, None, None]).softmax(dim=-1) @ names.names
    )
    assert torch.allclose(names(pooled), expected, atol=1e-5)


def test_another_trunk_is_refused_in_one_line(text_model: str, tmp_path: Path) -> None:
    with pytest.raises(
        VirtueError, match="expected an EfficientNet or ResNet of timm; or set the connector's class_names to null"
    ):
        ClassNames("test_vit", text_model)
    save_file({"conv_head.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(VirtueError, match=r"other.safetensors is not of EfficientNet with its classifier"):
        ClassNames(VISION_MODEL, text_model, tmp_path / "other.safetensors")


def test_the_name_joins_what_a_connector_learned_but_not_in_training(names: ClassNames) -> None:
    widths = FeatureWidths(8, names.width + 4)
    connector = MaskConnector(widths, names.hidden_size, summary=True, class_names=names, summary_limit=1e6)
    assert connector.summary is not None
    torch.nn.init.normal_(connector.summary.outside[-1].weight)
    torch.manual_seed(0)
    features = SegmentFeatures(
        torch.randn(2, 8, 4, 4), torch.randn(2, widths.image, 4, 4), torch.randn(2, 8, 8), torch.randn(8, 4, 4)
    )
    learned, joined = connector.train()(features).summary, connector.eval()(features).summary
    assert learned is not None and joined is not None
    expected = learned + CLASS_NAME_WEIGHT * learned.norm(dim=1, keepdim=True) * names.names[7]
    assert torch.allclose(joined, expected, rtol=1e-3, atol=1e-4)


def test_names_of_other_widths_are_refused_in_one_line(names: ClassNames) -> None:
    with pytest.raises(VirtueError, match="name the segmentation backbone's trunk"):
        MaskConnector(FeatureWidths(8, 3), names.hidden_size, summary=True, class_names=names)


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_that_is_not_positive_is_refused(text_model: str, temperature: float) -> None:
    with pytest.raises(VirtueError, match=rf"class_names\.temperature is {temperature}, expected more than 0"):
        ClassNames(VISION_MODEL, text_model, temperature=temperature)


def stored_in(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{STORED_NAMES}*"))


@pytest.fixture
def few_classes(monkeypatch: pytest.MonkeyPatch) -> int:
    """Five classes in the stead of a thousand, which take seconds."""
    monkeypatch.setattr(class_names, "class_descriptions", lambda trunk: [f"a thing, number {n}" for n in range(5)])
    return 5


@pytest.fixture
def never_embedded(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function from whose call on nothing is embedded any more."""
    return lambda: monkeypatch.setattr(class_names, "embed_descriptions", lambda *_: pytest.fail("embedded again"))


def test_classes_are_embedded_once_and_kept_beside_the_weights(
    tmp_path: Path, few_classes: int, never_embedded: Callable[[], None]
) -> None:
    model = save_text_model(tmp_path / "text")
    first = described_classes(VISION_MODEL, str(model))
    assert len(stored_in(tmp_path)) == 1 and stored_in(tmp_path)[0].suffix == ".safetensors"
    never_embedded()
    assert torch.equal(described_classes(VISION_MODEL, str(model)), first)
    moved = shutil.copytree(tmp_path, tmp_path / "moved")
    assert torch.equal(described_classes(VISION_MODEL, str(moved / "text")), first)


def test_another_model_a_damaged_file_and_another_length_are_embedded_anew(tmp_path: Path, few_classes: int) -> None:
    model = save_text_model(tmp_path / "text")
    first = described_classes(VISION_MODEL, str(model))
    (path,) = stored_in(tmp_path)
    for content in (b"", path.read_bytes()[:-40], b"{}" * 50):
        path.write_bytes(content)
        assert torch.equal(described_classes(VISION_MODEL, str(model)), first)
    save_file({"embeddings": first[:3]}, path)
    assert torch.equal(described_classes(VISION_MODEL, str(model)), first) and stored_in(tmp_path) == [path]
    other = described_classes(VISION_MODEL, str(save_text_model(tmp_path / "text", seed=1)))
    assert not torch.equal(other, first) and len(stored_in(tmp_path)) == 2


def test_several_that_start_at_once_leave_one_sound_file(tmp_path: Path, few_classes: int) -> None:
    model = str(save_text_model(tmp_path / "text"))
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: described_classes(VISION_MODEL, model), range(3)))
    (path,) = stored_in(tmp_path)
    assert all(torch.equal(each, load_file(path)["embeddings"]) for each in found)


def test_a_folder_that_cannot_be_written_to_keeps_none(
    tmp_path: Path, few_classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    model = save_text_model(tmp_path / "text")
    assert described_classes(VISION_MODEL, str(model)).shape == (few_classes, 32)
    assert stored_in(tmp_path) == []
