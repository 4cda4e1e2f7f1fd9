"""Models built from `config.json` alone: a broken one is refused in one line, and code beside it is not run."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from chip.checkpoint.layout import CONFIG
from chip.cli import main as command
from chip.errors import InputError
from chip.inspection import inspect
from chip.model.loading import load_vlm
from chip.model.processors import load_processor
from chip.model.skeleton import build_skeleton
from tests.families import build

TEXT, VISION = "text_config", "vision_config"
HUGE = 10**30

BROKEN: dict[str, dict[str, Any] | list[Any]] = {
    "a list": [],
    "model_type unknown": {"model_type": "nothing_known"},
    "model_type a number": {"model_type": 3},
    "model_type a list": {"model_type": ["llava"]},
    "model_type missing": {"model_type": None},
    "a model of text": {"model_type": "llama", "architectures": None},
    "architecture unknown": {"architectures": ["LlavaMptForCausalLM"]},
    "dtype": {"dtype": "float17"},
    "a dtype of codes": {"dtype": "float8_e4m3fn"},
    "labels": {"id2label": 7},
    "activation": {"projector_hidden_act": "nonsense"},
    "feature layer": {"vision_feature_layer": {}},
    "text a list": {TEXT: []},
    "text a word": {TEXT: "llama"},
    "text unknown": {TEXT: {"model_type": "nothing"}},
    "width a word": {TEXT: {"hidden_size": "abc"}},
    "width missing": {TEXT: {"hidden_size": None}},
    "width negative": {TEXT: {"hidden_size": -64}},
    "width huge": {TEXT: {"hidden_size": HUGE}},
    "width broken": {TEXT: {"intermediate_size": 1.5}},
    "no heads": {TEXT: {"num_attention_heads": 0}},
    "no heads of keys": {TEXT: {"num_key_value_heads": 0}},
    "no width of a head": {TEXT: {"head_dim": 0}},
    "vocabulary negative": {TEXT: {"vocab_size": -1}},
    "padding outside the vocabulary": {TEXT: {"pad_token_id": 10**9}},
    "depth a word": {TEXT: {"num_hidden_layers": "two"}},
    "no depth": {TEXT: {"num_hidden_layers": 0}},
    "depth negative": {TEXT: {"num_hidden_layers": -1}},
    "layers unknown": {TEXT: {"layer_types": ["x"]}},
    "rope a number": {TEXT: {"rope_parameters": 7}},
    "rope unknown": {TEXT: {"rope_parameters": {"rope_type": "nonsense"}}},
    "rope incomplete": {TEXT: {"rope_parameters": {"rope_type": "yarn"}}},
    "rope's base a word": {TEXT: {"rope_parameters": {"rope_type": "default", "rope_theta": "abc"}}},
    "vision a number": {VISION: 3},
    "vision unknown": {VISION: {"model_type": "nothing"}},
    "patches of nothing": {VISION: {"patch_size": 0}},
    "image a word": {VISION: {"image_size": "big"}},
}
"""What is wrong -> the values in `config.json` that say so; in its parts, beside those that are right."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA's `config.json`, which each test writes anew."""
    return build(tmp_path_factory.mktemp("broken") / "llava", "llava", max_shard_size="1GB") / CONFIG


@pytest.fixture(scope="module")
def right(config: Path) -> dict[str, Any]:
    """What stood there."""
    content: dict[str, Any] = json.loads(config.read_text())
    return content


@pytest.fixture
def folder(config: Path, right: dict[str, Any], tmp_path: Path) -> Path:
    """A fresh copy of that checkpoint."""
    copy = tmp_path / "llava"
    copy.mkdir()
    for file in config.parent.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / CONFIG).write_text(json.dumps(right))
    return copy


