"""The schema of a request to embed: what Python, the command line, the server and the page all read.

A request is flat (`{"text": ..., "image": ..., "regions": [...]}`), or a conversation whose content parts carry images
and their regions, as clients of chat models send it (`EmbeddingRequest.from_messages`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from virtue_pl.types.errors import VirtueError, suggest_name
from virtue_pl.types.prompt_values import describe
from virtue_pl.types.samples import join_instruction

MAX_REGIONS = 4096
"""The most regions of one image."""

MAX_POINTS = 1024
"""The most points of one region."""

Schema = TypeVar("Schema", bound=BaseModel)
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Length = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]
Label = Annotated[int, Field(strict=True, ge=0, le=1)]
Units = Literal["pixel", "normalized"]
Uuid = Annotated[str, Field(min_length=1, max_length=200)]


class StrictModel(BaseModel):
    """A part of a request: an unknown key is refused, and the closest name is said.

    Example:
        >>> class Size(StrictModel):
        ...     height: int
        >>> read_request(Size, {"heigth": 3})
        Traceback (most recent call last):
        virtue_pl.types.errors.VirtueError: 'heigth' is no key of a request here; did you mean 'height'?
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    @model_validator(mode="before")
    @classmethod
    def refuse_unknown_keys(cls, value: Any) -> Any:
        """Raise ValueError for a key that the model does not have."""
        names = [field.alias or name for name, field in cls.model_fields.items()]
        for key in value if isinstance(value, Mapping) else ():
            if key in names or key in cls.model_fields:
                continue
            raise ValueError(f"{str(key)[:80]!r} is no key of a request here{suggest_name(str(key), names)}")
        return value


class RunLengthMask(StrictModel):
    """A mask over the whole image as COCO's run lengths, which go down the columns.

    size: (height, width). counts: run lengths from the outside on, or their compressed text.

    Example:
        >>> RunLengthMask(size=(2, 2), counts=[1, 2, 1]).size
        (2, 2)
    """

    size: tuple[Length, Length]
    counts: str | list[Annotated[int, Field(strict=True, ge=0)]]


class RegionPrompt(StrictModel):
    """One region of an image: a box, points, a mask, or several of them together.

    box: xyxy, x before y, origin at the top left. points: (x, y). labels: 1 = inside, 0 = outside, one a point; all
    points are inside where none are given. mask: COCO's run lengths at the image's size.

    Example:
        >>> RegionPrompt(points=[(40, 30), (90, 30)], labels=[1, 0]).labels
        [1, 0]
    """

    box: tuple[Number, Number, Number, Number] | None = None
    points: Annotated[list[tuple[Number, Number]], Field(max_length=MAX_POINTS)] | None = None
    labels: list[Label] | None = None
    mask: RunLengthMask | None = None

    @model_validator(mode="after")
    def check_parts(self) -> RegionPrompt:
        """Raise ValueError for a region of nothing, and for labels that are not one a point."""
        if self.box is None and not self.points and self.mask is None:
            raise ValueError("a region is empty, expected a box, points or a mask")
        if self.labels is not None and len(self.labels) != len(self.points or ()):
            raise ValueError(f"{len(self.labels)} labels for {len(self.points or ())} points, expected one a point")
        return self


class EmbeddingRequest(StrictModel):
    """Contents of one embedding, or of one for each region.

    text: words, with an image or alone. instruction: what to look for; it stands before the text. image: one image, or
    several: a path, a data URI or a URL, and in Python also what `Embedder.encode` takes; who reads the request says
    which of them are allowed. regions: regions of the first image. units: of boxes and points, "pixel" or "normalized"
    (0 to 1). regions_as: "joint" makes one embedding of all regions together, "each" one for each region. uuid: a name
    of the first image, by which a server finds it again: with no image beside it, it stands for the image that was last
    sent under that name.

    Example:
        >>> request = EmbeddingRequest(text="What is this?", image="street.jpg", regions=[{"box": [10, 20, 200, 240]}])
        >>> request.regions[0].box
        (10.0, 20.0, 200.0, 240.0)
    """

    text: str = ""
    instruction: str = ""
    image: Any = None
    regions: Annotated[list[RegionPrompt], Field(max_length=MAX_REGIONS)] = []
    units: Units = "pixel"
    regions_as: Literal["joint", "each"] = "joint"
    uuid: Uuid | None = None

    @model_validator(mode="after")
    def check_parts(self) -> EmbeddingRequest:
        """Raise ValueError for a request of nothing, for regions without an image, and for "each" without regions."""
        try:
            self.full_text.encode()
        except UnicodeEncodeError:
            raise ValueError("the text holds half of a surrogate pair, expected Unicode") from None
        if not self.has_image and not self.full_text:
            raise ValueError("a request is empty, expected a text, an image, or both")
        if self.regions and not self.has_image:
            raise ValueError("regions without an image, expected `image` beside them")
        if self.regions_as == "each" and not self.regions:
            raise ValueError("regions_as is 'each', but there are no regions")
        return self

    @property
    def images(self) -> list[Any]:
        """All images, of which the regions are of the first."""
        if self.image is None:
            return []
        return list(self.image) if isinstance(self.image, list | tuple) else [self.image]

    @property
    def has_image(self) -> bool:
        """Return whether the request is of an image, given or named by `uuid` alone."""
        return bool(self.images) or self.uuid is not None

    @property
    def full_text(self) -> str:
        """The instruction and the text, in one."""
        text = join_instruction(self.instruction, self.text)
        return text if text.strip() else ""

    @property
    def embeddings(self) -> int:
        """The number of embeddings that the request asks for."""
        return len(self.regions) if self.regions_as == "each" else 1

    @classmethod
    def from_messages(
        cls, messages: Sequence[Message], regions_as: Literal["joint", "each"] = "joint"
    ) -> EmbeddingRequest:
        """Return the request that a conversation makes: system messages are its instruction, all others its content.

        Raises VirtueError for regions or a uuid of another image than the first, and for an empty conversation.
        """
        instruction = [part for message in messages if message.role == "system" for part in message.parts]
        content = [part for message in messages if message.role != "system" for part in message.parts]
        images = [part for part in content if isinstance(part, ImagePart)]
        if any(isinstance(part, ImagePart) for part in instruction):
            raise VirtueError("a system message holds an image, expected text alone: give images in the user's message")
        for number, image in enumerate(images[1:], 1):
            for key in ("regions", "uuid"):
                if getattr(image, key):
                    raise VirtueError(f"image {number} has {key}, expected it on the first image (0) alone")
        urls = [image.image_url.url for image in images if image.image_url is not None]
        if urls and len(urls) < len(images):
            raise VirtueError("image 0 has a uuid alone, expected its data, too, where there are several images")
        first = images[0] if images else None
        return read_request(
            cls,
            {
                "text": " ".join(part.text for part in content if isinstance(part, TextPart)),
                "instruction": " ".join(part.text for part in instruction if isinstance(part, TextPart)),
                "image": urls or None,
                "regions": first.regions if first else [],
                "units": first.units if first else "pixel",
                "regions_as": regions_as if first and first.regions else "joint",
                "uuid": first.uuid if first else None,
            },
        )


