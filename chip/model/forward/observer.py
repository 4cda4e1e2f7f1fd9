"""What a stage's target modules show of a batch, token by token, for their statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from chip.data.record import Record
from chip.distributed import DistributedContext
from chip.errors import InputError
from chip.model.batching.batch import Batch
from chip.model.experts import block_output
from chip.model.families import family_of
from chip.model.forward.runner import Hook
from chip.model.forward.trace import trace
from chip.model.loading import VLM
from chip.model.stages import Stage
from chip.model.target_modules import Component, TargetModule
from chip.model.tokens import Statistics, TokenRole, Tokens

S = TypeVar("S", bound=Statistics)
See = Callable[..., None]
"""Takes what goes into a module, and what comes out of it where that is needed."""


class StageObserver(Generic[S]):
    """Shows a stage's tokens to the statistics of its target modules."""

    def __init__(
        self,
        vlm: VLM,
        records: Sequence[Record],
        stage: Stage,
        create: Callable[[TargetModule], S],
        needs_outputs: bool,
        check_finite: bool = True,
    ) -> None:
        """
        Args:
            create: statistics of a target module, of no tokens yet.
            needs_outputs: whether they are shown outputs; without, a pass ends at the first module that is reached.
            check_finite: whether an activation that is NaN or infinite is refused.
        """
        self._vlm, self._records, self._stage, self._needs_outputs = vlm, records, stage, needs_outputs
        self._check_finite = check_finite
        self.statistics = {module: create(module) for module in stage.target_modules}
        """Of this process."""
        self._times = dict.fromkeys(stage.target_modules, 0)
        """How many batches have reached each module."""
        self._with_image = 0
        """How many batches had an image."""

    def hooks(self, batch: Batch, original_inputs: Tensor | None = None) -> list[Hook]:
        """For one run of the batch.

        Args:
            original_inputs: what goes into the stage's module in the model as it is, where this run's is another.
        """
        self._with_image += bool(batch.vision.any())
        sees = {module: self._see(module, batch, original_inputs) for module in self.statistics}
        return [hook for module, see in sees.items() for hook in self._hooks_at(module, see, batch)]

    def _hooks_at(self, module: TargetModule, see: See, batch: Batch) -> list[Hook]:
        if module.component is Component.CONNECTOR:
            return [self._whole(module, see, batch)]
        if module.output_maps:
            shape = (*batch.roles.shape, -1)

            def see_output(_: object, output: Any) -> None:
                y = block_output(output).view(shape)
                see(y, y if self._needs_outputs else None)

            return [trace(self._vlm.model, module, output=see_output, stop=not self._needs_outputs)]
        if self._needs_outputs:
            return self._output_hooks(module, see)
        return [trace(self._vlm.model, module, input=see, stop=True)]

    @contextmanager
    def _whole(self, module: TargetModule, see: See, batch: Batch) -> Iterator[None]:
        """Shows what all calls of the module in one run are given: some connectors are called image by image."""
        calls: list[tuple[Tensor, ...]] = []

        def keep(*values: Tensor) -> None:
            calls.append(tuple(value.flatten(0, -2) for value in values))

        seen = (None, keep) if self._needs_outputs else (keep, None)
        with trace(self._vlm.model, module, input=seen[0], output=seen[1]):
            yield
        if calls:
            values = image_rows(calls, batch, family_of(self._vlm.model).padded_images)
            see(*values)

    def _output_hooks(self, module: TargetModule, see: See) -> list[Hook]:
        """Show what goes into the module with what comes out of it, or of its layer where the stage wants that."""
        if not self._stage.layer_outputs or module != self._stage.target_modules[-1]:
            return [trace(self._vlm.model, module, output=see)]
        assert module.layer is not None
        held: list[Tensor] = []
        leaving = trace(self._vlm.layers[module.layer], output=lambda _, y: see(held.pop(), y))
        return [trace(self._vlm.model, module, input=held.append), leaving]

    def merged(self, distributed: DistributedContext) -> dict[TargetModule, S]:
        """The statistics of all processes.

        Raises:
            InputError: no batch has reached one of the modules.
        """
        counts = torch.tensor([float(self._with_image), *self._times.values()], device=self._vlm.device)
        distributed.all_reduce_(counts)
        with_image, *times = counts.tolist()
        for module, count in zip(self._times, times, strict=True):
            if count == 0 and (module.component is Component.TEXT or with_image > 0):
                raise InputError(f"{module.name}: no activation passes through it; choose other --target-modules")
        for statistics in self.statistics.values():
            statistics.merge(distributed)
        return self.statistics

    def _see(self, module: TargetModule, batch: Batch, original_inputs: Tensor | None) -> See:
        def see(x: Tensor, y: Tensor | None = None) -> None:
            place = self._vlm.place_of(module.weight_name)  # a device map has layers elsewhere than the batch
            outputs = None if y is None else y.to(place)
            tokens = _tokens(module, x.to(place), outputs, batch.without_inputs().to(place), original_inputs)
            if self._check_finite:
                self._refuse_not_finite(module.name, tokens)
            self.statistics[module].update(tokens)
            self._times[module] += 1

        return see

    def _refuse_not_finite(self, name: str, tokens: Tokens) -> None:
        activations = [tokens.inputs] if tokens.outputs is None else [tokens.inputs, tokens.outputs]
        if all(torch.isfinite(values.sum()) for values in activations):  # far cheaper than to look at each value
            return
        bad = ~torch.stack([values.isfinite().all(1) for values in activations]).all(0)
        if bad.any():
            segment = tokens.segments[bad][0]
            record = self._records[int(tokens.owners.records[tokens.owners.segments == segment][0])]
            raise InputError(
                f"{name}: an activation is NaN or infinite for the record at {record.where}; "
                "check the checkpoint's weights, or compute in a wider dtype"
            )


