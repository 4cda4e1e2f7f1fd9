"""A receipt holds for the folder it was written for, and for no other."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from chip.checkpoint.edit import Edit
from chip.checkpoint.folder import atomic_directory
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.model_card import CARD, Figure, Metadata, write_card
from chip.checkpoint.read_back import read_back
from chip.checkpoint.receipt import RECEIPT, Receipt, read_receipt, write_receipt
from chip.checkpoint.sequence import Drift
from chip.checkpoint.statement import EDIT, statement_text
from chip.checkpoint.verify import verify
from chip.checkpoint.writer import copy_patched
from chip.errors import InputError
from tests.folders import SHARDS, contents, into_cache

SETTINGS = {"retain_weight": 8.0, "target_modules": ["connector", "down"]}
NEW = {"a": torch.arange(30.0).reshape(6, 5), "c": torch.full((3, 4), 0.5)}


def edit_folder(
    source: Checkpoint, output: Path, tensors: dict[str, torch.Tensor] = NEW, label: str | None = "request 7"
) -> Receipt:
    """What `chip edit` does to a folder, less the model."""
    changes = {}
    for name, new in tensors.items():
        old = source.read(name).double()
        stored = new.to(source.entries[name].torch_dtype).double()
        changes[name] = float(torch.linalg.norm(stored - old) / torch.linalg.norm(old))
    edit = Edit(
        "shielded", {"retain_weight": 8.0, "target_modules": ["connector", "down"]}, None, changes, {"a": 1e-3}, label
    )
    with atomic_directory(output) as folder:
        copy_patched(source, folder, tensors)
        (folder / RECEIPT).unlink(missing_ok=True)
        write_card(
            folder,
            method=edit.method,
            settings=edit.settings,
            label=label,
            changed_tensors=len(tensors),
            figures=[Figure("target", "trained", 1.0, 0.25)],
            metadata=Metadata("finetune", "transformers"),
        )
        receipt = Receipt.of(source, edit, read_back(source, folder, tensors.keys(), own={CARD, RECEIPT}))
        write_receipt(folder, receipt)
    return receipt


@pytest.fixture
def edited(source: Checkpoint, tmp_path: Path) -> Path:
    edit_folder(source, tmp_path / "out")
    return tmp_path / "out"


def test_a_receipt_tells_what_was_done_and_is_read_as_it_was_written(edited: Path, source: Checkpoint) -> None:
    receipt = read_receipt(edited)
    assert (receipt.method, receipt.label, receipt.seed) == ("shielded", "request 7", None)
    assert receipt.settings == SETTINGS
    assert set(receipt.tensors) == {"a", "c"}
    assert receipt.tensors["a"].remaining == 1e-3
    names = {str(path.relative_to(edited)) for path in edited.rglob("*") if path.is_file()}
    assert set(receipt.files) == names - {RECEIPT}
    assert receipt.files[CARD].source_sha256 is None
    changed = {name for name, file in receipt.files.items() if file.sha256 != file.source_sha256}
    assert changed == {CARD, *SHARDS}
    whole = sum((source.folder / name).stat().st_size for name in names - {CARD, RECEIPT})
    assert receipt.untouched_bytes == whole - 6 * 5 * 2 - 3 * 4 * 2
    assert str(source.folder.name) not in (edited / RECEIPT).read_text()  # a folder may be named after somebody


def test_what_was_written_is_good_with_and_without_the_original(edited: Path, source: Checkpoint) -> None:
    assert verify(edited).faults == ()
    verification = verify(edited, source.folder)
    assert verification.faults == ()
    assert verification.with_original
    assert json.loads(json.dumps(verification.to_json()))["good"] is True


@pytest.mark.parametrize(("drawn", "least"), [(80, 400), pytest.param(1000, 2000, marks=pytest.mark.slow)])
def test_every_flipped_bit_is_found(edited: Path, drawn: int, least: int) -> None:
    """Each byte of small files, and of large ones as many, drawn at random."""
    draw = random.Random(0)
    flips = missed = 0
    for path in (path for path in edited.rglob("*") if path.is_file()):
        content = path.read_bytes()
        everywhere = range(len(content))
        for position in everywhere if len(content) <= drawn else draw.sample(everywhere, drawn):
            damaged = bytearray(content)
            damaged[position] ^= 1 << draw.randrange(8)
            path.write_bytes(damaged)
            flips += 1
            missed += not _is_found(edited)
        path.write_bytes(content)
    assert verify(edited).faults == ()
    assert flips > least
    assert missed == 0


def _is_found(folder: Path) -> bool:
    try:
        return bool(verify(folder).faults)
    except InputError:  # in the receipt itself
        return True


def _rewrite(path: Path, content: str) -> None:
    path.write_text(content)


def _lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def _link_away(folder: Path) -> None:
    (folder.parent / "elsewhere").write_bytes((folder / "config.json").read_bytes())
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(folder.parent / "elsewhere")


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a new file": (lambda folder: _rewrite(folder / "notes.txt", "who it was"), "notes.txt: not in the receipt"),
    "no card": (lambda folder: (folder / CARD).unlink(), "README.md: in the receipt, and not in the folder"),
    "no shard": (lambda folder: (folder / SHARDS[0]).unlink(), "is missing"),
    "another card": (
        lambda folder: _rewrite(folder / CARD, "Nothing happened."),
        "README.md: 17 bytes, by the receipt",
    ),
    "a longer shard": (lambda folder: _lengthen(folder / SHARDS[0]), "its tensors end at"),
    "a shard of others": (lambda folder: shutil.copy(folder / SHARDS[1], folder / SHARDS[0]), "is in .* and in"),
    "a link": (_link_away, "outside"),
    "a folder's file": (lambda folder: (folder / "processor/inner/tokens.txt").unlink(), "tokens.txt: in the receipt"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_else_happens_to_the_folder_is_found(edited: Path, change: str) -> None:
    alter, message = CHANGES[change]
    alter(edited)
    (fault,) = verify(edited).faults
    assert re.search(message, fault)


SEQUENCE = "the receipt's sequence is not that of the edits it lists"


def norms_of(receipt: Receipt) -> dict[str, float]:
    assert receipt.sequence is not None
    return {name: norm for name, norm in receipt.sequence.norms.items() if name in receipt.tensors}


def refitted(receipt: Receipt) -> Receipt:
    """With the sequence that the rest of the receipt asks for."""
    norms = dict.fromkeys(receipt.tensors, 1.0) | norms_of(receipt)
    return replace(receipt, sequence=receipt.expected_sequence(norms))


def resequenced(receipt: Receipt, **fields: Any) -> Receipt:
    assert receipt.sequence is not None
    return replace(receipt, sequence=replace(receipt.sequence, **fields))


LIES: dict[str, tuple[Callable[[Receipt], Receipt], str, bool]] = {
    "hash of a file": (
        lambda r: replace(r, files=r.files | {"config.json": replace(r.files["config.json"], sha256="0" * 64)}),
        "config.json: has another hash than the receipt's",
        False,
    ),
    "a file forgotten": (
        lambda r: replace(r, files={name: file for name, file in r.files.items() if name != "config.json"}),
        "config.json: not in the receipt",
        False,
    ),
    "a tensor after": (
        lambda r: replace(r, tensors=r.tensors | {"a": replace(r.tensors["a"], after="0" * 64)}),
        "'a': has another hash",
        False,
    ),
    "no change": (
        lambda r: replace(r, tensors=r.tensors | {"a": replace(r.tensors["a"], before=r.tensors["a"].after)}),
        "'a': changed by the receipt, with the same hash",
        False,
    ),
    "a tensor that is not there": (
        lambda r: replace(r, tensors=r.tensors | {"z": r.tensors["a"]}),
        "'z': changed by the receipt, and not in the folder",
        False,
    ),
    "a tensor's shape": (
        lambda r: replace(r, tensors=r.tensors | {"a": replace(r.tensors["a"], shape=[5, 6])}),
        r"'a': BF16 \[6, 5\] in .*, by the receipt BF16 \[5, 6\]",
        False,
    ),
    "the counts": (lambda r: replace(r, untouched_bytes=r.untouched_bytes + 1), "counts", False),
    "a tensor before": (
        lambda r: replace(r, tensors=r.tensors | {"a": replace(r.tensors["a"], before="0" * 64)}),
        "'a': the original's has another hash",
        True,
    ),
    "a tensor forgotten": (
        lambda r: replace(
            r,
            tensors={"c": r.tensors["c"]},
            tensors_read_back=1,
            untouched_bytes=r.untouched_bytes + 60,
        ),
        f"{SHARDS[0]}: differs from the original where nothing was to change",
        True,
    ),
    "the source's hash": (
        lambda r: replace(r, files=r.files | {SHARDS[0]: replace(r.files[SHARDS[0]], source_sha256="0" * 64)}),
        f"{SHARDS[0]}: the original's has another hash",
        True,
    ),
    "the norm": (
        lambda r: replace(r, tensors=r.tensors | {"a": replace(r.tensors["a"], relative_change=0.1)}),
        "'a': changed by .* of its norm, by the receipt 0.1",
        True,
    ),
    "an edit before": (lambda r: replace(r, previous=r.to_json()), "the edit before", True),
    "sequence: more edits": (lambda r: resequenced(r, number=2), SEQUENCE, False),
    "sequence: another original": (lambda r: resequenced(r, chain=["0" * 64]), SEQUENCE, False),
    "sequence: no norms": (lambda r: resequenced(r, norms={}), SEQUENCE, False),
    "sequence: unknown": (lambda r: resequenced(r, drift=None), SEQUENCE, False),
    "sequence: a shorter way": (
        lambda r: resequenced(r, drift={name: Drift(0.0, 1.0) for name in r.tensors}),
        SEQUENCE,
        False,
    ),
    "sequence: none": (lambda r: replace(r, sequence=None), SEQUENCE, False),
    "sequence: a norm before": (
        lambda r: replace(r, sequence=r.expected_sequence({**norms_of(r), "a": 2.0})),
        "'a': had a norm of .*, by the receipt 2",
        True,
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_every_lie_of_the_receipt_is_found(edited: Path, source: Checkpoint, lie: str) -> None:
    """The lies are made to fit: the receipt's own digest is right, and so is its sequence, unless that is the lie."""
    tell, message, needs_original = LIES[lie]
    told = tell(read_receipt(edited))
    if not lie.startswith("sequence"):
        told = refitted(told)
    write_receipt(edited, told)
    if needs_original:
        assert verify(edited).faults == ()
    faults = verify(edited, source.folder if needs_original else None).faults
    assert re.search(message, "\n".join(faults))


