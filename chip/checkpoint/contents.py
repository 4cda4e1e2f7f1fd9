"""What of a checkpoint's folder a copy takes over: what loads the model and its processor, and what people read.

An edit changes the shards. Any other file may hold the weights as they were: exports to other formats, adapters,
earlier checkpoints, states of a training, archives. Their names are without end, so what is copied is told by what it
is: text that somebody has written, and vocabularies. Everything else stays behind.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from chip.checkpoint.encoded_numbers import holds_encoded_numbers
from chip.checkpoint.file_signature import FileSignature
from chip.checkpoint.folder import files_in
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.paths import counted, listed
from chip.checkpoint.signing import SIGNATURE

_LONGEST_TEXT = 1 << 20  # bytes; a model card or a module of code has some ten thousand
_LONGEST_VOCABULARY = 100_000_000  # bytes; the longest known tokenizer.json has 33 million

_VOCABULARIES = {
    *("tokenizer.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "tekken.json", "dict.txt"),
    "chip_receipt.json",  # grows with every edit
}
_VOCABULARY_SUFFIXES = (".tiktoken", ".model")  # text in base 64, of Qwen's first models and of Llama 3

_BINARY = bytes(set(range(32)) - set(b"\t\n\f\r\x1b")) + b"\x7f"
"""Bytes that text has in no encoding of one byte a character, and weights always have."""

_FIELDS = range(1, 6)  # of SentencePiece's ModelProto: pieces, trainer, normalizer, self test, denormalizer
_LENGTH_DELIMITED = 2  # the wire type of each of them
_STRING_TAG = bytes([1 << 3 | _LENGTH_DELIMITED])  # begins the model, with its first piece, and each piece
_LONGEST_FIELD = 1 << 20  # bytes; the rules of a normalizer take some hundred thousand


@dataclass(frozen=True)
class FolderContents:
    """The files of a checkpoint's folder."""

    copied: tuple[tuple[Path, Path], ...]
    """Path, and path relative to the folder, of what a copy takes over: as `files_in` has it, then an adapter's."""
    left_out: tuple[str, ...]
    """What stays behind, relative to the folder."""


def folder_contents(source: Checkpoint) -> FolderContents:
    """What of the folder of `source` a copy takes over, and what stays behind. Raises as `files_in` does.

    Where an adapter is merged, its own processor files take the places of the base's.
    """
    copied, left_out = [], []
    adapter = source.adapter
    of_base = (each for each in files_in(source.folder) if adapter is None or not adapter.replaces(str(each[1])))
    of_adapter = () if adapter is None else ((path, Path(name)) for name, path in adapter.processor_files.items())
    for path, relative in (*of_base, *of_adapter):
        if str(relative) == SIGNATURE:  # of the source's files: of a copy's it would be a wrong one
            continue
        if str(relative) in source.signatures or _is_copied(path):
            copied.append((path, relative))
        else:
            left_out.append(str(relative))
    return FolderContents(tuple(copied), tuple(left_out))


def describe_left_out(left_out: Sequence[str]) -> str:
    """One line that names the files, or the folders they lie in."""
    places = list(dict.fromkeys(f"{name.partition('/')[0]}/" if "/" in name else name for name in left_out))
    what = f"not copied: {counted(left_out, 'file')} ({listed(places, most=5)})"
    return f"{what}; what is neither text nor vocabulary may hold the unedited weights"


def _is_copied(path: Path) -> bool:
    """Whether a file, none of the shards, is text or a vocabulary."""
    size, vocabulary = path.stat().st_size, path.name in _VOCABULARIES or path.name.endswith(_VOCABULARY_SUFFIXES)
    if size <= (_LONGEST_VOCABULARY if vocabulary else _LONGEST_TEXT) and _is_written(
        path, FileSignature.of(path.stat())
    ):
        return vocabulary or not _is_index(path)
    return size <= _LONGEST_VOCABULARY and _is_sentencepiece(path)


@lru_cache(maxsize=256)  # a run asks about each file many times
def _is_written(path: Path, _: FileSignature) -> bool:
    """Whether it is text, and none that weights are written in."""
    data = path.read_bytes()
    return _is_text(data) and not holds_encoded_numbers(data)


def _is_text(data: bytes) -> bool:
    """Whether it is text, in one-byte encodings too; in UTF-8 it may hold the odd tokens of a vocabulary."""
    if len(data.translate(None, _BINARY)) == len(data):
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in data


def _is_index(path: Path) -> bool:
    """Whether the file says in which shard a tensor lies: the source's own index is none of those asked about."""
    if path.suffix != ".json":
        return False
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):  # no JSON, whatever its name
        return False
    return isinstance(content, dict) and "weight_map" in content


def _is_sentencepiece(path: Path) -> bool:
    """Whether the file is a message of protocol buffers with the fields of a SentencePiece model: pieces of strings."""
    with path.open("rb") as file:
        if file.read(1) != _STRING_TAG:  # all but such a model are told by their first byte
            return False
    data, place, pieces = path.read_bytes(), 0, 0
    while place < len(data):
        field, wire_type = data[place] >> 3, data[place] & 7
        length, begin = _varint(data, place + 1)
        if field not in _FIELDS or wire_type != _LENGTH_DELIMITED or begin + length > len(data):
            return False
        if (field == 1 and data[begin : begin + 1] != _STRING_TAG) or length > _LONGEST_FIELD:
            return False
        place, pieces = begin + length, pieces + (field == 1)
    return pieces > 0


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """The number that begins at `place`, seven bits a byte, and where it ends."""
    number, shift = 0, 0
    while place < len(data):
        number |= (data[place] & 127) << shift
        place, shift = place + 1, shift + 7
        if data[place - 1] < 128:
            return number, place
    return _LONGEST_VOCABULARY + 1, place  # the file ends within it
