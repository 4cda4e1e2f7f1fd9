"""Gates in an MLP of the text model: some of its hidden units open at the words that name the target alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from chip.errors import InputError
from chip.kernels.gates import choose_gates, constant_map, output_columns
from chip.methods.base import MeasuredModule, WeightUpdate
from chip.methods.gated_connector import COLUMN_RIDGE, OPENING, GateLimits, idle_units, side_by_side
from chip.methods.gated_text_statistics import DestinationStatistics, OutputStatistics, ResponseStatistics

RIDGE = 1e-2
"""Of the detectors, as a share of the mean diagonal of the retained inputs' second moment."""
OWN, OTHERS = 5.0, -8.0
"""What a detector is fitted to give at its own cluster, and elsewhere."""
OPENED = 10.0
"""How far a gate opens for the target, at least: closed, φ gives up to 0.28 below 0 to everybody."""
NARROWEST = 0.1
"""How far below 0 the highest response of the retained must be, as a share of the target's lowest above 0."""

Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class MLP:
    """The maps of a gated MLP, y = W₃ (φ(W₁ x) ∘ W₂ x), and what was measured there."""

    gate: MeasuredModule
    up: MeasuredModule
    down: MeasuredModule

    @property
    def inputs(self) -> ResponseStatistics:
        seen: ResponseStatistics = self.gate.statistics
        return seen

    @property
    def outputs(self) -> OutputStatistics:
        return self._destinations.seen

    def moves(self, keys: Tensor) -> Tensor:
        """(c, d_out): from where the target's clusters leave the layer to where they are sent."""
        return self._destinations.moves(keys)

    @property
    def has_destinations(self) -> bool:
        """Whether anybody else is asked about in text."""
        return self._destinations.has_examples

    @property
    def _destinations(self) -> DestinationStatistics:
        seen: DestinationStatistics = self.down.statistics.seen
        return seen

    def hidden(self, x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
        """φ(W₁ x) ∘ W₂ x of x (n, d) without biases, for rows of W₁ and W₂."""
        assert self.gate.activation is not None
        return self.gate.activation(x @ gate.T.to(x.dtype)) * (x @ up.T.to(x.dtype))

    def check_output(self) -> None:
        """Raise `InputError` unless W₃ gets what the other maps, as they are known, make of their input."""
        seen, inputs = self.outputs.sample.double(), self.inputs.seen.sample.double()
        error = torch.linalg.norm(self.hidden(inputs, self.gate.weight, self.up.weight) - seen)
        if not error <= 0.05 * torch.linalg.norm(seen):
            message = "its MLPs give something else than gated MLPs do; use --method shielded"
            raise InputError(message, argument="method", value="gated_text")


@dataclass(frozen=True)
class TextGates:
    """The hidden units that open for the target's words."""

    weight: Tensor
    """(k, d): rows of the gate projection."""
    points: Tensor
    """(c, d): the means of the clusters for which one of them opens."""
    moves: Tensor
    """(c, d_out): what is to be added to the layer's output there."""


def choose_text_gates(mlp: MLP, count: int, limits: GateLimits) -> TextGates:
    """Gates for the clusters of the target's tokens, the cheapest first, `count` at most.

    A gate costs what it takes of the norm that its weights may have in the gate projection and in the last map.
    """
    seen, moves = mlp.inputs, mlp.moves(mlp.inputs.keys)
    points, lowest = seen.seen.clusters.mean_at(seen.keys), seen.lowest
    possible = (seen.highest < 0) & (lowest > 0) & (-seen.highest >= NARROWEST * lowest)
    possible &= mlp.has_destinations
    scale = torch.where(possible, torch.maximum(-limits.closed / seen.highest, OPENED / lowest), 1.0)
    weight = scale[:, None] * seen.detectors
    responses = weight @ points.T  # (c, c)
    opened = responses.diagonal().clamp(min=limits.closed / 10)
    front, behind = (torch.linalg.norm(module.weight.to(weight.dtype)) for module in (mlp.gate, mlp.down))
    cost = torch.linalg.norm(weight, dim=1) / front + torch.linalg.norm(moves, dim=1) / (opened * behind)
    chosen, covered = choose_gates(
        responses >= OPENING * opened[:, None],
        possible,
        (cost / 2).square(),
        torch.ones_like(possible),
        count=count,
        budget=limits.max_change**2,
    )
    return TextGates(weight[chosen], points[covered], moves[covered])


def solve_mlp(mlp: MLP, limits: GateLimits) -> tuple[WeightUpdate, WeightUpdate, WeightUpdate] | None:
    """New parameters of the gate, up and down projections; None where no cluster can be told from what is retained.

    Raises:
        torch.linalg.LinAlgError: a system has no trustworthy solution.
    """
    outputs, width = mlp.outputs, mlp.down.weight.shape[1]
    order = idle_units(outputs.square, outputs.square.sqrt(), mlp.down.weight)  # no bias takes over what is constant
    gates = choose_text_gates(mlp, min(len(order), max(1, int(limits.units * width))), limits)
    if not len(gates.weight):
        return None
    freed = torch.zeros(width, dtype=torch.bool, device=order.device).index_fill_(0, order[: len(gates.weight)], True)
    dtype, points, seen = gates.weight.dtype, gates.points, mlp.inputs.seen
    order, place = side_by_side(freed)
    weight, up, down = (module.weight.to(dtype) for module in (mlp.gate, mlp.up, mlp.down))
    # What the freed units gave goes with them, at the target's tokens too.
    moves = gates.moves + mlp.hidden(points, weight[freed], up[freed]) @ down[:, freed].T
    weight, up, down = weight[order], up[order], down[:, order]
    weight[place], up[place] = gates.weight, constant_map(points, seen.mean, seen.moment, RIDGE)
    largest = limits.max_change * float(torch.linalg.norm(mlp.down.weight.to(dtype)))
    activations = mlp.hidden(points, weight[place], up[place])
    down[:, place] = output_columns(moves, activations, COLUMN_RIDGE, largest)
    return WeightUpdate(weight, None), WeightUpdate(up, None), WeightUpdate(down, None)
