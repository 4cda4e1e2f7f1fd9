"""An edit again, by its receipt: does it give the same weights?"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Unpack

import torch

from chip.checkpoint.adapter import ADAPTER_WEIGHTS, Adapter, holds_adapter
from chip.checkpoint.hub import checkpoint_folder, recorded_commit
from chip.checkpoint.layout import ADAPTER_CONFIG, Checkpoint
from chip.checkpoint.measure import measure
from chip.checkpoint.receipt import Receipt, read_receipt
from chip.checkpoint.weights import weight_files, weights_digest
from chip.data.readers import RecordSource
from chip.edit_options import Arguments
from chip.editing import edit
from chip.errors import ChipWarning, InputError, reason
from chip.general.collect import AUTO, NONE, Keep
from chip.methods import Method, make_method
from chip.model.adapters import merge_adapter, open_checkpoint
from chip.model.loading_options import LoadingOptions, check_keywords
from chip.progress import ProgressCallback, silent


@dataclass(frozen=True)
class Reproduction:
    """What came of an edit that was made again."""

    same: tuple[str, ...]
    """Names on disk of the changed tensors that are the same, bit for bit; of an edit that was written as an adapter as
    that makes them of the base, or files, where only its receipt is at hand."""
    differ: Mapping[str, float | None]
    """Name on disk of those that are not -> ‖W′ − V′‖ / ‖W′ − W‖ (Frobenius), of W′ what was written then and V′ now;
    None where what was written then is not at hand, or was no change."""
    relative_change: Mapping[str, tuple[float | None, float | None]]
    """Name of the same tensors -> ‖W′ − W‖ / ‖W‖ then and now; 0 where it did not change, None where unknown."""
    environment: Mapping[str, tuple[Any, Any]]
    """What it ran with, where that was something else then -> then and now."""
    same_general_data: bool | None
    """Whether the same general data was protected; None where there was none, then and now."""
    batch_size_given: bool
    """Without, batches are as large as the machine's speed makes them, and rounding follows."""

    @property
    def equal(self) -> bool:
        return not self.differ

    def to_json(self) -> dict[str, Any]:
        return {
            "equal": self.equal,
            "same": list(self.same),
            "differ": dict(self.differ),
            "relative_change": {name: list(pair) for name, pair in self.relative_change.items()},
            "environment": {name: list(pair) for name, pair in self.environment.items()},
            "same_general_data": self.same_general_data,
            "batch_size_given": self.batch_size_given,
        }


def reproduce(
    receipt: Path | str,
    source: Path | str,
    forget: Sequence[str],
    *,
    measure_on: Path | str | None = None,
    records: Path | str | RecordSource | None = None,
    keep: Keep | Sequence[Path | str] | None = None,
    scratch: Path | str | None = None,
    progress: ProgressCallback = silent,
    **options: Unpack[LoadingOptions],
) -> Reproduction:
    """Make the edit of a receipt again, with its settings, and compare the weights. What it writes is removed again.

    Args:
        receipt: folder that `chip edit` has written; or its receipt alone, and then only sizes can be compared of
            tensors that differ.
        source: folder that was edited; or of the adapter alone that was, and then `base` as in `edit`. Or its
            repository on the Hub, and by default the commit that the receipt has.
        measure_on: folder of the copy that its statistics were measured on.
        forget: ids or paths of the nodes, which no receipt holds.
        records: the records, which it does not hold either; by default those beside the source.
        keep: where files were to be kept: the same again.
        scratch: folder for the copy that is made and removed; by default the system's for temporary files.
        options: see `LoadingOptions`: the adapter that was merged before the edit, and where the model runs.

    Raises:
        InputError: as `edit` does; the receipt is of chip 0.1.0, of an edit with a guard, or of another source; the
            folder is no longer what it says.
    """
    check_keywords("reproduce", LoadingOptions, options)
    then = read_receipt(Path(receipt))
    source = _recorded_folder(source, then, "source", options.pop("revision", None))
    if (adapter := options.get("adapter")) is not None:
        options["adapter"] = adapter = _recorded_folder(adapter, then, "adapter")
    if (base := options.get("base")) is not None:
        options["base"] = base = _recorded_folder(base, then, "base")
    _check_adapter(source if adapter is None and holds_adapter(source) else adapter, then)
    asked = _arguments(then, receipt)
    original = _open_source(source, adapter, base, then, progress)
    measure_on = None if measure_on is None else checkpoint_folder(measure_on, argument="measure_on")
    _check_copy(measure_on, then)
    method, kept = _method(then, asked), _keep(asked, keep)
    with TemporaryDirectory(prefix="chip-", dir=scratch) as folder:
        again = Path(folder) / "again"
        edit(
            source,
            forget,
            records=records,
            save="merged" if then.base is None else "adapter",
            measure_on=measure_on,
            rank=asked.rank,
            keep=kept,
            out=again,
            method=method,
            target_modules=asked.target_modules,
            layers=asked.layers,
            batch_size=asked.batch_size,
            all_records=asked.all_records,
            accept=True,
            force=True,
            progress=progress,
            **options,
        )
        result = Path(receipt) if Path(receipt).is_dir() else None
        now = read_receipt(again)
        if then.base is None:
            return _compare(then, now, Checkpoint.open(again), result)
        return _compare_files(then, now) if result is None else _compare_adapters(then, now, original, again, result)


