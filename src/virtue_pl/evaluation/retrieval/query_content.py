"""Checksums of queries, by which runs know that they were tested on the same ones, however each was asked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from virtue_pl.types import EmbeddingInput, Region


class ContentDigest:
    """Checksum of a query's data: its image, its region or else its text, its candidates in order, its rankings.

    It does not depend on how a model is asked (mode, formatter, baseline). A list of candidates that many queries share
    is read once.

    Example:
        >>> digest, captions = ContentDigest(), (EmbeddingInput("a cat"), EmbeddingInput("a dog"))
        >>> digest("", ("image-7",), None, captions, {"hit@1": (0, 1)})
        'f7624ae510d91b40'
    """

    def __init__(self) -> None:
        self._lists: dict[int, tuple[Sequence[EmbeddingInput], bytes]] = {}

    def __call__(
        self,
        text: str,
        image_keys: Sequence[str],
        region: Region | None,
        candidates: Sequence[EmbeddingInput],
        rankings: Mapping[str, Sequence[int]],
    ) -> str:
        """Return 16 hexadecimal digits. text: of the query, which counts where there is no region."""
        digest = hashlib.blake2b(repr(list(image_keys)).encode(), digest_size=8)
        if region is None:
            digest.update(text.encode())
        else:
            digest.update(repr(region.box.tolist()).encode())
            if region.mask is not None:
                digest.update(region.mask.cpu().contiguous().numpy().tobytes())
        digest.update(self._of_list(candidates))
        digest.update(repr({name: list(indices) for name, indices in rankings.items()}).encode())
        return digest.hexdigest()

    def _of_list(self, candidates: Sequence[EmbeddingInput]) -> bytes:
        found = self._lists.get(id(candidates))
        if found is None:
            content = "\x1e".join("\x1f".join((item.text, *item.image_keys)) for item in candidates)
            # the list itself is held, or another one might come by its identity
            found = self._lists[id(candidates)] = candidates, hashlib.blake2b(content.encode(), digest_size=16).digest()
        return found[1]
