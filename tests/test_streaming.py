"""Models of which one layer is in memory: the same results bit for bit, each layer read once, and nothing left open."""

from __future__ import annotations

import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import chip
from chip.checkpoint.layout import Checkpoint
from chip.data.hierarchy import Hierarchy
from chip.data.readers import read_records
from chip.data.request import ForgetRequest
from chip.errors import ChipWarning, InputError
from chip.methods import METHODS, Method, Shielded
from chip.methods.apply import EditContext, default_modules
from chip.methods.patch import Patch
from chip.methods.plans import edit_model
from chip.model import streaming
from chip.model.batching.batch_size import BatchSize
from chip.model.forward import tower
from chip.model.generation import answer_greedily
from chip.model.loading import VLM, load_vlm
from chip.model.lockstep import run_in_lockstep
from chip.model.restoring import restoring
from chip.model.scoring import Scores, score_records
from chip.model.weight_stream import WeightStream
from tests.all_types import NEEDS
from tests.families import (
    BEYOND_HIDDEN_STATES,
    FAMILIES,
    GIVEN,
    LAYOUTS,
    UNTRAINED,
    build,
    known,
    lacking,
    load_processor_of,
    write_records,
)
from tests.further_families import FURTHER

TARGET = "patient_1"
QUICK = {"gemma3": "shielded", "llava": "chip"}
"""Family -> method: a tied head and a connector without modules; outputs of several modules."""
LAYERS_READ = {"qwen3_vl": {0, 1, 2}, "llava": {0}, "llava_next": {0}, "llava_olmo_hybrid": {0}}
"""Family -> the layers of the tower that are looked at from outside; elsewhere that is the last of the two."""
ONE_MAP = ("gemma3", "gemma4", "idefics3", "smolvlm", "paligemma")
"""Families whose connector has one linear map: `gated` has no room there."""
pytestmark = pytest.mark.filterwarnings("ignore:few questions")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records, their images, and what has been built so far."""
    folder = tmp_path_factory.mktemp("streaming")
    write_records(folder)
    return folder


@pytest.fixture
def checkpoint(folder: Path) -> Callable[..., Path]:
    def built(family: str, layout: str = "saved") -> Path:
        if reason := lacking(family):
            pytest.skip(f"needs {reason}")
        path = folder / f"{family}-{layout}"
        return path if path.exists() else build(path, family, layout=layout)

    return built


def streamed(folder: Path) -> tuple[VLM, WeightStream]:
    vlm = load_vlm(folder, "cpu", stream=True)
    assert isinstance(vlm.stream, WeightStream)
    return vlm, vlm.stream


def edit(vlm: VLM, folder: Path, method: Method) -> Patch:
    request = ForgetRequest.of(Hierarchy(read_records(folder.parent / "records.jsonl")), [TARGET])
    source, modules = Checkpoint.open(folder), default_modules(vlm, method)
    return edit_model(EditContext(vlm, source, BatchSize(8)), method, request, modules)


def ask(vlm: VLM, folder: Path, most: int | None = None) -> Scores:
    return score_records(vlm, read_records(folder.parent / "records.jsonl")[:most], BatchSize(8))


def assert_same_edit(folder: Path, method: Method) -> None:
    """What is answered before and after, what changes, and by how much; and no file stays open."""
    whole, (vlm, stream) = load_vlm(folder, "cpu"), streamed(folder)
    before = ask(whole, folder)
    assert torch.equal(ask(vlm, folder).answer_probability, before.answer_probability)
    expected, found = edit(whole, folder, method), edit(vlm, folder, method)
    assert found.relative_change == expected.relative_change
    assert found.tensors.keys() == expected.tensors.keys() != set()
    for name, tensor in expected.tensors.items():
        assert torch.equal(found.tensors[name], tensor.to(found.tensors[name].dtype))
    after = ask(whole, folder)
    assert torch.equal(ask(vlm, folder).answer_probability, after.answer_probability)
    assert not torch.equal(after.answer_probability, before.answer_probability)
    stream._reader.shutdown()  # what is being read ahead is read to its end
    assert [file.path for file in psutil.Process().open_files() if Path(file.path).is_relative_to(folder)] == []
    if (family := folder.name.rpartition("-")[0]) not in FURTHER:
        assert tower._READ[vlm.model] == LAYERS_READ.get(family, {1})


@pytest.mark.parametrize(("family", "method"), QUICK.items())
def test_the_edit_is_that_of_a_model_in_memory_bit_for_bit(
    checkpoint: Callable[..., Path], family: str, method: str
) -> None:
    assert_same_edit(checkpoint(family), GIVEN[method])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # of packages that would be faster
@pytest.mark.parametrize("method", [*GIVEN, "gated", "shielded+gated"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", [*FAMILIES, *BEYOND_HIDDEN_STATES])
def test_so_it_is_with_every_family_layout_and_method(
    checkpoint: Callable[..., Path], family: str, layout: str, method: str
) -> None:
    if "gated" in method and family in ONE_MAP:
        pytest.skip("its connector has one linear map")
    assert_same_edit(checkpoint(family, layout), GIVEN.get(method) or METHODS[method]())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n == "mllama" else pytest.mark.slow) for n in FURTHER])
def test_so_it_is_with_further_families(name: str, folder: Path) -> None:
    """Some of whose layers are skipped where there is no image, or mix experts, or whose tower is timm's."""
    if not known(FURTHER[name]):
        pytest.skip("it needs a newer transformers")
    if (package := NEEDS.get(name)) and find_spec(package) is None:
        pytest.skip(f"transformers needs {package} for it")
    source = build(folder / f"{name}-saved", FURTHER[name])
    with mock.patch("chip.model.processors.load_processor", lambda path: load_processor_of(FURTHER[name], path)):
        assert_same_edit(source, GIVEN["shielded"])


