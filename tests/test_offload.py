"""Models spread by a device map: parts on the host and on the disk, and the same edit as without."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import chip
from chip.checkpoint.layout import Checkpoint
from chip.data.hierarchy import Hierarchy
from chip.data.readers import read_records
from chip.data.record import Record
from chip.data.request import ForgetRequest, Partition
from chip.errors import InputError
from chip.methods import Shielded, apply
from chip.methods import source as statistics_source
from chip.methods.apply import EditContext, default_modules
from chip.methods.patch import Patch
from chip.methods.plans import edit_model
from chip.model.batching.batch_size import BatchSize
from chip.model.families import find_language
from chip.model.forward.collector import Collector
from chip.model.loading import VLM, load_vlm
from chip.model.offload import DeviceMap, MaxMemory, computes_on_host
from chip.model.scoring import score
from chip.model.skeleton import build_skeleton
from chip.model.stages import Stage
from tests.families import GIVEN, UNTRAINED, build, write_records
from tests.rounding import assert_equal_but_for_rounding

TARGET = "patient_1"
FRONT = {
    "llava": {"vision_tower": "cpu", "multi_modal_projector": "disk"},
    "qwen2_5_vl": {
        "visual.rotary_pos_emb": "cpu",
        "visual.patch_embed": "disk",
        "visual.blocks": "cpu",
        "visual.merger": "disk",
    },
    "gemma3": {"vision_tower": "cpu", "multi_modal_projector": "disk"},
}
"""Family -> where what stands before its text model goes."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records, their images and a checkpoint of each family, in a dtype that rounds nothing away."""
    folder = tmp_path_factory.mktemp("offload")
    write_records(folder)
    for family in FRONT:
        build(folder / family, family, dtype=torch.float32)
    return folder


@pytest.fixture(params=FRONT)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(autouse=True)
def untouched(folder: Path) -> Iterator[None]:
    """No test changes a checkpoint."""
    before = hashes(folder)
    yield
    assert hashes(folder) == before


