"""Keys of embeddings and of frozen features: every argument, file, version and precision that changes a number changes
them, and nothing else does.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

from fixtures.changed_arguments import Spec, arguments_of, candidates, changed_leaves, with_argument
from fixtures.recorded import GOLDEN
from fixtures.tiny_release import SIZES, quickstart_spec, run_checkpoint
from fixtures.tiny_vlms import TINY
from virtue_pl.backbones import class_names
from virtue_pl.checkpoints.export import export
from virtue_pl.checkpoints.pretrained import from_pretrained
from virtue_pl.checkpoints.published import part, published_spec
from virtue_pl.checkpoints.release import OWN_CLASSES, instantiate
from virtue_pl.features.fingerprints import Description, fingerprint_of
from virtue_pl.types import EmbeddingInput, VisualPrompt

ROOT = Path(__file__).parents[2]
Levels = dict[str, list[torch.Tensor]]


@pytest.fixture(autouse=True, scope="module")
def few_class_names() -> Iterator[None]:
    """Random embeddings of the thousand classes, which take seconds to compute."""

    def embed(descriptions: list[str], encoder: Any, tokenizer: Any, batch_size: int = 250) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return nn.functional.normalize(torch.randn(len(descriptions), 32, generator=generator), dim=-1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(class_names, "embed_descriptions", embed)
        yield


def make_image(number: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def items() -> list[EmbeddingInput]:
    """A long text with a box, a click on a tall image, an image without a prompt, and a text."""
    first, tall = make_image(1, 90, 130), make_image(2, 300, 200)
    box = VisualPrompt(boxes=torch.tensor([[0.1, 0.2, 0.6, 0.7]]))
    click = VisualPrompt(points=torch.tensor([[0.4, 0.4]]), point_labels=torch.tensor([1]))
    return [
        EmbeddingInput("a dog " * 40, (first,), box, ("first",)),
        EmbeddingInput("which", (tall,), click, ("tall",)),
        EmbeddingInput("none", (first,), VisualPrompt(), ("first",)),
        EmbeddingInput("thing " * 3),
    ]


def build(spec: Spec, folder: Path) -> Any:
    torch.manual_seed(0)
    return instantiate(spec, folder, (OWN_CLASSES,)).eval()


@torch.no_grad()
def embed(model: Any) -> torch.Tensor:
    batch = model.collator.encoder_batch(items())
    return torch.cat([model.encode(row) for row in batch.split(1)])


@torch.no_grad()
def frozen(model: Any) -> Levels:
    found = model.image_features(model.collator.collate_images([item.images[0] for item in items()[:2]]))
    streams = ("vision", "segmentation")
    return {stream: [level for image in found for level in getattr(image, stream)] for stream in streams}


def key(model: Any) -> str:
    return fingerprint_of(model, model.formatter)


def are_same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return len(first) == len(second) and all(
        one.shape == other.shape and torch.equal(one, other) for one, other in zip(first, second, strict=True)
    )


def quickstart(folder: Path) -> tuple[Spec, Path]:
    folder.mkdir(exist_ok=True)
    return quickstart_spec(folder), folder


def release(folder: Path) -> tuple[Spec, Path]:
    return published_spec(GOLDEN / "qwen2_vl", {"virtue_sam": {}}, SIZES, stride=4), GOLDEN / "qwen2_vl"


def with_sam1(folder: Path) -> tuple[Spec, Path]:
    spec, origin = release(folder)
    parts, sizes = deepcopy(spec["init_args"]), {"embed_dim": 64, "image_size": 128}
    parts["prompt_encoder"]["init_args"]["encoder"] = part("virtue_pl.backbones.Sam1PromptEncoder", **sizes)
    small = {"width": 16, "depth": 2, "num_heads": 2, "global_attention": [1], "window": 4}
    parts["segmentation"]["init_args"]["backbone"] = part("virtue_pl.backbones.Sam1Backbone", **sizes, **small)
    return {**spec, "init_args": parts}, origin


def with_roi(folder: Path) -> tuple[Spec, Path]:
    spec, origin = quickstart(folder)
    return with_argument(spec, (), "connector", part("virtue_pl.models.RoiConnector", summary=True)), origin


def head(path: str, folder: Path) -> tuple[Spec, Path]:
    backbone = part(path, vlm_model="./")
    pooling = part("virtue_pl.backbones.LastTokenPooling")
    return part("virtue_pl.models.VLMFusionHead", backbone=backbone, pooling=pooling), TINY[path](folder)


MODELS: dict[str, Callable[[Path], tuple[Spec, Path]]] = {
    "quickstart": quickstart,
    "release": release,
    "sam1": with_sam1,
    "roi": with_roi,
    **{path.rpartition(".")[2]: partial(head, path) for path in TINY},
}
"""A spec of each model, and the folder that its paths are relative to."""
CHANGED = {
    "release": (("prompt_encoder",), ("segmentation",), ("connector",), ("fusion", "backbone")),
    "sam1": (("prompt_encoder",), ("segmentation",)),
    "roi": (("connector",),),
    **{path.rpartition(".")[2]: (("backbone",),) for path in TINY},
}
"""Where the other arguments are those of the quickstart's model, the parts whose arguments are changed."""


