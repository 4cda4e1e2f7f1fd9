"""Theorems of the published operator, on activations drawn at random."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from chip.data.hierarchy import Hierarchy
from chip.data.record import Record
from chip.data.request import ForgetRequest, Partition
from chip.kernels.subspace import leading_basis
from chip.methods import Chip
from chip.methods.chip import ChipStatistics
from chip.model.tokens import SegmentRecords, TokenRole, Tokens

SEEDS = st.integers(0, 2**32 - 1)
CPU = torch.device("cpu")
PATHS = [
    *(("i", "target", study) for study in ("s1", "s2")),
    *(("i", "sibling", study) for study in ("s3", "s4")),
    ("j", "far", "s5"),
]


def _case(name: str = "target") -> ForgetRequest:
    hierarchy = Hierarchy([Record("q", "a", path, None) for path in PATHS])
    return ForgetRequest(hierarchy, Partition.of(hierarchy, [hierarchy.find(name)]))


def _tokens(seed: int, d_out: int, each: int = 4) -> Tokens:
    count = each * len(PATHS)
    outputs = torch.randn(count, d_out, generator=torch.Generator().manual_seed(seed))
    records = torch.arange(len(PATHS)).repeat_interleave(each)
    each_its_own = SegmentRecords(torch.arange(len(PATHS)), torch.arange(len(PATHS)), len(PATHS))
    image = torch.arange(count) % each == 0
    return Tokens(
        torch.empty(count, 0),
        outputs,
        torch.where(image, 0, 7),
        torch.where(image, TokenRole.IMAGE, TokenRole.ANSWER),
        records,
        each_its_own,
        torch.zeros(count, dtype=torch.bool),
    )


def _outputs(tokens: Tokens) -> Tensor:
    assert tokens.outputs is not None
    return tokens.outputs


def _statistics(tokens: Tokens, request: ForgetRequest | None = None, alpha: float = 0.3) -> ChipStatistics:
    statistics = ChipStatistics(Chip().record_weights(request or _case(), CPU), _outputs(tokens).shape[1], alpha)
    statistics.update(tokens)
    return statistics


def _parameters(seed: int, d_out: int, d_in: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed + 1)
    return torch.randn(d_out, d_in, generator=generator), torch.randn(d_out, generator=generator)


@given(SEEDS, st.floats(0.05, 1), st.floats(0.5, 1))
def test_nothing_is_left_along_the_directions_and_other_rows_are_untouched(
    seed: int, top_k: float, variance_threshold: float
) -> None:
    tokens, (weight, bias) = _tokens(seed, 20), _parameters(seed, 20)
    statistics, method = _statistics(tokens), Chip(top_k=top_k, variance_threshold=variance_threshold)
    update = method.solve(weight, bias, statistics)
    assert update is not None
    assert update.bias is not None
    forget, retain = statistics.magnitude.mean
    rows = (forget - retain).topk(max(1, round(top_k * 20))).indices.sort().values
    differences = (statistics.child.mean - statistics.around.mean)[:, rows]
    basis = leading_basis(torch.nn.functional.normalize(differences), variance_threshold)
    outputs = update.weight[rows] @ torch.randn(6, 7, dtype=torch.float64) + update.bias[rows, None]
    torch.testing.assert_close(basis.T @ outputs, torch.zeros(basis.shape[1], 7, dtype=torch.float64))
    others = torch.ones(20, dtype=torch.bool)
    others[rows] = False
    assert torch.equal(update.weight[others].float(), weight[others])
    assert torch.equal(update.bias[others].float(), bias[others])

    again = method.solve(update.weight, update.bias, statistics)
    assert again is not None
    torch.testing.assert_close(again.weight, update.weight)


def test_activation_mixes_image_and_other_tokens_by_alpha() -> None:
    tokens = _tokens(0, 3)
    request, alpha = _case(), 0.3
    pooled = []
    for record in range(len(PATHS)):
        mine = _outputs(tokens)[tokens.segments == record].double()
        pooled.append(alpha * mine[0] + (1 - alpha) * mine[1:].mean(0))
    a = torch.stack(pooled)
    statistics = _statistics(tokens, request, alpha)
    torch.testing.assert_close(statistics.child.mean, a[[0, 1]])
    torch.testing.assert_close(statistics.around.mean, a[[2, 3]].mean(0).expand(2, -1))
    torch.testing.assert_close(statistics.magnitude.mean[1], a[2:].abs().mean(0))


def test_a_shared_image_is_part_of_every_record_that_owns_it() -> None:
    tokens = _tokens(0, 3)  # of each record one image token, then three others
    kept = torch.arange(len(tokens.ids)) != 4  # the second record shows the first one's image
    segments = torch.where(tokens.vision, len(PATHS), tokens.segments)
    segments = torch.where((tokens.vision) & (tokens.segments > 1), tokens.segments, segments)
    owners = SegmentRecords(torch.tensor([0, 1, 2, 3, 4, 5, 5]), torch.tensor([0, 1, 2, 3, 4, 0, 1]), 6)
    shared = replace(
        tokens,
        inputs=tokens.inputs[kept],
        outputs=_outputs(tokens)[kept],
        ids=tokens.ids[kept],
        roles=tokens.roles[kept],
        segments=segments[kept],
        owners=owners,
        starts=tokens.starts[kept],
    )
    image, text = _outputs(tokens)[0].double(), _outputs(tokens)[[1, 2, 3, 5, 6, 7]].double()
    expected = torch.stack([0.3 * image + 0.7 * text[:3].mean(0), 0.3 * image + 0.7 * text[3:].mean(0)])
    torch.testing.assert_close(_statistics(shared).child.mean, expected)


def test_a_record_without_image_tokens_counts_in_full() -> None:
    tokens = _tokens(0, 3)
    text = replace(tokens, roles=torch.full_like(tokens.roles, TokenRole.ANSWER))
    torch.testing.assert_close(_statistics(text).child.mean[0], _outputs(tokens)[:4].double().mean(0))


def test_without_siblings_all_retained_nodes_of_the_level_stand_in() -> None:
    tokens = _tokens(0, 3)
    statistics = _statistics(tokens, _case("far"), alpha=0.25)  # four tokens, one of them image: a plain mean
    retained = _outputs(tokens)[:16].double().mean(0)
    torch.testing.assert_close(statistics.around.mean[0], retained)
