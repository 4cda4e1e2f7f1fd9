"""Where a model's weights are: in memory, or read from the checkpoint each time that their layer's turn comes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from chip.model.offload import input_device, place_of, read_parameter, write_parameter


class Weights(Protocol):
    """A model's parameters, by their names below the whole model."""

    streamed: bool
    """Whether they are read layer by layer: then all batches had better pass one layer before any passes the next."""

    @property
    def device(self) -> torch.device:
        """Where the model's inputs go."""

    def place_of(self, name: str) -> torch.device:
        """Where a parameter is computed with."""

    def parameter(self, name: str) -> Tensor:
        """A parameter's values, where they are computed with; not to be written to."""

    def set_parameter(self, name: str, value: Tensor) -> Tensor:
        """Give a parameter new values, in its own dtype; the tensor that holds them from now on, which may be `value`
        itself."""

    def hold(self, value: Tensor) -> Tensor:
        """A new value that is to last as long as the model, held where there is room for all of them."""

    def snapshot(self, names: Iterable[str]) -> Callable[[], None]:
        """These parameters as they are now: whoever calls it has them back, bit for bit."""


class ResidentWeights:
    """All in memory, or where accelerate has put them."""

    streamed = False

    def __init__(self, model: Any) -> None:
        self._model = model

    @property
    def device(self) -> torch.device:
        return input_device(self._model)

    def place_of(self, name: str) -> torch.device:
        return place_of(self._model, name)

    def parameter(self, name: str) -> Tensor:
        return read_parameter(self._model, name)

    def set_parameter(self, name: str, value: Tensor) -> Tensor:
        return write_parameter(self._model, name, value)

    def hold(self, value: Tensor) -> Tensor:
        return value

    def snapshot(self, names: Iterable[str]) -> Callable[[], None]:
        """A copy of them in the host's memory."""
        originals = {name: self.parameter(name).detach().to("cpu", copy=True) for name in names}

        def restore() -> None:
            for name, value in originals.items():
                self.set_parameter(name, value)

        return restore
