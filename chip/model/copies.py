"""A copy of a model, through which records pass in its place."""

from __future__ import annotations

import warnings
from pathlib import Path

from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.plain import open_plain
from chip.errors import ChipWarning, InputError
from chip.model.offload import DeviceMap
from chip.model.skeleton import build_skeleton
from chip.progress import ProgressCallback, silent


def open_copy(
    folder: Path | str | None, source: Checkpoint, device_map: DeviceMap | None, progress: ProgressCallback = silent
) -> Checkpoint | None:
    """The checkpoint in a folder, to measure on in the place of `source`; that is said. None where no folder is given.

    That it holds the same model in other numbers nothing can tell: what is checked is that it could.

    Raises:
        InputError: there is a device map, which is for one model; it is of another architecture, or a parameter has
            another shape; or as `open_plain` does.
    """
    if folder is None:
        return None
    if device_map is not None:
        message = "a device map spreads one model, and this is a second one; leave one out, or stream both"
        raise InputError(message, argument="measure_on", value=folder)
    copy = open_plain(Path(folder), progress)
    ours, theirs = (build_skeleton(each.folder, len(each.entries)) for each in (source, copy))
    if type(ours) is not type(theirs):
        message = f"a {type(theirs).__name__}, and the model that is edited a {type(ours).__name__}; give a copy of it"
        raise InputError(message, argument="measure_on", value=folder)
    shapes, others = ({name: tuple(v.shape) for name, v in each.named_parameters()} for each in (ours, theirs))
    if differing := sorted(name for name, _ in shapes.items() ^ others.items()):
        message = f"no copy of the model that is edited: {differing[0]!r} has another shape; give one"
        raise InputError(message, argument="measure_on", value=folder)
    message = "statistics are measured on this copy; the weights that are edited and written are the checkpoint's"
    warnings.warn(f"{folder}: {message}", ChipWarning, stacklevel=3)
    return copy
