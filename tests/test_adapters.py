"""Adapters in: what PEFT would merge, tensor by tensor in the base's own layout, or one line before any work."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import chip
from chip.checkpoint.adapter import ADAPTER_WEIGHTS, CHAT_TEMPLATES, Adapter, find_base
from chip.checkpoint.contents import folder_contents
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.verify import verify
from chip.checkpoint.writer import check_written, copy_patched
from chip.cli.main import main
from chip.data.readers import read_records
from chip.errors import ChipWarning, InputError
from chip.inspection import inspect
from chip.methods import Shielded
from chip.model import adapters
from chip.model.adapter_names import PREFIX
from chip.model.adapters import open_checkpoint
from chip.model.loading import VLM, load_vlm
from chip.model.scoring import score_records
from chip.model.tensor_names import key_map
from tests.adapters import KINDS, make_adapter, peft_of, rewrite_config, rewrite_weights
from tests.families import FAMILIES, build, lacking
from tests.folders import into_cache, write_part

PLAIN = "lora"
COMBINED = ("rslora", "patterns", "regex", "convolution", "some layers")
"""Kinds that wait for the long run: `everything` has most of what they are."""


@pytest.fixture(scope="module")
def base(hospital: Path) -> Path:
    return hospital / "ckpt"


@pytest.fixture(scope="module")
def model(base: Path) -> Any:
    """The base in fp32. Nobody changes it."""
    return load_vlm(base, "cpu").model


@pytest.fixture(scope="module")
def trained(base: Path, model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain adapter's folder. Nobody writes into it."""
    return make_adapter(model, tmp_path_factory.mktemp("adapter") / PLAIN, KINDS[PLAIN])


