"""Weights that are read from the checkpoint when their layer's turn comes, and let go when that of the next one comes.

Whoever runs the model notices nothing of it. It pays to let all batches pass one layer before any passes the next:
else a layer is read once a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import wraps
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from chip.checkpoint.layout import Checkpoint
from chip.model.forward.activation_store import in_file
from chip.model.load_plan import Origin


@dataclass(frozen=True, eq=False)
class Unit:
    """What is read and let go together: a layer, or the head."""

    module: str
    """Its name; its parameters are there while it runs, and until another unit runs."""
    origins: tuple[Origin, ...]
    """What its parameters are made of."""


class WeightStream:
    """The weights of a model of which only one unit is in memory at a time, and one that is being read ahead.

    What belongs to no unit is always there. New values take the place of those on the disk; they lie in a file without
    a name.
    """

    streamed = True

    def __init__(
        self,
        model: Any,
        checkpoint: Checkpoint,
        units: Sequence[Unit],
        embeddings: Mapping[str, Origin],
        ties: Mapping[str, str],
        device: torch.device,
    ) -> None:
        """
        Args:
            model: the parameters of the units and embeddings are on the meta device, all others on `device`.
            units: in the order in which they run.
            embeddings: names of modules of which only the rows that are looked up are read, and their tables' origins.
            ties: parameter -> the parameter of a unit or an embedding that it is another name of.
        """
        self._model, self._checkpoint, self._ties, self._device = model, checkpoint, ties, device
        origins = (*embeddings.values(), *(origin for unit in units for origin in unit.origins))
        self._origins = {name: origin for origin in origins for name in origin.parameters}
        self._meta = {name: model.get_parameter(name) for name in self._origins}
        self._values: dict[str, Tensor] = {}
        """New values of parameters."""
        self.units = tuple(units)
        """In the order in which they run."""
        self.before_reading: Callable[[Unit], None] | None = None
        """Called when a unit is wanted that is not there; others may use the model until it returns."""
        self._present: Unit | None = None
        self._next: dict[Unit | None, Unit] = dict(pairwise(units))
        """What ran after what when it last ran."""
        self._coming: tuple[Unit, Future[dict[str, Tensor]]] | None = None
        self._reader = ThreadPoolExecutor(1, "chip-weights")
        self.bytes_read = 0
        for unit in units:
            _before(model.get_submodule(unit.module), lambda unit=unit: self._enter(unit))  # type: ignore[misc]
        for name in embeddings:
            self._look_up(name)

    @property
    def device(self) -> torch.device:
        return self._device

    def place_of(self, name: str) -> torch.device:
        return self._device

    def parameter(self, name: str) -> Tensor:
        """Where its unit is not there, it is read alone."""
        parameter: Tensor = self._model.get_parameter(name)
        if not parameter.is_meta:
            return parameter
        name = self._ties.get(name, name)
        origin = self._origins[name]
        value = self._values.get(name)
        if value is None:
            value = self._made(origin, self._read([origin]))[name]
        return self._on_device(name, value)

    def set_parameter(self, name: str, value: Tensor) -> Tensor:
        """`value` itself is kept: it must not be written to any more."""
        parameter: Tensor = self._model.get_parameter(name)
        if not parameter.is_meta:
            parameter.copy_(value)
        name = self._ties.get(name, name)
        if name not in self._origins:
            return parameter.detach()
        self._values[name] = value.detach()
        return self._values[name]

    def hold(self, value: Tensor) -> Tensor:
        return in_file(value.detach().cpu())

    def snapshot(self, names: Iterable[str]) -> Callable[[], None]:
        always_there = [name for name in names if self._ties.get(name, name) not in self._origins]
        originals = {name: self.parameter(name).detach().to("cpu", copy=True) for name in always_there}
        values = dict(self._values)

        def restore() -> None:
            for name, value in originals.items():
                self.set_parameter(name, value)
            if len(self._values) != len(values) or any(self._values[name] is not v for name, v in values.items()):
                self._values, self._coming = values, None
                self._leave()

        return restore

    def _enter(self, unit: Unit) -> None:
        """Have the unit's parameters there, and start reading what ran after it the last time."""
        if self._present is unit:
            return
        if self.before_reading is not None:
            self.before_reading(unit)
            if self._present is unit:  # another run has had it read meanwhile
                return
        tensors = self._awaited(unit)
        if self._present is not None:
            self._next[self._present] = unit
        self._leave()
        for origin in unit.origins:
            made = self._made(origin, tensors)
            for name in origin.parameters:
                self._put(name, nn.Parameter(self._on_device(name, made[name]), requires_grad=False))
        self._present = unit
        if (coming := self._next.get(unit)) is not None:
            self._coming = coming, self._reader.submit(self._read, coming.origins)

    def _awaited(self, unit: Unit) -> dict[str, Tensor]:
        """The unit's tensors on disk: those that were read ahead, if it is these."""
        if self._coming is None:
            return self._read(unit.origins)
        (expected, future), self._coming = self._coming, None
        if expected is unit:
            return future.result()
        future.cancel()
        return self._read(unit.origins)

    def _leave(self) -> None:
        """Let the unit go that is there."""
        if self._present is not None:
            for origin in self._present.origins:
                for name in origin.parameters:
                    self._put(name, self._meta[name])
            self._present = None

    def _read(self, origins: Iterable[Origin]) -> dict[str, Tensor]:
        """By name on disk, as stored: all that goes into parameters without a new value. Not what an adapter is merged
        into: PEFT does not do that in a thread beside others.

        Raises:
            InputError: a file is gone, or has become shorter.
        """
        names = [name for origin in origins if not self._values.keys() >= {*origin.parameters} for name in origin.names]
        tensors = {name: self._checkpoint.read(name) for name in names if name not in self._checkpoint.merged}
        self.bytes_read += sum(tensor.nbytes for tensor in tensors.values())
        return tensors

    def _made(self, origin: Origin, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The parameters of an origin; its tensors are taken out of `tensors`, or merged now."""
        new = {name: self._values[name] for name in origin.parameters if name in self._values}
        if len(new) == len(origin.parameters):
            return new
        dtype = self._meta[origin.parameters[0]].dtype
        stored = (tensors.pop(name) if name in tensors else self._checkpoint.read(name) for name in origin.names)
        made = origin.make(self._model, [tensor.to(dtype) for tensor in stored])
        return made | new

    def _on_device(self, name: str, value: Tensor) -> Tensor:
        return value.to(self._device, self._meta[name].dtype)

    def _put(self, name: str, parameter: nn.Parameter) -> None:
        """Make this the parameter of the name, and of all that are tied to it."""
        for each in (name, *(target for target, source in self._ties.items() if source == name)):
            module, _, own = each.rpartition(".")
            setattr(self._model.get_submodule(module), own, parameter)

    def _look_up(self, name: str) -> None:
        """Have an embedding read no more than the rows it is asked for."""
        module = self._model.get_submodule(name)
        forward, weight = module.forward, f"{name}.weight"

        @wraps(forward)
        def look_up(ids: Tensor, *args: Any, **kwargs: Any) -> Any:
            if not module.weight.is_meta:
                return forward(ids, *args, **kwargs)
            rows, places = torch.unique(ids, return_inverse=True)
            table, padding = module.weight, module.padding_idx
            module.weight = nn.Parameter(self._rows(weight, rows.tolist()), requires_grad=False)
            module.padding_idx = None  # matters for gradients alone, and may lie beyond these rows
            try:
                return forward(places, *args, **kwargs)
            finally:
                module.weight, module.padding_idx = table, padding

        module.forward = look_up

    def _rows(self, weight: str, rows: Sequence[int]) -> Tensor:
        """(rows, d) of an embedding's table."""
        name = self._ties.get(weight, weight)
        if name in self._values:
            return self._on_device(name, self._values[name][rows])
        values = self._checkpoint.read_rows(self._origins[name].names[0], rows)
        self.bytes_read += values.nbytes
        return self._on_device(name, values)


def _before(module: nn.Module, enter: Callable[[], None]) -> None:
    """`enter` is called whenever the module computes; not where something else stands in for its `forward`."""
    forward = module.forward

    @wraps(forward)
    def entered(*args: Any, **kwargs: Any) -> Any:
        enter()
        return forward(*args, **kwargs)

    module.forward = entered
