"""What differs between two checkpoints, tensor by tensor, whatever their shards and their names for it."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from chip.checkpoint.change_map import ChangeMap, change_map, sum_to_json
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.measure import Stored, TensorDiff, measure, same_bytes
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
    """One for each tensor that both hold with the same shape."""
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
        """The changes summed by layer and by kind of site."""
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
            "outside_layers": [{"name": name, **sum_to_json(found)} for name, found in self.map.outside.items()],
            "shape_differs": [asdict(each) for each in self.shape_differs],
            "only_in_a": list(self.only_in_a),
            "only_in_b": list(self.only_in_b),
        }


def diff(a: Path | str, b: Path | str, progress: ProgressCallback = silent) -> CheckpointDiff:
    """Compare the checkpoint folders `a` and `b`.

    Bytes are compared in blocks, several tensors at a time, and what differs is measured in blocks, one tensor after
    the other: memory does not grow with the checkpoints, but for what `measure` says.

    Where the names on disk differ, the tensors that both load into the same parameter of the model are compared, as
    far as transformers has code for the models; all others by their names.

    Raises:
        InputError: as `Checkpoint.open` does, and where a tensor that differs has a dtype chip cannot read.
    """
    first, second = Checkpoint.open(Path(a)), Checkpoint.open(Path(b))
    names = _same_tensors(first, second)
    pairs: list[tuple[Stored, Stored]] = []
    shape_differs: list[ShapeDiff] = []
    for name in sorted(names, key=_in_order):
        x, y = first.entries[name], second.entries[names[name]]
        if x.shape == y.shape:
            pairs.append((Stored(first.folder / x.shard, x), Stored(second.folder / y.shard, y)))
        else:
            shape_differs.append(ShapeDiff(name, x.shape, y.shape))
    with progress("comparing", len(pairs)) as advance:
        tensors = []
        for tensor in _compare_all(pairs):
            tensors.append(tensor)
            advance(1)
    return CheckpointDiff(
        tuple(tensors),
        tuple(shape_differs),
        only_in_a=tuple(sorted(first.entries.keys() - names.keys(), key=_in_order)),
        only_in_b=tuple(sorted(second.entries.keys() - set(names.values()), key=_in_order)),
    )


def _compare_all(pairs: Sequence[tuple[Stored, Stored]]) -> Iterator[TensorDiff]:
    """Compare bytes ahead, in threads, and measure what differs."""
    with in_threads(_same, pairs) as compared:
        for (a, b), same in zip(pairs, compared, strict=True):
            found = TensorDiff(a.entry.name, a.entry.shape, a.entry.dtype, changed=False) if same else measure(a, b)
            yield found if b.entry.name == a.entry.name else replace(found, name_in_b=b.entry.name)


def _same(a: Stored, b: Stored) -> bool:
    return a.entry.dtype == b.entry.dtype and same_bytes(a, b)


def _same_tensors(first: Checkpoint, second: Checkpoint) -> dict[str, str]:
    """Name in `first` -> name in `second` of the same tensor: of that name, or loaded into the same parameter."""
    names = {name: name for name in first.entries.keys() & second.entries.keys()}
    left_a, left_b = first.entries.keys() - names, second.entries.keys() - names
    if left_a and left_b:  # else there is nothing to find
        parameters_a, parameters_b = _parameters(first, left_a), _parameters(second, left_b)
        names |= {parameters_a[each]: parameters_b[each] for each in parameters_a.keys() & parameters_b.keys()}
    return names


def _parameters(checkpoint: Checkpoint, names: Collection[str]) -> dict[str, str]:
    """Parameter -> name on disk, for `names`; one that no parameter is loaded from stands for itself."""
    from chip.model.tensor_names import key_map  # brings transformers

    try:
        known = {name: parameter for parameter, name in key_map(checkpoint).items()}
    except InputError:  # a model that transformers has no code for: only its names can be compared
        known = {}
    return {known.get(name, name): name for name in names}


def _in_order(name: str) -> list[str | int]:
    """Sorts by name, and numbers in it by their size."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]
