"""Gates: directions that tell a few points from very many, and hidden units that open along them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from chip.kernels.gram import symmetrize_
from chip.kernels.solve import solve_spd_


def separating_directions(points: Tensor, mean: Tensor, covariance: Tensor, ridge: float) -> Tensor:
    """w ∝ (C + ρ I)⁻¹ (x − μ), of length 1, for each point: Fisher's linear discriminant of one point against the
    distribution of all others (Hastie, Tibshirani and Friedman, The Elements of Statistical Learning, section 4.3).

    Args:
        points: x (n, d).
        mean: μ (d,), of what each is to be told from.
        covariance: C (d, d), of the same; only what is on and above the diagonal is read. Both in fp64 (fp32 where the
            device has no fp64).
        ridge: ρ, as a share of C's mean diagonal.

    Returns:
        (n, d), in the dtype of `covariance`; zero for a point that is the mean.

    Raises:
        torch.linalg.LinAlgError: C + ρ I has no trustworthy inverse.
    """
    system = covariance.clone()
    system.diagonal().add_(ridge * covariance.diagonal().mean())
    directions = solve_spd_(points.to(system.dtype) - mean, system)
    return torch.nn.functional.normalize(directions, dim=1)


def choose_gates(responses: Tensor, own: Tensor, highest: Tensor, opening: float, first: Tensor, count: int) -> Tensor:
    """Which gates to build: greedily, the widest gap first, and none for a point at which a chosen one opens already.

    A gate closes at the highest response of what is to pass, and opens fully at its own point; at another point it
    counts as open where the response is beyond `opening` of the way from the one to the other.

    Args:
        responses: (gates, points): w·x of each gate at each point.
        own: (gates,) int64: the point that each is made for.
        highest: (gates,): the highest response of what is to pass.
        opening: from 0 to 1.
        first: (points,) bool: points that come before all others, however narrow their gaps.
        count: how many gates there can be.

    Returns:
        (k,) int64, k ≤ count, in the order of choice. No gate without a gap is among them.
    """
    gap = responses.gather(1, own[:, None])[:, 0] - highest
    opens = responses - highest[:, None] >= opening * gap[:, None]
    chosen, covered = [], torch.zeros_like(first)
    for gate in (gap + (gap.max() - gap.min() + 1) * first[own]).argsort(descending=True).tolist():
        if len(chosen) < count and gap[gate] > 0 and not covered[own[gate]]:
            chosen.append(gate)
            covered |= opens[gate]
    return torch.tensor(chosen, dtype=torch.int64, device=responses.device)


def gate_units(directions: Tensor, highest: Tensor, own: Tensor, closed: float, open_: float) -> tuple[Tensor, Tensor]:
    """Weights and biases of hidden units whose pre-activation is −`closed` at the highest response of what passes, and
    `open_` at the gate's own point.

    Args:
        directions: w (k, d).
        highest: (k,): the highest w·x of what passes.
        own: (k,): w·x at the gate's own point, above `highest`.
        closed, open_: > 0.

    Returns:
        (k, d) and (k,).
    """
    slope = (closed + open_) / (own - highest)
    return slope[:, None] * directions, -closed - slope * highest


def refit_without(weight: Tensor, moment: Tensor, freed: Tensor, ridge: float, has_bias: bool) -> tuple[Tensor, Tensor]:
    """The map that gives what y = W h + b gave, from fewer of its inputs: ridge regression on the moments of h.

        min over W', b'   E ‖W' h + b' − W h − b‖² + ρ ‖W' − W‖²,   W' zero in the columns that are freed

    Args:
        weight: W (m, d).
        moment: E[h̃ h̃ᵀ] (d + 1, d + 1), symmetric, h̃ = h with a 1 behind it.
        freed: (d,) bool: columns that are to be zero.
        ridge: ρ, as a share of the mean square of h.
        has_bias: whether b may change.

    Returns:
        W' (m, d) and b' − b (m,), in the dtype of `moment`.

    Raises:
        torch.linalg.LinAlgError: the system has no trustworthy solution.
    """
    weight = weight.to(moment.dtype)
    kept = torch.cat((~freed, freed.new_tensor([has_bias]))).nonzero()[:, 0]
    gone = freed.nonzero()[:, 0]
    system = moment[kept][:, kept]
    width = len(kept) - has_bias
    system.diagonal()[:width] += ridge * moment.diagonal()[:-1].mean()
    change = solve_spd_(weight[:, gone] @ moment[gone][:, kept], system)
    refitted = weight.clone()
    refitted[:, gone] = 0
    refitted[:, kept[:width]] += change[:, :width]
    return refitted, change[:, -1] if has_bias else change.new_zeros(len(weight))


def output_columns(moves: Tensor, activations: Tensor, ridge: float) -> Tensor:
    """What gates have to add where they open: ridge regression of the moves on their activations.

    Args:
        moves: (n, m): what is to be added to the output at each point.
        activations: (n, k) of the gates there.
        ridge: as a share of the mean square sum of one gate's activations.

    Returns:
        (m, k).

    Raises:
        torch.linalg.LinAlgError: the system has no trustworthy solution.
    """
    system = activations.T @ activations
    system.diagonal().add_(ridge * system.diagonal().mean())
    return solve_spd_(moves.T @ activations, system)