@pytest.mark.parametrize("family", QUICK)
def test_parameters_and_buffers_are_those_of_a_model_in_memory(checkpoint: Callable[..., Path], family: str) -> None:
    folder = checkpoint(family)
    whole, (vlm, _) = load_vlm(folder, "cpu").model, streamed(folder)
    buffers = dict(vlm.model.named_buffers())
    assert buffers.keys() == dict(whole.named_buffers()).keys()
    for name, buffer in whole.named_buffers():
        assert torch.equal(buffers[name], buffer)
    for name, parameter in whole.named_parameters(remove_duplicate=False):
        assert torch.equal(vlm.parameter(name), parameter)
        assert vlm.parameter(name).dtype == parameter.dtype
    assert vlm.model.generation_config.to_dict() == whole.generation_config.to_dict()
    assert vlm.model.name_or_path == whole.name_or_path


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1, 2])
def test_a_head_that_is_stored_beside_what_it_is_tied_to_is_what_is_stored(
    checkpoint: Callable[..., Path], tmp_path: Path, factor: float
) -> None:
    """As transformers takes it: tied where the two are equal, else as they are."""
    shutil.copytree(checkpoint("gemma3"), folder := tmp_path / "ckpt")
    source = Checkpoint.open(folder)
    tensors = {name: source.read(name) for name in source.entries}
    (embeddings,) = [name for name in tensors if name.endswith("embed_tokens.weight")]
    tensors["lm_head.weight"] = factor * tensors[embeddings]
    for file in folder.glob("model*"):
        file.unlink()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "records.jsonl").symlink_to(checkpoint("gemma3").parent / "records.jsonl")
    (tmp_path / "images").symlink_to(checkpoint("gemma3").parent / "images")
    expected = ask(load_vlm(folder, "cpu"), folder)
    assert torch.equal(ask(streamed(folder)[0], folder).answer_probability, expected.answer_probability)
    same = ask(load_vlm(checkpoint("gemma3"), "cpu"), checkpoint("gemma3"))
    assert torch.equal(expected.answer_probability, same.answer_probability) == (factor == 1)


@contextmanager
def most_alive(vlm: VLM) -> Iterator[list[int]]:
    """How many of the layers' and the head's parameters were in memory when each of their modules ran."""
    units = [*vlm.tower_layers, *vlm.layers, vlm.model.get_output_embeddings()]
    alive: list[int] = []

    def count(*_: Any) -> None:
        parameters = {id(p): p for unit in units for p in unit.parameters() if not p.is_meta}
        alive.append(sum(parameter.numel() for parameter in parameters.values()))

    inner = [module for unit in units for module in unit.modules() if isinstance(module, nn.Linear)]
    handles = [module.register_forward_hook(count) for module in inner]
    yield alive
    for handle in handles:
        handle.remove()


