"""The pass through the model: the same statistics however the records are batched, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from chip.errors import InputError
from chip.hierarchy import Hierarchy
from chip.moments import Tokens
from chip.operators import Chip, Shielded
from chip.operators.base import Case, Operator
from chip.patching import select_sites
from chip.vlm.flow import Flow
from chip.vlm.loading import VLM
from chip.vlm.prompts import Batch
from chip.vlm.sites import Stage, at_once, in_data_order

KINDS = ["connector", "gate", "down"]


def _case(hierarchy: Hierarchy) -> Case:
    return Case(hierarchy, hierarchy.split([hierarchy.find("patient_17")]))


def _batches(vlm: VLM, hierarchy: Hierarchy, indices: Sequence[int], batch_size: int) -> list[Batch]:
    return list(vlm.prompts.batches(hierarchy.records, indices, batch_size))


def _few(case: Case) -> list[int]:
    """Some records of each group."""
    return [i for group in case.split.groups.values() for i in group[:: max(1, len(group) // 20)]]


def _padded_left(batch: Batch) -> Batch:
    """The same rows with their padding moved to the front."""

    def roll(rows: Tensor) -> Tensor:
        shifts = (~batch.real).sum(1).tolist()
        return torch.stack([row.roll(shift) for row, shift in zip(rows, shifts, strict=True)])

    texts = {name: roll(batch.inputs[name]) for name in ("input_ids", "attention_mask")}
    rolled = {name: roll(getattr(batch, name)) for name in ("real", "vision", "answer")}
    return replace(batch, inputs={**batch.inputs, **texts}, **rolled)


def _sums(vlm: VLM, case: Case, batches: Sequence[Batch], operator: Operator) -> list[Tensor]:
    """All that the operator's statistics hold at some sites."""
    sites = select_sites(vlm, operator, KINDS, "all")
    flow, sums = Flow(vlm, batches, case.hierarchy.records), []
    for stage in in_data_order(sites) if operator.data_order else at_once(sites):
        statistics = {}
        for site in stage.sites:
            d_out, d_in = site.weight(vlm.model).shape
            statistics[site.name] = operator.statistics(case, d_in, d_out, vlm.device)
        flow.observe(stage, {name: each.update for name, each in statistics.items()}, lambda _: None)
        for each in statistics.values():
            moments = [value for value in vars(each).values() if hasattr(value, "__iadd__") or isinstance(value, list)]
            for moment in (m for value in moments for m in (value if isinstance(value, list) else [value])):
                sums += [
                    value for value in vars(moment).values() if isinstance(value, Tensor) and value.is_floating_point()
                ]
    return sums


@pytest.mark.parametrize("operator", [Shielded(), Chip()])
def test_statistics_do_not_depend_on_batch_size_padding_or_order(
    vlm: VLM, hierarchy: Hierarchy, operator: Operator
) -> None:
    case = _case(hierarchy)
    few = _few(case)
    reference = _sums(vlm, case, _batches(vlm, hierarchy, few, 1), operator)  # no padding at all
    assert len(reference) > 10
    batches = _batches(vlm, hierarchy, few, 24)
    assert any(not batch.real.all() for batch in batches)
    for other in (batches, [_padded_left(batch) for batch in batches], batches[::-1]):
        for ours, theirs in zip(reference, _sums(vlm, case, other, operator), strict=True):
            assert torch.linalg.norm(ours - theirs) <= 1e-5 * torch.linalg.norm(ours)


def _last_inputs(vlm: VLM, case: Case, batches: Sequence[Batch], stages: Sequence[Stage]) -> dict[str, Tensor]:
    """Site name -> the inputs it got from the last batch."""
    seen: dict[str, Tensor] = {}

    def observer(name: str) -> Callable[[Tokens], None]:
        return lambda tokens: seen.update({name: tokens.inputs})

    flow = Flow(vlm, batches, case.hierarchy.records)
    for stage in stages:
        flow.observe(stage, {site.name: observer(site.name) for site in stage.sites}, lambda _: None)
    return seen


def test_running_layer_by_layer_shows_what_one_full_pass_shows(vlm: VLM, hierarchy: Hierarchy) -> None:
    case = _case(hierarchy)
    batches = _batches(vlm, hierarchy, _few(case), 16)
    sites = select_sites(vlm, Shielded(), KINDS, "all")
    at_one_go = _last_inputs(vlm, case, batches, at_once(sites))
    one_by_one = _last_inputs(vlm, case, batches, in_data_order(sites))
    assert at_one_go.keys() == one_by_one.keys() == {site.name for site in sites}
    for name in at_one_go:
        torch.testing.assert_close(at_one_go[name], one_by_one[name])


def _leftovers(vlm: VLM) -> list[str]:
    return [
        name
        for name, module in vlm.model.named_modules()
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    ]


def test_hooks_are_removed_also_after_an_error(vlm: VLM, hierarchy: Hierarchy) -> None:
    case = _case(hierarchy)
    batches = _batches(vlm, hierarchy, _few(case), 16)
    vlm.core(**batches[0].inputs)  # transformers itself hooks into the vision tower at the first call, and stays
    before = _leftovers(vlm)

    def failing(_: Tokens) -> None:
        raise RuntimeError("in the middle of a pass")

    flow = Flow(vlm, batches, hierarchy.records)
    for stage in in_data_order(select_sites(vlm, Shielded())):
        with pytest.raises(RuntimeError, match="in the middle"):
            flow.observe(stage, {site.name: failing for site in stage.sites}, lambda _: None)
        assert _leftovers(vlm) == before
        flow.observe(stage, {site.name: lambda _: None for site in stage.sites}, lambda _: None)
    assert _leftovers(vlm) == before


def test_a_nan_names_the_site_and_the_record(vlm: VLM, hierarchy: Hierarchy) -> None:
    batches = _batches(vlm, hierarchy, [40], 1)
    site = select_sites(vlm, Shielded(), ["down"], "1")[0]
    with torch.no_grad():
        vlm.model.get_submodule(site.name.replace("down", "up")).weight[0, 0] = torch.nan
    flow = Flow(vlm, batches, hierarchy.records)
    with pytest.raises(InputError, match=rf"{site.name}.*records\.jsonl:41\b"):
        flow.observe(in_data_order([site])[0], {site.name: lambda _: None}, lambda _: None)
