"""A model that may be changed for a while."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from torch import Tensor

from chip.model.loading import VLM


def restoring(vlm: VLM, names: Iterable[str] | None = None) -> AbstractContextManager[None]:
    """Afterwards these parameters, by default all, are as before, bit for bit, also after an error."""
    return vlm.weights.restoring([name for name, _ in vlm.model.named_parameters()] if names is None else names)


@contextmanager
def holding(vlm: VLM, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Parameters have these values, in their own dtypes, for a while."""
    with restoring(vlm, values):
        for name, value in values.items():
            vlm.set_parameter(name, value)
        yield
