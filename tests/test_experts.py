"""Blocks of experts are edited on their output: theorems of it, and what is written."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.func import functional_call

from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.writer import write_patched
from chip.data.hierarchy import Hierarchy
from chip.data.readers import read_records
from chip.data.request import ForgetRequest, Partition
from chip.errors import InputError
from chip.methods import DEFAULT, GatedText, Shielded
from chip.methods.apply import EditContext, default_modules
from chip.methods.patch import check_removed
from chip.methods.plans import edit_model
from chip.model.experts import OutputMap, block_output, check_block, find_blocks
from chip.model.forward.trace import Call
from chip.model.loading import VLM, load_vlm
from chip.model.unreached import describe_unreached
from tests.families import GIVEN, TEXT, _model, build, write_records
from tests.further_families import FURTHER
from tests.test_shielded import TARGET, _objective, _statistics, _tokens

WIDTH = TEXT["hidden_size"]
KINDS = ("qwen3_vl_moe", "glm4v_moe", "llama4", "gemma4_moe", "qwen3_5_moe")
"""Routed experts alone; shared ones beside them; transposed; beside a dense MLP, without a module around them; a shared
one behind a gate of its own."""


@cache
def mixture(name: str) -> tuple[Any, tuple[OutputMap, ...], Call]:
    """A block of a family, its maps, and a call of it; torch has no grouped product in fp64."""
    language = _model(FURTHER[name]).get_decoder()
    layer = (language if hasattr(language, "layers") else language.model).layers[-1]
    ((path, maps),) = find_blocks(layer, WIDTH)
    block, x = layer.get_submodule(path), torch.randn(1, 24, WIDTH, generator=_seed())
    if name == "gemma4_moe":  # the layer routes
        choice = torch.stack([torch.randperm(4, generator=_seed())[:2] for _ in range(24)])
        return block, maps, Call(block, (x[0], choice, torch.full((24, 2), 0.5)), {})
    return block, maps, Call(block, (x,), {})


def _seed() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def output_of(block: Any, maps: tuple[OutputMap, ...], call: Call, matrix: Tensor) -> Tensor:
    """(n, d): what the block gives when each of its last maps is multiplied."""
    values = {each.name: each.multiplied(matrix, block.get_parameter(each.name)) for each in maps}
    return block_output(functional_call(block, values, call.args, call.kwargs)).flatten(0, -2)


@pytest.mark.parametrize("name", KINDS)
def test_to_multiply_the_last_maps_is_to_multiply_the_output(name: str) -> None:
    block, maps, call = mixture(name)
    matrix = torch.randn(WIDTH, WIDTH, generator=_seed())
    before = block_output(call.run()).flatten(0, -2)
    torch.testing.assert_close(output_of(block, maps, call, matrix), before @ matrix.T, rtol=1e-4, atol=1e-4)
    assert any("shared" in each.name for each in maps) == (name in ("glm4v_moe", "llama4", "qwen3_5_moe"))
    check_block("block", maps, call, dict(block.named_parameters()))


def test_a_mixture_that_gives_more_than_its_maps_is_refused() -> None:
    block, maps, call = mixture("glm4v_moe")
    routed = tuple(each for each in maps if "shared" not in each.name)
    with pytest.raises(InputError, match=r"mlp: its experts are mixed in a way that chip does not know \(off by"):
        check_block("model.layers.3.mlp", routed, call, dict(block.named_parameters()))


@pytest.mark.parametrize("name", ["glm4v_moe", "llama4"])
def test_the_gradient_is_zero_at_the_solution_whatever_the_routing(name: str) -> None:
    """The objective of `Shielded`, on what the edited block gives; M is varied in all experts at once."""
    block, maps, call = mixture(name)
    outputs = block_output(call.run()).detach().flatten(0, -2).double()
    tokens = replace(_tokens(0, WIDTH), inputs=outputs)
    method = Shielded(retain_weight=8.0, ridge=0.1)
    identity = torch.eye(WIDTH, dtype=torch.float64)
    update = method.solve(identity, None, _statistics(tokens, neighbor_weight=method.neighbor_weight))
    assert update is not None
    matrix, start = update.weight.clone().requires_grad_(), identity.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(_objective(matrix, identity, tokens, method), matrix)
    (scale,) = torch.autograd.grad(_objective(start, identity, tokens, method), start)
    assert torch.linalg.norm(gradient) <= 1e-8 * torch.linalg.norm(scale)
    after = output_of(block, maps, call, update.weight.float()).double()
    torch.testing.assert_close(after, outputs @ update.weight.T, rtol=1e-4, atol=1e-4)
    forgotten, moved = tokens.segments == TARGET, torch.linalg.vector_norm(after - outputs, dim=1)
    assert moved[forgotten].mean() > 2 * moved[~forgotten].mean()


def test_an_endless_shield_or_ridge_changes_nothing() -> None:
    block, maps, call = mixture("qwen3_vl_moe")
    outputs = block_output(call.run()).detach().flatten(0, -2).double()
    tokens, identity = replace(_tokens(0, WIDTH), inputs=outputs), torch.eye(WIDTH, dtype=torch.float64)
    retained = tokens.segments != TARGET
    for method, still in (
        (Shielded(retain_weight=8.0, ridge=1e9), torch.ones_like(retained)),
        (Shielded(retain_weight=1e9, ridge=0.1), retained),
    ):
        update = method.solve(identity, None, _statistics(tokens))
        assert update is not None
        after = output_of(block, maps, call, update.weight.float()).double()
        torch.testing.assert_close(after[still], outputs[still], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts")
    write_records(folder)
    return folder


def edited(source: Path, folder: Path, method: str) -> tuple[VLM, Any]:
    records = read_records(folder / "records.jsonl")
    hierarchy = Hierarchy(records)
    request = ForgetRequest(hierarchy, Partition.of(hierarchy, [hierarchy.find("patient_1")]))
    vlm = load_vlm(source, "cpu")
    kinds = ["down"] if method == "chip" else None
    modules = default_modules(vlm, GIVEN[method], kinds, "all")
    return vlm, edit_model(EditContext(vlm, Checkpoint.open(source)), GIVEN[method], request, modules)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("qwen3_vl_moe", "shielded"),
        pytest.param("qwen3_vl_moe", "chip", marks=pytest.mark.slow),
        pytest.param("glm4v_moe", "shielded", marks=pytest.mark.slow),
        pytest.param("glm4v_moe", "chip", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("layout", ["saved", pytest.param("module", marks=pytest.mark.slow)])
def test_what_is_written_is_what_was_computed(
    name: str, method: str, layout: str, folder: Path, tmp_path: Path
) -> None:
    """Whether the folder has a tensor for each expert or one for all."""
    source = build(tmp_path / name, FURTHER[name], layout=layout)
    vlm, patch = edited(source, folder, method)
    write_patched(Checkpoint.open(source), tmp_path / "out", patch.tensors)
    model, info = transformers.AutoModelForImageTextToText.from_pretrained(
        tmp_path / "out", dtype=torch.float32, output_loading_info=True
    )
    assert not any(info[trouble] for trouble in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    loaded = dict(model.named_parameters())
    assert all(torch.equal(loaded[name], value) for name, value in vlm.model.named_parameters())
    experts = {name for name in patch.tensors if ".experts." in name}
    assert experts
    assert all("down_proj" in name for name in experts)
    assert all(0 < change < 2 for change in patch.relative_change.values())
    assert patch.removed.keys() == (set(patch.tensors) if method == "chip" else set())
    check_removed(Checkpoint.open(source), tmp_path / "out", patch.removed)
    (note,) = describe_unreached(Checkpoint.open(source), vlm.model)
    assert "have experts: an edit does not reach" in note


def test_the_default_leaves_gates_out_of_a_mixture_and_what_is_asked_for_is_not_left_out() -> None:
    vlm = VLM(_model(FURTHER["qwen3_vl_moe"]), None)
    assert default_modules(vlm, DEFAULT()) == default_modules(vlm, Shielded())
    with pytest.raises(InputError, match=r"no plain linear layer mlp\.gate_proj \(experts instead"):
        default_modules(vlm, DEFAULT(), ["gate"])
    with pytest.raises(InputError, match=r"no plain linear layer mlp\.gate_proj"):
        default_modules(vlm, GatedText())
