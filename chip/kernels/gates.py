"""Gates: directions that tell a few points from very many, and hidden units that open along them."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from chip.kernels.solve import solve_spd_
from chip.kernels.symmetric import SymmetricSum

_BATCH = 2**25
"""Values of a temporary."""
_STEPS, _HALVINGS, _BISECTIONS = 40, 12, 60


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
    system = SymmetricSum.of(covariance, ridge * float(covariance.diagonal().mean()))
    directions = solve_spd_((points - mean).to(covariance.dtype), system)
    return torch.nn.functional.normalize(directions, dim=1)


def detectors(
    points: Tensor, mean: Tensor, moment: Tensor, nearest: Tensor, *, ridge: float, own: float, others: float
) -> Tensor:
    """Maps without a bias that give about `own` at one point each, and about `others` where all others are:

        min over g   (g·x − own)² + E_j (g·x_j − others)² + E_n (g·x_n − others)² + ρ ‖g‖²

    by one solve for all points (Woodbury): those nearest to a point weigh as much as all others together, and the point
    too. What is constant comes out of the inputs themselves, which a norm in front keeps at one length.

    Args:
        points: x (n, d).
        mean: μ (d,), of all others.
        moment: C (d, d) = E[x_j x_jᵀ]; only what is on and above the diagonal is read. fp64, or fp32.
        nearest: x_n (n, k, d): of each point the others that are hard to tell from it; k may be 0.
        ridge: ρ, as a share of C's mean diagonal.

    Returns:
        (n, d), in the dtype of `moment`.

    Raises:
        torch.linalg.LinAlgError: C + ρ I has no trustworthy inverse.
    """
    system, count = SymmetricSum.of(moment, ridge * float(moment.diagonal().mean())), nearest.shape[1]
    rows = torch.cat((points[:, None], nearest / max(1, count) ** 0.5), 1).to(moment.dtype)  # (n, 1 + k, d)
    inverse = solve_spd_(torch.cat((rows.flatten(0, 1), mean.to(moment.dtype)[None])), system)
    solved, of_mean = inverse[:-1].view(rows.shape), inverse[-1]
    sizes = rows.new_tensor([own, *[others / max(1, count) ** 0.5] * count])
    right = sizes @ solved + others * of_mean  # (n, d)
    small = rows @ solved.mT + torch.eye(1 + count, dtype=rows.dtype, device=rows.device)
    share = torch.linalg.solve(small, (rows @ right[:, :, None])[:, :, 0])
    found: Tensor = right - (share[:, None] @ solved)[:, 0]
    return found


def constant_map(points: Tensor, mean: Tensor, moment: Tensor, ridge: float) -> Tensor:
    """(d,): the map without a bias that gives about 1 at all points, and where all others are; as `detectors`."""
    points = points.to(moment.dtype)
    system = SymmetricSum.of(moment + points.T @ points / len(points), ridge * float(moment.diagonal().mean()))
    return solve_spd_((mean.to(moment.dtype) + points.mean(0))[None], system)[0]


def widest_directions(points: Tensor, others: Tensor, softness: float = 1e-3, active: int = 128) -> Tensor:
    """The direction in which each point stands farthest beyond all others:

        min over w   ½ ‖w‖² + 1/(2ρ) Σ_j max(0, 1 − w·(x − x_j))²

    a support vector machine with squared hinge loss for one point against all others, by finite Newton steps: each
    solves the normal equations of those others that are not yet far enough behind (Keerthi and DeCoste, JMLR 6, 2005).
    As ρ → 0, w points away from the nearest point of their convex hull, and the gap is the distance to it.

    Args:
        points: x (n, d), fp64 (fp32 where the device has no fp64).
        others: x_j (p, d), likewise.
        softness: ρ, in units in which the mean ‖x − x_j‖² is 1.
        active: of how many others, at most, a step takes notice.

    Returns:
        (n, d), of length 1; zero for a point that is one with all others.
    """
    active = min(active, len(others))
    if not len(points) or not active:
        return torch.zeros_like(points)
    batch = max(1, _BATCH // (active * points.shape[1]))
    directions = [_widest(part, others, softness, active) for part in torch.split(points, batch)]
    return torch.nn.functional.normalize(torch.cat(directions), dim=1)


def _widest(points: Tensor, others: Tensor, softness: float, active: int) -> Tensor:
    """`widest_directions` of some points, of any length."""
    distances = torch.cdist(points, others)
    scale = distances.square().mean(1, keepdim=True).sqrt().clamp(min=torch.finfo(points.dtype).tiny)
    x, order = points / scale, distances  # at first the nearest others, then those that are least far behind
    w, margin = torch.zeros_like(x), torch.zeros_like(distances)
    moving = torch.arange(len(points), device=points.device)
    for _ in range(_STEPS):
        rows = order[moving].topk(active, largest=False).indices  # (m, a)
        step = _newton_step(x[moving], others, scale[moving], margin[moving], rows, softness) - w[moving]
        step_margin = (x[moving] * step).sum(1, keepdim=True) - step @ others.T / scale[moving]
        share = _share(w[moving], step, margin[moving], step_margin, softness)
        w[moving] += share * step
        margin[moving] += share * step_margin
        order = margin
        moving = moving[(share * step.abs()).amax(1) > 1e-6 * w[moving].abs().amax(1)]
        if not len(moving):
            break
    return w


def _newton_step(x: Tensor, others: Tensor, scale: Tensor, margin: Tensor, rows: Tensor, softness: float) -> Tensor:
    """(m, d): the best w if those of `rows` (m, a) that are not yet far enough behind stay so, and no others."""
    behind = (margin.gather(1, rows) < 1).to(x.dtype)  # 1 where it takes part
    difference = (x[:, None] - others[rows] / scale[:, :, None]) * behind[:, :, None]  # (m, a, d)
    system = difference @ difference.mT + softness * torch.eye(rows.shape[1], dtype=x.dtype, device=x.device)
    multipliers = torch.linalg.solve(system, behind)
    best: Tensor = (difference.mT @ multipliers[:, :, None])[:, :, 0]
    return best


def _share(w: Tensor, step: Tensor, margin: Tensor, step_margin: Tensor, softness: float) -> Tensor:
    """(m, 1): 1, or the first half of a half ... of the step that makes nothing worse; else 0."""
    share = w.new_ones(len(w), 1)

    def loss(share: Tensor) -> Tensor:
        behind = (1 - margin - share * step_margin).clamp(min=0)
        return (w + share * step).square().sum(1) + behind.square().sum(1) / softness

    before = loss(0 * share)
    for halving in range(_HALVINGS):
        worse = loss(share) > before
        if not worse.any():
            break
        share[worse] *= 0 if halving == _HALVINGS - 1 else 0.5
    return share


def balanced_openings(gaps: Tensor, moves: Tensor, closed: float, ratio: float) -> Tensor:
    """How far to open each gate so that its two sides weigh alike: o with (closed + o) / gap = ratio · move / o.

    Args:
        gaps: (n,) > 0: w·x less the highest response of what passes, for w of length 1.
        moves: (n,): length of what a gate has to add to the output at its own point.
        closed: > 0.
        ratio: of a unit's weights in front to those behind, as a whole: ‖W₁‖ / ‖W₂‖.

    Returns:
        (n,) > 0.
    """
    opened = (torch.sqrt(closed**2 + 4 * ratio * gaps * moves) - closed) / 2
    return opened.clamp(min=closed / 10)


def choose_gates(
    opens: Tensor, possible: Tensor, cost: Tensor, first: Tensor, *, count: int, budget: float
) -> tuple[Tensor, Tensor]:
    """Which gates to build: greedily, the cheapest first, and none for a point at which a chosen one opens already.

    What is then left goes to gates for such of the first points too: two points behind one gate go the same way.

    Args:
        opens: (n, n) bool: whether each gate, one for each point, opens at each point.
        possible: (n,) bool: whether there can be such a gate.
        cost: (n,): of each gate.
        first: (n,) bool: points that come before all others, whatever their gates cost.
        count: how many gates there can be.
        budget: what they may cost together.

    Returns:
        (k,) int64, k ≤ count, in the order of choice.
        (n,) bool: the points at which one of them opens.
    """
    chosen: list[int] = []
    covered, spent = torch.zeros_like(first), 0.0
    cheapest = [gate for gate in cost.argsort(stable=True).tolist() if possible[gate]]
    leading, rest = ([gate for gate in cheapest if first[gate] == of] for of in (True, False))
    for gate, whatever in (*product(leading, (False,)), *product(leading, (True,)), *product(rest, (False,))):
        affordable = len(chosen) < count and spent + float(cost[gate]) <= budget
        if affordable and gate not in chosen and (whatever or not covered[gate]):
            chosen.append(gate)
            covered, spent = covered | opens[gate], spent + float(cost[gate])
    return torch.tensor(chosen, dtype=torch.int64, device=opens.device), covered


def gate_units(
    directions: Tensor, highest: Tensor, own: Tensor, closed: float, opened: Tensor
) -> tuple[Tensor, Tensor]:
    """Weights and biases of hidden units whose pre-activation is −`closed` at the highest response of what passes, and
    `opened` at the gate's own point.

    Args:
        directions: w (k, d).
        highest: (k,): the highest w·x of what passes.
        own: (k,): w·x at the gate's own point, above `highest`.
        closed: > 0.
        opened: (k,) > 0.

    Returns:
        (k, d) and (k,).
    """
    slope = (closed + opened) / (own - highest)
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
    remaining = torch.cat((~freed, freed.new_tensor([has_bias]))).nonzero()[:, 0]
    gone = freed.nonzero()[:, 0]
    system = moment[remaining][:, remaining]
    width = len(remaining) - has_bias
    system.diagonal()[:width] += ridge * moment.diagonal()[:-1].mean()
    change = solve_spd_(weight[:, gone] @ moment[gone][:, remaining], SymmetricSum.of(system))
    refitted = weight.clone()
    refitted[:, gone] = 0
    refitted[:, remaining[:width]] += change[:, :width]
    return refitted, change[:, -1] if has_bias else change.new_zeros(len(weight))


def output_columns(moves: Tensor, activations: Tensor, ridge: float, largest: float) -> Tensor:
    """What gates have to add where they open: ridge regression of the moves on their activations.

    The ridge is raised until the columns are small enough: their norm falls monotonically with it.

    Args:
        moves: (n, m): what is to be added to the output at each point.
        activations: (n, k) of the gates there.
        ridge: the least one, as a share of the mean square sum of one gate's activations.
        largest: Frobenius norm that the columns may have.

    Returns:
        (m, k).

    Raises:
        torch.linalg.LinAlgError: the eigenvalues do not converge, as where a number is not finite.
    """
    values, vectors = torch.linalg.eigh(activations.T @ activations)
    right = moves.T @ activations @ vectors
    weight = right.square().sum(0)
    low = float(ridge * values.mean())

    def norm(shift: float) -> float:
        return float((weight / (values.clamp(min=0) + shift).square()).sum().sqrt())

    if norm(low) > largest:
        high = float(weight.sum().sqrt()) / largest  # there every column is small enough
        for _ in range(_BISECTIONS):
            middle = (low * high) ** 0.5
            low, high = (middle, high) if norm(middle) > largest else (low, middle)
        low = high
    columns: Tensor = right / (values.clamp(min=0) + low) @ vectors.T
    return columns
