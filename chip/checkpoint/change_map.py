"""Where in a model its tensors changed: layers by kinds of module, from the tensors' names alone."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from chip.checkpoint.tensor_diff import TensorDiff, ratio

Key = TypeVar("Key")

SHADES = 7
"""Steps of a heat map's color."""

_LEAST = 1e-12  # relative: below what any dtype rounds to

# The order in which a layer uses its matrices; families write the names in full or in part.
_ORDER = (
    *("qkv", "q_proj", "k_proj", "v_proj", "query", "key", "value", "o_proj", "out_proj", "proj"),
    *("gate", "gate_proj", "up_proj", "gate_up_proj", "down_proj", "fc1", "fc2", "linear_fc1", "linear_fc2"),
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor stands, by its name `<group>.<layer>.<kind>.weight`."""

    group: str
    """What stands before the layer's number; empty outside the layers."""
    layer: int | None
    kind: str
    """What stands after it, less `.weight` or `.bias`; the numbers of experts and other inner lists become `*`."""


@dataclass(frozen=True, slots=True)
class Sum:
    """Tensors taken together."""

    tensors: int
    changed: int
    relative_change: float
    """√Σ‖b − a‖² / √Σ‖a‖² (Frobenius) over those that changed: what did not is not measured."""

    @classmethod
    def of(cls, tensors: Iterable[TensorDiff]) -> Sum:
        all_of_them = list(tensors)
        changed = [tensor for tensor in all_of_them if tensor.changed]
        change = math.hypot(*(tensor.change for tensor in changed))
        return cls(len(all_of_them), len(changed), ratio(change, math.hypot(*(tensor.norm for tensor in changed))))


@dataclass(frozen=True)
class Grid:
    """One stack of layers in which something changed: the text model's, the vision tower's, ..."""

    group: str
    layers: tuple[int, ...]
    """All there are, ascending."""
    kinds: tuple[str, ...]
    """Those with a matrix or a change; norms that stayed as they are would only take room."""
    cells: Mapping[tuple[int, str], Sum]
    """Layer and kind -> sum; none where a layer lacks the kind."""
    by_layer: Mapping[int, Sum]
    by_kind: Mapping[str, Sum]
    total: Sum

    @property
    def title(self) -> str:
        """In plain words, where the group's name has a usual part."""
        parts = self.group.split(".")
        if any(word in part for part in parts for word in ("projector", "connector", "merger", "mlp1")):
            return "connector"
        if any(part.startswith("vis") for part in parts):
            return "vision tower"
        return "text model" if "language_model" in parts or self.group == "model.layers" else self.group

    @property
    def labels(self) -> dict[str, str]:
        """Kind -> the shortest end of it that no other kind has."""
        return shortest_ends(self.kinds)

    def to_json(self) -> dict[str, Any]:
        return {
            "group": self.group,
            "layers": [{"layer": layer, **sum_to_json(total)} for layer, total in self.by_layer.items()],
            "kinds": [{"kind": kind, **sum_to_json(total)} for kind, total in self.by_kind.items()],
        }


@dataclass(frozen=True)
class Scale:
    """Relative change to shade, by the logarithm: from 1 (little) to `SHADES` (much)."""

    low: float
    high: float

    @classmethod
    def over(cls, changes: Iterable[float]) -> Scale:
        """A scale for `changes` that spans one factor of ten at least, so that small differences stay small in it,
        and three at most, so that one tiny change does not take the colors from all others."""
        shown = [change for change in changes if _LEAST < change < math.inf] or [1.0]
        high = max(shown)
        return cls(max(high / 1000, min(*shown, high / 10)), high)

    def shade(self, change: float) -> int:
        if change <= self.low:
            return 1
        if change >= self.high:
            return SHADES
        return 1 + min(SHADES - 1, int(SHADES * math.log(change / self.low) / math.log(self.high / self.low)))


@dataclass(frozen=True)
class ChangeMap:
    """The grids in which something changed, and what changed outside of them."""

    grids: tuple[Grid, ...]
    outside: Mapping[str, Sum]
    """Name less `.weight` or `.bias` -> sum: embeddings, connector, head."""
    scale: Scale = field(init=False)
    """One for all, so that colors compare."""

    def __post_init__(self) -> None:
        sums = [cell for grid in self.grids for cell in grid.cells.values()]
        object.__setattr__(self, "scale", Scale.over(cell.relative_change for cell in (*sums, *self.outside.values())))


def place_of(name: str) -> Place:
    """The layer is the first part that is a number and has something before and behind it."""
    parts = name.split(".")
    for i, part in enumerate(parts[:-1]):
        if i and _is_number(part):
            inner = ["*" if _is_number(name) else name for name in parts[i + 1 :]]
            return Place(".".join(parts[:i]), int(part), _without_ending(inner))
    return Place("", None, _without_ending(parts))


def change_map(tensors: Iterable[TensorDiff]) -> ChangeMap:
    """Group the tensors of a comparison by where they stand."""
    groups: defaultdict[str, list[tuple[Place, TensorDiff]]] = defaultdict(list)
    for tensor in tensors:
        place = place_of(tensor.name)
        groups[place.group].append((place, tensor))
    outside = _sums((place.kind, tensor) for place, tensor in groups.pop("", ()))
    grids = [_grid(group, members) for group, members in sorted(groups.items())]
    return ChangeMap(
        tuple(grid for grid in grids if grid.total.changed),
        {name: total for name, total in outside.items() if total.changed},
    )


def _grid(group: str, members: Sequence[tuple[Place, TensorDiff]]) -> Grid:
    shown = {place.kind for place, tensor in members if len(tensor.shape) > 1 or tensor.changed}
    kinds = tuple(sorted(shown, key=_in_use))
    placed = [(place.layer or 0, place.kind, tensor) for place, tensor in members]
    by_layer = _sums((layer, tensor) for layer, _, tensor in placed)
    by_kind = _sums((kind, tensor) for _, kind, tensor in placed if kind in shown)
    return Grid(
        group,
        tuple(sorted(by_layer)),
        kinds,
        _sums(((layer, kind), tensor) for layer, kind, tensor in placed if kind in shown),
        {layer: by_layer[layer] for layer in sorted(by_layer)},
        {kind: by_kind[kind] for kind in kinds},
        Sum.of(tensor for _, _, tensor in placed),
    )


def _sums(keyed: Iterable[tuple[Key, TensorDiff]]) -> dict[Key, Sum]:
    members: defaultdict[Key, list[TensorDiff]] = defaultdict(list)
    for key, tensor in keyed:
        members[key].append(tensor)
    return {key: Sum.of(tensors) for key, tensors in members.items()}


def _in_use(kind: str) -> tuple[bool, int, str]:
    """Attention first, and its matrices and the others' as a layer uses them."""
    last = kind.rpartition(".")[2]
    return "attn" not in kind and "attention" not in kind, _ORDER.index(last) if last in _ORDER else -1, kind


def _without_ending(parts: Sequence[str]) -> str:
    whole = len(parts) > 1 and parts[-1] in ("weight", "bias")
    return ".".join(parts[:-1] if whole else parts)


def _is_number(part: str) -> bool:
    return part.isascii() and part.isdigit()


def shortest_ends(names: Sequence[str]) -> dict[str, str]:
    """Name -> the shortest end of it, in whole parts, that no other name has; without `_proj` where that is clear."""
    ends = dict(zip(names, (name.rpartition(".")[2] for name in names), strict=True))
    for length in range(2, 2 + max((name.count(".") for name in names), default=0)):
        double = _repeated(ends.values())
        ends = {name: ".".join(name.split(".")[-length:]) if end in double else end for name, end in ends.items()}
    short = {name: end.removesuffix("_proj") for name, end in ends.items()}
    return ends if _repeated(short.values()) else short


def _repeated(values: Iterable[str]) -> set[str]:
    return {value for value, count in Counter(values).items() if count > 1}


def sum_to_json(total: Sum) -> dict[str, Any]:
    """JSON lacks infinity: None."""
    return {
        "tensors": total.tensors,
        "changed": total.changed,
        "relative_change": total.relative_change if math.isfinite(total.relative_change) else None,
    }