def _tokens(module: TargetModule, x: Tensor, y: Tensor | None, batch: Batch, original: Tensor | None) -> Tokens:
    """What went into and came out of the module, as the batch's tokens. All but `original` on one device."""
    if module.component is Component.CONNECTOR:
        return connector_tokens(module.name, x, y, batch, original)
    return text_tokens(x, y, batch, original)


def image_rows(calls: Sequence[tuple[Tensor, ...]], batch: Batch, padded: bool) -> tuple[Tensor, ...]:
    """Of what a module in a connector is given in one run, what belongs to images.

    Args:
        calls: of each call its input (n, d_in), and where needed its output (n, d_out).
        padded: each image's tokens are filled up at their end.

    Returns:
        The same of all calls together; of the one that has as many tokens as there are of images, where all together
        have more: Gemma 3n sends text through its connector too.
    """
    vision = int(batch.vision.sum())
    own = [call for call in calls if len(call[0]) == vision]
    several = len(calls) > 1 and len(own) == 1
    values = own[0] if several else tuple(torch.cat(each) for each in zip(*calls, strict=True))
    if padded and len(values[0]) != vision:
        lengths = batch.image_lengths()
        if len(values[0]) % len(lengths) == 0:
            places = torch.arange(len(values[0]) // len(lengths), device=lengths.device)
            keep = (places < lengths[:, None]).flatten()
            return tuple(each[keep.to(each.device)] for each in values)
    return values


def text_tokens(x: Tensor, y: Tensor | None, batch: Batch, original: Tensor | None = None) -> Tokens:
    """The tokens of a target module in the text model, without padding.

    Args:
        x: (B, T, d_in).
        y: (B, T, d_out).
        original: as x, in the model before it was edited.
    """
    real = batch.real
    return Tokens(
        x[real],
        None if y is None else y[real],
        batch.ids[real],
        batch.roles[real],
        batch.segments[real],
        batch.owners,
        batch.starts[real],
        None if original is None else original.to(x.device)[real],
    )


def connector_tokens(name: str, x: Tensor, y: Tensor | None, batch: Batch, original: Tensor | None = None) -> Tokens:
    """The tokens of a target module in the connector: images in the order of rows, and of their places there.

    Args:
        x: (..., d_in).
        y: (..., d_out).
        original: as x, in the model before it was edited.

    Raises:
        InputError: how many tokens belong to which image cannot be told.
    """
    x, y = x.flatten(0, -2), None if y is None else y.flatten(0, -2)
    original = None if original is None else original.to(x.device).view_as(x)
    vision = batch.vision
    if len(x) == int(vision.sum()):
        ids, segments = batch.ids[vision], batch.segments[vision]
    else:  # pooled or cut behind this module
        shares = _shares(name, len(x), batch)
        ids = torch.cat([torch.arange(share, device=x.device) for share in shares.tolist()])
        lengths = batch.image_lengths()
        segments = batch.segments[vision][lengths.cumsum(0) - lengths].repeat_interleave(shares)
    roles = torch.full((len(x),), TokenRole.IMAGE, device=x.device)
    starts = torch.zeros_like(ids, dtype=torch.bool)
    return Tokens(x, y, ids, roles, segments, batch.owners, starts, original)


def _shares(name: str, count: int, batch: Batch) -> Tensor:
    """(images,) int64: how many of `count` tokens are of each image: in proportion to those it becomes; else as many
    of each, where all have one length.

    Raises:
        InputError: it is neither.
    """
    lengths = batch.image_lengths()
    number, total = len(lengths), int(lengths.sum())
    if number and count % total == 0:
        return lengths * (count // total)
    if number == 0 or count % number or int(lengths.min()) != int(lengths.max()):
        several = bool((batch.images[batch.vision] > 0).any())  # images of one record
        hint = "scale the images of a record to one size" if several else "use --batch-size 1"
        raise InputError(f"{name}: {count} image tokens cannot be told apart among {number} images; {hint}")
    return torch.full_like(lengths, count // number)