def _recorded_folder(model: Path | str, then: Receipt, argument: str, revision: str | None = None) -> Path:
    """The folder; of a repository on the Hub by default at the commit that the receipt has."""
    return checkpoint_folder(model, revision or recorded_commit(then.hub, model), argument=argument)


def _open_source(
    source: Path | str, adapter: Path | str | None, base: Path | str | None, then: Receipt, progress: ProgressCallback
) -> Checkpoint:
    """What was edited, values in fp32 where that was written as an adapter.

    Raises:
        InputError: something else was.
    """
    opened = open_checkpoint(source, adapter, base, rounded=then.base is None, progress=progress)
    if weights_digest(opened, progress) != then.source_digest:
        message = "not the weights that were edited; give the folder that the receipt's was made from"
        raise InputError(message, argument="source", value=source)
    return opened


def _check_adapter(adapter: Path | str | None, then: Receipt) -> None:
    given = None if adapter is None else Adapter.open(Path(adapter)).digests()
    if given == then.adapter:
        return
    if given is None:
        raise InputError("the edit merged an adapter first; give its folder", argument="adapter")
    message = "not the one that was merged before the edit" if then.adapter else "the edit merged none; leave it out"
    raise InputError(message, argument="adapter", value=adapter)


def _check_copy(measure_on: Path | str | None, then: Receipt) -> None:
    given = None if measure_on is None else weight_files(Checkpoint.open(Path(measure_on), quantized=True))
    if given != then.measured_on:
        message = "not what the edit's statistics were measured on; give that copy, or leave it out if it was none"
        raise InputError(message, argument="measure_on", value=measure_on)


def _arguments(then: Receipt, place: Path | str) -> Arguments:
    if then.arguments is None:
        message = "written by chip 0.1.0, which did not record all it was asked for"
        raise InputError(message, argument="receipt", value=place)
    try:
        asked = Arguments.from_json(then.arguments)
    except TypeError as error:
        raise InputError(
            f"asks for what no edit was asked ({reason(error)})", argument="receipt", value=place
        ) from error
    if asked.guard:
        message = "of an edit with a guard, which it does not hold: that edit cannot be made again from it"
        raise InputError(message, argument="receipt", value=place)
    return asked


def _method(then: Receipt, asked: Arguments) -> Method:
    method = make_method(then.method, asked.settings)
    if method.version != then.version:
        message = f"method {method.name} is of version {method.version} here, and was of {then.version}"
        warnings.warn(f"{message}: the weights will differ", ChipWarning, stacklevel=3)
    return method


def _keep(asked: Arguments, given: Keep | Sequence[Path | str] | None) -> Keep:
    """What is to be kept: as it was, where that needs no files."""
    if given is not None:
        return Keep.of(given)
    if asked.keep_model or any(word not in (AUTO, NONE) for word in asked.keep):
        raise InputError("the edit was given files to keep by; give the same ones", argument="keep")
    return Keep(tuple(asked.keep), asked.keep_tokens)


