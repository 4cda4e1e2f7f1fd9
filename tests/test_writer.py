"""What is written differs from the source in the bytes of the changed tensors and in nothing else, or is not there."""

import errno
import os
import shutil
import stat
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from chip.checkpoint import folder as folder_module
from chip.checkpoint import writer
from chip.checkpoint.header import TensorEntry
from chip.checkpoint.layout import INDEX, Checkpoint
from chip.checkpoint.output import check_output
from chip.checkpoint.writer import round_once, write_patched
from chip.errors import InputError, RunError
from tests.folders import SHARDS, contents, copied, write_signed


@pytest.mark.parametrize("names", ["", "a", "bc", "abcd"])
@pytest.mark.parametrize("given_as", [torch.float64, torch.float32, torch.bfloat16])
def test_only_the_bytes_of_the_changed_tensors_differ(
    source: Checkpoint, tmp_path: Path, names: str, given_as: torch.dtype
) -> None:
    before = contents(tmp_path)
    new = {name: torch.randn(source.entries[name].shape).to(given_as) for name in names}
    write_patched(source, tmp_path / "out", new)

    expected = {name: bytearray(data) for name, data in copied(source.folder).items()}
    for name, tensor in new.items():
        entry = source.entries[name]
        stored = round_once(tensor, entry.torch_dtype).reshape(-1).view(torch.uint8)
        expected[entry.shard][entry.begin : entry.end] = stored.numpy().tobytes()
    assert contents(tmp_path / "out") == expected
    assert {path: data for path, data in contents(tmp_path).items() if not path.startswith("out/")} == before

    written = Checkpoint.open(tmp_path / "out")
    assert written.entries == source.entries
    for name, tensor in new.items():
        stored = round_once(tensor, source.entries[name].torch_dtype)
        assert torch.equal(written.read(name), stored)
        assert torch.equal(load_file(tmp_path / "out" / source.entries[name].shard)[name], stored)


def test_a_tensor_may_be_a_view_and_need_a_gradient(source: Checkpoint, tmp_path: Path) -> None:
    new = torch.randn(5, 6, requires_grad=True).T
    write_patched(source, tmp_path / "out", {"a": new})
    assert torch.equal(Checkpoint.open(tmp_path / "out").read("a"), new.detach().bfloat16())


def test_files_are_new_and_plain(source: Checkpoint, tmp_path: Path) -> None:
    (source.folder / SHARDS[0]).chmod(0o600)
    write_patched(source, tmp_path / "out", {})
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "file").touch()
    for path in (tmp_path / "out").rglob("*"):
        assert not path.is_symlink()
        plain = tmp_path / "plain" if path.is_dir() else tmp_path / "plain" / "file"
        assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
        assert path.is_dir() or path.stat().st_nlink == 1
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_unchanged_shards_can_be_linked(source: Checkpoint, tmp_path: Path) -> None:
    before = contents(tmp_path)
    write_patched(source, tmp_path / "out", {"b": torch.zeros(7)}, link_unchanged=True)
    out = tmp_path / "out"
    linked = [path for path in out.rglob("*") if path.is_file() and path.stat().st_nlink > 1]
    assert linked == [out / SHARDS[1]]
    assert linked[0].samefile(tmp_path / "hub" / "blobs" / "0123")
    assert not linked[0].is_symlink()
    assert torch.equal(Checkpoint.open(out).read("b"), torch.zeros(7))
    assert {path: data for path, data in contents(tmp_path).items() if not path.startswith("out/")} == before