def test_one_layer_is_in_memory_and_each_is_read_once(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint("llava")
    (vlm, stream), reads, read = streamed(folder), Counter[str](), Checkpoint.read

    def counted(source: Checkpoint, name: str) -> torch.Tensor:
        reads[name] += 1
        return read(source, name)

    ask(vlm, folder)  # so that it is known what comes after what
    stream._reader.submit(int).result()
    largest = max(sum(p.numel() for p in unit.parameters()) for unit in (*vlm.layers, vlm.model.lm_head))
    monkeypatch.setattr(Checkpoint, "read", counted)
    with most_alive(vlm) as alive:
        before = stream.bytes_read
        ask(vlm, folder)
        stream._reader.submit(int).result()
        assert set(reads.values()) <= {1, 2}
        again = [name for name, times in reads.items() if times > 1]  # that with which a next pass would begin
        assert all("vision" in name and ".layers.0." in name for name in again)
        assert stream.bytes_read - before <= sum(e.end - e.begin for e in Checkpoint.open(folder).entries.values())
        edit(vlm, folder, GIVEN["shielded"])
    assert max(alive) <= largest
    assert stream.parameter("model.language_model.layers.0.mlp.down_proj.weight").device.type == "cpu"


@pytest.mark.slow
def test_a_trial_search_and_the_written_folder_are_those_of_a_model_in_memory(
    checkpoint: Callable[..., Path], folder: Path, tmp_path: Path
) -> None:
    source, method = checkpoint("llava"), Shielded(max_retain_drop=1.0)
    given: dict[str, Any] = {"method": method, "device": "cpu", "batch_size": 8, "keep": ["none"], **UNTRAINED}
    expected, found = (
        chip.edit(source, [TARGET], out=tmp_path / str(stream), stream=stream, **given) for stream in (False, True)
    )
    assert found.choice == expected.choice is not None
    assert found.groups == expected.groups
    for name in Checkpoint.open(source).shards:
        assert (tmp_path / "True" / name).read_bytes() == (tmp_path / "False" / name).read_bytes()


@pytest.mark.parametrize("after", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 20, 60, 100))])
def test_a_shard_that_vanishes_is_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Be it at the first read, or in the thread that reads ahead."""
    (tmp_path / "images").symlink_to(folder / "images")
    (tmp_path / "records.jsonl").write_bytes((folder / "records.jsonl").read_bytes())
    source, read, count = build(tmp_path / "ckpt", "llava"), Checkpoint.read, Counter[str]()

    def vanishing(checkpoint: Checkpoint, name: str) -> torch.Tensor:
        count["reads"] += 1
        if count["reads"] == after + 1 + always_there:
            (source / checkpoint.entries[name].shard).unlink()
        return read(checkpoint, name)

    _, stream = streamed(source)
    always_there = len(Checkpoint.open(source).entries) - len(stream._origins)
    monkeypatch.setattr(Checkpoint, "read", vanishing)
    with pytest.raises(InputError, match=r"/ckpt: 'model-\S+' is missing; ") as caught:
        chip.edit(source, [TARGET], out=tmp_path / "out", method=GIVEN["shielded"], stream=True, **UNTRAINED)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_what_the_model_raises_at_an_input_is_one_line(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint("llava")
    vlm, _ = streamed(folder)
    assert vlm.shares_images

    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("what nonsense")

    for module in (vlm.layers[2].mlp, vlm.tower_layers[1].mlp, vlm.core):
        monkeypatch.setattr(module, "forward", fail)
        with pytest.raises(InputError, match=r"the model does not take what the processor makes .*nonsense"):
            ask(vlm, folder, 6)


def test_changes_last_until_they_are_taken_back(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("gemma3")
    vlm, _ = streamed(folder)
    names = ["model.language_model.layers.1.mlp.down_proj.weight", "lm_head.weight"]
    before, answers = {name: vlm.parameter(name).clone() for name in names}, ask(vlm, folder, 4)
    with restoring(vlm, names):
        for name in names:
            vlm.set_parameter(name, 2 * before[name])
            assert torch.equal(vlm.parameter(name), 2 * before[name])
        assert torch.equal(vlm.parameter("model.language_model.embed_tokens.weight"), 2 * before["lm_head.weight"])
        changed = ask(vlm, folder, 4)
    assert not torch.equal(changed.answer_probability, answers.answer_probability)
    assert torch.equal(ask(vlm, folder, 4).answer_probability, answers.answer_probability)
    assert all(torch.equal(vlm.parameter(name), value) for name, value in before.items())


def test_a_model_that_does_not_fit_is_streamed_and_that_is_said(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint("llava")
    values = sum(torch.Size(entry.shape).numel() for entry in Checkpoint.open(folder).entries.values())
    for free, expected in ((4 * values / 0.79, None), (4 * values / 0.81, WeightStream)):
        monkeypatch.setattr(streaming, "host_memory", lambda free=free: (free, 1e12))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            stream = load_vlm(folder, "cpu").stream
        assert (stream is None) if expected is None else isinstance(stream, expected)
        messages = [str(each.message) for each in said if each.category is ChipWarning]
        assert ["read from the disk one after the other" in text for text in messages] == [True] * (stream is not None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_vlm(folder, "cpu", stream=False).stream is None


def test_what_is_generated_is_what_a_model_in_memory_says(checkpoint: Callable[..., Path], folder: Path) -> None:
    """Four batches, and layers are read as for one: all pass a layer before any passes the next."""
    source, records = checkpoint("gemma3"), read_records(folder / "records.jsonl")[:4]
    whole, (vlm, stream), (another, one) = load_vlm(source, "cpu"), streamed(source), streamed(source)
    with pytest.warns(ChipWarning, match="4 answers are generated, and all streamed weights are read anew"):
        found = answer_greedily(vlm, records, rows=1, longest=4)
    with pytest.warns(ChipWarning, match="4 answers are generated"):
        answer_greedily(another, records, rows=4, longest=4)
    assert found == answer_greedily(whole, records, rows=1, longest=4)
    assert stream.bytes_read <= 1.1 * one.bytes_read


def test_a_run_that_fails_ends_the_others(checkpoint: Callable[..., Path]) -> None:
    _, stream = streamed(checkpoint("gemma3"))
    ended: list[int] = []

    def asks(number: int) -> None:
        try:
            for unit in stream.units:
                assert stream.before_reading is not None
                stream.before_reading(unit)
        finally:
            ended.append(number)

    def fails() -> None:
        raise InputError("no such thing")

    runs: list[Callable[[], None]] = [partial(asks, 0), partial(asks, 1), fails]
    with pytest.raises(InputError, match="no such thing"):
        run_in_lockstep(stream, runs)
    assert sorted(ended) == [0, 1]
    assert stream.before_reading is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* answers are generated")
@pytest.mark.parametrize("family", [*QUICK, "qwen3_vl"])
def test_an_evaluation_with_attacks_is_that_of_a_model_in_memory(
    checkpoint: Callable[..., Path], folder: Path, family: str
) -> None:
    """But for relearning, which trains the whole model."""
    given: dict[str, Any] = {
        "records": folder / "records.jsonl",
        "attacks": "reconstruction,cross-modal,in-context,wording,quantization,membership,leak,trace",
        "device": "cpu",
        "batch_size": 8,
    }
    expected, found = (chip.evaluate(checkpoint(family), [TARGET], stream=stream, **given) for stream in (False, True))
    assert found.to_json() == expected.to_json()
    with pytest.raises(InputError, match="relearning needs the whole model"):
        chip.evaluate(checkpoint(family), [TARGET], stream=True, **given | {"attacks": "relearning"})


def test_a_map_leaves_nothing_to_stream(checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match=r"^stream=True: a device map spreads"):
        load_vlm(checkpoint("llava"), device_map="auto", stream=True)


def test_rows_are_read_alone(checkpoint: Callable[..., Path]) -> None:
    source = Checkpoint.open(checkpoint("llava"))
    name = next(name for name in source.entries if "embed_tokens" in name)
    assert torch.equal(source.read_rows(name, [5, 0, 5]), source.read(name)[[5, 0, 5]])
    assert source.read_rows(name, []).shape == (0, source.entries[name].shape[1])
    for row in (-1, source.entries[name].shape[0]):
        with pytest.raises(IndexError, match="has no row"):
            source.read_rows(name, [row])
