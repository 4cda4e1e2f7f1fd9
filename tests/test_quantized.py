"""Quantized checkpoints: dequantized to the values that their formats define, or refused in one line."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from chip.checkpoint.diff import diff
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.plain import open_plain
from chip.checkpoint.receipt import read_receipt
from chip.checkpoint.verify import verify
from chip.checkpoint.weights import weights_digest
from chip.errors import ChipWarning, InputError
from chip.model import quantization_formats
from chip.model.adapters import open_checkpoint
from chip.model.loading import load_vlm
from chip.model.quantization_formats import find_format
from tests.adapters import KINDS as ADAPTERS
from tests.adapters import make_adapter
from tests.command import run
from tests.families import UNTRAINED_OPTIONS, build_with_records
from tests.folders import COMMIT, into_cache
from tests.quantizing import KINDS, Kind, quantized_copy, tensors_of

REQUEST = (
    *("--forget", "patient_1", "--device", "cpu", "--retain-weight", "8", "--layers", "1-1"),
    *("--target-modules", "down", "--keep", "none", "--batch-size", "8", *UNTRAINED_OPTIONS),
)

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in ("few questions", ".* its weights are dequantized", ".* statistics are measured on this copy")
]


def needs(kind: Kind) -> None:
    if kind.package is not None and find_spec(kind.package) is None:
        pytest.skip(f"{kind.package} is not installed")


def checkpoint_of(scheme: object, **config: object) -> Checkpoint:
    """One without tensors."""
    return Checkpoint(Path("hub"), {}, (), {"quantization_config": scheme, **config}, {})


@pytest.mark.parametrize("name", KINDS)
def test_a_weight_is_what_its_format_says(name: str) -> None:
    kind = KINDS[name]
    needs(kind)
    weight = torch.randn(128, 128, generator=torch.Generator().manual_seed(0))
    stored = kind.store(weight)
    form = find_format(checkpoint_of(dict(kind.scheme)))
    names = {f"layers.0.up{end}" for end in (*stored.parts, *kind.beside)} | {"norm.weight"}
    weights = form.weights(names)
    assert weights == {"layers.0.up.weight": {ending(end, form.weight): f"layers.0.up{end}" for end in stored.parts}}
    assert all(form.leaves_out(f"layers.0.up{end}") for end in kind.beside)
    assert not form.leaves_out("norm.weight")
    parts = {ending(end, form.weight): part for end, part in stored.parts.items()}
    common = "layers.0.up" + ("" if form.weight else ".weight")
    value = form.dequantize(common, parts)
    assert value.shape == weight.shape
    torch.testing.assert_close(value.double(), stored.value, rtol=3e-7, atol=0)
    assert (value - weight).norm() < 0.4 * weight.norm()
    assert form.words == kind.words


def ending(end: str, weight: str) -> str:
    """`.weight_scale_inv` belongs to a common name that is the weight's own in the format of fp8."""
    return end if weight else end.removeprefix(".weight")


def in_language(name: str) -> bool:
    return "language_model.model.layers." in name and "_proj." in name


@pytest.fixture(scope="module")
def quantized(hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """The demo's checkpoint as GPTQ stores it, and what it is dequantized. Nobody writes into it."""
    folder = tmp_path_factory.mktemp("quantized") / "ckpt"
    return folder, quantized_copy(hospital / "ckpt", folder, KINDS["gptq"], in_language)


def test_a_dequantized_checkpoint_is_a_plain_one(quantized: tuple[Path, dict[str, torch.Tensor]]) -> None:
    folder, expected = quantized
    with pytest.warns(ChipWarning, match=r"quantized \(GPTQ, 4 bits\); its weights are dequantized to bf16"):
        plain = open_plain(folder)
    assert plain.place == plain.given == folder
    assert "quantization_config" not in plain.config
    assert plain.config["dtype"] == "bfloat16"
    tensors = tensors_of(plain)
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], value) for name, value in expected.items())
    assert {path.name for path in plain.folder.iterdir()} == {path.name for path in folder.iterdir()}
    copy = plain.folder
    with pytest.warns(ChipWarning):
        again = open_plain(folder)
    assert (again.folder / "model.safetensors").read_bytes() == (copy / "model.safetensors").read_bytes()
    del plain
    assert not copy.exists()