def built_changes(name: str, spec: Spec, folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield "path.argument: value" and the model with the first other value that builds, for every argument."""
    for path, argument, hint, value in arguments_of(spec):
        if not any(path[: len(part)] == part for part in CHANGED.get(name, ((),))):
            continue
        for other in candidates(argument, hint, value):
            try:
                model = build(with_argument(spec, path, argument, other), folder)
                assert model.collator
            except Exception:  # sizes that do not fit each other; another value may
                continue
            yield f"{'.'.join((*path, argument))}: {value!r} -> {other!r}", model
            break


@pytest.mark.parametrize(
    "name", [name if name == "quickstart" else pytest.param(name, marks=pytest.mark.matrix) for name in MODELS]
)
def test_another_argument_is_another_key_or_gives_equal_numbers(name: str, tmp_path: Path) -> None:
    spec, folder = MODELS[name](tmp_path / "model")
    model = build(spec, folder)
    before, numbers, levels, streams = key(model), embed(model), frozen(model), model.collator.fingerprints
    assert key(model) == before, "a model is the same after it was used"
    assert key(build(spec, folder)) == before, "a model is the same when it is built again"
    stale, count = [], 0
    for change, other in built_changes(name, spec, folder):
        found, others = {}, other.collator.fingerprints
        same = [stream for stream in streams if others.get(stream) == streams[stream]]
        try:
            same_numbers = key(other) != before or are_same([numbers], [embed(other)])
            found = frozen(other) if same else {}
        except Exception:  # sizes that do not fit each other give no number
            same_numbers, same = key(other) != before, []
        count += 1
        stale += [] if same_numbers else [change]
        stale += [f"{stream} features, {change}" for stream in same if not are_same(levels[stream], found[stream])]
    assert not stale and count > 3, f"{len(stale)} of {count} changes keep their key"


TEXT_ONLY = {
    "max_tokens": ("fusion", "backbone"),
    "frozen_layers": ("fusion", "backbone"),
    "pooling": ("fusion",),
    "grid_size": ("connector",),
    "prompt_text": ("formatter",),
    "segment_unprompted": (),
}
"""Arguments that no frozen feature depends on, by the part."""


def test_stored_features_serve_every_model_on_the_same_frozen_networks(tmp_path: Path) -> None:
    spec, folder = quickstart(tmp_path / "model")
    streams = build(spec, folder).collator.fingerprints
    for path, argument, hint, value in arguments_of(spec):
        if TEXT_ONLY.get(argument) == path:
            other = next(iter(candidates(argument, hint, value)))
            assert build(with_argument(spec, path, argument, other), folder).collator.fingerprints == streams, argument


@pytest.fixture(scope="module")
def exported(few_class_names: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders that the quickstart's model and a Qwen2-VL with SAM 2 were exported to from a run."""
    found = {}
    for name in ("quickstart", "release"):
        folder = tmp_path_factory.mktemp(name)
        spec, origin = MODELS[name](folder / "parts")
        if name == "release":
            spec = with_argument(spec, ("fusion", "backbone"), "vlm_model", str(origin))
        export(run_checkpoint(folder / "run", spec), folder / "exported")
        found[name] = folder / "exported"
    return found


def key_of(folder: Path) -> str:
    return key(from_pretrained(folder))


def texts_of(folder: Path) -> list[Path]:
    """Return the files that the model is loaded from: not those that sentence-transformers alone reads."""
    others = ("modules.json", "config_sentence_transformers.json")
    found = (path for path in folder.rglob("*") if path.suffix in (".json", ".yaml"))
    return sorted(path for path in found if path.name not in others)


@pytest.mark.parametrize("name", ["quickstart", "release"])
def test_every_file_of_an_exported_folder_is_in_the_key(name: str, exported: dict[str, Path], tmp_path: Path) -> None:
    """At least one value in each, and never one that changes a number and keeps the key."""
    shutil.copytree(exported[name], tmp_path / "copy")
    model = from_pretrained(exported[name])
    first, numbers = key(model), embed(model)
    assert key_of(tmp_path / "copy") == first, "a folder is no part of a key"
    stale, silent = [], []
    for path in texts_of(tmp_path / "copy"):
        text = path.read_text()
        keys = set()
        content = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
        for leaf, changed in sample(list(changed_leaves(content))):
            path.write_text(json.dumps(changed))  # which YAML reads, too
            try:
                other = from_pretrained(tmp_path / "copy")
            except Exception:  # a value that no model has
                continue
            keys.add(key(other))
            if key(other) == first and not are_same([numbers], [embed(other)]):
                stale.append((path.name, leaf))
        path.write_text(text)
        if not keys - {first}:
            silent.append(path.name)
    assert not stale and not silent


def sample(changes: list[Any], count: int = 4) -> list[Any]:
    """A few of the changes, from the first to the last, and none of another class."""
    chosen = [(leaf, changed) for leaf, changed in changes if leaf[-1] != "class_path"]
    return chosen[:: max(1, len(chosen) // count)]


def test_every_tensor_of_an_exported_folder_is_in_the_key(exported: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(exported["quickstart"], tmp_path / "copy")
    path, first = tmp_path / "copy" / "model.safetensors", key_of(exported["quickstart"])
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    for name in [each for each in tensors if not each.startswith("loss.")][::40]:
        tensors[name].view(-1)[0] += 1
        save_file(tensors, path)
        assert key_of(tmp_path / "copy") != first, name
        tensors[name].view(-1)[0] -= 1


PRINT_KEYS = """
import sys
from virtue_pl.checkpoints.pretrained import from_pretrained
from virtue_pl.features.fingerprints import fingerprint_of
model = from_pretrained(sys.argv[1])
print(fingerprint_of(model, model.formatter), *model.collator.fingerprints.values())
"""


def test_process_folder_and_hash_seed_are_no_part_of_a_key(exported: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported["release"], tmp_path / "elsewhere" / "model"))
    content = yaml.safe_load((folder / "virtue.yaml").read_text())
    (folder / "virtue.yaml").write_text(yaml.safe_dump(reverse_keys(content), sort_keys=False))
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", PRINT_KEYS, str(folder)]
    run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    model = from_pretrained(exported["release"])
    assert run.stdout.split() == [key(model), *model.collator.fingerprints.values()]


def reverse_keys(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: reverse_keys(value) for name, value in reversed(content.items())}
    return [reverse_keys(value) for value in content] if isinstance(content, list) else content


def test_one_model_has_one_key_however_it_was_built(exported: dict[str, Path]) -> None:
    """By constructors, from a run's checkpoint, and from its export: keyed by what it is."""
    for name, folder in exported.items():
        run = folder.parent / "run" / "checkpoints" / "last.ckpt"
        trained, spec = from_pretrained(run), yaml.safe_load((run.parents[1] / "config.yaml").read_text())["model"]
        built = build(spec, folder.parent)
        built.load_state_dict(trained.state_dict())
        assert key(built) == key(trained) == key_of(folder), name
        assert built.collator.fingerprints == trained.collator.fingerprints, name


def test_dtype_and_versions_are_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    from virtue_pl.types import fingerprints

    network = nn.Linear(2, 3)
    keys = {fingerprint_of(network), fingerprint_of(deepcopy(network).to(torch.bfloat16))}
    for library in fingerprints.LIBRARIES:
        with monkeypatch.context() as patch:
            patch.setattr(
                fingerprints, "library_version", lambda name, changed=library: "0.1" if name == changed else "9"
            )
            keys.add(fingerprint_of(network))
    assert len(keys) == 2 + len(fingerprints.LIBRARIES)
    assert fingerprint_of(deepcopy(network)) in keys


class Doubled(nn.Module):
    """A part of a user's own, whose settings are of many types."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.__dict__.update(settings)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1.5, 1.25),
        ((1, 2), (2, 1)),
        ({"a": 1}, {"a": 2}),
        ({1, 2}, {1, 3}),
        (torch.zeros(2), torch.zeros(3)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (nn.functional.gelu, nn.functional.relu),
        (partial(nn.functional.gelu, approximate="tanh"), nn.functional.gelu),
        (lambda x: x + 1, lambda x: x * 2),
        (nn.GELU, nn.ReLU),
        ("one", "other"),
        (b"one", b"other"),
        (torch.float32, torch.bfloat16),
        (None, 0),
    ],
)
def test_settings_of_any_type_are_told_apart(one: Any, other: Any) -> None:
    assert fingerprint_of(Doubled(value=one)) != fingerprint_of(Doubled(value=other))
    assert fingerprint_of(Doubled(value=one)) == fingerprint_of(Doubled(value=deepcopy(one)))


def test_order_of_keys_device_mode_and_whole_floats_are_no_part_of_a_key() -> None:
    describe = Description()
    assert describe({"a": 1, "b": [2.0]}) == Description()({"b": (2,), "a": 1.0})
    assert describe(torch.device("cpu")) == describe(torch.device("cuda", 1))
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    first = fingerprint_of(network)
    network.eval().requires_grad_(False)
    network.register_forward_hook(lambda *arguments: None)
    assert fingerprint_of(network) == first


def test_a_class_of_ones_own_is_known_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code is in no version, so that another content of the file is another key."""
    monkeypatch.syspath_prepend(tmp_path)
    keys = set()
    for name, factor in (("own_part_a", 2), ("own_part_b", 3)):
        source = (
            f"from torch import nn\n\nclass Scale(nn.Module):\n    def forward(self, x):\n        return x * {factor}\n"
        )
        (tmp_path / f"{name}.py").write_text(source)
        module = __import__(name)
        module.Scale.__module__ = "own_part"
        monkeypatch.setitem(sys.modules, "own_part", module)
        keys.add(fingerprint_of(module.Scale()))
    assert len(keys) == 2


def test_a_module_that_holds_itself_has_a_key() -> None:
    parts = [Doubled(scale=scale) for scale in (1, 1, 2)]
    for each in parts:
        each.__dict__["owner"] = [each]
    first, same, other = map(fingerprint_of, parts)
    assert first == same != other
