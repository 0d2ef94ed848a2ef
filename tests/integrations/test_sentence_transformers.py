"""An exported folder is a SentenceTransformer: its embeddings, prompts, dimensions and files."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.util.quantization import quantize_embeddings

from fixtures.running_server import BOX, PIXELS, POINTS, URI, messages
from virtue_pl.embedder import Embedder
from virtue_pl.integrations import SentenceTransformerModule, load_sentence_transformer
from virtue_pl.types import VirtueError
from virtue_pl.types.requests import EmbeddingRequest

INPUTS = [
    "a cat",
    {"text": "who?", "image": PIXELS, "regions": [BOX]},
    PIXELS,
    "a text that is longer than all the others",
    EmbeddingRequest(image=PIXELS, regions=[POINTS]),
    {"text": "who?", "image": Image.fromarray(PIXELS)},
]


@pytest.fixture(scope="module")
def model(exported):
    """Loaded as anybody loads it."""
    return SentenceTransformer(str(exported), trust_remote_code=True, device="cpu")


@pytest.fixture(scope="module")
def expected(embedder):
    return embedder.encode(INPUTS)


def close(found, expected):
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), atol=1e-5)


def test_a_folder_gives_the_embeddings_of_python(model, embedder, expected):
    found = model.encode(INPUTS, batch_size=2)
    close(found, expected)
    assert found.dtype == np.float32 and model.get_embedding_dimension() == embedder.embed_dim
    close(model.encode(INPUTS[1]), expected[1])
    close(model.encode(torch.from_numpy(PIXELS).permute(2, 0, 1)), expected[2])
    close(model.encode([messages("who?", regions=[BOX])]), expected[1:2])
    assert model.encode(INPUTS, convert_to_tensor=True).shape == expected.shape


def test_strings_are_what_sentence_transformers_has_them_be(model, expected, tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "street.png")
    for image in (str(tmp_path / "street.png"), URI, {"image": URI}, {"image": str(tmp_path / "street.png")}):
        close(model.encode(image), expected[2])
    with pytest.raises(VirtueError, match=r"the URL 'https://a.b/c.png', which is not read"):
        model.encode("https://a.b/c.png")


def test_prompts(exported, embedder):
    prompts = {"query": "Find. ", "caption": "Find the caption: "}
    model = SentenceTransformer(str(exported), trust_remote_code=True, device="cpu", prompts=prompts)
    texts, image = ["a cat", "a dog on a mat"], {"image": PIXELS, "regions": [BOX]}
    close(model.encode_query(texts), embedder.encode(texts, instruction="Find."))
    close(model.encode_query(image), embedder.encode([{**image, "text": "Find."}])[0])
    close(model.encode_document(texts), embedder.encode(texts))
    close(model.encode(texts, prompt_name="caption"), embedder.encode([f"Find the caption: {one}" for one in texts]))
    close(model.encode(texts, prompt="Find: "), embedder.encode([f"Find: {one}" for one in texts]))
    with pytest.raises(ValueError, match="Prompt name 'captoin' not found"):
        model.encode(texts, prompt_name="captoin")


def test_dimensions_similarities_and_bits(model, embedder, expected):
    found = model.encode(INPUTS, truncate_dim=8, normalize_embeddings=True)
    close(found, embedder.encode(INPUTS, truncate_dim=8))
    close(model.similarity(expected, expected), expected @ expected.T)
    assert (model.encode(INPUTS, precision="ubinary") == quantize_embeddings(expected, "ubinary")).all()
    assert (embedder.encode(INPUTS, precision="ubinary") == quantize_embeddings(expected, "ubinary")).all()
    with model.truncate_embeddings(8):
        assert model.get_embedding_dimension() == 8


def test_what_is_saved_is_loaded_again(exported, expected, tmp_path):
    prompts = {"query": "Find. "}
    model = SentenceTransformer(str(exported), trust_remote_code=True, device="cpu", prompts=prompts, truncate_dim=16)
    for _ in range(2):  # into a folder that is there, too
        model.save(str(tmp_path / "saved"))
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {path.name for path in exported.iterdir()}
    again = SentenceTransformer(str(tmp_path / "saved"), trust_remote_code=True, device="cpu")
    assert again.prompts == {"query": "Find. ", "document": ""} and again.truncate_dim == 16
    close(again.encode(INPUTS), expected[:, :16])
    read, written = (load_file(folder / "model.safetensors") for folder in (exported, tmp_path / "saved"))
    assert all(torch.equal(written[name], tensor) for name, tensor in read.items()) and written.keys() == read.keys()
    close(Embedder.from_pretrained(tmp_path / "saved", device="cpu").encode(INPUTS), expected)


def test_weights_that_were_changed_are_saved(exported, tmp_path):
    model = SentenceTransformer(str(exported), trust_remote_code=True, device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    changed = model.encode(INPUTS)
    model.save(str(tmp_path / "saved"))
    close(SentenceTransformer(str(tmp_path / "saved"), trust_remote_code=True, device="cpu").encode(INPUTS), changed)


def test_a_checkpoint_and_an_embedder_need_no_trust(exported, embedder, expected, tmp_path):
    model = load_sentence_transformer(exported.parent / "run" / "checkpoints" / "last.ckpt", device="cpu")
    close(model.encode(INPUTS), expected)
    model.save(str(tmp_path / "saved"))
    saved = json.loads((tmp_path / "saved" / "config_sentence_transformers.json").read_text())
    (tmp_path / "saved" / "config_sentence_transformers.json").write_text(json.dumps(saved | {"truncate_dim": 4}))
    assert load_sentence_transformer(tmp_path / "saved", device="cpu").encode("a cat").shape == (4,)
    own = Embedder(embedder.model, "cpu", instructions={"query": "find"})
    close(load_sentence_transformer(own).encode_query("a cat"), own.encode_query("a cat")[0])
    with pytest.raises(VirtueError, match="was made of an Embedder, expected one loaded from a folder"):
        load_sentence_transformer(own).save(str(tmp_path / "none"))


def test_sentence_transformers_asks_before_it_loads_a_class_that_is_not_its_own(exported):
    with pytest.raises(
        ValueError, match=r"virtue_pl.integrations.SentenceTransformerModule.*\n.*trust_remote_code=True"
    ):
        SentenceTransformer(str(exported))


def test_dtype_and_options_reach_the_embedder(exported, expected):
    options = {"dtype": torch.bfloat16, "max_pixels": 100}
    model = SentenceTransformer(str(exported), trust_remote_code=True, device="cpu", model_kwargs=options)
    assert model[0].embedder.dtype == torch.bfloat16
    assert np.abs(model.encode(INPUTS) - expected).max() < 0.1
    with pytest.raises(VirtueError, match="max_pixels"):
        model.encode(URI)
    model.half()
    with pytest.raises(VirtueError, match=r"the model was cast to torch\.float16 since it was loaded"):
        model.encode("a cat")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_kwargs": {"max_pixel": 3}}, "options: 'max_pixel' is none of this model; did you mean 'max_pixels'"),
        ({"model_kwargs": {"dtype": "float8"}}, "dtype is 'float8', expected one of float32"),
        ({"processor_kwargs": {"a": 1}}, "processor_kwargs is {'a': 1}, expected none"),
        ({"config_kwargs": {"a": 1}}, "config_kwargs is {'a': 1}, expected none"),
        ({"backend": "onnx"}, "backend is 'onnx', expected 'torch'"),
    ],
)
def test_wrong_options_are_one_line(exported, options, message):
    with pytest.raises(VirtueError, match=message):
        SentenceTransformer(str(exported), trust_remote_code=True, device="cpu", **options)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "1: found 1, expected text: token ids"),
        ({"image": PIXELS, "regons": []}, "'regons' is no key of a request here; did you mean 'regions'"),
        ({"image": PIXELS, "regions": [BOX, BOX], "regions_as": "each"}, "regions_as is 'each', which makes 2"),
        ({"image": "nowhere.png"}, "nowhere.png"),
        ("", "'': a request is empty"),
        (("a", "b"), "'a'|'b'"),
    ],
)
def test_what_is_no_input_is_one_line(model, value, message):
    if value == ("a", "b"):
        value = [value]
    with pytest.raises(VirtueError, match=message) as caught:
        model.encode(value)
    assert "\n" not in str(caught.value)


def test_other_modalities_and_arguments_are_refused(model):
    with pytest.raises(ValueError, match="audio"):
        model.encode(np.zeros(16))
    with pytest.raises(VirtueError, match=r"processing_kwargs is .*expected none"):
        model.encode("a cat", processing_kwargs={"text": {"max_length": 3}})
    with pytest.raises(ValueError, match="additional keyword arguments"):
        model.encode("a cat", regions=[BOX])
    with pytest.raises(VirtueError, match="safe_serialization is False"):
        model[0].save("nowhere", safe_serialization=False)


def test_it_is_not_trained_here(model):
    model.train()
    with pytest.raises(VirtueError, match=r"is trained by `virtue-pl fit"):
        model(model.preprocess(["a cat"]))
    model.eval()


def test_a_folder_of_another_model_is_one_line(exported, tmp_path):
    os.link(exported / "modules.json", tmp_path / "modules.json")
    with pytest.raises(VirtueError, match=r"holds modules.json, expected virtue.yaml"):
        SentenceTransformer(str(tmp_path), trust_remote_code=True)
    with pytest.raises(VirtueError, match=r"holds modules.json, expected virtue.yaml"):
        load_sentence_transformer(tmp_path)
    (tmp_path / "config_sentence_transformers.json").write_text("[]")
    with pytest.raises(VirtueError, match="nowhere is not there, expected a folder"):
        SentenceTransformerModule.load(str(tmp_path), "nowhere")