def test_several_files_have_an_index(
    quantized: tuple[Path, dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, expected = quantized
    monkeypatch.setattr("chip.model.dequantization._SHARD", 1_000_000)
    with pytest.warns(ChipWarning):
        plain = open_plain(folder)
    assert len(plain.shards) > 4
    assert tensors_of(plain).keys() == expected.keys()


def test_a_full_disk_is_one_line(
    quantized: tuple[Path, dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr("chip.model.dequantization.save_file", full)
    with pytest.raises(InputError, match=r"cannot be written dequantized \(I/O error: No space.*free some space"):
        open_plain(quantized[0])


def test_a_base_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    def refusal(scheme: object, **config: object) -> str:
        with pytest.raises(InputError) as caught:
            find_format(Checkpoint(tmp_path, {}, (), {"quantization_config": scheme, **config}, {}))
        return str(caught.value).removeprefix(f"{tmp_path}/config.json: ")

    unreadable = "the weights are quantized ('hqq'), in a form that chip does not read"
    again = "then quantize again"
    assert refusal({"quant_method": "hqq"}) == f"{unreadable}; edit the unquantized base checkpoint, {again}"
    named = refusal({"quant_method": "hqq"}, _name_or_path="org/model")
    assert named == f"{unreadable}; edit the unquantized base checkpoint, 'org/model', {again}"
    (tmp_path / "README.md").write_text("---\nbase_model:\n- org/base\n---\n# A model\n")
    assert "base checkpoint, 'org/base', then" in refusal({"quant_method": "hqq"}, _name_or_path="org/model")
    for scheme in (
        {"quant_method": "gptq", "bits": "four"},
        {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"},
        {"quant_method": "awq", "bits": 4, "version": "gemv"},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "\x1b[2J"},
        {"quant_method": "compressed-tensors", "format": "a b"},
        {"quant_method": "compressed-tensors", "format": "dense", "sparsity_config": {"format": "sparse-24-bitmask"}},
        {"quant_method": 7},
        "gptq",
        True,
    ):
        assert "in a form that chip does not read" in (message := refusal(scheme)), message
        assert message.isprintable()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization_formats, "find_spec", lambda name: None)
    needed = r"bitsandbytes is needed to read them; pip install 'chip-unlearning\[quantized\]'; or edit the unquantized"
    with pytest.raises(InputError, match=needed):
        find_format(checkpoint_of({"load_in_8bit": True}))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


QUERY = "language_model.model.layers.0.self_attn.q_proj"
SPOILED: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "no scales": (lambda t: t.pop(f"{QUERY}.scales"), rf"'{QUERY}.weight' cannot be dequantized .*'.scales'"),
    "short zeros": (lambda t: t.update({f"{QUERY}.qzeros": t[f"{QUERY}.qzeros"][:, :3].clone()}), "cannot be deq"),
    "a group too many": (lambda t: t[f"{QUERY}.g_idx"].fill_(9), "cannot be dequantized"),
    "infinite": (lambda t: t[f"{QUERY}.scales"].fill_(float("inf")), "NaN or infinite once dequantized"),
    "other codes": (
        lambda t: t.update({"language_model.model.norm.weight": torch.ones(128, dtype=torch.int8)}),
        "norm.weight' is stored as I8, of which GPTQ, 4 bits says nothing",
    ),
    "other scales": (
        lambda t: t.update({"language_model.model.layers.0.mlp.up_proj.weight_scale_inv": torch.ones(1)}),
        "like '.*weight_scale_inv'",
    ),
    "a weight too few": (
        lambda t: [t.pop(f"{QUERY}.{part}") for part in ("qweight", "qzeros", "scales", "g_idx")],
        "1 parameter of LlavaForConditionalGeneration without a tensor",
    ),
    "nothing quantized": (
        lambda t: [t.pop(name) for name in list(t) if name.endswith("qweight")],
        r"the weights are quantized \(GPTQ, 4 bits\) by its word, and no tensor is",
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_what_is_no_whole_checkpoint_is_refused(
    case: str, quantized: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    change, message = SPOILED[case]
    folder = Path(shutil.copytree(quantized[0], tmp_path / "ckpt"))
    rewrite(folder, change)
    with pytest.raises(InputError, match=message) as caught:
        open_plain(folder)
    assert str(folder) in str(caught.value)
    assert "chip-" not in str(caught.value).replace("chip-unlearning", "")


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model, `fp8`, its quantized copy, and `edited`, an edit of that by the command."""
    folder = build_with_records(tmp_path_factory.mktemp("small"), "llava")
    (folder / "ckpt" / "README.md").write_text("# A model\n")
    quantized_copy(folder / "ckpt", folder / "fp8", KINDS["fp8"], lambda name: "down_proj" in name)
    assert run("edit", folder / "fp8", "--out", folder / "edited", *REQUEST) == 0
    return folder


def test_an_edit_of_a_quantized_checkpoint_is_that_of_its_dequantized_one(
    edited: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.warns(ChipWarning, match="quantized"):
        plain = open_plain(edited / "fp8")
    shutil.copytree(plain.folder, edited / "plain")
    assert run("edit", edited / "plain", "--out", edited / "same", *REQUEST) == 0
    a, b = (Checkpoint.open(edited / name) for name in ("edited", "same"))
    assert all(torch.equal(value, tensors_of(b)[name]) for name, value in tensors_of(a).items())
    assert a.config == b.config == plain.config
    receipt = read_receipt(edited / "edited")
    assert receipt.quantized == {
        name: hashlib.sha256((edited / "fp8" / name).read_bytes()).hexdigest()
        for name in ("config.json", "model.safetensors")
    }
    assert receipt.source_digest == weights_digest(Checkpoint.open(edited / "fp8", quantized=True))
    assert receipt.source_digest == weights_digest(plain)
    assert receipt.environment is not None
    assert receipt.environment["dequantized_from"] == "fp8"
    card = (edited / "edited" / "README.md").read_text()
    assert "all weights were dequantized to bf16 first (fp8), and every other byte is what that gave" in card
    assert read_receipt(edited / "same").quantized is None
    assert str(plain.folder.parent) not in (edited / "edited" / "chip_receipt.json").read_text()


def test_verify_and_diff_compare_with_the_dequantized_original(
    edited: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    assert run("verify", edited / "edited", "--original", edited / "fp8") == 0
    assert "the original is the quantized checkpoint that was dequantized" in capsys.readouterr().out
    assert run("verify", edited / "edited", "--original", edited / "ckpt") == 1
    assert "the original is not the quantized checkpoint that was edited" in capsys.readouterr().out
    difference = diff(edited / "fp8", edited / "edited")
    changed = read_receipt(edited / "edited").tensors
    assert {tensor.name for tensor in difference.changed} == changed.keys()
    assert (difference.only_in_a, difference.only_in_b, difference.shape_differs) == ((), (), ())


@pytest.mark.slow
def test_a_quantized_checkpoint_in_the_hubs_cache_is_edited_and_edited_again(
    edited: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    into_cache(edited / "fp8", tmp_path / "cache")
    records = ("--records", edited / "records.jsonl")
    assert run("edit", "org/name", *records, *REQUEST) == 0
    receipt = read_receipt(tmp_path / "name-edited")
    assert receipt.hub == {"model": f"org/name@{COMMIT}"}
    assert receipt.tensors == read_receipt(edited / "edited").tensors
    assert run("verify", "name-edited", "--original", "org/name") == 0
    again = ("--forget", "patient_1", "--device", "cpu", *records)
    capsys.readouterr()
    assert run("reproduce", "name-edited", "--source", "org/name", *again) == 0
    assert capsys.readouterr().out == "the same: all 1 changed tensor, bit for bit\n"
    assert run("reproduce", "name-edited", "--source", edited / "ckpt", *again) == 2


def test_an_adapter_to_a_quantized_checkpoint_is_not_made(edited: Path) -> None:
    with pytest.raises(InputError, match="the adapter would belong to its dequantized weights; save merged") as caught:
        open_checkpoint(edited / "fp8", rounded=False)
    assert caught.value.argument == "save"


def test_nothing_is_written_into_the_quantized_folder(edited: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("edit", edited / "fp8", "--out", edited / "fp8" / "inside", *REQUEST) == 2
    assert "overlaps the source" in capsys.readouterr().err


def test_statistics_of_a_copy(edited: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The edit is near that of the model's own statistics; what is not edited is the model's own, bit for bit."""
    assert run("edit", edited / "ckpt", "--out", edited / "own", *REQUEST) == 0
    assert run("edit", edited / "ckpt", "--out", edited / "copied", *REQUEST, "--measure-on", edited / "fp8") == 0
    source, own, copied = (Checkpoint.open(edited / name) for name in ("ckpt", "own", "copied"))
    changed = read_receipt(edited / "copied").tensors
    assert changed.keys() == read_receipt(edited / "own").tensors.keys()
    for name in source.entries:
        if name not in changed:
            assert torch.equal(copied.read(name), source.read(name))
    for name in changed:
        before, expected, value = (each.read(name).double() for each in (source, own, copied))
        assert 0 < (value - expected).norm() < 0.3 * (expected - before).norm()
    assert read_receipt(edited / "copied").measured_on == read_receipt(edited / "edited").quantized
    assert not verify(edited / "copied", edited / "ckpt").faults


def test_a_copy_of_another_model_is_refused(edited: Path, hospital: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("edit", edited / "ckpt", "--out", edited / "no", *REQUEST, "--measure-on", hospital / "ckpt") == 2
    assert "has another shape; give one" in capsys.readouterr().err
    spread = ("--measure-on", edited / "fp8", "--device-map", "auto")
    assert run("edit", edited / "ckpt", "--out", edited / "no", *REQUEST[:2], *REQUEST[4:], *spread) == 2
    assert "a device map spreads one model" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [(), ("--stream",), ("--retain-weight", "auto"), ("--method", "shielded+gated_text")],
    ids=" ".join,
)
def test_the_model_itself_is_a_copy_of_it(options: tuple[str, ...], edited: Path, tmp_path: Path) -> None:
    for source in ("ckpt", "fp8"):
        for out, more in (("own", ()), ("itself", ("--measure-on", edited / source))):
            place = tmp_path / source / out
            assert run("edit", edited / source, "--out", place, *REQUEST, *options, *more) == 0
        own, itself = (tensors_of(Checkpoint.open(tmp_path / source / name)) for name in ("own", "itself"))
        assert all(torch.equal(value, itself[name]) for name, value in own.items())


@pytest.mark.slow
def test_an_adapter_is_merged_into_the_dequantized_weights(
    quantized: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    """As one of QLoRA was trained to them."""
    plain = open_plain(quantized[0])
    folder = make_adapter(load_vlm(plain, "cpu").model, tmp_path / "adapter", ADAPTERS["lora"])
    merged, expected = open_checkpoint(quantized[0], folder), open_checkpoint(plain.folder, folder)
    assert merged.merged.keys() == expected.merged.keys()
    assert all(torch.equal(value, expected.merged[name]) for name, value in merged.merged.items())
    assert (merged.place, merged.given) == (folder, quantized[0])