def changed(right: dict[str, Any], wrong: dict[str, Any] | list[Any]) -> dict[str, Any] | list[Any]:
    if isinstance(wrong, list):
        return wrong
    parts = {name: right[name] | wrong[name] for name in (TEXT, VISION) if isinstance(wrong.get(name), dict)}
    return right | wrong | parts


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_configuration_is_one_line(
    config: Path, right: dict[str, Any], what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(json.dumps(changed(right, BROKEN[what])))
    monkeypatch.setattr(sys, "argv", ["chip", "inspect", str(config.parent)])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as exit_:
        command.main()
    assert exit_.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    depth = what in ("no depth", "depth negative")  # a model that transformers builds all the same, without layers
    assert printed.err.startswith(f"chip: {config.parent if depth else config}: ")
    assert "; " in printed.err  # and a hint


@pytest.mark.parametrize("what", ["width a word", "rope unknown", "architecture unknown"])
def test_loading_refuses_it_as_well(config: Path, right: dict[str, Any], what: str) -> None:
    config.write_text(json.dumps(changed(right, BROKEN[what])))
    with pytest.raises(InputError, match=r"config\.json: transformers"):
        load_vlm(config.parent, "cpu")


@pytest.mark.parametrize("content", ["[]", "3", "{", '{"cache_implementation": "nonsense"}'])
def test_broken_defaults_of_generation_are_refused(folder: Path, content: str) -> None:
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(InputError, match=r"generation_config\.json: transformers cannot read it") as caught:
        load_vlm(folder, "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device", ["gpu", "cpu:x", "meta", "cuda:99", "mkldnn"])
def test_a_device_that_torch_does_not_know_is_refused(folder: Path, device: str) -> None:
    with pytest.raises(InputError, match=f"device='{device}': torch finds no such device here") as caught:
        load_vlm(folder, device)
    assert caught.value.argument == "device"


def test_nothing_is_read_but_the_configuration(config: Path, right: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text(json.dumps(right))
    model = build_skeleton(tmp_path)
    assert all(parameter.device == torch.device("meta") for parameter in model.parameters())
    assert type(model).__name__ == "LlavaForConditionalGeneration"


@pytest.mark.parametrize("known", [True, False])
def test_code_in_the_folder_is_not_run(folder: Path, right: dict[str, Any], known: bool) -> None:
    """A family that transformers knows is loaded by its own code; another is refused."""
    add_code(folder)
    model_type = "llava" if known else "own"
    own = {"AutoConfig": "own.Config", "AutoModelForImageTextToText": "own.Model", "AutoProcessor": "own.Processor"}
    (folder / CONFIG).write_text(json.dumps(right | {"model_type": model_type, "auto_map": own}))
    if known:
        assert type(build_skeleton(folder)).__module__.startswith("transformers.")
        vlm = load_vlm(folder, "cpu")
        assert type(vlm.model).__module__.startswith("transformers.")
        assert type(vlm.processor).__module__.startswith("transformers.")
    else:
        for load in (build_skeleton, load_vlm):
            with pytest.raises(InputError, match="cannot build a vision-language model") as caught:
                load(folder)
            assert "\n" not in str(caught.value)
    assert not (folder / "run").exists()


CODE: dict[str, dict[str, Any]] = {
    CONFIG: {
        "AutoConfig": "own.C",
        "AutoModelForImageTextToText": "own.M",
        "AutoProcessor": "own.P",
        "AutoModel": "own.M",
    },
    "generation_config.json": {"AutoModelForImageTextToText": "own.Model"},
    "processor_config.json": {"AutoProcessor": "own.P", "AutoVideoProcessor": "own.V", "AutoImageProcessor": "own.I"},
    "preprocessor_config.json": {
        "AutoImageProcessor": "own.I",
        "AutoFeatureExtractor": "own.F",
        "AutoProcessor": "own.P",
    },
    "video_preprocessor_config.json": {"AutoVideoProcessor": "own.V", "AutoProcessor": "own.P"},
    "tokenizer_config.json": {"AutoTokenizer": ["own.Slow", "own.Fast"], "AutoProcessor": "own.P"},
}
"""File -> classes that it says the folder's own code has."""


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])  # the latter has a processor for videos
def test_nobody_is_asked_whether_to_run_code(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers asks, where trust_remote_code is not said, and `yes |` would answer."""
    folder = build(tmp_path / family, family)
    for name, auto_map in CODE.items():
        content = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        parts = {part: content[part] | {"auto_map": auto_map} for part in (TEXT, VISION) if part in content}
        (folder / name).write_text(json.dumps(content | parts | {"auto_map": auto_map}))
    (folder / "custom_generate").mkdir()
    for module in ("own.py", "custom_generate/generate.py"):
        (folder / module).write_text(f"open({str(folder / 'run')!r}, 'w').close()\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("transformers asked"))
    inspect(folder)
    load_vlm(folder, "cpu")
    assert not (folder / "run").exists()


def test_a_processors_own_code_is_not_run(folder: Path) -> None:
    add_code(folder)
    for name, key, value in (
        ("processor_config.json", "AutoProcessor", "own.Processor"),
        ("preprocessor_config.json", "AutoImageProcessor", "own.Images"),
        ("tokenizer_config.json", "AutoTokenizer", ["own.Slow", "own.Fast"]),
    ):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | {"auto_map": {key: value}}))
    assert type(load_processor(folder)).__name__ == "LlavaProcessor"
    assert not (folder / "run").exists()


def add_code(folder: Path) -> None:
    """A module that leaves a file when it is imported."""
    (folder / "own.py").write_text(f"open({str(folder / 'run')!r}, 'w').close()\nraise SystemExit('this was run')\n")


@pytest.mark.parametrize("name", ["processor_config.json", "preprocessor_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["[]", "3", '{"processor_class": 3}', '{"processor_class": "Nothing"}', "{"])
def test_a_broken_processor_is_one_line(folder: Path, name: str, content: str) -> None:
    for file in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        (folder / file).unlink()
    (folder / name).write_text(content)
    with pytest.raises(InputError, match=r"llava: its processor (cannot be loaded|asks)") as caught:
        load_processor(folder)
    assert "\n" not in str(caught.value)
    assert "video_processor" not in str(caught.value)  # this class has none, and is not tried without it


def test_a_package_that_an_image_processor_asks_for_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers itself says no more than that it could not load any image processor."""

    class Dummy:
        is_dummy = True
        _backends: ClassVar = ["torchvision_of_another_world", "torch"]

    for form in ("", "Fast"):
        monkeypatch.setattr(f"chip.model.processors.transformers.OwnImageProcessor{form}", Dummy, raising=False)
    name = folder / "preprocessor_config.json"
    name.write_text(json.dumps(json.loads(name.read_text()) | {"image_processor_type": "OwnImageProcessorFast"}))
    message = r"its OwnImageProcessorFast asks for a missing package; pip install torchvision_of_another_world$"
    with pytest.raises(InputError, match=message):
        load_processor(folder)
