"""Does an edited folder match its receipt, and the original that it was made from?"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chip.checkpoint.adapter import ADAPTER_WEIGHTS, CHAT_TEMPLATES, PROCESSOR_FILES
from chip.checkpoint.contents import folder_contents
from chip.checkpoint.folder import files_in
from chip.checkpoint.hashing import Digest, Range, digest, digest_all
from chip.checkpoint.layout import CONFIG, Checkpoint
from chip.checkpoint.model_card import CARD
from chip.checkpoint.plain import open_plain
from chip.checkpoint.read_back import changed_ranges
from chip.checkpoint.receipt import RECEIPT, Receipt, read_receipt, stored_receipt
from chip.checkpoint.signing import SIGNATURE, SignatureCheck, TrustedKeys
from chip.checkpoint.statement import EVALUATION, read_statement
from chip.checkpoint.weights import weight_files
from chip.errors import InputError, printable
from chip.progress import ProgressCallback, silent

GITATTRIBUTES = ".gitattributes"
"""Says how git stores a file. The hub writes its own, so that it is another after an upload."""
_UNLISTED = frozenset({RECEIPT, SIGNATURE, GITATTRIBUTES})
"""Files that no receipt vouches for."""

_NORM_TOLERANCE = 1e-4  # relative: the edit takes norms in the precision of its device, `verify` in fp64


@dataclass(frozen=True)
class Verification:
    """What `verify` compared, and where the folder is not as the receipt says."""

    receipt: Receipt
    with_original: bool
    """Whether the original was there to compare with."""
    faults: tuple[str, ...]
    """One line each; none: the folder is what was written."""
    signed: bool = False
    """Whether a signature is there, whoever made it."""
    signed_by: str | None = None
    """The file of the key, or of the certificate, that the signature was checked with; None where none was given."""

    def to_json(self) -> dict[str, Any]:
        return {"good": not self.faults, **asdict(self), "receipt": self.receipt.to_json()}


def verify(
    edited: Path | str,
    original: Path | str | None = None,
    *,
    public_key: Path | str | None = None,
    trust: Sequence[Path | str] = (),
    evaluation: Path | str | None = None,
    progress: ProgressCallback = silent,
) -> Verification:
    """Check a folder that `chip edit` has written against its receipt.

    Without the original: every file, every changed tensor, and what the receipt counts. With it also: what the receipt
    says of the source, each byte outside of the changed tensors, and the norms of the change. `.gitattributes` is not
    compared, nor is what lies in `.git` or `.cache`: a folder that comes back from the hub is the one that was written.

    Where an adapter was merged, the original is its base, and the changes that are checked are those of both. An edit
    that was written as an adapter is checked by its files, and the original by being the one that it belongs to. A
    quantized original is dequantized again.

    Args:
        public_key: PEM file: the folder must be signed with its private key.
        trust: PEM files of certificates: the folder must be signed with a key that one of them vouches for.
        evaluation: statement of `chip eval`: it must be of this folder's files, and signed as the folder is.

    Raises:
        InputError: there is no receipt, or it has been damaged; the original is no whole checkpoint; a key cannot be
            used.
    """
    check = _signature_check(public_key, trust)
    receipt = read_receipt(Path(edited))
    source = None if original is None else open_plain(Path(original), progress)
    find = _checkpoint_faults if receipt.base is None else _adapter_faults
    try:
        faults = list(find(receipt, Path(edited), source, progress))
    except InputError as error:  # a folder that cannot be read is not what was written
        faults = [str(error)]
    if check is not None:
        faults += check.faults(Path(edited), RECEIPT)
    if evaluation is not None:
        faults += _evaluation_faults(Path(evaluation), Path(edited), receipt, check)
    signed_by = None if check is None else str(check.keys)
    return Verification(receipt, source is not None, tuple(faults), (Path(edited) / SIGNATURE).exists(), signed_by)


def _evaluation_faults(file: Path, edited: Path, receipt: Receipt, check: SignatureCheck | None) -> Iterator[str]:
    """Where a statement of `chip eval` is not of the folder that the receipt is of, or not signed."""
    try:
        statement = read_statement(file)
    except InputError as error:
        yield str(error)
        return
    files = {name: each.sha256 for name, each in receipt.files.items() if name != GITATTRIBUTES}
    files[RECEIPT] = digest(edited / RECEIPT).whole
    if statement.kind != EVALUATION:
        yield f"{file}: a statement of another kind, and not of `chip eval`"
    elif other := sorted(
        name for name in files.keys() | statement.subject if files.get(name) != statement.subject.get(name)
    ):
        yield f"{file}: about other files than these, {printable(other[0])} among them"
    if check is not None:
        yield from check.faults(file)


def _signature_check(public_key: Path | str | None, trust: Sequence[Path | str]) -> SignatureCheck | None:
    if public_key is None and not trust:
        return None
    if public_key is not None and trust:
        raise InputError("a key and certificates; give one of the two", argument="trust", value=trust[0])
    roots = tuple(Path(root) for root in trust)
    return SignatureCheck(TrustedKeys(None if public_key is None else Path(public_key), roots))


def _checkpoint_faults(
    receipt: Receipt, folder: Path, source: Checkpoint | None, progress: ProgressCallback
) -> Iterator[str]:
    """Of an edit that was written into the weights."""
    written = Checkpoint.open(folder)
    if faults := list(_header_faults(receipt, written)):
        yield from faults
        return
    copy = _Digests(written, receipt, progress)
    yield from _folder_faults(receipt, copy)
    if source is not None:
        yield from _source_faults(receipt, copy, _Digests(source, receipt, progress, original=True))


class _Digests:
    """Hashes of all files of a folder but the receipt, its signature and git's, and of the changed tensors in it."""

    def __init__(
        self, checkpoint: Checkpoint, receipt: Receipt, progress: ProgressCallback, original: bool = False
    ) -> None:
        self.checkpoint = checkpoint
        self.ranges = changed_ranges(checkpoint, receipt.tensors.keys() & checkpoint.entries.keys())
        paths = {str(relative): path for path, relative in _compared_files(checkpoint, receipt, original=original)}
        jobs = [(path, self._ranges_of(name)) for name, path in paths.items()]
        with progress(f"hashing {checkpoint.folder.name}", len(jobs)) as advance:
            digests = digest_all(jobs, advance)
        self.files: dict[str, Digest] = dict(zip(paths, digests, strict=True))
        self.tensors: dict[str, str] = {
            name: digest
            for shard, of_shard in self.ranges.items()
            for name, digest in zip(of_shard, self.files[shard].inside, strict=True)
        }

    def _ranges_of(self, file: str) -> list[Range]:
        return list(self.ranges.get(file, {}).values())