class ImageUrl(StrictModel):
    """Data URI or URL of an image. detail: taken for the clients that send it; images have one size here.

    Example:
        >>> ImageUrl(url="data:image/png;base64,iVBORw0KGgo=").detail
        'auto'
    """

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class TextPart(StrictModel):
    """Words of a message.

    Example:
        >>> TextPart(type="text", text="Find the caption.").text
        'Find the caption.'
    """

    type: Literal["text"]
    text: str


class ImagePart(StrictModel):
    """An image of a message, with its regions; see `EmbeddingRequest` for `regions`, `units` and `uuid`.

    image_url: may be null where `uuid` names an image that was sent lately.

    Example:
        >>> ImagePart(type="image_url", image_url="data:image/png;base64,iVBORw0KGgo=").image_url.detail
        'auto'
    """

    type: Literal["image_url"]
    image_url: ImageUrl | None = None
    regions: Annotated[list[RegionPrompt], Field(max_length=MAX_REGIONS)] = []
    units: Units = "pixel"
    uuid: Uuid | None = None

    @model_validator(mode="before")
    @classmethod
    def read_plain_url(cls, value: Any) -> Any:
        """Take a plain string as the image's URL, as some clients send it."""
        if isinstance(value, Mapping) and isinstance(value.get("image_url"), str):
            return {**value, "image_url": {"url": value["image_url"]}}
        return value

    @model_validator(mode="after")
    def check_parts(self) -> ImagePart:
        """Raise ValueError for a part without image and uuid."""
        if self.image_url is None and self.uuid is None:
            raise ValueError("an image's part has no image_url, expected it, or the uuid of an image sent lately")
        return self


class Message(StrictModel):
    """One message of a conversation: words, or parts of words and images.

    Example:
        >>> Message(role="user", content="a cat").parts[0].text
        'a cat'
    """

    role: Literal["user", "system", "assistant"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]

    @property
    def parts(self) -> list[TextPart | ImagePart]:
        """The parts; words alone are one of them."""
        return [TextPart(type="text", text=self.content)] if isinstance(self.content, str) else list(self.content)


def read_request(schema: type[Schema], value: Any) -> Schema:
    """Return a value as a part of a request. Raises VirtueError, in one line, with the key of what is wrong.

    Example:
        >>> read_request(RegionPrompt, {"box": [1, 2, 3]})
        Traceback (most recent call last):
        virtue_pl.types.errors.VirtueError: box: found 3 values, expected more
    """
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        raise VirtueError(describe_problem(error.errors(include_url=False))) from error


def describe_problem(errors: Sequence[Mapping[str, Any]]) -> str:
    """Return what is wrong with a request: the key of the deepest mistake, what was found, and what was expected.

    errors: pydantic's, of which there is at least one.
    """
    deepest = max(errors, key=lambda each: len(each["loc"]))
    kind, given, keys = deepest["type"], deepest["input"], list(key_path(deepest["loc"]))
    if kind == "value_error":
        text = str(deepest["ctx"]["error"])
    elif kind == "missing" and isinstance(given, list | tuple):
        keys.pop()
        text = f"found {len(given)} values, expected more"
    elif kind == "missing":
        text = "is missing"
    elif kind == "union_tag_not_found":
        text = "is missing 'type', expected 'text' or 'image_url'"
    else:
        text = f"found {describe(given)}, expected {deepest['msg'].removeprefix('Input should be ')}"
    return f"{'.'.join(keys)}: {text}" if keys else text


PARTS = ("text", "image_url")
"""Types of a message's parts, which pydantic puts into the path of a mistake."""


def key_path(location: Sequence[int | str]) -> Iterator[str]:
    """Yield the keys and positions of a place in a request, without the names of a union's members."""
    before: int | str = ""
    for key in location:
        member = isinstance(key, str) and ("[" in key or key == "str" or (isinstance(before, int) and key in PARTS))
        if not member:
            yield str(key)
        before = key
