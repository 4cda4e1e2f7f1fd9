"""What differs between two checkpoints, tensor by tensor, whatever their shards and their names for it."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from chip.checkpoint.change_map import ChangeMap, change_map, sum_to_json
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.plain import open_plain
from chip.checkpoint.stored_tensor import StoredTensor, same_bytes
from chip.checkpoint.tensor_diff import TensorDiff
from chip.checkpoint.threads import in_threads
from chip.errors import InputError
from chip.progress import ProgressCallback, silent


@dataclass(frozen=True, slots=True)
class ShapeDiff:
    """A tensor that the checkpoints hold in different shapes."""

    name: str
    """On disk in `a`."""
    shape_a: tuple[int, ...]
    shape_b: tuple[int, ...]


@dataclass(frozen=True)
class CheckpointDiff:
    """What differs between the checkpoints `a` and `b`. Names are those on disk in `a`, layer 2 before layer 10."""

    tensors: tuple[TensorDiff, ...]
    """Of each tensor that both hold with the same shape."""
    shape_differs: tuple[ShapeDiff, ...]
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    """Names on disk in `b`."""

    @property
    def changed(self) -> tuple[TensorDiff, ...]:
        return tuple(tensor for tensor in self.tensors if tensor.changed)

    @property
    def equal(self) -> bool:
        """Whether both hold the same tensors, bit for bit."""
        return not (self.changed or self.shape_differs or self.only_in_a or self.only_in_b)

    @cached_property
    def map(self) -> ChangeMap:
        """The changes summed by layer and by kind of module."""
        return change_map(self.tensors)

    def to_json(self) -> dict[str, Any]:
        """For `json.dumps`: the changed tensors, how many were compared, the sums. JSON lacks infinity: None."""
        return {
            "equal": self.equal,
            "compared": len(self.tensors),
            "changed": [
                {key: None if value == math.inf else value for key, value in asdict(tensor).items()}
                for tensor in self.changed
            ],
            "sums": [grid.to_json() for grid in self.map.grids],
            "outside_layers": [{"name": name, **sum_to_json(total)} for name, total in self.map.outside.items()],
            "shape_differs": [asdict(shapes) for shapes in self.shape_differs],
            "only_in_a": list(self.only_in_a),
            "only_in_b": list(self.only_in_b),
        }


def diff(a: Path | str, b: Path | str, progress: ProgressCallback = silent) -> CheckpointDiff:
    """Compare the checkpoint folders `a` and `b`.

    Bytes are compared in blocks, several tensors at a time, and what differs is measured in blocks, one tensor after
    the other: memory does not grow with the checkpoints, but for what `measure` says.

    Where the names on disk differ, the tensors that both load into the same parameter of the model are compared, as
    far as transformers has code for the models; all others by their names. Quantized weights are compared dequantized.

    Raises:
        InputError: as `open_plain` does, and where a tensor that differs has a dtype chip cannot read.
    """
    first, second = open_plain(Path(a), progress), open_plain(Path(b), progress)
    names = _same_tensors(first, second)
    pairs: list[tuple[StoredTensor, StoredTensor]] = []
    shape_differs: list[ShapeDiff] = []
    for name in sorted(names, key=_natural_order):
        x, y = first.stored(name), second.stored(names[name])
        if x.entry.shape == y.entry.shape:
            pairs.append((x, y))
        else:
            shape_differs.append(ShapeDiff(name, x.entry.shape, y.entry.shape))
    return CheckpointDiff(
        _compare_all(pairs, progress),
        tuple(shape_differs),
        only_in_a=tuple(sorted(first.entries.keys() - names.keys(), key=_natural_order)),
        only_in_b=tuple(sorted(second.entries.keys() - set(names.values()), key=_natural_order)),
    )


def _compare_all(
    pairs: Sequence[tuple[StoredTensor, StoredTensor]], progress: ProgressCallback
) -> tuple[TensorDiff, ...]:
    """Compare bytes ahead, in threads, and measure what differs."""
    tensors = []
    with progress("comparing", len(pairs)) as advance, in_threads(_same, pairs) as compared:
        for (a, b), same in zip(pairs, compared, strict=True):
            tensors.append(_compare(a, b, same))
            advance(1)
    return tuple(tensors)


def _compare(a: StoredTensor, b: StoredTensor, same: bool) -> TensorDiff:
    if same:
        result = TensorDiff(a.entry.name, a.entry.shape, a.entry.dtype, changed=False)
    else:
        from chip.checkpoint.measure import measure  # brings torch and scipy: equal checkpoints need neither

        result = measure(a, b)
    return result if a.entry.name == b.entry.name else replace(result, name_in_b=b.entry.name)


def _same(a: StoredTensor, b: StoredTensor) -> bool:
    return a.entry.dtype == b.entry.dtype and same_bytes(a, b)


def _same_tensors(first: Checkpoint, second: Checkpoint) -> dict[str, str]:
    """Name in `first` -> name in `second` of the same tensor: of that name, or loaded into the same parameter."""
    names = {name: name for name in first.entries.keys() & second.entries.keys()}
    only_a, only_b = first.entries.keys() - names, second.entries.keys() - names
    if only_a and only_b:  # else there is nothing to pair
        disk_a, disk_b = _by_parameter(first, only_a), _by_parameter(second, only_b)
        names |= {disk_a[parameter]: disk_b[parameter] for parameter in disk_a.keys() & disk_b.keys()}
    return names


def _by_parameter(checkpoint: Checkpoint, names: Collection[str]) -> dict[str, str]:
    """Parameter -> name on disk, for `names`; one that no parameter is loaded from stands for itself."""
    from chip.model.tensor_names import key_map  # brings transformers

    try:
        known = {name: parameter for parameter, name in key_map(checkpoint).items()}
    except InputError:  # a model that transformers has no code for: only its names can be compared
        known = {}
    return {known.get(name, name): name for name in names}


def _natural_order(name: str) -> list[str | int]:
    """Sorts by name, and numbers in it by their size."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]
