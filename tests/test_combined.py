"""The default method: gates for pictures where they are enough, else a linear edit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from chip.checkpoint.layout import Checkpoint
from chip.data.hierarchy import Hierarchy
from chip.data.keep import text_record
from chip.data.request import ForgetRequest
from chip.errors import ChipWarning
from chip.methods import Combined, Gated, GatedText, ShieldedGatedText
from chip.methods.apply import EditContext, default_modules
from chip.methods.base import Search
from chip.methods.patch import Patch
from chip.methods.plans import edit_model
from chip.methods.shielded_gated_text import Linear
from chip.model.batching.batch_size import BatchSize
from chip.model.loading import VLM
from chip.model.tensor_names import disk_names

GATES = {f"multi_modal_projector.linear_{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")}


@pytest.fixture(scope="module")
def forget_request(hierarchy: Hierarchy) -> ForgetRequest:
    """A patient of the demo, with two questions that show no picture; and some of the questions about others."""
    own = hierarchy.records_of(hierarchy.find("patient_17"))
    others = [record for index, record in enumerate(hierarchy.records) if index not in set(own)]
    mine = [hierarchy.records[index] for index in own]
    blind = [replace(record, image=None) for record in mine[:2]]
    records = [*blind, *mine[2:], *others[::12]]
    return ForgetRequest.of(Hierarchy(records), ["patient_17"])


def _edited(vlm: VLM, hospital: Path, method: ShieldedGatedText, request: ForgetRequest) -> Patch:
    source, modules = Checkpoint.open(hospital / "ckpt"), default_modules(vlm, method)
    return edit_model(EditContext(vlm, source, BatchSize(64)), method, request, modules)


def _in_pictures(request: ForgetRequest) -> ForgetRequest:
    return request.part(lambda record: record.image is not None)


def test_gates_take_the_pictures_and_the_linear_edit_takes_the_rest(vlm: VLM, forget_request: ForgetRequest) -> None:
    method, records = Combined(), forget_request.records
    modules = default_modules(vlm, method)
    first, last = method.plans(vlm, forget_request, modules)
    (linear, rest), (gates, pictured) = first.steps
    assert (type(linear), type(gates)) == (Linear, Gated)
    assert first.enough_for is pictured
    for part, shown in ((rest, False), (pictured, True)):
        assert part.partition.forget
        assert {records[index].image is not None for index in part.partition.forget} == {shown}
    assert last.enough_for is None
    assert last.steps == ShieldedGatedText().plan(vlm, forget_request, modules)


def test_names_are_the_text_gates_where_text_is_kept(vlm: VLM, forget_request: ForgetRequest) -> None:
    kept = replace(forget_request, general=(text_record("The fox ran over the hill.", "here"),))
    first, _ = Combined().plans(vlm, kept, default_modules(vlm, Combined()))
    assert [type(step) for step, _ in first.steps] == [GatedText, Gated]


@pytest.mark.parametrize("why", ["a weight is given", "no picture", "no connector"])
def test_else_there_is_one_plan(why: str, vlm: VLM, forget_request: ForgetRequest) -> None:
    method = Combined(retain_weight=96.0) if why == "a weight is given" else Combined()
    request = forget_request.part(lambda record: record.image is None) if why == "no picture" else forget_request
    modules = default_modules(vlm, method, ["down"] if why == "no connector" else None)
    (plan,) = method.plans(vlm, request, modules)
    assert plan.enough_for is None
    assert plan.steps == method.only(ShieldedGatedText).plan(vlm, request, modules)


@pytest.mark.filterwarnings("ignore:few questions")
def test_gates_stay_where_they_are_enough(vlm: VLM, hospital: Path, forget_request: ForgetRequest) -> None:
    request = _in_pictures(forget_request)
    patch = _edited(vlm, hospital, Combined(), request)
    assert patch.choice is not None
    assert patch.choice.limit == "gates"
    assert patch.tensors.keys() == GATES
    assert patch.settings["retain_weight"] == "auto"
    source = Checkpoint.open(hospital / "ckpt")
    for name, value in patch.tensors.items():
        torch.testing.assert_close(vlm.parameter(f"model.{name}").to(value.dtype), value, rtol=0, atol=0)
        assert not torch.equal(value, source.read(name))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:few questions", "ignore:model.multi_modal")
def test_a_linear_edit_takes_the_place_of_gates_that_leave_more(
    vlm: VLM, hospital: Path, forget_request: ForgetRequest
) -> None:
    before = {name: parameter.clone() for name, parameter in vlm.model.named_parameters()}
    request = _in_pictures(forget_request)
    with pytest.warns(ChipWarning, match="gates alone are not enough: the target's answers fall to .* a linear edit"):
        patch = _edited(vlm, hospital, Combined(units=0.05, max_retain_drop=0.5), request)
    after = {name: parameter.clone() for name, parameter in vlm.model.named_parameters()}
    for name, value in before.items():
        vlm.parameter(name).copy_(value)
    alone = _edited(vlm, hospital, ShieldedGatedText(max_retain_drop=0.5), request)
    assert patch.choice == alone.choice
    assert patch.tensors.keys() == alone.tensors.keys()
    assert all(torch.equal(vlm.parameter(name), value) for name, value in after.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("allowed", "why"), [(1.0, "costs more than it takes: "), (0.02, "is refused: .*: even with a retain weight of 2 ")]
)
@pytest.mark.filterwarnings("ignore:few questions", "ignore:model.multi_modal")
def test_gates_that_are_not_enough_stay_where_a_linear_edit_is_worse(
    allowed: float,
    why: str,
    vlm: VLM,
    hospital: Path,
    forget_request: ForgetRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harmful = Search("retain_weight", (1.0, 2.0), allowed)
    monkeypatch.setattr(Linear, "search", harmful)
    with pytest.warns(ChipWarning, match=f"gates alone are not enough: .*; but a linear edit in their place {why}"):
        patch = _edited(vlm, hospital, Combined(units=0.05, max_retain_drop=allowed), _in_pictures(forget_request))
    assert patch.choice is not None
    assert patch.choice.limit == "gates"
    assert patch.tensors.keys() == GATES
    source = Checkpoint.open(hospital / "ckpt")
    assert not any(torch.equal(value, source.read(name)) for name, value in patch.tensors.items())
    for module in default_modules(vlm, Combined()):
        for name, stored in disk_names(source, module.parameter_names).items():
            expected = patch.tensors.get(stored, source.read(stored))
            torch.testing.assert_close(vlm.parameter(name).to(expected.dtype), expected, rtol=0, atol=0)
