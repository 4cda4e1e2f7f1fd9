"""The proof, from the disk, that a written folder is the source but for the tensors that were meant to change."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from chip.checkpoint.contents import folder_contents
from chip.checkpoint.folder import drop_page_cache, files_in
from chip.checkpoint.hashing import Digest, Range, digest_all
from chip.checkpoint.layout import Checkpoint
from chip.errors import InputError, RunError
from chip.progress import ProgressCallback, silent

Ranges = Mapping[str, Mapping[str, Range]]
"""Shard -> name on disk -> first byte, and the byte after the last."""


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """One file of a written folder. Hashes are SHA-256 in hexadecimal."""

    bytes: int
    sha256: str
    source_sha256: str | None
    """Of the file of that name in the source; None where the source has none."""


@dataclass(frozen=True, slots=True)
class WrittenTensor:
    """One changed tensor. Hashes are SHA-256 of its bytes, in hexadecimal."""

    before: str
    after: str


@dataclass(frozen=True)
class ReadBack:
    """What was on the disk after writing. That it exists means that everything was as it should be."""

    files: Mapping[str, WrittenFile]
    """Path relative to the folder -> file."""
    tensors: Mapping[str, WrittenTensor]
    """Name on disk -> tensor, for those that were meant to change."""
    untouched_bytes: int
    """All others, which are the source's by their hash."""


def read_back(
    source: Checkpoint,
    folder: Path,
    changed: Collection[str],
    own: Collection[str] = (),
    *,
    progress: ProgressCallback = silent,
) -> ReadBack:
    """Hash the written folder, and compare it with the source outside of the tensors that were meant to change.

    Args:
        changed: names on disk of those tensors.
        own: files that chip has written itself, relative to the folder: hashed, and not compared.

    Raises:
        RunError: a byte is not the source's, or the source has changed since it was opened.
    """
    _check_layout(source, folder)
    written = _files(files_in(folder))
    drop_page_cache(written.values())
    copied = _files(folder_contents(source).copied)
    originals = {name: path for name, path in copied.items() if name in written or name not in own}
    if differing := originals.keys() - written.keys() | (written.keys() - originals.keys() - set(own)):
        message = "only in the source, or only in its copy; the source changed meanwhile, try again"
        raise RunError(f"{min(differing)}: {message}")
    ranges = changed_ranges(source, changed)
    of_copy, of_original = _digests(written, originals, ranges, progress)
    compared = of_original.keys() - set(own)
    for name in compared:
        if (of_copy[name].bytes, of_copy[name].outside) != (of_original[name].bytes, of_original[name].outside):
            raise RunError(f"{name}: the copy has other bytes than the source; check the disk")
    source.check_unchanged()
    return _summarize(of_copy, of_original, ranges, compared)


def changed_ranges(checkpoint: Checkpoint, names: Collection[str]) -> Ranges:
    """Where the tensors `names` lie; within a shard in the order of bytes."""
    ranges: dict[str, dict[str, Range]] = {}
    for entry in sorted((checkpoint.entries[name] for name in names), key=lambda entry: entry.begin):
        ranges.setdefault(entry.shard, {})[entry.name] = (entry.begin, entry.end)
    return ranges


def _check_layout(source: Checkpoint, folder: Path) -> None:
    try:
        written = Checkpoint.open(folder)
    except InputError as error:
        raise RunError(f"the copy cannot be read back ({error}); the source may have changed meanwhile") from error
    if written.entries != source.entries:
        raise RunError(f"{source.folder}: changed while it was copied; try again")


def _files(files: Iterable[tuple[Path, Path]]) -> dict[str, Path]:
    return {str(relative): path for path, relative in files}


def _digests(
    written: Mapping[str, Path], originals: Mapping[str, Path], ranges: Ranges, progress: ProgressCallback
) -> tuple[dict[str, Digest], dict[str, Digest]]:
    """Of the copy's files and of the source's, by name; the files of both are read at the same time."""
    jobs = [
        (path, list(ranges.get(name, {}).values())) for files in (written, originals) for name, path in files.items()
    ]
    with progress("reading back", len(jobs)) as advance:
        digests = digest_all(jobs, advance)
    of_copy = dict(zip(written, digests[: len(written)], strict=True))
    return of_copy, dict(zip(originals, digests[len(written) :], strict=True))


def _summarize(
    of_copy: Mapping[str, Digest], of_original: Mapping[str, Digest], ranges: Ranges, compared: Collection[str]
) -> ReadBack:
    """What the receipt lists; `compared`: the files that are the source's outside of `ranges`."""
    tensors = {
        tensor: WrittenTensor(before, after)
        for shard, of_shard in ranges.items()
        for tensor, before, after in zip(of_shard, of_original[shard].inside, of_copy[shard].inside, strict=True)
    }
    files = {
        name: WrittenFile(copy.bytes, copy.whole, of_original[name].whole if name in of_original else None)
        for name, copy in of_copy.items()
    }
    changed_bytes = sum(end - begin for of_shard in ranges.values() for begin, end in of_shard.values())
    return ReadBack(files, tensors, sum(of_copy[name].bytes for name in compared) - changed_bytes)
