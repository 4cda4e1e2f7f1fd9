"""All records on their way through the model, one place at a time.

The hidden states of every batch are held where they have got to. So each layer can be run, looked at, edited and run
again without starting over, the vision tower is run once, and nothing behind the last layer asked for is ever computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from chip.data.record import Record
from chip.errors import InputError
from chip.model.batching.batch import Batch
from chip.model.batching.batches import Batches
from chip.model.forward.activation_store import has_room, put, take
from chip.model.forward.mid_layer import resumable, resumed, watching_inside
from chip.model.forward.tokens import connector_tokens, text_tokens
from chip.model.forward.trace import (
    Call,
    calls_of,
    ending_at,
    fed,
    keeping_apart,
    output_of,
    returning,
    skipped,
    stopping_behind,
    watching,
)
from chip.model.loading import VLM
from chip.model.restoring import holding
from chip.model.target_modules import Stage, TargetModule
from chip.model.tokens import Statistics, Tokens

S = TypeVar("S", bound=Statistics)


class Collector:
    """Runs `batches` through the model, up to one stage after the other, in the order of data.

    What goes into a stage's first layer is held for all batches when the stage is observed; sites before it must have
    their final weights by then. What is held is a cache: batches that turn out too large for the memory are cut
    smaller, and start over.
    """

    def __init__(
        self,
        vlm: VLM,
        batches: Batches,
        records: Sequence[Record],
        place: str | None = None,
        keep_connectors: bool = False,
    ) -> None:
        """
        Args:
            place: where hidden states are held, as `shelf.put` has it.
            keep_connectors: what goes into the connectors stays held, for stages in them after those of the text model.
        """
        self._vlm, self._batches, self._records, self._place = vlm, batches, records, place
        self._keep_connectors = keep_connectors
        self._start_over()

    def _start_over(self) -> None:
        self._plan = list(self._batches.plan())
        self._light: list[Batch] = []
        """The batches without what the model takes, once it has taken it."""
        self._at_connectors: list[list[Call]] = []
        self._at_language: list[Call] = []
        """What the text model is called with, but for its embeddings."""
        self._held: list[Any] = []
        self._passed = -1
        """Index of the last layer whose outputs are held; -1: the text model's embeddings are."""
        self._inside: dict[int, Any] = {}
        """Batch -> where it has got to inside the next layer: what its attention gave, and what goes into down_proj."""
        self._running: Batch | None = None

    @torch.no_grad()
    def collect(
        self,
        stage: Stage,
        create: Callable[[TargetModule], S],
        on_batch: Callable[[int], None],
        *,
        needs_outputs: bool,
        overrides: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> dict[TargetModule, S]:
        """Run all batches up to the stage's last site, and let each site's statistics see its tokens; of all processes.

        Args:
            create: statistics of a target module, of no tokens yet.
            on_batch: called after each batch with how many records it had.
            needs_outputs: whether the tokens have outputs; without, the stage's one target module is not computed.
            overrides: parameters before that module, in its connector, and values they are to have: the tokens are
                those of a model with these, and `original_inputs` those of the model as it is. Only without outputs.

        Raises:
            InputError: an activation is NaN or infinite, or no data reach a site.
            RunError: not even a single row fits into memory.
        """
        while True:
            done = 0
            statistics = {module: create(module) for module in stage.target_modules}
            try:
                reached = torch.zeros(len(stage.target_modules) + 1, device=self._vlm.device)
                for batch in self._observed(stage, statistics, reached, not needs_outputs, overrides):
                    on_batch(batch.records)
                    done += batch.records
                break
            except RuntimeError as error:
                if self._running is None:
                    raise
                self._batches.shrink(self._running, error)
            on_batch(-done)
            self._start_over()
        self._batches.distributed.all_reduce_(reached)
        for module, times in zip(stage.target_modules, reached[1:].tolist(), strict=True):
            if times == 0 and (module.layer is not None or reached[0] > 0):
                raise InputError(f"{module.name}: no activation passes through it; choose other --target-modules")
        for each in statistics.values():
            each.merge(self._batches.distributed)
        return statistics

    def _observed(
        self,
        stage: Stage,
        statistics: dict[TargetModule, S],
        reached: Tensor,
        inputs_only: bool,
        edited: Mapping[str, Tensor],
    ) -> Iterator[Batch]:
        """Runs each batch; `reached` counts those with images, and those that reached each site."""
        for batch, run in self._runs(stage, inputs_only):
            self._running = batch
            before: list[Tensor] = []
            if edited:
                with ending_at(self._vlm.model, stage.target_modules[0], before.append):
                    run()
            with holding(self._vlm, edited), ExitStack() as hooks:
                for module, count in zip(stage.target_modules, reached[1:], strict=True):
                    see = self._see(module, batch, statistics[module], count, before)
                    hooks.enter_context((ending_at if inputs_only else watching)(self._vlm.model, module, see))
                run()
            reached[0] += batch.vision.any()
            yield batch
        self._running = None

    def _runs(self, stage: Stage, inputs_only: bool) -> Iterator[tuple[Batch, Callable[[], None]]]:
        """Each batch with what runs it through the stage."""
        if stage.last is None:
            self._reach_connectors()
            for batch, calls in zip(self._light, self._at_connectors, strict=True):
                yield batch, lambda calls=calls: self._run_connectors(stage, calls)  # type: ignore[misc]
        elif stage.first is None:
            last = self._vlm.layers[stage.last]
            for batch in self._made():
                yield batch, lambda batch=batch: self._run_all(batch, last)  # type: ignore[misc]
        else:
            self._reach_language()
            last_part = (
                inputs_only and stage.target_modules[-1].kind == "down" and resumable(self._vlm.layers[stage.last])
            )
            held: list[Any] = []
            for index, batch in enumerate(self._light):
                yield batch, lambda index=index: held.append(self._run_layers(index, stage, last_part))  # type: ignore[misc]
            self._held, self._passed = held, stage.first - 1

    def _run_connectors(self, stage: Stage, calls: Sequence[Call]) -> None:
        """Run those connectors that hold a site of the stage."""
        for call in calls:
            if any(self._vlm.connectors.index(call.module) == module.connector for module in stage.target_modules):
                call.mapped(take).again()

    def _run_all(self, batch: Batch, last: nn.Module) -> None:
        with keeping_apart(self._vlm.layers, batch.attention_mask), stopping_behind(last):
            self._forward(batch)

    def _run_layers(self, index: int, stage: Stage, last_part: bool) -> Any:
        """Run one batch to the stage's last site; what went into the stage's first layer, to be held.

        `last_part`: that site is the last of its layer and not computed; where there is room, what comes before it is
        held too, so that only this last part of the layer is run again, with its new weights.
        """
        assert stage.first is not None
        assert stage.last is not None
        layers, held = self._vlm.layers, take(self._held[index])
        with ExitStack() as stack:
            for passed in layers[: self._passed + 1]:
                stack.enter_context(returning(passed, held))
            if stage.first > self._passed + 1 and index in self._inside:
                stack.enter_context(resumed(layers[self._passed + 1], *self._inside.pop(index)))
            coming = layers[self._passed + 1 : stage.last + 1]
            stack.enter_context(keeping_apart(coming, self._light[index].attention_mask))
            before = stack.enter_context(output_of(layers[stage.first - 1])) if stage.first else [held]
            inside = stack.enter_context(watching_inside(layers[stage.last])) if last_part else ()
            stack.enter_context(stopping_behind(layers[stage.last]))
            call = self._at_language[index].mapped(take)
            call.module(*call.args, **call.kwargs, inputs_embeds=held.to(self._vlm.device))  # where the masks are
        if last_part and self._place is None and has_room(inside):
            self._inside[index] = [each[0] for each in inside]
        return self._held[index] if self._passed == stage.first - 1 else put(before[0], self._place)

    def _reach_connectors(self) -> None:
        """Hold what goes into the connectors."""
        if self._at_connectors:
            return
        self._light.clear()
        for batch in self._made():
            calls = calls_of(self._vlm.connectors, lambda: self._forward(batch)) if batch.vision.any() else []  # noqa: B023
            self._at_connectors.append([call.mapped(self._put) for call in calls])
            self._light.append(batch.without_inputs())

    def _reach_language(self) -> None:
        """Hold what goes into the text model. Where the connectors' inputs are held, the vision tower is not run."""
        if self._at_language:
            return
        self._light.clear()
        for index, batch in enumerate(self._made()):
            with ExitStack() as stack:
                if self._at_connectors:
                    for layer in self._vlm.tower_layers:
                        stack.enter_context(skipped(layer))
                    for fed_call in self._at_connectors[index]:
                        stack.enter_context(fed(fed_call.mapped(take)))
                (call,) = calls_of([self._vlm.language], lambda: self._forward(batch))  # noqa: B023
            self._held.append(self._put(call.kwargs.pop("inputs_embeds")))
            self._at_language.append(call.mapped(self._put))
            self._light.append(batch.without_inputs())
        if not self._keep_connectors:
            self._at_connectors.clear()

    def release(self) -> None:
        """Of all that is held but what goes into the connectors."""
        for held in (self._at_language, self._held, self._inside):
            held.clear()
        self._passed = -1

    def _made(self) -> Iterator[Batch]:
        for batch in self._batches.made(self._plan):
            self._running = batch
            yield batch

    def _put(self, value: Any) -> Any:
        return put(value, self._place)

    def _forward(self, batch: Batch) -> None:
        self._vlm.core(**batch.inputs, use_cache=False)

    def _see(
        self, module: TargetModule, batch: Batch, statistics: Statistics, reached: Tensor, before: Sequence[Tensor]
    ) -> Callable[..., None]:
        """`before`: what went in as the model is, where this shows another."""

        def see(x: Tensor, y: Tensor | None = None) -> None:
            place = self._vlm.place_of(module.weight_name)  # a device map has layers elsewhere than the batch
            x, whose = x.to(place), batch.without_inputs().to(place)
            tokens = connector_tokens(module.name, x, y, whose) if module.layer is None else text_tokens(x, y, whose)
            if before:
                tokens = replace(tokens, original_inputs=before[0].to(place).view_as(tokens.inputs))
            self._check_finite(module.name, tokens)
            statistics.update(tokens)
            reached.add_(1)

        return see

    def _check_finite(self, name: str, tokens: Tokens) -> None:
        shown = [tokens.inputs] if tokens.outputs is None else [tokens.inputs, tokens.outputs]
        if all(torch.isfinite(each.sum()) for each in shown):  # far cheaper than to look at each value
            return
        bad = ~torch.stack([each.isfinite().all(1) for each in shown]).all(0)
        if bad.any():
            segment = tokens.segments[bad][0]
            record = self._records[int(tokens.owners.records[tokens.owners.segments == segment][0])]
            raise InputError(
                f"{name}: an activation is NaN or infinite for the record at {record.where}; "
                "check the checkpoint's weights, or compute in a wider dtype"
            )
