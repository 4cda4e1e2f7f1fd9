"""A folder that opens is whole, and every other one is refused in one line."""

import json
import re
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
from chip.errors import InputError

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


def test_links_into_the_hubs_cache_open_and_others_do_not(tmp_path: Path) -> None:
    real = make(tmp_path / "real", {SINGLE: {"a": torch.ones(2)}})
    for store, fine in (("blobs", True), ("elsewhere", False)):
        snapshot = make(tmp_path / store / "snapshots" / "main", {})
        target = tmp_path / store / ("blobs" if fine else "private") / "0123abcd"
        target.parent.mkdir()
        (real / SINGLE).rename(target)
        (snapshot / SINGLE).symlink_to(target)
        if fine:
            assert Checkpoint.open(snapshot).read("a").tolist() == [1.0, 1.0]
            target.rename(real / SINGLE)
        else:
            with pytest.raises(InputError, match="outside the folder"):
                Checkpoint.open(snapshot)


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


def _only_pickles(folder: Path) -> None:
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "config is no JSON": (_set_bytes("config.json", b"{"), "config.json: no JSON"),
    "config is a list": (_set_bytes("config.json", b"[]"), "config.json: no JSON object"),
    "config is too deep": (_set_bytes("config.json", b"[" * 100_000), "config.json: no JSON"),
    "adapter": (_set_bytes("adapter_config.json", b"{}"), "merge_and_unload"),
    "quantised": (_set_config(quantization_config={"bits": 4}), "quantised"),
    "quantised inside": (_set_config(text_config={"quantization_config": {"bits": 4}}), "quantised"),
    "pickles": (_only_pickles, "pickle checkpoint; convert to safetensors"),
    "no index": (lambda f: (f / INDEX).unlink(), f"without {INDEX}"),
    "index and single file": (lambda f: (f / FIRST).rename(f / SINGLE), "holds both"),
    "index is no JSON": (_set_bytes(INDEX, b"\xff"), "no JSON"),
    "index has no map": (_set_bytes(INDEX, b"{}"), "'weight_map'"),
    "index maps to a number": (_set_map(a=1, b=SECOND), "'weight_map'"),
    "shard missing": (lambda f: (f / FIRST).unlink(), f"{FIRST}' is missing"),
    "shard above": (_set_map(a=f"../{FIRST}", b=SECOND), "outside the folder"),
    "shard absolute": (_set_map(a="/etc/passwd", b=SECOND), "outside the folder"),
    "shard with a NUL": (_set_map(a="\0", b=SECOND), "no name of a file"),
    "shard is a folder": (_set_map(a=".", b=SECOND), "not a regular file"),
    "shard is something else": (_set_map(a="config.json", b=SECOND), "config.json: its header"),
    "tensor in two shards": (lambda f: save_file({"a": torch.ones(1)}, f / SECOND), "'a' is in .* and in"),
    "index knows more": (_set_map(a=FIRST, b=SECOND, c=SECOND), "tensor 'c' in 'model-00002.*', the headers in no shard"),
    "index knows less": (lambda f: save_file({"b": torch.ones(1), "c": torch.ones(1)}, f / SECOND), "'c' in no shard"),
    "index swaps": (_set_map(a=SECOND, b=FIRST), "the index has tensor '[ab]' in"),
    "empty shard": (_set_bytes(FIRST, b""), "its header should end"),
    "header past the file": (_set_bytes(FIRST, raw_shard(b" " * 99, b"")[:50]), "its header should end"),
    "header too long": (_set_bytes(FIRST, struct.pack("<Q", 100_000_001)), "100,000,001 bytes"),
    "header is no JSON": (_set_bytes(FIRST, raw_shard(b"{]", b"")), "no JSON"),
    "name twice": (_set_bytes(FIRST, raw_shard(b'{"a": 1, "a": 1}', b"")), "a name occurs twice"),
    "metadata is no table": (_set_bytes(FIRST, raw_shard(b'{"__metadata__": {"a": 1}}', b"")), "'__metadata__'"),
    "dtype unknown": (_rewrite(FIRST, dtype="F3"), "unknown dtype 'F3'"),
    "dtype too small": (_rewrite(FIRST, dtype="BF16"), "does not fit its 24 bytes"),
    "shape too large": (_rewrite(FIRST, shape=[2, 4]), "does not fit its 24 bytes"),
    "shape negative": (_rewrite(FIRST, shape=[-2, -3]), "no sizes"),
    "shape of truth values": (_rewrite(FIRST, shape=[True, 6]), "no sizes"),
    "offsets past the file": (_rewrite(FIRST, shape=[2, 4], data_offsets=[0, 32]), "its tensors end at"),
    "offsets swapped": (_rewrite(FIRST, data_offsets=[24, 0]), "does not fit"),
    "hole before": (_rewrite(FIRST, shape=[5], data_offsets=[4, 24]), "begins at byte"),
    "no offsets": (_rewrite(FIRST, data_offsets=None), "has no dtype, shape and two data_offsets"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_place_and_the_mend(tmp_path: Path, case: str) -> None:
    break_it, message = REFUSED[case]
    folder = two_shards(tmp_path)
    Checkpoint.open(folder)
    break_it(folder)
    with pytest.raises(InputError, match=message) as caught:
        Checkpoint.open(folder)
    assert re.fullmatch(rf"{re.escape(str(folder))}[^\n]*; [^\n]+", str(caught.value))


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
