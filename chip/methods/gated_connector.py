"""Gates in a connector: some of its hidden units open for the target's image tokens, and stay closed for all others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chip.errors import InputError
from chip.kernels.gates import balanced_openings, choose_gates, gate_units, output_columns, refit_without
from chip.methods.base import MeasuredModule, WeightUpdate
from chip.methods.gated_statistics import GatedStatistics, HighestStatistics

OPENING = 0.5
"""A gate counts as open for a token for which it opens at least so far as for its own."""
CLOSED = 20
"""How many times as much a gate gives as far above 0 as it gives below."""
REFIT_RIDGE = 1e-4
"""Of what takes the freed units' place, as a share of the mean square of a hidden unit."""
COLUMN_RIDGE = 1e-3
"""Of what gates add, as a share of the mean square sum of one gate's activations."""
GROUP = 32
"""Hidden units that share a scale in most formats of 4 bits."""
SILENT = 1e-3
"""A hidden unit whose mean square is below this share of the mean one never opens for what is retained: if it weighs
much behind, it is a gate of an earlier edit."""


@dataclass(frozen=True)
class GateLimits:
    """How gates may be made; as `Gated` has them."""

    units: float
    closed: float
    max_change: float


@dataclass(frozen=True)
class Gates:
    """The hidden units that open for the target."""

    weight: Tensor
    """(k, d_in)"""
    bias: Tensor
    """(k,)"""
    covered: Tensor
    """(n,) bool: the target's tokens for which one of them opens."""
    separable: Tensor
    """(n,) bool: those that can be told from all that is retained."""


def build_gates(first: MeasuredModule, second: MeasuredModule, count: int, limits: GateLimits) -> Gates:
    """Gates on the inputs of a connector's first map, the cheapest first, `count` at most.

    A gate costs what it takes of the norm that its weights may have in front of the activation and behind it.
    """
    statistics: HighestStatistics = first.statistics
    seen, directions, highest = statistics.seen, statistics.directions, statistics.highest
    responses = directions @ seen.target.inputs.T  # (n, n)
    own = responses.diagonal()
    gap, moves = own - highest, torch.linalg.norm(_moves(second), dim=1)
    front, behind = (torch.linalg.norm(module.weight.to(gap.dtype)) for module in (first, second))
    wide = gap.clamp(min=torch.finfo(gap.dtype).eps)
    opened = balanced_openings(wide, moves, limits.closed, float(front / behind))
    weight, bias = gate_units(directions, own - wide, own, limits.closed, opened)
    opens = weight @ seen.target.inputs.T + bias[:, None] >= OPENING * opened[:, None]
    cost = torch.linalg.norm(weight, dim=1) / front + moves / (opened * behind)  # of two equal parts
    chosen, covered = choose_gates(
        opens,
        gap > 0,
        (cost / 2).square(),
        seen.target.images < seen.record_weights.originals,
        count=count,
        budget=limits.max_change**2,
    )
    return Gates(weight[chosen], bias[chosen], covered, gap > 0)


def _moves(second: MeasuredModule) -> Tensor:
    """(n, d_out): from the output of each of the target's tokens to that of the stand-in at its place."""
    hidden: GatedStatistics = second.statistics.seen
    moves: Tensor = (hidden.destinations - hidden.target.inputs) @ second.weight.to(hidden.mean.dtype).T
    return moves


def solve_connector(
    first: MeasuredModule, second: MeasuredModule, limits: GateLimits
) -> tuple[WeightUpdate, WeightUpdate, Gates] | None:
    """New parameters of two maps with an activation between; None where no gate can be built.

    Raises:
        InputError: what stands between them is no activation that closes.
        torch.linalg.LinAlgError: a system has no trustworthy solution.
    """
    hidden: GatedStatistics = second.statistics.seen
    square = hidden.moment.diagonal()[:-1]
    order = idle_units(square, hidden.covariance.diagonal().clamp(min=0).sqrt(), second.weight)
    count = min(len(order), int(limits.units * second.weight.shape[1]))
    gates = build_gates(first, second, count, limits)
    if not len(gates.bias):
        return None
    return *_replace_units(first, second, gates, order[: len(gates.bias)], limits), gates


