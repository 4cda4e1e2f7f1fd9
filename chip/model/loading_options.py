"""Keyword arguments that `edit`, `evaluate`, `inspect` and `reproduce` share: how a model is loaded and run.

A function takes them as `**options: Unpack[LoadingOptions]`: flat for who calls it, and listed here alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypedDict

from chip.model.offload import DeviceMap, MaxMemory


class LoadingOptions(TypedDict, total=False):
    """Keyword arguments that say how a checkpoint is loaded. What is left out is as if it were None."""

    adapter: Path | str | None
    """Folder of a LoRA adapter to merge into the checkpoint first; PEFT does that, in fp32."""
    base: Path | str | None
    """Where the checkpoint is an adapter alone: its base, by default the one that its `adapter_config.json` names."""
    device: str | None
    """`cpu`, `cuda`, `cuda:1` or `mps`; by default the best there is."""
    device_map: DeviceMap | None
    """For a model larger than a device: `auto`, or as in transformers. What does not fit lies on the host, then on the
    disk."""
    max_memory: MaxMemory | None
    """What a device map may take of each device and of the host; by default what is free."""
    stream: bool | None
    """Whether layers are read from the disk one after the other; by default where the model does not fit into memory.
    Generated answers and some attacks read them anew for each batch and token."""


class RunOptions(LoadingOptions, total=False):
    """Those of `LoadingOptions`, and how records go through the model."""

    batch_size: int | None
    """Records per forward pass; by default as many as make it faster and fit. It changes the time, and the result by
    rounding alone; where it is given, a run on the same machine gives the same result."""


def check_keywords(function: str, kind: type[Any], options: Mapping[str, object]) -> None:
    """Raise `TypeError`, as Python does for a keyword of its own, where one of `options` is none of `kind`'s."""
    known = kind.__optional_keys__
    for name in options:
        if name not in known:
            close = get_close_matches(name, known, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}{hint}")