def _compared_files(checkpoint: Checkpoint, receipt: Receipt, original: bool) -> Iterator[tuple[Path, Path]]:
    """All files but the receipt, its signature and git's; of the original without those that were not copied."""
    skipped = set(_UNLISTED)
    if original:
        copied = {name for name, file in receipt.files.items() if file.source_sha256 is not None}
        skipped |= set(folder_contents(checkpoint).left_out) - copied
    for path, relative in files_in(checkpoint.folder):
        if str(relative) not in skipped:
            yield path, relative


def _adapter_faults(
    receipt: Receipt, folder: Path, source: Checkpoint | None, progress: ProgressCallback
) -> Iterator[str]:
    """Of an edit that was written as an adapter: files that are not the receipt's, or a base that is not its own."""
    files = {str(name): path for path, name in files_in(folder) if str(name) not in _UNLISTED}
    of_base = {} if source is None else {name: source.folder / name for name in (CONFIG, *source.shards)}
    with progress(f"hashing {folder.name}", len(files) + len(of_base)) as advance:
        digests = digest_all([(path, ()) for path in (*files.values(), *of_base.values())], advance)
    yield from _file_faults(receipt, dict(zip(files, digests, strict=False)))
    yield from _sequence_faults(receipt)
    if ADAPTER_WEIGHTS not in receipt.files:
        yield f"the receipt lists no {ADAPTER_WEIGHTS}: it vouches for nothing"
    wholes = dict(zip(of_base, (each.whole for each in digests[len(files) :]), strict=True))
    if source is not None and wholes != receipt.base:
        name = min(name for name, _ in wholes.items() ^ (receipt.base or {}).items())
        yield f"{name}: the original's is not the one that the adapter was made to"


def _header_faults(receipt: Receipt, checkpoint: Checkpoint) -> Iterator[str]:
    for name, recorded in receipt.tensors.items():
        entry = checkpoint.entries.get(name)
        if entry is None:
            yield f"tensor {name!r}: changed by the receipt, and not in the folder"
        elif (entry.shard, entry.dtype, list(entry.shape)) != (recorded.shard, recorded.dtype, recorded.shape):
            yield f"tensor {name!r}: {entry.dtype} {list(entry.shape)} in {entry.shard}, by the receipt " + (
                f"{recorded.dtype} {recorded.shape} in {recorded.shard}"
            )


