"""How much of each layer's second moment one single token holds: the attention sinks of a pretrained model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from chip.data.record import Record
from chip.distributed import DistributedContext
from chip.methods import Shielded
from chip.methods.apply import default_modules
from chip.model.forward.collector import Collector
from chip.model.loading import VLM
from chip.model.stages import in_data_order
from chip.model.target_modules import TargetModule
from chip.model.tokens import Tokens

RECORDS = 32
"""Records that pass through the model, at most: a sink is there in each of them."""


@dataclass(frozen=True)
class LargestToken:
    """The longest input that a target module gets."""

    module: str
    share: float
    """Of tr(C), the sum of all tokens' ‖x‖²."""
    ratio: float
    """Its ‖x‖ over the median one."""


class _Lengths:
    """‖x‖² of every token."""

    def __init__(self) -> None:
        self.squares = torch.zeros(0, dtype=torch.float64)

    def update(self, tokens: Tokens) -> None:
        squares = tokens.inputs.float().square().sum(1, dtype=torch.float32).double().cpu()
        self.squares = torch.cat((self.squares, squares))

    def merge(self, distributed: DistributedContext) -> None:
        """Looking at a checkpoint is a matter of one process."""

    def largest(self, module: TargetModule) -> LargestToken:
        top = float(self.squares.max())
        return LargestToken(
            module.name, top / float(self.squares.sum()), (top / float(self.squares.median().clamp(min=1e-30))) ** 0.5
        )


def largest_tokens(vlm: VLM, records: Sequence[Record]) -> list[LargestToken]:
    """What the default method would meet at each of its modules, in the order of data, over the first records.

    Raises:
        InputError: a record does not fit into the model, or an activation is NaN or infinite.
    """
    few = records[:RECORDS]
    collector, rows = Collector(vlm, vlm.batches(few), few), []
    for stage in in_data_order(default_modules(vlm, Shielded())):
        first = stage.target_modules[0]
        lengths = collector.collect(stage.first_only, lambda _: _Lengths(), lambda _: None, needs_outputs=False)[first]
        if len(lengths.squares):  # text-only records pass no connector
            rows.append(lengths.largest(first))
    return rows