@pytest.fixture
def adapter(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, to spoil."""
    return Path(shutil.copytree(trained, tmp_path / "adapter"))


def merged_by_peft(model: Any, folder: Path) -> dict[str, Tensor]:
    """Parameter -> value, as `merge_and_unload` has it."""
    merged = peft_of(model, folder).merge_and_unload()
    return {name: value.detach() for name, value in merged.named_parameters()}


@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.slow if k in COMBINED else ()) for k in KINDS])
def test_a_merged_tensor_is_the_one_that_peft_merges(kind: str, base: Path, model: Any, tmp_path: Path) -> None:
    folder = make_adapter(model, tmp_path / kind, KINDS[kind])
    expected, before = merged_by_peft(model, folder), dict(model.named_parameters())
    source = open_checkpoint(base, folder)
    exact = open_checkpoint(base, folder, rounded=False)
    names = key_map(source)
    assert {names[name] for name in expected if not torch.equal(expected[name], before[name])} == set(source.merged)
    for parameter, name in names.items():
        stored = expected[parameter].to(source.entries[name].torch_dtype)
        assert torch.equal(source.read(name), stored)
        if name in source.merged:
            torch.testing.assert_close(exact.read(name), expected[parameter], rtol=1e-6, atol=1e-9)


def test_what_is_loaded_and_what_is_written_is_the_merged_model(base: Path, trained: Path, tmp_path: Path) -> None:
    source = open_checkpoint(base, trained)
    copy_patched(source, tmp_path / "merged", {})
    check_written(source, tmp_path / "merged", {})
    written = Checkpoint.open(tmp_path / "merged")
    assert written.entries == source.entries
    assert all(torch.equal(written.read(name), source.read(name)) for name in source.entries)
    loaded, again = load_vlm(source, "cpu").model, load_vlm(tmp_path / "merged", "cpu").model
    for (name, value), (_, other) in zip(loaded.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(value, other), name
    difference = chip.diff(base, tmp_path / "merged")
    assert {tensor.name for tensor in difference.changed} == set(source.merged)
    assert chip.diff(base, tmp_path / "merged", adapter=trained).equal
    assert chip.diff(trained, tmp_path / "merged", base=base).equal
    assert chip.diff(base, trained) == difference  # without a written model
    with pytest.raises(InputError, match=r"^base=.*: goes with an adapter"):
        chip.diff(base, tmp_path / "merged", base=base)
    assert not list((tmp_path / "merged").glob("adapter*"))


@pytest.mark.parametrize("kind", [PLAIN, "embeddings", pytest.param("everything", marks=pytest.mark.slow)])
def test_a_streamed_model_is_the_merged_one(kind: str, base: Path, model: Any, tmp_path: Path) -> None:
    source = open_checkpoint(base, make_adapter(model, tmp_path / kind, KINDS[kind]))
    whole, streamed = load_vlm(source, "cpu"), load_vlm(source, "cpu", stream=True)
    for name, value in whole.model.named_parameters():
        assert torch.equal(streamed.parameter(name), value), name
    records = read_records(base.parent / "records.jsonl")[:2]
    expected = score_records(whole, records).answer_probability
    assert torch.equal(score_records(streamed, records).answer_probability, expected)
    assert not torch.equal(expected, score_records(load_vlm(base, "cpu"), records).answer_probability)


def test_an_edited_tensor_is_written_and_not_the_merged_one(base: Path, trained: Path, tmp_path: Path) -> None:
    source = open_checkpoint(base, trained)
    name, *others = sorted(source.merged)
    copy_patched(source, tmp_path / "out", {name: torch.zeros(source.entries[name].shape)})
    written = Checkpoint.open(tmp_path / "out")
    assert not written.read(name).any()
    assert torch.equal(written.read(others[0]), source.merged[others[0]])


def test_an_adapter_alone_finds_its_base(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "base").symlink_to(base)
    for name, place in ((str(base), tmp_path), ("base", tmp_path), ("../base", adapter / "elsewhere")):
        rewrite_config(adapter, base_model_name_or_path=name)
        place.mkdir(exist_ok=True)
        monkeypatch.chdir(place)
        assert open_checkpoint(adapter).folder.resolve() == base.resolve()
        assert open_checkpoint(adapter).place == adapter
    rewrite_config(adapter, base_model_name_or_path="nobody/nothing", revision="main")
    assert open_checkpoint(adapter, base=base).folder == base
    with pytest.raises(InputError, match=r"^base='nobody/nothing': no folder here, not whole") as error:
        open_checkpoint(adapter)
    assert error.value.argument == "base"
    rewrite_config(adapter, base_model_name_or_path=None)
    with pytest.raises(InputError, match="names no base"):
        open_checkpoint(adapter)


def test_a_base_in_the_hubs_cache_is_found(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = into_cache(base, tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    rewrite_config(adapter, base_model_name_or_path="org/name")
    assert find_base(Adapter.open(adapter)) == snapshot
    assert open_checkpoint(adapter).folder == snapshot
    rewrite_config(adapter, base_model_name_or_path="org/other")
    with pytest.warns(ChipWarning, match="belongs to 'org/other', and is merged into org/name"):
        open_checkpoint(adapter, base=snapshot)


def test_arguments_that_contradict_each_other_are_refused(base: Path, trained: Path) -> None:
    refused: list[tuple[Path, Path | None, Path | None, str]] = [
        (base, None, base, "base=.*no adapter"),
        (base, trained, base, "base=.*leave this out"),
        (trained, trained, None, "adapter=.*give the base of both"),
        (base, base, None, "no adapter_config.json"),
    ]
    for model, adapter, its_base, message in refused:
        with pytest.raises(InputError, match=message):
            open_checkpoint(model, adapter, its_base)


def pickled(folder: Path) -> None:
    (folder / ADAPTER_WEIGHTS).rename(folder / "adapter_model.bin")


def moved_inside(folder: Path) -> None:
    moved = folder.rename(folder.with_name("moved"))
    folder.mkdir()
    moved.rename(folder / "medical")


def renamed(old: str, new: str) -> Callable[[Path], None]:
    return lambda folder: rewrite_weights(
        folder, lambda tensors: {name.replace(old, new): value for name, value in tensors.items()}
    )


def with_tensors(**tensors: Tensor) -> Callable[[Path], None]:
    prefixed = {f"base_model.model.{name.replace('__', '.')}": value for name, value in tensors.items()}
    return lambda folder: rewrite_weights(folder, lambda known: known | prefixed)


def changed(**settings: object) -> Callable[[Path], None]:
    return lambda folder: rewrite_config(folder, **settings)


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "another kind": (changed(peft_type="LOHA"), "kind 'LOHA', and chip merges LoRA alone"),
    "no kind": (changed(peft_type=None), "kind 'None'"),
    "pickle": (pickled, "its weights are a pickle"),
    "no weights": (lambda folder: (folder / ADAPTER_WEIGHTS).unlink(), "no adapter_model.safetensors"),
    "whole numbers": (with_tensors(x=torch.arange(3)), "is stored as I64"),
    "a truncated file": (
        lambda folder: (folder / ADAPTER_WEIGHTS).write_bytes((folder / ADAPTER_WEIGHTS).read_bytes()[:-1]),
        "damaged",
    ),
    "PiSSA": (changed(init_lora_weights="pissa"), "'pissa', which changes the base's own weights"),
    "biases": (changed(bias="all"), "'bias' is set .'all'., which chip does not merge"),
    "tokens": (changed(trainable_token_indices=[1, 2]), "'trainable_token_indices' is set"),
    "replicated layers": (changed(layer_replication=[[0, 2]]), "'layer_replication' is set"),
    "a setting of tomorrow": (changed(use_xora=True), "'use_xora' is set"),
    "a tensor by two names": (
        with_tensors(language_model__model__layers__0__self_attn__q_proj__lora_A__weight=torch.zeros(4, 128)),
        "two of its tensors are one by the names of today",
    ),
    "a broken setting": (changed(target_modules="("), "peft cannot add it to this base"),
    "another depth": (renamed("layers.3.", "layers.9."), "4 tensors without a place in the model"),
    "a tensor too few": (
        lambda folder: rewrite_weights(folder, lambda tensors: dict(list(tensors.items())[1:])),
        "1 place without a value",
    ),
    "a NaN": (
        lambda folder: rewrite_weights(folder, lambda tensors: {n: v * torch.nan for n, v in tensors.items()}),
        "places without a value, or with one that is NaN",
    ),
    "another width": (
        lambda folder: rewrite_weights(folder, lambda tensors: {n: v[..., :4] for n, v in tensors.items()}),
        "peft cannot load it into this base .*belongs to another base",
    ),
    "embeddings": (
        with_tensors(model__language_model__embed_tokens__weight=torch.zeros(990, 128)),
        "holds a weight of the base, and not as that has it .*resized embeddings",
    ),
    "more than the adapter": (
        lambda folder: (folder / "non_lora_state_dict.bin").touch(),
        "weights lie beside the adapter .'non_lora_state_dict.bin'.; merge all of it",
    ),
    "a folder of adapters": (moved_inside, "no adapter itself, though one lies in it; give '.*/medical'"),
}


@pytest.mark.parametrize("trouble", REFUSED)
def test_what_cannot_be_merged_is_refused_in_one_line(trouble: str, base: Path, adapter: Path) -> None:
    spoil, message = REFUSED[trouble]
    spoil(adapter)
    with pytest.raises(InputError, match=message) as error:
        open_checkpoint(base, adapter)
    assert "\n" not in str(error.value)


def test_what_lies_along_with_an_adapter_and_is_none_of_it_changes_nothing(
    base: Path, trained: Path, adapter: Path
) -> None:
    """The base's embeddings, as peft saves them along with a change of them; the state of the training."""
    embeddings = "model.language_model.embed_tokens.weight"
    source = Checkpoint.open(base)
    with_tensors(**{embeddings: source.read(key_map(source)[embeddings])})(adapter)
    for name in ("training_args.bin", "optimizer.pt", "sampler_1.bin", "adapter_model.bin"):
        (adapter / name).touch()
    assert set(open_checkpoint(base, adapter).merged) == set(open_checkpoint(base, trained).merged)


OLD_NAMES = {
    "model.language_model.": "language_model.model.",
    "model.multi_modal": "multi_modal",
    "lm_head": "language_model.lm_head",
}
"""Modules of LLaVA, as transformers called them before 4.52."""


def with_old_names(folder: Path, names: dict[str, str], **settings: object) -> Path:
    def renamed(name: str) -> str:
        own = name.removeprefix(PREFIX)
        return PREFIX + next((old + own.removeprefix(new) for new, old in names.items() if own.startswith(new)), own)

    rewrite_weights(folder, lambda tensors: {renamed(name): value for name, value in tensors.items()})
    rewrite_config(folder, **settings)
    return folder


def test_names_of_an_older_transformers_are_those_of_today(base: Path, model: Any, tmp_path: Path) -> None:
    layer = r"language_model\.model\.layers\.1\..*"
    settings = KINDS["everything"] | {
        "modules_to_save": ["multi_modal_projector", "lm_head"],
        "alpha_pattern": {"down_proj": 3},
    }
    source = open_checkpoint(base, make_adapter(model, tmp_path / "new", settings))
    folder = shutil.copytree(tmp_path / "new", tmp_path / "old")
    regex = r"language_model\.model\..*\.(q_proj|down_proj)"
    old = open_checkpoint(base, with_old_names(folder, OLD_NAMES, target_modules=regex, rank_pattern={layer: 2}))
    assert set(old.merged) == set(source.merged)
    for name, value in source.merged.items():
        assert torch.equal(old.read(name), value), name


@pytest.mark.slow
def test_the_command_says_nothing_but_its_own(base: Path, trained: Path) -> None:
    command = (sys.executable, "-m", "chip", "inspect", str(base), "--adapter", str(trained))
    shown = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    assert shown.stderr == ""
    assert "an adapter is merged into the base" in shown.stdout


@pytest.mark.slow
def test_an_adapter_to_an_older_qwen_is_merged(tmp_path: Path) -> None:
    folder = build(tmp_path / "base", "qwen2_vl")
    adapter = make_adapter(load_vlm(folder, "cpu").model, tmp_path / "new", {"r": 4, "target_modules": "all-linear"})
    expected = open_checkpoint(folder, adapter)
    names = {"model.language_model.": "model.", "model.visual.": "visual."}
    old = open_checkpoint(folder, with_old_names(shutil.copytree(adapter, tmp_path / "old"), names))
    assert set(old.merged) == set(expected.merged)
    assert all(torch.equal(old.read(name), value) for name, value in expected.merged.items())


def test_a_folder_of_adapters_alone_names_one(trained: Path) -> None:
    with pytest.raises(InputError, match="no adapter itself, though one lies in it"):
        open_checkpoint(trained.parent)


def test_nothing_works_on_tied_weights(base: Path, model: Any, adapter: Path, tmp_path: Path) -> None:
    folder = make_adapter(model, tmp_path / "embeddings", KINDS["embeddings"])
    tied = Path(shutil.copytree(base, tmp_path / "tied"))
    config = json.loads((tied / "config.json").read_text())
    for section in (config, config["text_config"]):
        section["tie_word_embeddings"] = True
    (tied / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"cannot merge an adapter into .*embed_tokens.weight' is tied to"):
        open_checkpoint(tied, folder)


def test_a_base_that_only_says_that_it_is_quantized_is_refused(base: Path, trained: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "quantized"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"load_in_4bit": True}}))
    with pytest.raises(InputError, match="the weights are quantized"):
        open_checkpoint(folder, trained)