def _folder_faults(receipt: Receipt, copy: _Digests) -> Iterator[str]:
    """What can be seen without the original."""
    for kind, listed in (("file", receipt.files), ("changed tensor", receipt.tensors)):
        if not listed:
            yield f"the receipt lists no {kind}: it vouches for nothing"
    yield from _file_faults(receipt, copy.files)
    yield from _sequence_faults(receipt)
    for name, recorded in receipt.tensors.items():
        if recorded.after != copy.tensors[name]:
            yield f"tensor {name!r}: has another hash than the receipt's"
        if recorded.before == recorded.after:
            yield f"tensor {name!r}: changed by the receipt, with the same hash before and after"
    counts = (len(receipt.files), len(receipt.tensors), _untouched_bytes(receipt, copy))
    if (receipt.files_read_back, receipt.tensors_read_back, receipt.untouched_bytes) != counts:
        yield "the receipt's counts are not those of the files and tensors it lists"


def _sequence_faults(receipt: Receipt) -> Iterator[str]:
    if not receipt.sequence_follows:
        yield "the receipt's sequence is not that of the edits it lists"


def _file_faults(receipt: Receipt, files: Mapping[str, Digest]) -> Iterator[str]:
    for name in sorted((receipt.files.keys() | files.keys()) - {GITATTRIBUTES}):
        recorded, actual = receipt.files.get(name), files.get(name)
        if recorded is None:
            yield f"{name}: not in the receipt"
        elif actual is None:
            yield f"{name}: in the receipt, and not in the folder"
        elif recorded.bytes != actual.bytes:
            yield f"{name}: {actual.bytes:,} bytes, by the receipt {recorded.bytes:,}"
        elif recorded.sha256 != actual.whole:
            yield f"{name}: has another hash than the receipt's"


def _untouched_bytes(receipt: Receipt, copy: _Digests) -> int:
    copied = sum(file.bytes for name, file in receipt.files.items() if name != CARD)
    return copied - sum(end - begin for of_shard in copy.ranges.values() for begin, end in of_shard.values())


def _source_faults(receipt: Receipt, copy: _Digests, original: _Digests) -> Iterator[str]:
    """What only the original can show."""
    written, source = copy.checkpoint, original.checkpoint
    if (None if source.quantized is None else weight_files(source)) != receipt.quantized:
        was = "the quantized checkpoint" if receipt.quantized else "the checkpoint, not quantized,"
        yield f"the original is not {was} that was edited"
    if written.entries != source.entries:
        yield "the headers are not those of the original"
        return
    own = {GITATTRIBUTES}
    if receipt.adapter is not None:  # it has taken the places of these
        own |= CHAT_TEMPLATES | (PROCESSOR_FILES & receipt.adapter.keys())
    for name in sorted((receipt.files.keys() | original.files.keys()) - own):
        recorded, before = receipt.files.get(name), original.files.get(name)
        if (recorded and recorded.source_sha256) != (before and before.whole):
            yield f"{name}: the original's has another hash than the receipt says, or is missing on one side"
    for name in sorted((copy.files.keys() & original.files.keys()) - own - {CARD}):
        after, before = copy.files[name], original.files[name]
        if (after.bytes, after.outside) != (before.bytes, before.outside):
            yield f"{name}: differs from the original where nothing was to change"
    if CARD in original.files and not _continues(source.folder / CARD, written.folder / CARD):
        yield f"{CARD}: does not begin with the original's"
    yield from _tensor_faults(receipt, copy, original)
    if receipt.previous != stored_receipt(source.folder):
        yield "the receipt of the edit before is not the original's"


def _tensor_faults(receipt: Receipt, copy: _Digests, original: _Digests) -> Iterator[str]:
    from chip.checkpoint.measure import measure  # brings torch and scipy, which hashes do without

    for name, recorded in receipt.tensors.items():
        if recorded.before != original.tensors[name]:
            yield f"tensor {name!r}: the original's has another hash than the receipt says"
        before, after = original.checkpoint.stored(name), copy.checkpoint.stored(name)
        measured = measure(before, after, spectrum=False)
        change = min(measured.relative_change, sys.float_info.max)
        norm = None if receipt.sequence is None else receipt.sequence.norms.get(name)
        if not math.isclose(recorded.relative_change, change, rel_tol=_NORM_TOLERANCE):
            yield f"tensor {name!r}: changed by {change:.6g} of its norm, by the receipt {recorded.relative_change:.6g}"
        if norm is not None and not math.isclose(norm, measured.norm, rel_tol=_NORM_TOLERANCE):
            yield f"tensor {name!r}: had a norm of {measured.norm:.6g}, by the receipt {norm:.6g}"


def _continues(original: Path, edited: Path) -> bool:
    return edited.is_file() and edited.read_bytes().startswith(original.read_bytes())