WRONG_TYPES: dict[str, Any] = {
    "chip": 1,
    "label": ["request"],
    "settings": [],
    "seed": "0",
    "files_read_back": "8",
    "untouched_bytes": True,
    "previous": "none",
    "tensors": [],
    "files": {"config.json": "0" * 64},
    "files/config.json/bytes": "17",
    "files/config.json/sha256": None,
    "tensors/a/shape": "65",
    "tensors/a/shape/0": 6.0,
    "tensors/a/relative_change": "much",
    "tensors/a/remaining": 10**400,
    "tensors/a/shard": {"a": 1},
    "attacks": "none",
    "limits": [1],
    "figures": [],
    "version": 1.5,
    "sequence/number": "1",
    "sequence/chain": [0],
    "sequence/norms/a": "1",
    "sequence/drift/a": 1.0,
    "sequence/drift/a/bound": None,
}


@pytest.mark.parametrize("place", WRONG_TYPES)
def test_a_forged_receipt_of_wrong_types_is_refused(edited: Path, source: Checkpoint, place: str) -> None:
    """Its digest is right."""
    content = read_receipt(edited).to_json()
    subject = {name: file["sha256"] for name, file in content["files"].items()}
    *parents, last = place.split("/")
    part = content
    for key in parents:
        part = part[key]
    part[int(last) if isinstance(part, list) else last] = WRONG_TYPES[place]
    (edited / RECEIPT).write_bytes(statement_text(subject, EDIT, content))
    for original in (None, source.folder):
        with pytest.raises(InputError, match="damaged, or changed by hand"):
            verify(edited, original)


