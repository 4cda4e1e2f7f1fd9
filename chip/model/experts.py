"""Blocks of experts: all that ends in a block's output, so that the output can be edited whatever the routing.

A block gives y = Σ_e r_e(x) W_e h_e(x), with the shared experts among the e, so M y = Σ_e r_e(x) (M W_e) h_e(x): to
multiply each expert's last map by M multiplies the output by M.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from chip.errors import InputError
from chip.model.families import EXPERT_OUTPUTS

TOLERANCE = 16.0
"""Units of rounding that the order of sums may move an output by."""


@dataclass(frozen=True, slots=True)
class OutputMap:
    """A parameter that ends in the output of a block."""

    name: str
    """Below the block, or below the whole model."""
    axis: int
    """Which of its dimensions is the output's."""

    def multiplied(self, matrix: Tensor, value: Tensor) -> Tensor:
        """M W for a W that has the output's dimension at `axis`, in the dtype of M (d, d)."""
        wide = value.to(matrix.dtype).movedim(self.axis, 0)
        return (matrix @ wide.flatten(1)).view_as(wide).movedim(0, self.axis)


def find_blocks(layer: nn.Module, width: int) -> Iterator[tuple[str, tuple[OutputMap, ...]]]:
    """Blocks of experts in a layer of the text model: path below it, and the parameters that end in its output.

    A block is what holds the experts; the experts themselves where that is the layer, which does more than mix them.

    Args:
        width: of the hidden states.
    """
    for path, experts in layer.named_modules():
        own = list(_fused(experts, width)) if path.rpartition(".")[2] == "experts" else []
        if not own:
            continue
        block = path.rpartition(".")[0]
        if not block:
            yield path, tuple(own)
            continue
        inside = path.removeprefix(f"{block}.")
        fused = (OutputMap(f"{inside}.{each.name}", each.axis) for each in own)
        yield block, (*fused, *_shared(layer.get_submodule(block)))


def _fused(experts: nn.Module, width: int) -> Iterator[OutputMap]:
    """The last maps of all experts, (experts, d_out, d_in) or (experts, d_in, d_out), and their biases."""
    for name, value in experts.named_parameters(recurse=False):
        if value.dim() == 3 and name in EXPERT_OUTPUTS:
            sides = [axis for axis in (1, 2) if value.shape[axis] == width]
            if sides:
                yield OutputMap(name, 2 if getattr(experts, "is_transposed", False) and 2 in sides else sides[0])
        elif value.dim() == 2 and name in [f"{each}_bias" for each in EXPERT_OUTPUTS]:
            yield OutputMap(name, 1)


def _shared(block: nn.Module) -> Iterator[OutputMap]:
    for name, module in block.named_modules():
        first, _, _ = name.partition(".")
        if "shared" in first and isinstance(module, nn.Linear) and name.rpartition(".")[2] in EXPERT_OUTPUTS:
            yield from (OutputMap(f"{name}.{own}", 0) for own, _ in module.named_parameters())


@torch.no_grad()
def check_block(name: str, maps: tuple[OutputMap, ...], call: Runnable, weights: Mapping[str, Tensor]) -> None:
    """Whether a block's output is linear in these parameters, and in nothing else: with their outputs in another order,
    its own must be in that order.

    Args:
        name: of the block, for the error.
        maps: by their names below the block.
        call: of the block, with arguments that it was given.
        weights: the block's parameters, by their names below it.

    Raises:
        InputError: it is not.
    """
    rolled = {**weights, **{each.name: weights[each.name].roll(1, each.axis) for each in maps}}
    expected = block_output(functional_call(call.module, dict(weights), call.args, call.kwargs)).roll(1, -1)
    output = block_output(functional_call(call.module, rolled, call.args, call.kwargs))
    off = float((output - expected).abs().max())
    if not off <= TOLERANCE * torch.finfo(output.dtype).eps * float(expected.abs().max()):
        what = f"its experts are mixed in a way that chip does not know (off by {off:.2g})"
        raise InputError(f"{name}: {what}; choose other target modules or layers", argument="target_modules")


class Runnable(Protocol):
    """A call of a module; see `chip.model.forward.trace.Call`."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def block_output(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The hidden states; some blocks return what their router says beside them."""
    return output if isinstance(output, Tensor) else output[0]
