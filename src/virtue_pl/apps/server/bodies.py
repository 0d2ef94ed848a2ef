"""Bodies that clients of OpenAI, vLLM, Infinity and Cohere send, each read as the one schema of a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema, model_validator

from virtue_pl.preprocessing.requests import is_image_uri
from virtue_pl.types import VirtueError
from virtue_pl.types.prompt_values import describe
from virtue_pl.types.requests import (
    MAX_REGIONS,
    EmbeddingRequest,
    ImagePart,
    Message,
    RegionPrompt,
    StrictModel,
    TextPart,
    Units,
    Uuid,
    read_request,
)

TOKEN_IDS = (
    "found token ids, expected text: they are of another tokenizer; for langchain-openai's OpenAIEmbeddings set"
    " check_embedding_ctx_length=False"
)

INPUT_SCHEMA = {
    "description": "A text or a data URI, a list of them, one conversation, a list of conversations, or flat requests.",
    "anyOf": [{"type": "string"}, {"type": "array", "items": {}}],
}
QUERY_SCHEMA = {
    "description": "A text, a data URI or a flat request with text, image and regions, or a list of such.",
    "anyOf": [{"type": "string"}, {"type": "object"}, {"type": "array", "items": {}}],
}
MOST_ENTRIES = 100_000
"""Default limit of the entries of a body, each of which is one embedding or more."""

Dimensions = Annotated[int, Field(strict=True, ge=1)]


class EmbeddingsBody(StrictModel):
    """The body of /v1/embeddings, in OpenAI's, vLLM's or Infinity's form.

    input: a text, a list of texts, one conversation or a list of them, or flat requests (`EmbeddingRequest`); the data
    URI of an image is one unless `modality` is "text". messages: one conversation, or a list of conversations. regions,
    units: of the one image of `input`; within messages they stand in the part that carries the image. regions_as:
    "each" makes one embedding for each region. instruction: stands before each text. user: taken for the clients that
    send it.

    Example:
        >>> body = read_request(EmbeddingsBody, {"model": "virtue", "input": ["a cat", "a dog"]})
        >>> [request.full_text for request in body.requests()]
        ['a cat', 'a dog']
    """

    model: str | None = None
    input: Annotated[Any, WithJsonSchema(INPUT_SCHEMA)] = None
    messages: Annotated[Any, WithJsonSchema({"type": "array", "items": {}})] = None
    modality: Literal["text", "image"] | None = None
    instruction: str = ""
    regions: Annotated[list[RegionPrompt], Field(max_length=MAX_REGIONS)] = Field(default_factory=list)
    units: Units | None = None
    regions_as: Literal["joint", "each"] = "joint"
    dimensions: Dimensions | None = None
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None

    @model_validator(mode="before")
    @classmethod
    def leave_out_nulls(cls, value: Any) -> Any:
        """Read a null as a key that is not there, as some clients send it."""
        if not isinstance(value, Mapping):
            return value
        return {key: each for key, each in value.items() if each is not None or key not in cls.model_fields}

    @property
    def entries(self) -> str:
        """The key under which the requests stand."""
        return "messages" if self.messages else "input"

    def requests(self, most: int = MOST_ENTRIES) -> list[EmbeddingRequest]:
        """Return the requests of the body, in order, at most so many.

        Raises VirtueError, which names the key of what is wrong.
        """
        if self.messages:
            if self.input:
                raise VirtueError("input: found beside messages, expected one of them")
            return self.conversations(self.messages, "messages", most)
        if isinstance(self.input, str):
            return [self.flat(self.input, "input", 1)]
        if not isinstance(self.input, list) or not self.input:
            found = "is missing" if self.input is None else f"found {describe(self.input)}"
            raise VirtueError(f"input: {found}, expected a text, a list of texts, or `messages` instead")
        return self.listed(self.input, most)

    def listed(self, values: list[Any], most: int) -> list[EmbeddingRequest]:
        """Return the requests of a list under `input`."""
        first = values[: most + 1]
        if any(is_token(value) or (isinstance(value, list) and any(map(is_token, value))) for value in first):
            raise VirtueError(f"input: {TOKEN_IDS}")
        if isinstance(values[0], list) or (isinstance(values[0], Mapping) and "role" in values[0]):
            return self.conversations(values, "input", most)
        check_count("input", values, most)
        return [self.flat(value, f"input.{number}", len(values)) for number, value in enumerate(values)]

    def flat(self, value: Any, name: str, count: int) -> EmbeddingRequest:
        """Return the request of one entry of `input`, which has `count` of them."""
        if self.regions and count > 1:
            raise VirtueError(f"regions: found beside {count} inputs, expected one: give others within `messages`")
        if isinstance(value, Mapping):
            self.refuse_beside("flat requests, expected within each of them")
            return read_named(EmbeddingRequest, value, name)
        if not isinstance(value, str):
            raise VirtueError(f"{name}: found {describe(value)}, expected a text")
        image = self.modality == "image" or (self.modality is None and is_image_uri(value))
        keys: dict[str, Any] = {"image" if image else "text": value, "instruction": self.instruction}
        if self.regions:
            keys |= {"regions": self.regions, "units": self.units or "pixel", "regions_as": self.regions_as}
        elif self.regions_as == "each" or self.units:
            raise VirtueError(f"{'regions_as' if self.units is None else 'units'}: found without regions")
        return read_named(EmbeddingRequest, keys, name)

    def conversations(self, value: Any, name: str, most: int) -> list[EmbeddingRequest]:
        """Return the request of a conversation, or of each of several."""
        self.refuse_beside("messages, expected within the part of the image or the system message")
        if not isinstance(value, list):
            raise VirtueError(f"{name}: found {describe(value)}, expected a list of messages")
        nested = isinstance(value[0], list)
        check_count(name, value if nested else (), most)
        found = []
        for number, messages in enumerate(value if nested else [value]):
            where = f"{name}.{number}" if nested else name
            if not isinstance(messages, list) or not messages:
                raise VirtueError(f"{where}: found {describe(messages)}, expected a list of messages")
            read = [read_named(Message, message, f"{where}.{index}") for index, message in enumerate(messages)]
            found.append(name_error(where, EmbeddingRequest.from_messages, read, self.regions_as))
        if self.regions_as == "each" and not any(request.regions for request in found):
            raise VirtueError("regions_as is 'each', but there are no regions")
        return found

    def refuse_beside(self, owner: str) -> None:
        """Raise VirtueError for keys of the whole body that belong into its entries."""
        for key in ("regions", "units", "modality", "instruction"):
            if getattr(self, key):
                raise VirtueError(f"{key}: found beside {owner}")


class CohereContent(StrictModel):
    """One input of Cohere's body: words and images, of which the first may have regions.

    Example:
        >>> CohereContent(content=[TextPart(type="text", text="a cat")]).content[0].text
        'a cat'
    """

    content: Annotated[list[Annotated[TextPart | ImagePart, Field(discriminator="type")]], Field(min_length=1)]


class CohereBody(StrictModel):
    """The body of /v2/embed, Cohere's form; one of texts, images and inputs is given.

    Example:
        >>> body = read_request(CohereBody, {"model": "virtue", "input_type": "search_query", "texts": ["a cat"]})
        >>> body.requests({"query": "Find:"})[0].full_text
        'Find: a cat'
    """

    model: str | None = None
    input_type: Literal["search_document", "search_query", "classification", "clustering", "image"] | None = None
    texts: list[str] | None = None
    images: list[str] | None = None
    inputs: list[CohereContent] | None = None
    embedding_types: list[Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]] | None = None
    output_dimension: Dimensions | None = None
    regions_as: Literal["joint", "each"] = "joint"

    @property
    def entries(self) -> str:
        """The key under which the requests stand."""
        return next((name for name in ("texts", "images", "inputs") if getattr(self, name)), "texts")

    def requests(self, instructions: Mapping[str, str], most: int = MOST_ENTRIES) -> list[EmbeddingRequest]:
        """Return the requests of the body, in order, at most so many.

        Raises VirtueError for none, and for two kinds of them.

        instructions: what stands before a text, for "query" and "document".
        """
        given = [name for name in ("texts", "images", "inputs") if getattr(self, name)]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise VirtueError(f"texts, images, inputs: found {found}, expected one")
        (name,) = given
        check_count(name, getattr(self, name), most)
        role = (self.input_type or "").removeprefix("search_")
        instruction = instructions.get(role, "")
        entries = [self.parts(entry, name) for entry in getattr(self, name)]
        requests: list[EmbeddingRequest] = [
            name_error(f"{name}.{number}", self.read_parts, parts, instruction) for number, parts in enumerate(entries)
        ]
        if self.regions_as == "each" and not any(request.regions for request in requests):
            raise VirtueError("regions_as is 'each', but there are no regions")
        return requests

    def parts(self, entry: Any, name: str) -> list[dict[str, Any]] | list[TextPart | ImagePart]:
        """Return an entry as parts of a message."""
        if name == "texts":
            return [{"type": "text", "text": entry}]
        return [{"type": "image_url", "image_url": {"url": entry}}] if name == "images" else list(entry.content)

    def read_parts(self, parts: Any, instruction: str) -> EmbeddingRequest:
        """Return the request that parts of a message make behind an instruction."""
        messages = [read_request(Message, {"role": "user", "content": parts})]
        if instruction:
            messages.insert(0, Message(role="system", content=instruction))
        return EmbeddingRequest.from_messages(messages, self.regions_as)


class MasksBody(StrictModel):
    """The body of /v1/masks: an image and its regions, each of which gets a mask.

    Example:
        >>> body = MasksBody(image="data:image/png;base64,iVBORw0KGgo=", regions=[RegionPrompt(points=[(4, 3)])])
        >>> body.requests()[0].embeddings
        1
    """

    model: str | None = None
    image: str | None = None
    regions: Annotated[list[RegionPrompt], Field(min_length=1, max_length=MAX_REGIONS)]
    units: Units = "pixel"
    uuid: Uuid | None = None

    def requests(self) -> list[EmbeddingRequest]:
        """Return the one request, with a row for each region. Raises VirtueError where there is no image."""
        if self.image is None and self.uuid is None:
            raise VirtueError("image: is missing, expected a data URI, or the uuid of an image that was sent lately")
        keys = {"regions": self.regions, "units": self.units, "regions_as": "each", "uuid": self.uuid}
        return [read_request(EmbeddingRequest, keys | {"image": self.image})]


class SearchBody(StrictModel):
    """The body of /v1/search.

    query: a text, the data URI of an image, a flat request (`EmbeddingRequest`) of text, image and regions, or a list
    of such. k: the number of hits of each. filter: a condition of SQL on the rows' columns. exact: compare every row.

    Example:
        >>> body = read_request(SearchBody, {"query": ["a cat", {"text": "a dog"}], "k": 3, "filter": "year > 2020"})
        >>> [request.full_text for request in body.requests()]
        ['a cat', 'a dog']
    """

    model: str | None = None
    query: Annotated[Any, WithJsonSchema(QUERY_SCHEMA)]
    k: Annotated[int, Field(strict=True, ge=1)] = 10
    filter: Annotated[str, Field(min_length=1, max_length=2000)] | None = None
    exact: Annotated[bool, Field(strict=True)] = False

    def requests(self, most: int = MOST_ENTRIES) -> list[EmbeddingRequest]:
        """Return the requests of the body, in order, at most so many. Raises VirtueError, which names what is wrong."""
        if not isinstance(self.query, list):
            return [read_query(self.query, "query")]
        if not self.query:
            raise VirtueError("query: found [], expected a text, a request, or a list of them")
        check_count("query", self.query, most)
        return [read_query(value, f"query.{number}") for number, value in enumerate(self.query)]


def read_query(value: Any, name: str) -> EmbeddingRequest:
    """Return a text, a data URI or a flat request as a request. Raises VirtueError, which names `name`."""
    if isinstance(value, str):
        value = {"image" if is_image_uri(value) else "text": value}
    if not isinstance(value, Mapping):
        raise VirtueError(f"{name}: found {describe(value)}, expected a text, a request, or a list of them")
    found: EmbeddingRequest = read_named(EmbeddingRequest, value, name)
    return found


def check_count(name: str, values: Sequence[Any], most: int) -> None:
    """Raise VirtueError for more entries than a request may have embeddings."""
    if len(values) > most:
        raise VirtueError(f"{name}: found {len(values):,} entries, expected at most {most:,}")


def is_token(value: Any) -> bool:
    """Return whether a value is a number, as token ids are."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_named(schema: Any, value: Any, name: str) -> Any:
    """Return a value as a part of a request. Raises VirtueError with the key `name` before what is wrong."""
    return name_error(name, read_request, schema, value)


def name_error(name: str, function: Any, *arguments: Any) -> Any:
    """Return what a function returns; a VirtueError's message gets the key `name` before it, if it is not empty."""
    try:
        return function(*arguments)
    except VirtueError as error:
        text = str(error)
        if not name:
            raise
        joint = "." if text.partition(":")[0].replace(".", "").replace("_", "").isalnum() and ":" in text else ": "
        raise VirtueError(f"{name}{joint}{text}") from error


def count_rows(requests: Sequence[EmbeddingRequest]) -> int:
    """Return the number of embeddings that requests ask for together."""
    return sum(request.embeddings for request in requests)
