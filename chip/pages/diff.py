"""The page of `chip diff`: what differs, where it lies, what shape it has, and the receipt of who made it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from chip._version import __version__
from chip.checkpoint.change_map import SHADES, ChangeMap, Sum, place_of, shortest_ends
from chip.checkpoint.diff import CheckpointDiff
from chip.checkpoint.tensor_diff import DIRECTIONS, TensorDiff
from chip.pages import render
from chip.pages.plot import Plot, decay_plot
from chip.pages.words import count, listed

_MOST_LINES = 40  # in one plot: more are no longer lines
_MOST_NAMES = 200  # in a list of what is only in one


@dataclass(frozen=True)
class Spectra:
    """The singular values of all changes of one kind."""

    title: str
    group: str
    plot: Plot
    matrices: int
    drawn: int
    energy: tuple[tuple[int, float], ...]
    """Medians over the matrices."""
    effective_rank: float
    """Median."""


def diff_page(difference: CheckpointDiff, a: str, b: str, receipt: Mapping[str, Any] | None) -> str:
    """A whole HTML page, which asks for nothing from elsewhere and runs no script.

    Args:
        a, b: names of the folders; of a path only the last part is shown.
        receipt: what `receipt_in` found in `b`, of any form: what is missing in it is left out.
    """
    return render(
        "diff",
        a=Path(a).name or a,
        b=Path(b).name or b,
        difference=difference,
        sentences=list(_sentences(difference)),
        facts=list(_facts(difference)),
        map=difference.map,
        shades=range(1, SHADES + 1),
        spectra=list(_spectra(difference)),
        directions=DIRECTIONS,
        receipt=None if receipt is None else _receipt(receipt, difference),
        most_names=_MOST_NAMES,
        percent=percent,
        infinity=math.inf,
        shape=_shape,
        version=__version__,
    )


def percent(share: float) -> str:
    """Two digits that count: 1.2%, 0.034%, 87%, >1000%."""
    if share == math.inf:
        return "∞"
    value = 100 * share
    if value > 1000:
        return ">1000%"
    if value >= 9.95 or not value:
        return f"{value:.0f}%"
    if value < 0.001:
        return "<0.001%"
    return f"{value:.{max(0, 1 - math.floor(math.log10(value)))}f}%"


def _shape(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape)) or "scalar"


def _sentences(difference: CheckpointDiff) -> Iterator[str]:
    """The summary in plain words."""
    changed, compared = difference.changed, len(difference.tensors)
    if difference.equal:
        yield f"Nothing. Both hold the same {count(compared, 'tensor')}, bit for bit."
        return
    if changed:
        rest = compared - len(changed)
        same = f"; the other {rest:,} {'is' if rest == 1 else 'are'} the same, bit for bit" if rest else ""
        yield f"{len(changed):,} of {count(compared, 'tensor')} {'differs' if len(changed) == 1 else 'differ'}{same}."
        yield from _places(difference.map)
        largest = max(changed, key=lambda tensor: tensor.relative_change)
        yield f"The largest relative change is {percent(largest.relative_change)}, in {largest.name}."
    else:
        yield f"The {count(compared, 'tensor')} that both hold in the same shape are the same, bit for bit."
    if difference.shape_differs:
        yield f"{count(len(difference.shape_differs), 'tensor')} cannot be compared: the shapes differ."
    for side, names in (("A", difference.only_in_a), ("B", difference.only_in_b)):
        if names:
            yield f"{count(len(names), 'tensor')} {'is' if len(names) == 1 else 'are'} only in {side}."


def _places(changes: ChangeMap) -> Iterator[str]:
    for grid in changes.grids:
        layers = [layer for layer, found in grid.by_layer.items() if found.changed]
        kinds = [grid.labels[kind] for kind, found in grid.by_kind.items() if found.changed]
        where = "all layers" if len(layers) == len(grid.layers) else f"{_ranges(layers)} of {len(grid.layers)}"
        what = f"{listed(kinds) if len(kinds) <= 8 else f'{len(kinds)} kinds of site'} of {where}"
        if {*kinds} <= {"weight", "bias"}:  # a list of bare layers
            what = where
        yield f"In the {grid.title}: {what}, by {percent(grid.total.relative_change)} of their norm."
    if changes.outside:
        names = [*changes.outside]
        yield f"Outside the layers: {listed(names) if len(names) <= 4 else count(len(names), 'module')}."


def _ranges(numbers: Sequence[int]) -> str:
    """`layers 0, 3–5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    told = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)
    return f"{'layer' if len(numbers) == 1 else 'layers'} {told}"


def _facts(difference: CheckpointDiff) -> Iterator[tuple[str, str]]:
    """The few figures that stand on top: figure, what it is."""
    changed = difference.changed
    if not changed:
        return
    yield f"{len(changed):,}", f"of {count(len(difference.tensors), 'tensor')} differ"
    yield percent(Sum.of(changed).relative_change), "relative change of these"
    if ranks := [each.effective_rank for each in changed if each.effective_rank is not None]:
        shares = [dict(each.energy)[DIRECTIONS[1]] for each in changed if each.energy]
        yield f"{median(ranks):.1f}", "effective rank, median"
        yield percent(median(shares)), f"of a change in {DIRECTIONS[1]} directions, median"


def _spectra(difference: CheckpointDiff) -> Iterator[Spectra]:
    """One plot for each kind in each group; what stands outside the layers has one of its own each."""
    families: defaultdict[tuple[str, str], list[tuple[str, TensorDiff]]] = defaultdict(list)
    for tensor in difference.changed:
        if tensor.spectrum:
            place = place_of(tensor.name)
            title = "" if place.layer is None else f"layer {place.layer}"
            families[place.group, place.kind].append((title, tensor))
    titles = {grid.group: (grid.title, grid.labels, grid.kinds) for grid in difference.map.grids}
    order = [(grid.group, kind) for grid in difference.map.grids for kind in grid.kinds]
    order += [("", kind) for kind in difference.map.outside]
    lone = shortest_ends([*difference.map.outside])
    for group, kind in order:
        if members := families.get((group, kind)):
            title, labels, _ = titles.get(group, ("outside the layers", lone, ()))
            yield _family(labels[kind], title, members)


def _family(title: str, group: str, members: Sequence[tuple[str, TensorDiff]]) -> Spectra:
    largest = sorted(members, key=lambda member: -member[1].relative_change)[:_MOST_LINES]
    lines = [(label, tensor.spectrum) for label, tensor in largest]
    return Spectra(
        title,
        group,
        decay_plot(lines, DIRECTIONS),
        len(members),
        len(lines),
        tuple((k, median(dict(tensor.energy)[k] for _, tensor in members)) for k in DIRECTIONS),
        median(tensor.effective_rank or 0.0 for _, tensor in members),
    )


def _receipt(receipt: Mapping[str, Any], difference: CheckpointDiff) -> dict[str, Any]:
    """What the page shows of a receipt, as far as it is there and what it should be."""
    files = {name: file for name, file in _mapping(receipt, "files").items() if isinstance(file, dict)}
    said = {"label": "Label", "method": "Method", "seed": "Seed", "created": "Made", "chip": "chip"}
    facts = [(title, str(receipt[key])) for key, title in said.items() if receipt.get(key) is not None]
    earlier = list(_earlier(receipt))
    if earlier:
        facts.append(("Edits before this one", ", ".join(str(each.get("method", "unknown")) for each in earlier)))
    return {
        "facts": facts,
        "settings": list(_flat(_mapping(receipt, "settings"))),
        "read_back": list(_flat(_read_back(receipt))),
        "hashed": len(files),
        "changed_files": [
            (name, str(file.get("sha256", "")))
            for name, file in files.items()
            if name.endswith(".safetensors") and file.get("sha256") != file.get("source_sha256")
        ],
        "digest": str(receipt.get("digest") or ""),
        "agreement": _agreement([receipt, *earlier], difference) if _mapping(receipt, "tensors") else "",
    }


def _agreement(receipts: Iterable[Mapping[str, Any]], difference: CheckpointDiff) -> str:
    """Whether what differs is what the receipts say was changed."""
    told = {name for receipt in receipts for name in _mapping(receipt, "tensors")}
    found = {tensor.name_in_b or tensor.name for tensor in difference.changed}
    if found == told:
        return f"It names {count(len(told), 'changed tensor')}: those that differ from A, and no other."
    return (
        f"It names {count(len(told), 'changed tensor')}, of which {len(told & found):,} differ from A; "
        f"{count(len(found - told), 'tensor')} more {'differs' if len(found - told) == 1 else 'differ'}."
    )


def _earlier(receipt: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    while isinstance(previous := receipt.get("previous"), dict):
        yield previous
        receipt = previous


def _read_back(receipt: Mapping[str, Any]) -> dict[str, Any]:
    counts = ("files_read_back", "tensors_read_back", "untouched_bytes")
    return {**{key: receipt[key] for key in counts if key in receipt}, **_mapping(receipt, "read_back")}


def _mapping(receipt: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = receipt.get(key)
    return value if isinstance(value, dict) else {}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as lines: name, value."""
    for key, value in values.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, dict):
            yield from _flat(value, f"{name}, ")
        elif isinstance(value, list):
            yield name, ", ".join(map(_told, value))
        else:
            yield name, _told(value)


def _told(value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.6g}"
        case None:
            return "–"
    return str(value)