def hashes(folder: Path) -> dict[Path, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def device_map(folder: Path, family: str, elsewhere: str = "disk") -> dict[str, Any]:
    """Every other layer, the connector and the head are offloaded to the disk, or to the host.

    In the latter case the device is the CPU by another name, which accelerate takes for another device than the host.
    """
    model = build_skeleton(folder / family)
    language = find_language(model)
    above = next(name for name, module in model.named_modules() if module is language)
    places = {f"model.{part}": place for part, place in FRONT[family].items()}
    places |= {f"{above}.{name}": "cpu" for name, _ in language.named_children() if name != "layers"}
    places |= {f"{above}.layers.{index}": ("disk", "cpu")[index % 2] for index in range(len(language.layers))}
    places["lm_head"] = "cpu" if family == "gemma3" else "disk"  # it is the embedding there
    devices = {"disk": "disk", "cpu": "cpu"} if elsewhere == "disk" else {"disk": "cpu", "cpu": torch.device("cpu")}
    return {part: devices[place] for part, place in places.items()}


def patch_of(vlm: VLM, source: Checkpoint, method_name: str) -> Patch:
    hierarchy, method = Hierarchy(records_of(source)), GIVEN[method_name]
    request = ForgetRequest(hierarchy, Partition.of(hierarchy, [hierarchy.find(TARGET)]))
    return edit_model(EditContext(vlm, source, BatchSize(8)), method, request, default_modules(vlm, method))


def records_of(source: Checkpoint) -> list[Record]:
    return read_records(source.folder.parent / "records.jsonl")


def probabilities(vlm: VLM, source: Checkpoint) -> Tensor:
    """Of each record's answer."""
    records = records_of(source)
    return score(vlm, vlm.batches(records, size=BatchSize(8)), len(records), lambda _: None).answer_probability


def forwards(vlm: VLM) -> list[Any]:
    """What accelerate has put in each module's place."""
    return [vars(module).get("forward") for module in vlm.model.modules()]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:few questions")
def test_a_trial_measures_again_behind_an_edited_connector_only_unless_there_is_no_room(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, method = Checkpoint.open(folder / "llava"), Shielded()
    hierarchy = Hierarchy(records_of(source))
    request = ForgetRequest.of(hierarchy, [TARGET])
    passes, collect = Counter[str](), Collector.collect

    def counted(flow: Collector, stage: Stage, *given: Any, **named: Any) -> Any:
        passes.update(module.name.rpartition(".")[2] for module in stage.target_modules)
        return collect(flow, stage, *given, **named)

    def patch() -> Patch:
        vlm = load_vlm(source.folder, "cpu")
        return edit_model(EditContext(vlm, source, BatchSize(8)), method, request, default_modules(vlm, method))

    monkeypatch.setattr(Collector, "collect", counted)
    monkeypatch.setattr(apply, "check_pass", lambda *_: None)  # measures too
    held = patch()
    assert held.choice is not None
    edits = len(held.choice.trials) + 1
    depth = passes["down_proj"]
    assert passes == {"linear_1": 1, "linear_2": edits, "down_proj": depth}
    passes.clear()
    monkeypatch.setattr(statistics_source, "room_for", lambda size, device: False)
    again = patch()
    assert held.choice == again.choice
    assert passes == {"linear_1": edits, "linear_2": edits, "down_proj": depth * edits}
    assert held.tensors.keys() == again.tensors.keys()
    assert all(torch.equal(held.tensors[name], again.tensors[name]) for name in held.tensors)


@pytest.mark.filterwarnings("ignore:few questions")
def test_a_trial_of_a_section_measures_nothing_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its image stays, so that no connector is edited."""
    source, method = Checkpoint.open(folder / "llava"), Shielded(max_retain_drop=1.0)
    hierarchy = Hierarchy(records_of(source))
    request = ForgetRequest.of(hierarchy, ["/".join(hierarchy.records[0].path[-2:])])
    stages, collect = Counter[Stage](), Collector.collect

    def counted(flow: Collector, stage: Stage, *given: Any, **named: Any) -> Any:
        stages[stage] += 1
        return collect(flow, stage, *given, **named)

    monkeypatch.setattr(Collector, "collect", counted)
    monkeypatch.setattr(apply, "check_pass", lambda *_: None)  # measures too
    vlm = load_vlm(source.folder, "cpu")
    patch = edit_model(EditContext(vlm, source, BatchSize(8)), method, request, default_modules(vlm, method))
    assert patch.choice is not None
    assert len(patch.choice.trials) > 1
    assert set(stages.values()) == {1}


@pytest.mark.parametrize("method", GIVEN)
@pytest.mark.parametrize("elsewhere", ["disk", "host"])
def test_the_edit_is_that_of_a_model_in_one_place(folder: Path, family: str, method: str, elsewhere: str) -> None:
    source = Checkpoint.open(folder / family)
    whole = load_vlm(source.folder, "cpu")
    vlm = load_vlm(source.folder, device_map=device_map(folder, family, elsewhere))
    assert vlm.device == torch.device("cpu")
    for module in default_modules(vlm, GIVEN[method], ["connector"], "0"):
        assert vlm.model.get_parameter(module.weight_name).is_meta
        assert torch.equal(vlm.parameter(module.weight_name), whole.parameter(module.weight_name))
    unedited, expected = probabilities(vlm, source), patch_of(whole, source, method)
    before = forwards(vlm)
    found = patch_of(vlm, source, method)
    assert forwards(vlm) == before
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert_equal_but_for_rounding(found.tensors[name], tensor)
    edited = probabilities(vlm, source)
    torch.testing.assert_close(edited, probabilities(whole, source), rtol=1e-4, atol=0)
    assert not torch.allclose(edited, unedited, rtol=1e-2, atol=0)


def test_it_runs_end_to_end(folder: Path, family: str, tmp_path: Path, temporary: Path) -> None:
    """Also where accelerate says itself what fits into the memory it may take."""
    source, method = folder / family, GIVEN["shielded"]
    chip.edit(source, [TARGET], out=tmp_path / "whole", method=method, device="cpu", **UNTRAINED)
    maps: list[DeviceMap] = [device_map(folder, family), *(["auto"] if family == "llava" else [])]
    for number, places in enumerate(maps):
        out = tmp_path / str(number)
        chip.edit(source, [TARGET], out=out, method=method, device_map=places, max_memory={"cpu": "400KB"}, **UNTRAINED)
        assert chip.verify(out, source).faults == ()
        expected, found = Checkpoint.open(tmp_path / "whole"), Checkpoint.open(out)
        for name in expected.entries:
            assert_equal_but_for_rounding(found.read(name), expected.read(name))
    assert list(temporary.iterdir()) == []


def test_a_small_budget_leaves_parts_on_the_disk(folder: Path) -> None:
    vlm = load_vlm(folder / "llava", device_map="auto", max_memory={"cpu": "400KB"})
    assert "disk" in vlm.model.hf_device_map.values()
    assert vlm.model.dtype == torch.float32


@pytest.mark.parametrize("elsewhere", ["disk", "host"])
def test_new_values_are_what_is_computed_with(folder: Path, elsewhere: str) -> None:
    vlm = load_vlm(folder / "llava", device_map=device_map(folder, "llava", elsewhere))
    head, states = vlm.model.lm_head, torch.ones(1, 64)
    for factor in (2.0, 3.0):
        old, before = vlm.parameter("lm_head.weight").clone(), head(states)
        kept = vlm.set_parameter("lm_head.weight", factor * old)
        assert torch.equal(kept, factor * old)
        torch.testing.assert_close(head(states), factor * before)
        assert head.weight.is_meta


@pytest.mark.parametrize(
    ("device_map", "max_memory", "expected"),
    [
        ("auto", None, False),
        ("auto", {"cpu": "1GB"}, True),
        ("auto", {0: "1GB", "cpu": "1GB"}, False),
        ({"model": "cpu", "lm_head": "disk"}, None, True),
        ({"model": torch.device("cpu"), "lm_head": "cuda:0"}, None, False),
    ],
)
def test_where_it_is_computed(device_map: DeviceMap, max_memory: MaxMemory | None, expected: bool) -> None:
    assert computes_on_host(device_map, max_memory, "cuda") == expected


@pytest.mark.parametrize(
    ("device_map", "value", "message"),
    [
        ("cuda:1", "cuda:1", "not known, there is auto, .* for one device give a device"),
        ({"model": "cpu"}, {"model": "cpu"}, "no place for 'lm_head.weight'"),
        ({"": "cpu", "model.vision": "disk"}, "model.vision", "has no such part"),
        ({"": "cpu", "lm_head": "disk"}, "lm_head", "lies in ''"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(folder: Path, device_map: DeviceMap, value: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_vlm(folder / "llava", device_map=device_map)
    assert (caught.value.argument, caught.value.value) == ("device_map", value)


def test_a_budget_that_is_no_size_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"device_map='auto': .*llava cannot be spread so .*many QB"):
        load_vlm(folder / "llava", device_map="auto", max_memory={"cpu": "many QB"})


def test_one_of_device_and_map(folder: Path, tmp_path: Path, temporary: Path) -> None:
    with pytest.raises(InputError, match="device='cpu': a device map says where"):
        chip.edit(folder / "llava", [TARGET], out=tmp_path / "out", device="cpu", device_map="auto")
    assert sorted(tmp_path.iterdir()) == [temporary]


def test_it_needs_accelerate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chip.model.offload.find_spec", lambda _: None)
    with pytest.raises(InputError, match="pip install accelerate"):
        load_vlm(folder / "llava", device_map="auto")