def idle_units(square: Tensor, deviation: Tensor, weight: Tensor) -> Tensor:
    """(u,) int64: hidden units in ascending order of how much they move the output, but for gates of earlier edits.

    Args:
        square: (h,): mean square of each, of the retained.
        deviation: (h,): standard deviation, likewise.
        weight: (d_out, h), of the map behind.
    """
    columns = torch.linalg.norm(weight.to(deviation.dtype), dim=0)
    earlier = (square < SILENT * square.mean()) & (columns > columns.median() / 2)
    order = (deviation * columns).argsort()
    idle: Tensor = order[~earlier[order]]
    return idle


def _replace_units(
    first: MeasuredModule, second: MeasuredModule, gates: Gates, freed: Tensor, limits: GateLimits
) -> tuple[WeightUpdate, WeightUpdate]:
    """The gates in the place of the freed units, side by side, and the second map without what these gave."""
    hidden: GatedStatistics = second.statistics.seen
    target, dtype = first.statistics.seen.target, hidden.mean.dtype
    is_freed = torch.zeros(second.weight.shape[1], dtype=torch.bool, device=freed.device).index_fill_(0, freed, True)
    old_bias = _or_zeros(second.bias, second.weight).to(dtype)
    behind, shift = refit_without(second.weight, hidden.moment, is_freed, REFIT_RIDGE, second.bias is not None)
    order, place = side_by_side(is_freed)
    weight, bias = first.weight.to(dtype)[order], _or_zeros(first.bias, first.weight).to(dtype)[order]
    behind = behind[:, order]
    weight[place], bias[place] = gates.weight, gates.bias
    # What gates add takes the target's tokens to the output of the stand-in's at their place.
    activations = _activated(first, target.inputs @ weight.T + bias)  # (n, h)
    wanted = hidden.destinations @ second.weight.to(dtype).T
    moves = (wanted - activations @ behind.T - shift)[gates.covered]
    largest = limits.max_change * float(torch.linalg.norm(second.weight.to(dtype)))
    behind[:, place] = output_columns(moves, activations[gates.covered][:, place], COLUMN_RIDGE, largest)
    return (
        WeightUpdate(weight, bias),
        WeightUpdate(behind, None if second.bias is None else old_bias + shift),
    )


def side_by_side(freed: Tensor) -> tuple[Tensor, Tensor]:
    """An order of the hidden units that has the freed ones side by side, from the beginning of a group on.

    A large column spoils the scale of its group where weights are rounded to 4 bits. Few units move: the place is where
    most of the freed ones are already.

    Args:
        freed: (h,) bool.

    Returns:
        (h,) int64: the unit at each place; and (k,) int64, the places of the freed ones.
    """
    count = int(freed.sum())
    starts = range(0, max(1, len(freed) - count + 1), GROUP)
    start = max(starts, key=lambda start: int(freed[start : start + count].sum()))
    block = torch.zeros_like(freed)
    block[start : start + count] = True
    order = torch.arange(len(freed), device=freed.device)
    here, there = (block & ~freed).nonzero()[:, 0], (freed & ~block).nonzero()[:, 0]
    order[here], order[there] = there, here
    return order, block.nonzero()[:, 0]


def check_activation(first: MeasuredModule, second: MeasuredModule, limits: GateLimits) -> None:
    """Raise `InputError` unless the second map gets what the activation makes of the first one's output, and the
    activation is about zero where gates are closed."""
    target, hidden = first.statistics.seen.target, second.statistics.seen.target
    dtype = target.inputs.dtype
    output = target.inputs @ first.weight.to(dtype).T + _or_zeros(first.bias, first.weight).to(dtype)
    same = torch.equal(target.keys, hidden.keys)
    error = torch.linalg.norm(_activated(first, output) - hidden.inputs) if same else torch.inf
    if not error <= 0.02 * torch.linalg.norm(hidden.inputs):
        message = "its connector is not two linear maps with an activation between; use --method shielded"
        raise InputError(message, argument="method", value="gated")
    closed, opened = _activated(first, output.new_tensor([-limits.closed, limits.closed])).tolist()
    if abs(closed) > opened / CLOSED:
        message = "the connector's activation is not yet closed there; give a higher one, or use --method shielded"
        raise InputError(message, argument="closed", value=limits.closed)


def _activated(module: MeasuredModule, x: Tensor) -> Tensor:
    assert module.activation is not None
    return module.activation(x)


def _or_zeros(bias: Tensor | None, weight: Tensor) -> Tensor:
    return weight.new_zeros(len(weight)) if bias is None else bias