def test_a_receipt_that_lists_nothing_says_so(edited: Path, source: Checkpoint) -> None:
    receipt = read_receipt(edited)
    unchanged = sum(file.bytes for name, file in receipt.files.items() if name != CARD)
    write_receipt(edited, refitted(replace(receipt, tensors={}, tensors_read_back=0, untouched_bytes=unchanged)))
    assert verify(edited).faults == ("the receipt lists no changed tensor: it vouches for nothing",)
    empty = replace(receipt, tensors={}, files={}, tensors_read_back=0, files_read_back=0, untouched_bytes=0)
    write_receipt(edited, refitted(empty))
    assert verify(edited).faults[:2] == (
        "the receipt lists no file: it vouches for nothing",
        "the receipt lists no changed tensor: it vouches for nothing",
    )


def _download_into_folder(edited: Path, hub: Path) -> Path:
    """What `snapshot_download(local_dir=...)` leaves: files, and notes of its own."""
    shutil.copytree(edited, hub)
    (hub / ".cache" / "huggingface" / "download").mkdir(parents=True)
    (hub / ".cache" / "huggingface" / "download" / "config.json.metadata").write_text("abc")
    return hub


@pytest.mark.parametrize("download", [into_cache, _download_into_folder])
@pytest.mark.parametrize("has_attributes", [True, False])
def test_a_folder_that_comes_back_from_the_hub_is_what_was_written(
    source: Checkpoint, tmp_path: Path, download: Callable[[Path, Path], Path], has_attributes: bool
) -> None:
    """The hub writes a `.gitattributes` of its own."""
    if not has_attributes:
        (source.folder / ".gitattributes").unlink()
    edit_folder(source, tmp_path / "out")
    (tmp_path / "out" / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
    back = download(tmp_path / "out", tmp_path / "back")
    assert verify(back).faults == ()
    assert verify(back, source.folder).faults == ()
    config = back / "config.json"
    content = config.read_bytes()
    config.unlink()
    config.write_bytes(content + b" ")
    assert verify(back).faults == ("config.json: 3 bytes, by the receipt 2",)


def test_links_in_the_source_become_files(source: Checkpoint, tmp_path: Path) -> None:
    """Links to blobs, and second names of files elsewhere."""
    for name in (SHARDS[0], "config.json"):
        (source.folder / name).rename(tmp_path / "hub" / name)
        (source.folder / name).hardlink_to(tmp_path / "hub" / name)
    before = contents(tmp_path)
    edit_folder(Checkpoint.open(source.folder), tmp_path / "out")
    for path in (tmp_path / "out").rglob("*"):
        assert not path.is_symlink()
        assert path.is_dir() or path.stat().st_nlink == 1
    assert verify(tmp_path / "out", source.folder).faults == ()
    assert {name: data for name, data in contents(tmp_path).items() if not name.startswith("out/")} == before


def test_another_original_is_found(edited: Path, source: Checkpoint, tmp_path: Path) -> None:
    """One bit of a tensor that was not to change."""
    other = tmp_path / "other"
    shutil.copytree(source.folder, other)
    with (other / SHARDS[0]).open("r+b") as file:
        file.seek(source.entries["b"].begin)
        file.write(b"\xff")
    faults = verify(edited, other).faults
    assert any("differs from the original where nothing was to change" in fault for fault in faults)


def test_a_card_is_continued_and_verified(source: Checkpoint, tmp_path: Path) -> None:
    card = "---\nlicense: mit\n---\n# A model\r\nof lungs"
    (source.folder / CARD).write_bytes(card.encode())
    edit_folder(Checkpoint.open(source.folder), tmp_path / "out")
    text = (tmp_path / "out" / CARD).read_bytes().decode()
    assert text.startswith("---\nlicense: mit\n")
    assert "---\n# A model\r\nof lungs\n\n## Edited to forget\n" in text
    row = "| target | trained | 1.00 | 0.25 |"
    for said in ("- Request: request 7", "- Method: shielded", "target_modules connector+down", row):
        assert said in text
    assert verify(tmp_path / "out", source.folder).faults == ()
    (source.folder / CARD).write_text("Another model.")
    faults = verify(tmp_path / "out", source.folder).faults
    assert any(fault == "README.md: does not begin with the original's" for fault in faults)


def test_an_edit_of_an_edited_folder_keeps_the_first_receipt(source: Checkpoint, tmp_path: Path) -> None:
    first = edit_folder(source, tmp_path / "first")
    other = {name: new + 1 for name, new in NEW.items()}
    second = edit_folder(Checkpoint.open(tmp_path / "first"), tmp_path / "second", other, label=None)
    assert second.previous == first.to_json()
    assert verify(tmp_path / "second", tmp_path / "first").faults == ()
    assert (tmp_path / "second" / CARD).read_text().count("## Edited to forget") == 2


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"receipt": 2}', '{"receipt": 1, "tensors": {}, "files": {}}', "[" * 100_000]
)
def test_what_is_no_receipt_is_refused(edited: Path, text: str) -> None:
    (edited / RECEIPT).write_text(text)
    with pytest.raises(InputError, match="damaged, or changed by hand"):
        verify(edited)


def test_a_folder_without_a_receipt_is_refused(source: Checkpoint) -> None:
    with pytest.raises(InputError, match=f"no {RECEIPT} here"):
        verify(source.folder)


def test_what_was_not_copied_is_no_fault(source: Checkpoint, tmp_path: Path) -> None:
    (source.folder / "README.md").write_bytes(bytes(9))  # no text either
    (source.folder / "pytorch_model.bin").write_bytes(bytes(range(256)))
    receipt = edit_folder(source, tmp_path / "out")
    assert "pytorch_model.bin" not in receipt.files
    assert receipt.files["README.md"].source_sha256 is None
    assert verify(tmp_path / "out", source.folder).faults == ()
    (tmp_path / "out" / "pytorch_model.bin").write_bytes(bytes(range(256)))
    assert verify(tmp_path / "out", source.folder).faults == ("pytorch_model.bin: not in the receipt",)
