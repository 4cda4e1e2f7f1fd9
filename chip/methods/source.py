"""What a method asks to know of each module, collected over all trained records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

import torch
from torch import Tensor

from chip.data.request import ForgetRequest
from chip.distributed import DistributedContext
from chip.errors import InputError
from chip.methods.base import Method
from chip.model.batching.batch_size import BatchSize
from chip.model.forward.activation_store import room_for
from chip.model.forward.collector import Collector
from chip.model.loading import VLM
from chip.model.stages import Stage, at_once, by_connector, by_layer, by_mlp, in_data_order
from chip.model.target_modules import Component, TargetModule
from chip.model.tokens import Statistics
from chip.progress import ProgressCallback


class StatisticsSource:
    """The statistics of every stage, measured when they are asked for.

    The stages are to be asked for in their order; `restart` begins again, in the model as it then is.
    """

    def __init__(
        self,
        vlm: VLM,
        method: Method,
        request: ForgetRequest,
        target_modules: Sequence[TargetModule],
        size: BatchSize,
        distributed: DistributedContext,
    ) -> None:
        self._vlm, self._method = vlm, method
        self._records = (*request.records, *method.extra_records(request))
        trained = [index for index, record in enumerate(self._records) if not record.held_out]
        self._batches = vlm.batches(self._records, trained, size, distributed)
        # For each device once: statistics stay where their module is.
        self._record_weights = cache(partial(method.record_weights, request))
        streamed = torch.tensor(float(vlm.weights.streamed))
        distributed.all_reduce_(streamed)  # a process that had room for the model must still take part in every stage
        self.stages = _stages(method, target_modules, bool(streamed))
        self._kept: dict[Stage, Mapping[TargetModule, Statistics]] = {}
        self._keep = False
        self.restart()

    @property
    def steps(self) -> int:
        """How many times a record passes through a stage before all stages have been measured."""
        looks = self._method.needs.looks
        return sum(stage not in self._kept for stage in self.stages) * looks * len(self._batches)

    def restart(self) -> None:
        """Measure from the beginning again. What is kept needs no measuring."""
        if not self._kept:
            self._collector = Collector(self._vlm, self._batches, self._records, keep_connectors=self._keep)

    def keep(self, progress: ProgressCallback) -> None:
        """Measure now, and keep, what no edit changes, and what goes into the connectors: later only those run again.

        Later statistics that turn out to be measured in the unedited model are kept too.
        """
        self._keep = True
        self.restart()
        stages = [stage for stage in self.stages if not self.parameters_before(stage)]
        with progress("editing", len(stages) * self._method.needs.looks * len(self._batches)) as advance:
            for stage in stages:
                self.collect(stage, {}, advance)
        self._collector.release()

    def parameters_before(self, stage: Stage) -> list[str]:
        """Names of the parameters behind whose new values the stage is to be measured: earlier ones of its connector,
        where the method composes them."""
        first = stage.target_modules[0]
        if self._method.needs.connector == "original" or first.component is not Component.CONNECTOR:
            return []
        earlier = [each.target_modules[0] for each in self.stages[: self.stages.index(stage)]]
        return [name for module in earlier if module.connector == first.connector for name in module.parameter_names]

    def collect(
        self, stage: Stage, overrides: Mapping[str, Tensor], advance: Callable[[int], None]
    ) -> Mapping[TargetModule, Statistics]:
        """The statistics of each of the stage's modules; those that have the same input share them.

        Args:
            overrides: new values of `parameters_before`, as far as the edit changes them.
            advance: told how many records have passed.
        """
        statistics = None if overrides else self._kept.get(stage)
        if statistics is None:
            outputs = self._method.needs.outputs
            watched = stage if outputs else stage.first_only
            statistics = self._collector.collect(
                watched, self._create, advance, needs_outputs=outputs, overrides=overrides
            )
            for _ in range(1, self._method.needs.looks):
                again = self._method.look_again(statistics)
                statistics = self._collector.collect(
                    watched, _making(again), advance, needs_outputs=outputs, overrides=overrides
                )
            if self._keep and not overrides:
                self._kept[stage] = statistics
        shared = statistics[stage.target_modules[0]]
        return {module: statistics.get(module, shared) for module in stage.target_modules}

    def _create(self, module: TargetModule) -> Statistics:
        d_out, d_in = module.shape(self._vlm.model)
        weights = self._record_weights(self._vlm.place_of(module.weight_name))
        return self._method.statistics_of(module, weights, d_in, d_out)


def _making(again: Mapping[TargetModule, Callable[[], Statistics]]) -> Callable[[TargetModule], Statistics]:
    return lambda module: again[module]()


def _stages(method: Method, target_modules: Sequence[TargetModule], streamed: bool) -> list[Stage]:
    """What is observed in one run; where weights are streamed, no more than a layer."""
    if method.needs.whole_connectors:
        return by_connector(target_modules)
    if method.needs.whole_mlps:
        return by_mlp(target_modules)
    if not method.needs.outputs:
        return in_data_order(target_modules)
    return by_layer(target_modules) if streamed else at_once(target_modules)


def check_general(method: Method, given: Sequence[object]) -> None:
    """Raise `InputError` where general data is given, and the method has no use for it."""
    if given and not method.needs.general:
        raise InputError(f"method {method.name} has no use for general data; drop it", argument="keep")


def can_keep(vlm: VLM, method: Method, target_modules: Sequence[TargetModule], distributed: DistributedContext) -> bool:
    """Whether every process has room for the statistics of all modules together."""
    sizes = Counter[torch.device]()
    for stage in in_data_order(target_modules):
        for module in stage.target_modules if method.needs.outputs else stage.target_modules[:1]:
            d_out, d_in = module.shape(vlm.model)
            sizes[vlm.place_of(module.weight_name)] += method.statistics_bytes(d_in, d_out)
    lacking = torch.tensor([float(not room_for(size, device)) for device, size in sizes.items()])
    distributed.all_reduce_(lacking)
    return not lacking.any()
