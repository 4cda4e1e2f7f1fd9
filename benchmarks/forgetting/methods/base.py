"""What a method of forgetting is to the benchmark: settings in, new values of a checkpoint's tensors out."""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from benchmarks.measuring import peak_memory, reset_peak_memory
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.writer import round_once
from chip.data.request import ForgetRequest
from chip.model.loading import VLM

GRID_SIZE = 6
"""How many settings are tried of every method: nobody gets more chances than another."""


@dataclass(frozen=True)
class BenchmarkMethod(ABC):
    """One way to make a model forget. An instance is its settings."""

    name: ClassVar[str]
    """As the tables call it."""
    version: ClassVar[int] = 1
    """What its results are stored under. Raise it whenever the method's result changes, by its own code or by code of
    chip that it calls (kernels, the pass, the loading of a model), or when fields are added or change places."""
    source: ClassVar[str]
    """The paper and the place in it; what is an adaptation is said in the class's own words."""
    trains: ClassVar[bool] = False
    """Whether it takes gradients: these are here to be compared with, and nowhere else."""
    tuned: ClassVar[bool] = True
    """Whether the benchmark chooses among `grid()`; without, it runs with its defaults."""

    @classmethod
    @abstractmethod
    def grid(cls) -> list[Self]:
        """The `GRID_SIZE` settings that are tried, from the strongest to the weakest."""

    @abstractmethod
    def apply(self, vlm: VLM, source: Checkpoint, request: ForgetRequest, seed: int) -> dict[str, Tensor]:
        """What tensors become, by their names on disk, on the CPU, for `write_patched` to round and write.

        Only trained records (`not held_out`) may be looked at. Afterwards the model in memory is as it was before:
        whoever changes it does so inside `restoring`, and returns copies.

        Args:
            vlm: `source`, loaded.
            seed: fixes whatever is drawn at random; the same seed gives the same tensors.
        """

    @property
    def settings(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Applied:
    """What a method gave, and what that took."""

    tensors: dict[str, Tensor]
    seconds: float
    peak_bytes: float
    """Of the process and of the device together, what was held before left out; NaN where the system does not say. What
    an earlier method has freed goes back to the system before; some of it may stay, and be used again unseen."""
    changed_weights: int
    """Values that are others in the stored dtype."""


def measured(method: BenchmarkMethod, vlm: VLM, source: Checkpoint, request: ForgetRequest, seed: int) -> Applied:
    """Apply the method with an eye on clock and memory."""
    before = _start_of_peak(vlm.device)
    start = time.perf_counter()
    tensors = method.apply(vlm, source, request, seed)
    seconds = time.perf_counter() - start
    return Applied(tensors, seconds, _peak(vlm.device) - before, changed_weights(source, tensors))


def changed_weights(source: Checkpoint, tensors: Mapping[str, Tensor]) -> int:
    """How many values differ from the source's once they are rounded to its dtype."""
    return sum(
        int((round_once(new, source.entries[name].torch_dtype) != source.read(name)).sum())
        for name, new in tensors.items()
    )


def trained_records(request: ForgetRequest) -> tuple[list[int], list[int]]:
    """Indices of the trained records to forget, and of those to retain; each ascending."""
    records, partition = request.hierarchy.records, request.partition
    groups = (partition.forget, sorted(partition.retained))
    forget, retain = ([i for i in group if not records[i].held_out] for group in groups)
    return forget, retain


def _start_of_peak(device: torch.device) -> float:
    """Forget the peak so far; what is held now, in bytes."""
    gc.collect()
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):  # glibc's
            libc.malloc_trim(0)
        reset_peak_memory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    return _peak(device)


def _peak(device: torch.device) -> float:
    host = peak_memory() if sys.platform == "linux" else torch.nan
    return host + (torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0)