def test_without_peft_a_line_says_what_to_install(base: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'chip-unlearning\[adapters\]'"):
        open_checkpoint(base, trained)


def test_the_adapters_processor_files_come_first(base: Path, adapter: Path, tmp_path: Path) -> None:
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (adapter / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 77}))
    source = open_checkpoint(base, adapter)
    copied = {str(relative): path for path, relative in folder_contents(source).copied}
    assert copied["tokenizer_config.json"] == adapter / "tokenizer_config.json"
    assert copied["tokenizer.json"].parent == base
    assert copied.keys() == {str(relative) for _, relative in folder_contents(Checkpoint.open(base)).copied}
    assert load_vlm(source, "cpu").processor.tokenizer.model_max_length == 77
    copy_patched(source, tmp_path / "out", {})
    assert (tmp_path / "out" / "tokenizer_config.json").read_bytes() == copied["tokenizer_config.json"].read_bytes()


def test_there_is_one_chat_template(base: Path, adapter: Path) -> None:
    of_base = {str(relative) for _, relative in folder_contents(Checkpoint.open(base)).copied} & CHAT_TEMPLATES
    assert of_base == {"chat_template.jinja"}
    (adapter / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    copied = {str(relative) for _, relative in folder_contents(open_checkpoint(base, adapter)).copied}
    assert not copied & CHAT_TEMPLATES


def test_a_look_at_it_says_what_is_merged(base: Path, trained: Path) -> None:
    tensors = len(open_checkpoint(base, trained).merged)
    notes = inspect(base, adapter=trained).notes
    assert notes[0].startswith(f"an adapter is merged into the base: {tensors} tensors changed, no processor files")


def test_what_is_evaluated_is_the_merged_model(hospital: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(vlm: VLM, *_: object, **__: object) -> None:
        source = open_checkpoint(hospital / "ckpt", trained)
        names = {name: parameter for parameter, name in key_map(source).items()}
        assert all(torch.equal(vlm.parameter(names[name]), source.read(name).float()) for name in source.merged)
        raise StopIteration

    monkeypatch.setattr("chip.evaluating.measure", measure)
    with pytest.raises(StopIteration):  # the records lie beside the base
        chip.evaluate(hospital / "ckpt", ["patient_17"], adapter=trained, device="cpu")


def test_a_changed_adapter_is_seen(base: Path, adapter: Path) -> None:
    source = open_checkpoint(base, adapter)
    source.check_unchanged()
    rewrite_config(adapter, r=9)
    with pytest.raises(chip.RunError, match="changed while it was read"):
        source.check_unchanged()


def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit code and what the command prints."""
    monkeypatch.setattr(sys, "argv", ["chip", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    return int(ended.value.code or 0), " ".join(f"{printed.out}{printed.err}".split())


def test_the_commands_take_an_adapter(
    base: Path, trained: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, printed = said(monkeypatch, capsys, "inspect", trained, "--base", base, "--json")
    assert code == 0
    assert "an adapter is merged into the base: 10 tensors changed" in printed
    pickled(adapter)
    target = ("--forget", "patient_17", "--dry-run")
    for command, line in (
        (("edit", base, "--adapter", adapter, *target), f"chip: {adapter}: its weights are a pickle;"),
        (("eval", base, "--adapter", adapter, *target[:2]), f"chip: {adapter}: its weights are a pickle;"),
        (("edit", base, "--base", base, *target), f"chip: --base {base}: goes with an adapter"),
        (("edit", base, "--save", "lora", *target), "chip: --save lora: not known, there is merged and adapter"),
        (("edit", base, "--rank", 0, *target), "chip: --rank 0: give 1 or more"),
    ):
        code, printed = said(monkeypatch, capsys, *command)
        assert code == 2
        assert printed.startswith(line)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_merged_as_by_peft(family: str, tmp_path: Path) -> None:
    """All linear layers, the vision tower's and the connector's too."""
    if package := lacking(family):
        pytest.skip(f"its processor needs {package}")
    folder = build(tmp_path / "base", family)
    settings = {"r": 4, "use_dora": True, "target_modules": "all-linear"}
    model = load_vlm(folder, "cpu").model
    adapter = make_adapter(model, tmp_path / "adapter", settings)
    expected, source = merged_by_peft(model, adapter), open_checkpoint(folder, adapter)
    assert len(source.merged) > 20
    for parameter, name in key_map(source).items():
        if name in source.merged:
            assert torch.equal(source.read(name), expected[parameter].to(source.entries[name].torch_dtype)), name
    loaded = dict(load_vlm(source, "cpu").model.named_parameters())
    for parameter, value in expected.items():
        torch.testing.assert_close(loaded[parameter], value, rtol=1e-2, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "everything"])
def test_the_edit_is_that_of_a_folder_merged_beforehand(
    kind: str, hospital: Path, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, folder = hospital / "ckpt", make_adapter(model, tmp_path / kind, KINDS[kind])
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    merged = peft_of(model, folder).merge_and_unload().to(torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged.save_pretrained(tmp_path / "before")
    for path in base.iterdir():
        if not (tmp_path / "before" / path.name).exists() and "safetensors" not in path.name:
            shutil.copy(path, tmp_path / "before")
    options: dict[str, Any] = {
        "records": write_part(hospital, range(5, 7), tmp_path / "part"),
        "method": Shielded(retain_weight=8.0),
        "keep": ["none"],
        "device": "cpu",
        "accept": True,
        "batch_size": 16,
    }
    expected = chip.edit(tmp_path / "before", ["patient_17"], out=tmp_path / "expected", **options)
    report = chip.edit(base, ["patient_17"], adapter=folder, out=tmp_path / "edited", **options)
    assert report.groups == expected.groups
    for tensor in chip.diff(tmp_path / "expected", tmp_path / "edited").tensors:
        assert tensor.relative_change <= 1e-6
    assert not verify(tmp_path / "edited", base).faults
    assert not list((tmp_path / "temporary").iterdir())
    names = {path.name for path in (tmp_path / "edited").iterdir()}
    assert not {name for name in names if name.startswith("adapter")}
