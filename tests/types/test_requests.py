"""The schema of a request: what clients send is read, and what is wrong is one line with its key."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virtue_pl.types import VirtueError
from virtue_pl.types.requests import EmbeddingRequest, Message, RegionPrompt, read_request

URL = "data:image/png;base64,iVBORw0KGgo="


def image_part(**keys: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": URL}, **keys}


def test_a_conversation_is_the_flat_request_that_says_the_same():
    content = [
        image_part(uuid="street", units="normalized", regions=[{"box": [0, 0, 0.5, 1]}]),
        {"type": "text", "text": "who?"},
    ]
    messages = [{"role": "system", "content": "Find the caption."}, {"role": "user", "content": content}]
    found = EmbeddingRequest.from_messages([read_request(Message, message) for message in messages], "each")
    flat = {
        "instruction": "Find the caption.",
        "text": "who?",
        "image": [URL],
        "uuid": "street",
        "units": "normalized",
        "regions": [{"box": [0, 0, 0.5, 1]}],
        "regions_as": "each",
    }
    assert found == read_request(EmbeddingRequest, flat)
    assert (found.full_text, found.embeddings) == ("Find the caption. who?", 1)


def test_images_by_plain_urls_and_several_of_them():
    message = {
        "role": "user",
        "content": [{"type": "image_url", "image_url": URL}, image_part(), {"type": "text", "text": "a"}],
    }
    found = EmbeddingRequest.from_messages([read_request(Message, message)], "each")
    assert found.images == [URL, URL] and found.regions_as == "joint"  # "each" of no regions is one


@pytest.mark.parametrize(
    ("schema", "value", "told"),
    [
        (RegionPrompt, {"box": [1, 2, 3]}, "box: found 3 values, expected more"),
        (RegionPrompt, {"box": [1, 2, 3, 4, 5]}, "box: found [1, 2, 3, 4, 5], expected"),
        (RegionPrompt, {"box": ["1", 2, 3, 4]}, "box.0: found '1', expected a valid number"),
        (RegionPrompt, {"box": [True, 2, 3, 4]}, "box.0: found True, expected a valid number"),
        (RegionPrompt, {"box": [float("nan"), 2, 3, 4]}, "box.0: found nan, expected a finite number"),
        (RegionPrompt, {"bbox": [1, 2, 3, 4]}, "'bbox' is no key of a request here; did you mean 'box'?"),
        (RegionPrompt, {}, "a region is empty, expected a box, points or a mask"),
        (RegionPrompt, {"points": [[1, 2]], "labels": [1, 0]}, "2 labels for 1 points, expected one a point"),
        (RegionPrompt, {"points": [[1, 2]], "labels": [2]}, "labels.0: found 2, expected less than or equal to 1"),
        (RegionPrompt, {"mask": {"size": [2, 2], "counts": [1.5]}}, "mask.counts.0: found 1.5, expected a valid"),
        (RegionPrompt, {"mask": {"size": [2, 2]}}, "mask.counts: is missing"),
        (Message, {"role": "usr", "content": "a"}, "role: found 'usr', expected 'user', 'system' or 'assistant'"),
        (Message, {"role": "user", "content": [{"text": "a"}]}, "content.0: is missing 'type'"),
        (Message, {"role": "user", "content": [image_part(region=[])]}, "content.0: 'region' is no key of a request"),
        (Message, {"role": "user", "content": [image_part(regions=[{"bx": 1}])]}, "content.0.regions.0: 'bx' is no"),
        (EmbeddingRequest, {"text": " "}, "a request is empty"),
        (EmbeddingRequest, {"text": "a\ud800"}, "the text holds half of a surrogate pair, expected Unicode"),
        (EmbeddingRequest, {"image": URL, "regions": [{"box": [1, 2, 3]}]}, "regions.0.box: found 3 values"),
        (EmbeddingRequest, {"text": 3}, "text: found 3, expected a valid string"),
        (EmbeddingRequest, {"text": "a", "regions": [{"box": [1, 2, 3, 4]}]}, "regions without an image"),
        (EmbeddingRequest, {"image": URL, "regions_as": "each"}, "regions_as is 'each', but there are no regions"),
        (EmbeddingRequest, {"image": URL, "unit": "pixel"}, "'unit' is no key of a request here; did you mean"),
        (EmbeddingRequest, [1], "found [1], expected a valid dictionary"),
    ],
)
def test_mistakes_are_one_line_with_their_key(schema, value, told):
    with pytest.raises(VirtueError) as caught:
        read_request(schema, value)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_regions_belong_to_the_first_image_and_images_to_the_user():
    second = {"role": "user", "content": [image_part(), image_part(regions=[{"box": [1, 2, 3, 4]}])]}
    with pytest.raises(VirtueError, match="image 1 has regions, expected it on the first image"):
        EmbeddingRequest.from_messages([read_request(Message, second)])
    with pytest.raises(VirtueError, match="a system message holds an image"):
        EmbeddingRequest.from_messages([read_request(Message, {"role": "system", "content": [image_part()]})])


KEYS = ["box", "points", "labels", "mask", "size", "counts", "image", "text", "regions", "units", "bx"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(
            st.sampled_from(
                ["box", "points", "labels", "mask", "size", "counts", "image", "text", "regions", "units", "bx"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=15,
)


@given(VALUES)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_value_is_read_or_refused_in_one_line(value):
    for schema in (EmbeddingRequest, RegionPrompt, Message):
        try:
            read_request(schema, value)
        except VirtueError as error:
            assert "\n" not in str(error)


def test_the_schema_as_json_names_every_key():
    text = json.dumps(EmbeddingRequest.model_json_schema())
    assert all(f'"{key}"' in text for key in ("text", "image", "regions", "box", "points", "labels", "mask", "counts"))
