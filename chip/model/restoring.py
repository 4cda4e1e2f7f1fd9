"""A model that may be changed for a while."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from chip.model.loading import VLM


@contextmanager
def restoring(vlm: VLM, names: Iterable[str] | None = None) -> Iterator[None]:
    """Afterwards these parameters, by default all, are as before, bit for bit, also after an error."""
    names = [name for name, _ in vlm.model.named_parameters()] if names is None else names
    restore = vlm.weights.snapshot(names)
    try:
        yield
    finally:
        restore()


@contextmanager
def holding(vlm: VLM, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Parameters have these values, in their own dtypes, for a while."""
    with restoring(vlm, values):
        for name, value in values.items():
            vlm.set_parameter(name, value)
        yield
