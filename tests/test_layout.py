"""A folder that opens is whole, and every other one is refused in one line."""

import errno
import json
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from chip.checkpoint.layout import INDEX, SINGLE, Checkpoint
from chip.errors import InputError, RunError

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def make(folder: Path, shards: Mapping[str, Mapping[str, torch.Tensor]], config: Any = None) -> Path:
    """A checkpoint folder, with an index where there are several shards."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "any"}))
    for shard, tensors in shards.items():
        save_file(dict(tensors), folder / shard)
    if len(shards) > 1:
        index(folder, {name: shard for shard, tensors in shards.items() for name in tensors})
    return folder


def index(folder: Path, weight_map: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def two_shards(folder: Path) -> Path:
    return make(folder, {FIRST: {"a": torch.ones(2, 3)}, SECOND: {"b": torch.zeros(4)}})


def raw_shard(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


HEADER: dict[str, Any] = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
}
DATA = bytes(range(32))


def opens(content: bytes) -> bool:
    """Whether a single-file checkpoint of these bytes opens; anything raised but `InputError` gets through."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "config.json").write_text("{}")
        (Path(name) / SINGLE).write_bytes(content)
        try:
            Checkpoint.open(Path(name))
        except InputError:
            return False
        return True


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (3, 4), (2, 3, 2, 2)])
def test_every_tensor_reads_back_bit_for_bit(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    tensors = {name: torch.randn(shape).to(DTYPES[dtype]) for name in ("one", "two")}
    checkpoint = Checkpoint.open(make(tmp_path, {SINGLE: tensors}))
    assert checkpoint.shards == (SINGLE,)
    assert set(checkpoint.entries) == set(tensors)
    for name, tensor in tensors.items():
        entry = checkpoint.entries[name]
        assert (entry.dtype, entry.shape, entry.torch_dtype) == (dtype, shape, DTYPES[dtype])
        read = checkpoint.read(name)
        assert read.dtype == tensor.dtype
        assert torch.equal(read, tensor)
        read.zero_()  # it is ours: the file does not change under it
        assert torch.equal(checkpoint.read(name), tensor)


def test_the_offsets_are_those_of_the_file(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(two_shards(tmp_path))
    assert checkpoint.shards == (FIRST, SECOND)
    entry = checkpoint.entries["a"]
    content = (tmp_path / entry.shard).read_bytes()
    assert content[entry.begin : entry.end] == torch.ones(2, 3).numpy().tobytes()
    assert checkpoint.config == {"model_type": "any"}


def test_a_tensor_is_read_without_the_rest(tmp_path: Path) -> None:
    huge = 1 << 40
    header = {
        "huge": {"dtype": "U8", "shape": [huge], "data_offsets": [0, huge]},
        "small": {"dtype": "F32", "shape": [2], "data_offsets": [huge, huge + 8]},
    }
    make(tmp_path, {})
    with (tmp_path / SINGLE).open("wb") as file:
        file.write(raw_shard(json.dumps(header).encode(), b""))
        start = file.tell()
        file.truncate(start + huge)  # a hole: nothing is allocated
        file.seek(start + huge)
        file.write(struct.pack("<2f", 1.0, 2.0))
    assert Checkpoint.open(tmp_path).read("small").tolist() == [1.0, 2.0]


def test_other_dtypes_are_listed(tmp_path: Path) -> None:
    header = b'{"x": {"dtype": "F4", "shape": [3, 2], "data_offsets": [0, 3]}}'
    make(tmp_path, {})
    (tmp_path / SINGLE).write_bytes(raw_shard(header, b"abc"))
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.entries["x"].shape == (3, 2)
    with pytest.raises(InputError, match="cannot read tensor 'x', F4"):
        checkpoint.read("x")
    with pytest.raises(InputError, match="no tensor 'y'"):
        checkpoint.read("y")


def into_cache(folder: Path, blobs: Path) -> Path:
    """Put the files of `folder` into `blobs`, as the hub's cache has them, and links in their place."""
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        path.replace(blobs / f"{number:040x}")
        path.symlink_to(os.path.relpath(blobs / f"{number:040x}", path.parent))
    return folder


@pytest.mark.parametrize("below", ["", "sub", "sub/sub"])
def test_a_snapshot_of_the_hubs_cache_opens(tmp_path: Path, below: str) -> None:
    repository = tmp_path / "hub" / "models--a--b"
    folder = two_shards(repository / "snapshots" / "0f1e" / below)
    (folder / "in").mkdir()
    (folder / FIRST).replace(folder / "in" / FIRST)
    index(folder, {"a": f"in/{FIRST}", "b": SECOND})
    into_cache(folder, repository / "blobs")
    (tmp_path / "mine").symlink_to(folder)
    for way in (folder, tmp_path / "mine", tmp_path / "mine" / "in" / ".."):
        assert Checkpoint.open(way).read("a").tolist() == [[1.0] * 3] * 2


def test_blobs_that_the_caches_repositories_share_open(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--a--b"
    folder = into_cache(two_shards(repository / "snapshots" / "0f1e"), repository / "blobs")
    digest = "ab" * 32
    shared = tmp_path / "hub" / "blobs" / "ab" / digest
    shared.parent.mkdir(parents=True)
    blob = (folder / FIRST).resolve()
    blob.rename(shared)
    blob.symlink_to(f"../../blobs/ab/{digest}")
    assert Checkpoint.open(folder).read("a").tolist() == [[1.0] * 3] * 2
    shared.rename(shared.with_name("ab-notes"))
    blob.unlink()
    blob.symlink_to("../../blobs/ab/ab-notes")
    with pytest.raises(InputError, match="outside the folder"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("folder", "blobs"),
    [
        ("hub/models--a--b/snapshots/0f1e", "hub/models--c--d/blobs"),
        ("hub/models--a--b/snapshots/0f1e", "hub/models--a--b/blobs/private"),
        ("hub/models--a--b/snapshots/0f1e", "hub/models--a--b/snapshots/blobs"),
        ("hub/models--a--b/0f1e", "hub/models--a--b/blobs"),
        ("hub/snapshot/0f1e", "hub/blobs"),
        ("folder", "blobs"),
        ("folder", "private"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", INDEX, FIRST])
def test_other_links_out_of_the_folder_are_refused(tmp_path: Path, folder: str, blobs: str, name: str) -> None:
    source = two_shards(tmp_path / folder)
    blob = tmp_path / blobs / "0123"
    blob.parent.mkdir(parents=True)
    (source / name).rename(blob)
    (source / name).symlink_to(blob)
    with pytest.raises(InputError, match=f"'{name}' links to a file outside the folder; copy the file into it"):
        Checkpoint.open(source)


def test_a_folder_of_blobs_that_is_itself_a_link_is_refused(tmp_path: Path) -> None:
    repository = tmp_path / "models--a--b"
    folder = into_cache(two_shards(repository / "snapshots" / "0f1e"), tmp_path / "private")
    (repository / "blobs").symlink_to(tmp_path / "private")
    for path in folder.iterdir():
        target = path.resolve().name
        path.unlink()
        path.symlink_to(f"../../blobs/{target}")
    with pytest.raises(InputError, match="outside the folder"):
        Checkpoint.open(folder)


def test_links_within_the_folder_open(tmp_path: Path) -> None:
    folder = two_shards(tmp_path)
    (folder / "weights").mkdir()
    (folder / FIRST).replace(folder / "weights" / FIRST)
    (folder / FIRST).symlink_to(f"weights/{FIRST}")
    assert Checkpoint.open(folder).read("a").tolist() == [[1.0] * 3] * 2


def test_a_change_of_any_file_is_seen(tmp_path: Path) -> None:
    folder = two_shards(tmp_path)
    names = {"config.json", INDEX, FIRST, SECOND}
    for name in sorted(names):
        for change in (_touch, _append, _replace, Path.unlink):
            checkpoint = Checkpoint.open(folder)
            assert checkpoint.signatures.keys() == names
            checkpoint.check_unchanged()
            content = (folder / name).read_bytes()
            change(folder / name)
            with pytest.raises(RunError, match=rf"{re.escape(name)}: changed while it was read; try again$"):
                checkpoint.check_unchanged()
            (folder / name).write_bytes(content)


def _touch(path: Path) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def _append(path: Path) -> None:
    status = path.stat()
    path.write_bytes(path.read_bytes() + b" ")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _replace(path: Path) -> None:
    """Another file of the same bytes, size and time."""
    other = path.with_name("other")
    shutil.copy2(path, other)
    other.replace(path)


def test_a_shard_that_shrinks_after_its_header_was_read_is_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(two_shards(tmp_path))
    os.truncate(tmp_path / FIRST, checkpoint.entries["a"].end - 1)
    with pytest.raises(InputError, match="it ends inside tensor 'a'"):
        checkpoint.read("a")
    (tmp_path / FIRST).unlink()
    with pytest.raises(InputError, match=f"{FIRST}' is missing"):
        checkpoint.read("a")


def test_a_shard_is_not_followed_once_it_has_become_a_link(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(two_shards(tmp_path / "folder"))
    (tmp_path / "folder" / FIRST).rename(tmp_path / "elsewhere")
    (tmp_path / "folder" / FIRST).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="outside the folder"):
        checkpoint.read("a")


def test_what_the_disk_cannot_give_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = two_shards(tmp_path)

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InputError, match=r"config\.json: cannot be read \(Permission denied\); fix that"):
        Checkpoint.open(folder)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InputError, match="none you may read"):
        Checkpoint.open(folder)


def test_every_dtype_of_the_library_is_known() -> None:
    header = json.dumps({"a": {"dtype": "none", "shape": [], "data_offsets": [0, 0]}}).encode()
    with pytest.raises(safetensors.SafetensorError) as caught:
        safetensors.deserialize(raw_shard(header, b""))  # type: ignore[no-untyped-call]
    names = re.findall("`([A-Z][A-Z0-9_]+)`", str(caught.value))
    assert len(names) >= 15
    for name in names:
        shards = [sixteen_of(name, size) for size in range(0, 129, 4)]
        assert [opens(content) for content in shards] == [accepted_by_safetensors(content) for content in shards]
        assert sum(opens(content) for content in shards) == 1


def sixteen_of(dtype: str, size: int) -> bytes:
    header = {"a": {"dtype": dtype, "shape": [16], "data_offsets": [0, size]}}
    return raw_shard(json.dumps(header).encode(), bytes(size))


@pytest.mark.parametrize(
    "evil", ["\x1b[2J\x1b]0;owned\x07", "a\nb", "\r", "\u202e", "\u2028", "\x85", "\x7f", "x" * 10_000]
)
def test_no_name_reaches_the_terminal_raw(tmp_path: Path, evil: str) -> None:
    """Names of tensors, dtypes and shards, those of files included."""
    spec = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
    headers: tuple[dict[str, Any], ...] = (
        {evil: {}},
        {evil: spec},
        {"b": spec | {"dtype": evil}},
        {"b": spec | {evil: 1}},
        {evil: spec, "c": spec},
    )
    folder = two_shards(tmp_path / "names")
    for header in headers:
        (folder / FIRST).write_bytes(raw_shard(json.dumps(header).encode(), b"0"))
        check_refusal(folder)
    folder = two_shards(tmp_path / "shards")
    index(folder, {"a": evil, "b": SECOND})
    check_refusal(folder)
    if len(evil) < 200:
        (folder / evil).write_bytes(b"no shard")
        check_refusal(folder)
        (folder / FIRST).rename(folder / f"{evil}.safetensors")
        (folder / INDEX).unlink()
        check_refusal(folder)
        check_refusal(folder / evil)


def check_refusal(folder: Path) -> None:
    with pytest.raises(InputError) as caught:
        Checkpoint.open(folder)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize(
    "shape",
    ["[4611686018427387904,4,0]", "[0,4611686018427387904,4]", f"[{'9223372036854775807,' * 1_000_000}2]",
     f"[{'1,' * 64}6]", f"[{'9' * 1_000_000}]", "[-0]", "[6.0]", "[6e0]", '["6"]', "[[6]]", "[NaN]", "6"],
    ids=lambda shape: shape[:26],
)  # fmt: skip
def test_shapes_that_are_no_sizes_are_refused_at_once(shape: str) -> None:
    for size in (0, 24):
        header = f'{{"a": {{"dtype": "F32", "shape": {shape}, "data_offsets": [0, {size}]}}}}'.encode()
        assert not opens(raw_shard(header, bytes(size)))


def test_a_shape_of_the_most_dimensions_opens() -> None:
    header = {"a": {"dtype": "F32", "shape": [1] * 63 + [6], "data_offsets": [0, 24]}}
    assert opens(raw_shard(json.dumps(header).encode(), bytes(24)))


def _rewrite(shard: str, **fields: Any) -> Callable[[Path], object]:
    """Put `fields` of the only tensor's header entry in place of those that are there."""

    def change(folder: Path) -> None:
        content = (folder / shard).read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        next(spec for name, spec in header.items() if name != "__metadata__").update(fields)
        (folder / shard).write_bytes(raw_shard(json.dumps(header).encode(), content[8 + length :]))

    return change


def _set_config(**config: Any) -> Callable[[Path], object]:
    return lambda folder: (folder / "config.json").write_text(json.dumps(config))


def _set_map(**weight_map: Any) -> Callable[[Path], object]:
    return lambda folder: index(folder, weight_map)


def _set_bytes(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def _lengthen(name: str) -> Callable[[Path], object]:
    return lambda folder: os.truncate(folder / name, 100_000_001)


def _two_names(folder: Path) -> None:
    """Of one file without tensors, which no other check would refuse."""
    (folder / "empty").write_bytes(raw_shard(b"{}", b""))
    (folder / "void").hardlink_to(folder / "empty")
    index(folder, {"a": FIRST, "b": SECOND, "c": "empty", "d": "void"})


def _lead_nowhere(folder: Path) -> None:
    (folder / INDEX).unlink()
    (folder / INDEX).symlink_to("nowhere")


def _only_pickles(folder: Path) -> None:
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


def _distributed(folder: Path) -> None:
    shutil.copy(folder / FIRST, folder / "shard-00000-model-00001-of-00001.safetensors")


def _single_among_others(folder: Path) -> None:
    (folder / FIRST).rename(folder / SINGLE)
    index(folder, {"a": SINGLE, "b": SECOND})


def _renamed_shard(folder: Path) -> None:
    (folder / FIRST).rename(folder / "weights.bin")
    index(folder, {"a": "weights.bin", "b": SECOND})


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "config is no JSON": (_set_bytes("config.json", b"{"), "config.json: no JSON"),
    "config is a list": (_set_bytes("config.json", b"[]"), "config.json: no JSON object"),
    "config is too deep": (_set_bytes("config.json", b"[" * 100_000), "config.json: no JSON"),
    "config is endless": (_lengthen("config.json"), "100,000,001 bytes, more than 100,000,000"),
    "config has half a letter": (_set_bytes("config.json", b'{"a": "\\ud800"}'), "surrogates not allowed"),
    "adapter": (_set_bytes("adapter_config.json", b"{}"), "merge_and_unload"),
    "quantized": (_set_config(quantization_config={"bits": 4}), "quantized"),
    "quantized inside": (_set_config(text_config={"quantization_config": {"bits": 4}}), "quantized"),
    "quantized deep inside": (_set_config(a={"text_config": {"quantization_config": {"bits": 4}}}), "quantized"),
    "compressed": (_set_config(compression_config={"format": "pack-quantized"}), "quantized"),
    "quantized by MLX": (_set_config(quantization={"group_size": 64, "bits": 4}), "quantized; edit the unquantized"),
    "quantized in a list": (_set_config(parts=[{"quantization_config": {"bits": 4}}]), "quantized"),
    "quantized by ModelOpt": (_set_bytes("hf_quant_config.json", b"{}"), "hf_quant_config.json: the weights are quant"),
    "quantized by Quanto": (_set_bytes("Quanto_QMap.JSON", b"{}"), "Quanto_QMap.JSON: the weights are quantized"),
    "quantized by AWQ": (_set_bytes("awq_config.json", b"{}"), "awq_config.json: the weights are quantized"),
    "quantized by SmoothQuant": (_set_bytes("smooth_quant.json", b"{}"), "smooth_quant.json: the weights are quant"),
    "quantized by GPTQ": (_set_bytes("quantize_config.json", b"{}"), "quantize_config.json: the weights are quantized"),
    "code of the hub": (_set_config(a={"_attn_implementation": "own/kernel"}), "has code from the hub run"),
    "another file of weights": (_set_config(transformers_weights="w.bin"), "'transformers_weights' has 'w.bin' loaded"),
    "fused layers": (_set_config(fusion_config={"patch_embeddings": True}), "layers fused as they are loaded"),
    "compiled attention": (_set_config(attn_implementation="flex_attention"), "attention compiled for each length"),
    "another configuration": (_set_config(configuration_files=["config.5.0.0.json"]), "another configuration loaded"),
    "distributed": (_distributed, "a distributed checkpoint; save it with save_pretrained"),
    "single file among others": (_single_among_others, "which names more; remove one"),
    "shard is a pickle to transformers": (_renamed_shard, "'weights.bin' is no .safetensors file"),
    "pickles": (_only_pickles, "pickle checkpoint; convert to safetensors"),
    "no index": (lambda f: (f / INDEX).unlink(), f"without {INDEX}"),
    "index and single file": (lambda f: (f / FIRST).rename(f / SINGLE), "holds both"),
    "index is no JSON": (_set_bytes(INDEX, b"\xff"), "no JSON"),
    "index is endless": (_lengthen(INDEX), "100,000,001 bytes, more than 100,000,000"),
    "index leads nowhere": (_lead_nowhere, "is missing"),
    "index has no map": (_set_bytes(INDEX, b"{}"), "'weight_map'"),
    "index maps to a number": (_set_map(a=1, b=SECOND), "'weight_map'"),
    "shard missing": (lambda f: (f / FIRST).unlink(), f"{FIRST}' is missing"),
    "shard above": (_set_map(a=f"../{FIRST}", b=SECOND), "outside the folder"),
    "shard absolute": (_set_map(a="/etc/passwd", b=SECOND), "outside the folder"),
    "shard by a detour": (_set_map(a=f"./{FIRST}", b=SECOND), "no plain path"),
    "shard with an endless name": (_set_map(a="a/" * 1_000_000, b=SECOND), "no name of a file"),
    "shard with a long name": (_set_map(a="a" * 300, b=SECOND), "cannot be reached .File name too long"),
    "shard with half a letter": (_set_map(a="\udc00", b=SECOND), "surrogates not allowed"),
    "shard by two names": (_two_names, "'empty' and 'void' are one file"),
    "shard with a NUL": (_set_map(a="\0", b=SECOND), "no name of a file"),
    "shard is a folder": (_set_map(a=".", b=SECOND), "not a regular file"),
    "shard is something else": (_set_map(a="config.json", b=SECOND), "config.json: its header"),
    "tensor in two shards": (lambda f: save_file({"a": torch.ones(1)}, f / SECOND), "'a' is in .* and in"),
    "index knows more": (_set_map(a=FIRST, b=SECOND, c=SECOND), "'c' in 'model-00002.*', the headers in no shard"),
    "index knows less": (lambda f: save_file({"b": torch.ones(1), "c": torch.ones(1)}, f / SECOND), "'c' in no shard"),
    "index swaps": (_set_map(a=SECOND, b=FIRST), "the index has tensor '[ab]' in"),
    "empty shard": (_set_bytes(FIRST, b""), "its header should end"),
    "header past the file": (_set_bytes(FIRST, raw_shard(b" " * 99, b"")[:50]), "its header should end"),
    "header too long": (_set_bytes(FIRST, struct.pack("<Q", 100_000_001)), "100,000,001 bytes"),
    "header is no JSON": (_set_bytes(FIRST, raw_shard(b"{]", b"")), "no JSON"),
    "name twice": (_set_bytes(FIRST, raw_shard(b'{"a": 1, "a": 1}', b"")), "a name occurs twice"),
    "name is half a letter": (_set_bytes(FIRST, raw_shard(b'{"\\ud83d": {}}', b"")), "surrogates not allowed"),
    "metadata is no table": (_set_bytes(FIRST, raw_shard(b'{"__metadata__": {"a": 1}}', b"")), "'__metadata__'"),
    "dtype unknown": (_rewrite(FIRST, dtype="F3"), "unknown dtype 'F3'"),
    "dtype too small": (_rewrite(FIRST, dtype="BF16"), "does not fit its 24 bytes"),
    "shape too large": (_rewrite(FIRST, shape=[2, 4]), "does not fit its 24 bytes"),
    "shape negative": (_rewrite(FIRST, shape=[-2, -3]), "no sizes"),
    "shape of truth values": (_rewrite(FIRST, shape=[True, 6]), "no sizes"),
    "offsets past the file": (_rewrite(FIRST, shape=[2, 4], data_offsets=[0, 32]), "its tensors end at"),
    "offsets swapped": (_rewrite(FIRST, data_offsets=[24, 0]), "does not fit"),
    "hole before": (_rewrite(FIRST, shape=[5], data_offsets=[4, 24]), "begins at byte"),
    "another field": (_rewrite(FIRST, strides=[3, 1]), "or more than these"),
    "no offsets": (_rewrite(FIRST, data_offsets=None), "has no dtype, shape and two data_offsets"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_errors_name_the_place_and_the_hint(tmp_path: Path, case: str) -> None:
    break_it, message = REFUSED[case]
    folder = two_shards(tmp_path)
    Checkpoint.open(folder)
    break_it(folder)
    with pytest.raises(InputError, match=message) as caught:
        Checkpoint.open(folder)
    assert re.fullmatch(rf"{re.escape(str(folder))}[^\n]*; [^\n]+", str(caught.value))


def test_a_single_file_is_loaded_whatever_lies_beside_it(tmp_path: Path) -> None:
    folder = make(tmp_path, {SINGLE: {"a": torch.ones(2, 3)}})
    save_file({"b": torch.zeros(4)}, folder / "consolidated.safetensors")
    (folder / "config.json").write_text('{"transformers_weights": null, "quantization": {"enabled": false}}')
    checkpoint = Checkpoint.open(folder)
    assert (checkpoint.shards, set(checkpoint.entries)) == ((SINGLE,), {"a"})


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        Checkpoint.open(tmp_path / "none")


def test_overlapping_tensors_are_refused() -> None:
    header = {name: {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]} for name in "ab"}
    assert not opens(raw_shard(json.dumps(header).encode(), b"0123"))


def test_no_other_length_of_the_file_opens() -> None:
    content = raw_shard(json.dumps(HEADER).encode(), DATA)
    assert opens(content)
    assert not opens(content + b"\0")
    assert not any(opens(content[:length]) for length in range(len(content)))


def accepted_by_safetensors(content: bytes) -> bool:
    try:
        safetensors.deserialize(content)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError:
        return False
    return True


@given(changes=st.lists(st.tuples(st.integers(0, 180), st.integers(0, 255)), min_size=1, max_size=4))
@settings(max_examples=300, deadline=None)
def test_whatever_bytes_of_the_header_change_it_opens_or_is_refused(changes: list[tuple[int, int]]) -> None:
    content = bytearray(raw_shard(json.dumps(HEADER).encode(), DATA))
    for position, value in changes:
        content[position] = value
    if opens(bytes(content)):
        assert accepted_by_safetensors(bytes(content))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(["F32", "BF16"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@given(
    name=st.sampled_from(list(HEADER)),
    key=st.sampled_from(["dtype", "shape", "data_offsets", None]),
    value=json_values,
)
@settings(max_examples=300, deadline=None)
def test_whatever_the_header_says_it_opens_or_is_refused(name: str, key: str | None, value: Any) -> None:
    header = HEADER | {name: value if key is None else HEADER[name] | {key: value}}
    content = raw_shard(json.dumps(header).encode(), DATA)
    if opens(content):
        assert accepted_by_safetensors(content)
