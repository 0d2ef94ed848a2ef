"""Copies of an embedder on several devices, which encode the batches of one call side by side."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from queue import SimpleQueue
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from virtue_pl.features.frozen import FeatureCache
from virtue_pl.preprocessing.contrastive_collator import ContrastiveCollator
from virtue_pl.types import EmbeddingInput, VirtueError

if TYPE_CHECKING:
    from virtue_pl.embedder.embedder import Embedder

Device = str | torch.device


class Replicas:
    """An embedder and copies of it, one for each device; a thread of each encodes the next batch that waits.

    Which device encodes a batch decides nothing but its time: the batches are those of one device. A model that was
    trained, loaded or cast since its copies were made is copied again.

    Args:
        embedder: encodes on its own device.
        devices: of the copies; a device may be there more than once.

    Example:
        >>> replicas = Replicas(embedder, [torch.device("cuda:1")])  # doctest: +SKIP
        >>> dict(replicas.encode([[0, 1], [2]], load))[0].shape  # doctest: +SKIP
        torch.Size([2, 384])
    """

    def __init__(self, embedder: Embedder, devices: Sequence[torch.device]) -> None:
        self.embedder = embedder
        self.devices = list(devices)
        self._copies: list[Embedder] = []
        self._state: object = None

    def all(self) -> list[Embedder]:
        """Return the embedder and its copies, which are made anew where its model is no longer what they copied."""
        state = self.embedder.feature_state()
        if state != self._state:
            self._copies = []  # first, so that a device never holds two
            self._copies = [copy_to(self.embedder, device) for device in self.devices]
            self._state = state
        return [self.embedder, *self._copies]

    def encode(
        self, batches: Sequence[list[int]], load: Callable[[list[int]], list[EmbeddingInput]]
    ) -> Iterator[tuple[int, Float[Tensor, "rows dim"]]]:
        """Yield the number and the embeddings of each batch, on the CPU, in the order in which they are done.

        load: returns a batch with its pixels; called by one thread at a time. Its errors, and a model's, are raised
        here, and no further batch is begun.
        """
        free: SimpleQueue[Embedder] = SimpleQueue()
        embedders, reading = self.all(), threading.Lock()
        for each in embedders:
            free.put(each)

        def encode(batch: list[int]) -> Tensor:
            embedder = free.get()
            try:
                with reading:
                    items = load(batch)
                return embedder.encode_batch(items)
            finally:
                free.put(embedder)

        pool = ThreadPoolExecutor(len(embedders), "virtue-device")
        try:
            futures = {pool.submit(encode, batch): number for number, batch in enumerate(batches)}
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def copy_to(embedder: Embedder, device: torch.device) -> Embedder:
    """Return an embedder of a copy of the model on a device, with a cache and a tokenizer of its own."""
    found = copy.copy(embedder)
    found.model, found.device = copy.deepcopy(embedder.model).to(device), device
    assert isinstance(embedder.collator, ContrastiveCollator)
    found.collator = copy.deepcopy(embedder.collator)
    found.feature_cache = FeatureCache(embedder.feature_cache.capacity)
    found.replicas = None
    return found


def read_devices(device: Device | Sequence[Device]) -> list[torch.device]:
    """Return one device, or several, as torch's; "auto" is a GPU where there is one. Raises VirtueError for no device.

    Example:
        >>> read_devices(["cpu", "cpu"])
        [device(type='cpu'), device(type='cpu')]
    """
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    found = [device] if isinstance(device, Device) else list(device)
    if not found:
        raise VirtueError('device is an empty list, expected one device or more, as ["cuda:0", "cuda:1"]')
    try:
        return [torch.device(automatic if each == "auto" else each) for each in found]
    except RuntimeError as error:
        raise VirtueError(
            f"device is {device!r}, expected cpu, cuda, cuda:1 and the like, or a list ({error})"
        ) from error