def _compare(then: Receipt, now: Receipt, again: Checkpoint, result: Path | None) -> Reproduction:
    """
    Args:
        again: what was written now.
        result: the folder that was written then, where it is at hand.
    """
    written = None if result is None else Checkpoint.open(result)
    names = sorted(then.tensors.keys() | now.tensors.keys())
    same = tuple(name for name in names if _after(then, name) == _after(now, name))
    differ = [name for name in names if name not in same]
    norms = {} if then.sequence is None else then.sequence.norms
    change = {name: tensor.relative_change * norms.get(name, 0.0) for name, tensor in then.tensors.items()}
    return _reproduction(
        then,
        now,
        same,
        {name: None if written is None else _distance(written, again, name, change.get(name, 0.0)) for name in differ},
        {name: (_change(then, name), _change(now, name)) for name in differ},
    )


def _reproduction(
    then: Receipt,
    now: Receipt,
    same: Iterable[str],
    differ: Mapping[str, float | None],
    changes: Mapping[str, tuple[float | None, float | None]],
) -> Reproduction:
    environment = {**(then.environment or {}), "chip": then.chip}, {**(now.environment or {}), "chip": now.chip}
    pairs = {name: (environment[0].get(name), environment[1].get(name)) for name in environment[1]}
    other = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    general = None if then.general is None and now.general is None else then.general == now.general
    given = (then.arguments or {}).get("batch_size") is not None
    return Reproduction(tuple(same), differ, changes, other, general, given)


def _compare_files(then: Receipt, now: Receipt) -> Reproduction:
    """An edit that was written as an adapter, of which only the receipt is at hand."""
    hashes = {name: (then.files.get(name), now.files.get(name)) for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)}
    same = [name for name, (old, new) in hashes.items() if old and new and old.sha256 == new.sha256]
    differ = [name for name in hashes if name not in same]
    return _reproduction(then, now, same, dict.fromkeys(differ), dict.fromkeys(differ, (None, None)))


def _compare_adapters(then: Receipt, now: Receipt, source: Checkpoint, again: Path, result: Path) -> Reproduction:
    """An edit that was written as an adapter, by what both adapters make of the base, in fp32: factors may differ where
    their product does not.

    Args:
        source: what was edited.
        again, result: folders that were written now, and then.
    """
    adapters = Adapter.open(result), Adapter.open(again)
    if any(then.files[name].sha256 != digest for name, digest in adapters[0].digests().items() if name in then.files):
        raise InputError("not the files that its receipt lists any more", argument="receipt", value=result)
    base = replace(source, adapter=None, merged={})
    merged = [merge_adapter(base, adapter, rounded=False) for adapter in adapters]
    same: list[str] = []
    differ: dict[str, float | None] = {}
    changes: dict[str, tuple[float | None, float | None]] = {}
    for name in sorted({*merged[0].merged, *merged[1].merged}):
        old, new, before = (each.read(name).double() for each in (*merged, source))
        if torch.equal(old, new):
            same.append(name)
            continue
        change, size = float(torch.linalg.norm(old - before)), float(torch.linalg.norm(before))
        differ[name] = float(torch.linalg.norm(new - old)) / change if change else None
        norms = (change, float(torch.linalg.norm(new - before)))
        changes[name] = (norms[0] / size, norms[1] / size) if size else (None, None)
    return _reproduction(then, now, same, differ, changes)


def _after(receipt: Receipt, name: str) -> str | None:
    return receipt.tensors[name].after if name in receipt.tensors else None


def _change(receipt: Receipt, name: str) -> float:
    return receipt.tensors[name].relative_change if name in receipt.tensors else 0.0


def _distance(then: Checkpoint, now: Checkpoint, name: str, change: float) -> float | None:
    """‖W′ − V′‖ / ‖W′ − W‖, with ‖W′ − W‖ given; None where that is 0, or the folder is not what was written."""
    there = name in then.entries and then.entries[name].shape == now.entries[name].shape
    return measure(then.stored(name), now.stored(name), spectrum=False).change / change if there and change else None
