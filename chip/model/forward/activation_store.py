"""Activations between two forward passes: on their device while they fit, else on the host, else in a file."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from chip.errors import RunError
from chip.model.batching.batch import Batch
from chip.model.forward.mid_layer import MidLayer
from chip.model.forward.start import ConnectorInputs, HiddenStates, InsideLayer, TextEmbeddings
from chip.model.forward.trace import Call

MEMORY_HEADROOM = 0.25
"""The share of a memory that is left to everything else: statistics, solves, what a forward pass needs."""

_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where a container's limit is written, by the second and by the first version of control groups."""

_ZEROS = bytes(2**20)


@dataclass(frozen=True)
class _Offloaded:
    """A tensor that lies elsewhere than where it is used."""

    tensor: Tensor
    device: torch.device


class StoredBatch:
    """How far one batch has got: what went into the connectors, and into the text model or one of its layers."""

    def __init__(self, batch: Batch, place: str | None) -> None:
        self.batch = batch.without_inputs()
        self._place = place
        self._connector_inputs: list[Call] | None = None
        self._text_call: Call | None = None
        self._states: Any = None
        self._embeddings: Any = None
        self._shared: Any = {}
        self._mid_layer_cache: MidLayer | None = None
        self.layers_done = 0
        """How many layers of the text model are behind its states."""

    @property
    def has_connector_inputs(self) -> bool:
        return self._connector_inputs is not None

    def can_reach(self, layer: int) -> bool:
        """Whether a run can go on from its states so that this layer of the text model is run."""
        return self._text_call is not None and self.layers_done <= layer

    def store_connector_inputs(self, calls: Sequence[Call]) -> None:
        self._connector_inputs = [call.map(self._offload) for call in calls]

    def connector_inputs(self) -> ConnectorInputs:
        """Where to go on at the connectors; no calls where the batch has no image."""
        assert self._connector_inputs is not None
        return ConnectorInputs([call.map(onload) for call in self._connector_inputs])

    def release_connector_inputs(self) -> None:
        self._connector_inputs = None

    def store_text_call(self, call: Call, keep_embeddings: bool = False) -> None:
        """What the text model is called with, its embeddings among it.

        Args:
            keep_embeddings: later layers need them too.
        """
        self._states, self.layers_done = self._offload(call.kwargs.pop("inputs_embeds")), 0
        self._embeddings = self._states if keep_embeddings else None
        self._text_call, self._mid_layer_cache, self._shared = call.map(self._offload), None, {}

    def store_states(self, states: Tensor, layers_done: int) -> None:
        """What the last of so many layers returned."""
        self._states, self.layers_done = self._offload(states), layers_done

    def store_shared(self, shared: dict[Any, Any]) -> None:
        """What layers hand to later ones beside hidden states."""
        self._shared = self._offload(shared)

    def store_mid_layer(self, reached: MidLayer) -> None:
        """Where it has got to inside the layer behind its states, if there is room where that lies."""
        self._mid_layer_cache = reached if self._place is None and has_room(reached.values()) else None

    def text_states(self, first: int) -> TextEmbeddings:
        """Where to go on in the text model, so that layer `first` is run; within the layer before it if stored."""
        assert self._text_call is not None
        call, states, done = self._text_call.map(onload), onload(self._states), self.layers_done
        beside = {"embeddings": onload(self._embeddings), "shared": onload(self._shared)}
        if first > done and self._mid_layer_cache is not None:
            mid_layer, self._mid_layer_cache = self._mid_layer_cache, None
            return InsideLayer(call, states, done, mid_layer, **beside)
        return HiddenStates(call, states, done - 1, **beside) if done else TextEmbeddings(call, states, **beside)

    def release_text_states(self) -> None:
        self._text_call, self._states, self._mid_layer_cache, self.layers_done = None, None, None, 0
        self._embeddings, self._shared = None, {}

    def _offload(self, value: Any) -> Any:
        return offload(value, self._place)


class ActivationStore:
    """The batches of one plan, each with what it has reached; a cache, which can be filled again from the records."""

    def __init__(self, place: str | None = None) -> None:
        """
        Args:
            place: where activations are held, as `offload` has it.
        """
        self._place = place
        self.stored_batches: list[StoredBatch] = []

    def add(self, index: int, batch: Batch) -> StoredBatch:
        """The batch of this number; batches are added in the order of the plan, and may be added again."""
        if index == len(self.stored_batches):
            self.stored_batches.append(StoredBatch(batch, self._place))
        return self.stored_batches[index]

    def release(self) -> None:
        """All but what goes into the connectors."""
        for stored in self.stored_batches:
            stored.release_text_states()


def offload(value: Any, place: str | None = None) -> Any:
    """The value with each tensor where there is room for it. Whatever else it is made of stays as it is.

    Args:
        value: nested tuples, lists and dicts.
        place: `device`, `host` or `file`; by default the first of them that has room.

    Raises:
        RunError: there is no room on the disk either.
    """
    return tree_map_only(Tensor, lambda tensor: _offload(tensor, place), value)


def onload(value: Any) -> Any:
    """What was offloaded, on the device it came from."""
    return tree_map_only(_Offloaded, lambda offloaded: offloaded.tensor.to(offloaded.device), value)


def has_room(value: Any) -> bool:
    """Whether all tensors of the value may stay where they are."""
    return all(room_for(leaf.nbytes, leaf.device) for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def room_for(size: int, device: torch.device) -> bool:
    """Whether so many bytes may be held on the device."""
    return _place(size, device) == "device"


def _offload(tensor: Tensor, place: str | None) -> Tensor | _Offloaded:
    place = place or _place(tensor.nbytes, tensor.device)
    if place == "device":
        return tensor
    if place == "host":
        return _Offloaded(tensor.cpu(), tensor.device)
    return _Offloaded(in_file(tensor.cpu()), tensor.device)


def _place(size: int, device: torch.device) -> str:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        if free - size > MEMORY_HEADROOM * total:
            return "device"
    free, total = host_memory()
    if free - size > MEMORY_HEADROOM * total:
        return "device" if device.type != "cuda" else "host"
    return "file"


def host_memory() -> tuple[int, int]:
    """Free and total bytes, of the container where there is one."""
    memory = psutil.virtual_memory()
    for limit in _LIMITS:
        if limit.exists() and (text := limit.read_text().strip()).isdigit() and int(text) < memory.total:
            return min(memory.available, int(text) - psutil.Process().memory_info().rss), int(text)
    return memory.available, memory.total


def in_file(tensor: Tensor) -> Tensor:
    """A copy in memory mapped to a file that has no name: activations tell of people, and go with the process.

    Raises:
        RunError: the disk has no room for it.
    """
    size = tensor.nbytes
    if size == 0:
        return tensor
    with tempfile.TemporaryFile() as file:
        _allocate(file.fileno(), size)
        mapped = mmap.mmap(file.fileno(), size)
    copy = torch.frombuffer(mapped, dtype=tensor.dtype).reshape(tensor.shape)
    return copy.copy_(tensor)


def _allocate(file: int, size: int) -> None:
    """Give a file its length and all its blocks: writing to a mapped page that a full disk lacks kills the process.

    Raises:
        RunError: the disk has no room for it.
    """
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, size)
        else:  # macOS
            for start in range(0, size, len(_ZEROS)):
                os.pwrite(file, _ZEROS[: size - start], start)
    except OSError as error:
        raise RunError(
            f"{tempfile.gettempdir()}: no room for {size:,} bytes that the run holds there ({error.strerror}); "
            "make room, or set TMPDIR to a folder on a larger disk"
        ) from error