def test_a_linked_file_is_never_written_to(source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(tmp_path)
    monkeypatch.setattr(writer, "copy_file", folder_module.link_file)
    with pytest.raises(RunError, match="has a second name"):
        write_patched(source, tmp_path / "out", {"b": torch.zeros(7)})
    assert contents(tmp_path) == before


def test_links_to_another_disk_are_refused(source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, shard = Path.stat, source.folder / SHARDS[0]

    def elsewhere(path: Path, **options: bool) -> os.stat_result:
        found = plain(path, **options)
        return os.stat_result((*found[:2], found.st_dev + 1, *found[3:])) if path == shard else found

    monkeypatch.setattr(Path, "stat", elsewhere)
    with pytest.raises(InputError, match=r"^link_unchanged=True: .* is on another disk"):
        check_output(source, tmp_path / "out", link_unchanged=True)
    check_output(source, tmp_path / "out")


def test_space_is_checked_before_anything_is_written(
    source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(len(data) for data in copied(source.folder).values())
    shards = sum((source.folder / shard).stat().st_size for shard in SHARDS)
    for free, link_unchanged, enough in ((size, False, True), (size - 1, False, False), (size - shards, True, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        if enough:
            check_output(source, tmp_path / "out", link_unchanged=link_unchanged)
        else:
            with pytest.raises(InputError, match=f"{size:,} bytes are needed, {size - 1:,} free"):
                check_output(source, tmp_path / "out", link_unchanged=link_unchanged)
            monkeypatch.setattr(folder_module, "_share_blocks", lambda old, new: True)  # then a copy takes none
            check_output(source, tmp_path / "out", link_unchanged=link_unchanged)
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]


@pytest.mark.parametrize("halfway", [False, True])
def test_the_copy_is_the_same_where_the_kernel_cannot_make_it(
    source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, halfway: bool
) -> None:
    def refuse(old: int, new: int, *_: int) -> int:
        if halfway:
            os.pwrite(new, b"rubbish that must not stay" * 1000, 0)
        raise OSError(errno.EXDEV, "across devices")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    monkeypatch.setattr(folder_module, "_share_blocks", lambda old, new: False)
    write_patched(source, tmp_path / "out", {})
    assert contents(tmp_path / "out") == copied(source.folder)


def _raise(error: BaseException) -> Callable[..., Any]:
    def call(*_: object) -> None:
        raise error

    return call


def _write_less(path: Path, entry: TensorEntry, tensor: torch.Tensor) -> None:
    with path.open("r+b") as file:
        file.seek(entry.begin)
        file.write(tensor.to(entry.torch_dtype).view(torch.uint8).numpy().tobytes()[:-1])


def _write_elsewhere(path: Path, entry: TensorEntry, tensor: torch.Tensor) -> None:
    with path.open("r+b") as file:
        file.seek(entry.begin)
        file.write(tensor.to(entry.torch_dtype).view(torch.uint8).numpy().tobytes())
        file.seek(entry.begin - 1)
        file.write(b"\xff")


FAULTS: dict[str, tuple[str, Callable[..., Any], type[BaseException]]] = {
    "no space": ("chip.checkpoint.folder._copy_in_kernel", _raise(OSError(errno.ENOSPC, "full")), RunError),
    "interrupted while writing": ("chip.checkpoint.writer._write", _raise(KeyboardInterrupt()), KeyboardInterrupt),
    "other bytes on the disk": ("chip.checkpoint.writer._write", _write_less, RunError),
    "a byte too many": ("chip.checkpoint.writer._write", _write_elsewhere, RunError),
    "no flush": ("os.fsync", _raise(OSError(errno.EIO, "broken")), RunError),
}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_an_interrupted_write_leaves_everything_as_it_was(
    source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, overwrite: bool
) -> None:
    output = tmp_path / "out"
    if overwrite:
        write_signed(source, output, {"b": torch.zeros(7)})
    before = contents(tmp_path)
    place, replacement, error = FAULTS[fault]
    monkeypatch.setattr(place, replacement)
    with pytest.raises(error):
        write_patched(source, output, {"d": torch.zeros(2)}, overwrite=overwrite)
    assert contents(tmp_path) == before
    assert {path.name for path in tmp_path.iterdir()} == ({"hub", "out"} if overwrite else {"hub"})


@pytest.mark.parametrize("failing", [1, 2])
def test_a_failed_rename_puts_the_old_checkpoint_back(
    source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    write_signed(source, tmp_path / "out", {"b": torch.zeros(7)})
    before = contents(tmp_path)
    calls = 0
    rename = os.replace

    def fail_once(old: Path, new: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(errno.EBUSY, "in use")
        rename(old, new)

    monkeypatch.setattr(os, "replace", fail_once)
    with pytest.raises(RunError, match="in use"):
        write_patched(source, tmp_path / "out", {}, overwrite=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("new", "error", "message"),
    [
        ({"a": torch.full((6, 5), float("nan"))}, RunError, "'a': NaN or infinite as BF16"),
        ({"c": torch.full((3, 4), 1e6)}, RunError, "'c': NaN or infinite as F16"),
        ({"a": torch.zeros(5, 6)}, RunError, r"'a': the new shape \(5, 6\) is not the stored \(6, 5\)"),
        ({"a": torch.zeros(6, 5, dtype=torch.int64)}, RunError, "'a': the new values are torch.int64"),
        ({"z": torch.zeros(1)}, RunError, "no tensor 'z'"),
        ({"i": torch.zeros(3)}, InputError, "cannot edit tensor 'i', I64"),
    ],
)
def test_a_tensor_that_cannot_be_stored_leaves_no_output(
    source: Checkpoint, tmp_path: Path, new: dict[str, torch.Tensor], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        write_patched(source, tmp_path / "out", {"b": torch.ones(7)} | new)
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]


def test_a_source_that_changes_meanwhile_leaves_no_output(source: Checkpoint, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(6, 5).bfloat16(), "b": torch.zeros(9)}, source.folder / SHARDS[0])
    with pytest.raises(RunError, match="changed while it was read"):
        write_patched(source, tmp_path / "out", {})
    assert not (tmp_path / "out").exists()


def test_overwriting_leaves_nothing_of_the_old_checkpoint(source: Checkpoint, tmp_path: Path) -> None:
    output = tmp_path / "new" / "parents" / "out"
    write_signed(source, output, {"b": torch.zeros(7)})
    write_patched(source, output, {}, overwrite=True)
    assert contents(output) == copied(source.folder)
    assert [path.name for path in output.parent.iterdir()] == ["out"]


def test_an_empty_folder_is_an_output(source: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_patched(source, tmp_path / "out", {})
    assert contents(tmp_path / "out") == copied(source.folder)


def _circle(folder: Path) -> Path:
    (folder / "again").symlink_to(folder)
    return folder.parent / "out"


def _dead_end(folder: Path) -> Path:
    (folder / "tokenizer.json").symlink_to(folder / "nowhere")
    return folder.parent / "out"


def _filled(folder: Path) -> Path:
    (folder.parent / "out").mkdir()
    (folder.parent / "out" / "thesis.tex").touch()
    return folder.parent / "out"


def _hidden_shard(folder: Path) -> Path:
    (folder / SHARDS[0]).rename(folder / ".git" / SHARDS[0])
    index = folder / INDEX
    index.write_text(index.read_text().replace(SHARDS[0], f".git/{SHARDS[0]}"))
    return folder.parent / "out"


def _linked_folder(folder: Path) -> Path:
    (folder / "more").symlink_to("/etc")
    return folder.parent / "out"


OUTPUTS: dict[str, tuple[Callable[[Path], Path], bool, str]] = {
    "the source": (lambda folder: folder, True, "overlaps the source"),
    "in the source": (lambda folder: folder / "out", False, "overlaps the source"),
    "around the source": (lambda folder: folder.parent, True, "overlaps the source"),
    "a file": (lambda folder: folder.parents[1] / "blobs" / "0123", True, "is a file"),
    "below a file": (lambda folder: folder.parents[1] / "blobs" / "0123" / "out", True, "not a folder"),
    "not empty": (_filled, False, "is not empty"),
    "not chip's": (_filled, True, "is no folder that chip has written"),
    "a folder elsewhere": (_linked_folder, False, "more: links to a folder outside"),
    "links in a circle": (_circle, False, "links lead to this folder twice"),
    "link to nowhere": (_dead_end, False, "a link that leads nowhere"),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_outputs_are_refused_before_anything_is_written(source: Checkpoint, tmp_path: Path, case: str) -> None:
    choose, overwrite, message = OUTPUTS[case]
    output = choose(source.folder)
    before = contents(tmp_path)
    with pytest.raises(InputError, match=message):
        check_output(source, output, overwrite=overwrite)
    with pytest.raises(InputError, match=message):
        write_patched(source, output, {}, overwrite=overwrite)
    assert contents(tmp_path) == before


def test_the_error_of_an_output_names_the_argument(source: Checkpoint, tmp_path: Path) -> None:
    out = _filled(source.folder)
    with pytest.raises(InputError) as caught:
        check_output(source, out)
    assert (caught.value.argument, caught.value.value) == ("out", out)
    assert str(caught.value) == f"out={str(out)!r}: is not empty; choose another folder, or overwrite it"


def test_a_shard_that_would_not_be_copied_is_refused(source: Checkpoint) -> None:
    output = _hidden_shard(source.folder)
    with pytest.raises(InputError, match="is in a folder that is not copied"):
        check_output(Checkpoint.open(source.folder), output)


def test_checking_an_output_makes_nothing(source: Checkpoint, tmp_path: Path) -> None:
    check_output(source, tmp_path / "new" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]


def neighbors(dtype: torch.dtype) -> tuple[torch.Tensor, list[int]]:
    """All finite values of a 16-bit dtype, in order, with their bits."""
    bits = torch.arange(2**16).to(torch.int16)
    values = bits.view(dtype).double()
    kept = values.isfinite()
    order = values[kept].argsort(stable=True)
    return values[kept][order], bits[kept][order].tolist()


TABLES = {dtype: neighbors(dtype) for dtype in (torch.bfloat16, torch.float16)}


def values_near_ties(dtype: torch.dtype) -> st.SearchStrategy[float]:
    """Halfway between two neighbors, give or take what float64 can tell and float32 cannot."""
    values, _ = TABLES[dtype]

    def between(place: int, power: int, sign: int) -> float:
        low, high = float(values[place]), float(values[place + 1])
        return (low + high) / 2 + sign * (high - low) * 2.0**-power

    return st.builds(between, st.integers(0, len(values) - 2), st.integers(2, 44), st.integers(-1, 1))


@pytest.mark.parametrize("dtype", TABLES)
@given(data=st.data())
@settings(max_examples=400, deadline=None)
def test_rounding_gives_the_nearest_value_and_the_even_one_of_two(dtype: torch.dtype, data: st.DataObject) -> None:
    values, bits = TABLES[dtype]
    largest = float(values[-1])
    value = data.draw(st.floats(-largest, largest) | values_near_ties(dtype))
    place = int(torch.searchsorted(values, value))
    neighbor_weight = [i for i in range(place - 2, place + 2) if 0 <= i < len(values)]
    best = min(abs(Fraction(float(values[i])) - Fraction(value)) for i in neighbor_weight)
    nearest = [i for i in neighbor_weight if abs(Fraction(float(values[i])) - Fraction(value)) == best]
    even = {float(values[i]) for i in nearest if len({float(values[j]) for j in nearest}) == 1 or bits[i] % 2 == 0}
    assert float(round_once(torch.tensor([value], dtype=torch.float64), dtype)) in even
    assert float(round_once(torch.tensor([-value], dtype=torch.float64), dtype)) in {-v for v in even}


def test_rounding_keeps_what_is_not_finite() -> None:
    odd = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e300, -0.0], dtype=torch.float64)
    rounded = round_once(odd, torch.bfloat16)
    assert rounded[0].isnan()
    assert rounded[1:].tolist() == [float("inf"), -float("inf"), float("inf"), 0.0]
    assert rounded[4].signbit()


def test_rounding_in_blocks_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(9, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = round_once(values, torch.bfloat16)
    monkeypatch.setattr("chip.checkpoint.writer._CACHED", 5)
    for part in (..., slice(0, 0), 0, (0, 0)):
        assert torch.equal(round_once(values[part], torch.bfloat16), whole[part])
    assert torch.equal(round_once(values.T, torch.bfloat16), whole.T)
