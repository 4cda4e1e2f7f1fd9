"""General text: what a pretrained model knows and no record holds, so that an edit can leave it alone."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from chip.data.answers import canonical_answer, tokenize_words
from chip.data.files import check_readable
from chip.data.record import FREE_TEXT, Record
from chip.data.request import ForgetRequest
from chip.errors import ChipWarning, InputError

PATH = ("general",)
"""Where texts are filed: they belong to no node of the hierarchy."""
PIECE = 1000
"""Characters of a piece of plain text, about; a paragraph is never cut before them."""
LARGEST = 1 << 28
"""Bytes of a file, at most: it is read as a whole, and far fewer are enough."""
LONGEST = 2000
"""Characters of a piece, at most."""


def read_keep(files: Sequence[Path]) -> list[Record]:
    """Texts to keep: a `.jsonl` file has one under `text` in each line, any other file is plain text.

    Raises:
        InputError: a file cannot be read, or holds no text.
    """
    return [record for file in files for record in _read(file)]


def _read(file: Path) -> list[Record]:
    try:
        check_readable(file)
        if file.stat().st_size > LARGEST:
            raise InputError(f"has more than {LARGEST:,} bytes; give less of it", argument="keep", value=file)
        content = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise InputError(f"{reason}; give a file of plain text or JSON lines", argument="keep", value=file) from error
    texts = _lines(file, content) if file.suffix == ".jsonl" else _pieces(file, content)
    records = [Record(text, "", PATH, None, FREE_TEXT, where=where) for text, where in texts]
    if not records:
        raise InputError("holds no text", argument="keep", value=file)
    return records


def _lines(file: Path, content: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{file.name}:{number}"
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where}: no JSON ({error})") from error
        text = entry.get("text") if isinstance(entry, dict) else None
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{where}: no text under 'text'; give one in each line")
        yield from ((piece, where) for piece in _cut(text.strip()))


def _pieces(file: Path, content: str) -> Iterator[tuple[str, str]]:
    """Whole paragraphs, as many as make a piece."""
    piece: list[str] = []
    for paragraph in re.split(r"\n\s*\n", content):
        if paragraph.strip():
            piece.append(paragraph.strip())
        if sum(map(len, piece)) >= PIECE:
            yield from ((text, file.name) for text in _cut("\n\n".join(piece)))
            piece = []
    if piece:
        yield from ((text, file.name) for text in _cut("\n\n".join(piece)))


def _cut(text: str) -> list[str]:
    return [text[start : start + LONGEST] for start in range(0, len(text), LONGEST)]


def without_target(texts: Sequence[Record], request: ForgetRequest) -> list[Record]:
    """The texts that hold neither an id nor an answer of the target; an answer that retained records give too may stay.

    How many are left out is said by a `ChipWarning`: an edit would otherwise protect what it is to remove.

    Raises:
        InputError: none is left.
    """
    records, partition = request.hierarchy.records, request.partition
    answers = {canonical_answer(records[i]) for i in partition.forget}
    answers -= {canonical_answer(records[i]) for i in partition.retained}
    phrases = [_phrase(text) for text in (*answers, *(target.id for target in partition.targets))]
    kept = [text for text in texts if not any(phrase and phrase in _phrase(text.question) for phrase in phrases)]
    if texts and not kept:
        raise InputError("every text holds an answer or an id of what is to be forgotten; give others", argument="keep")
    if len(kept) < len(texts):
        dropped = f"{len(texts) - len(kept)} of {len(texts)} texts to keep hold an answer or an id of the target"
        warnings.warn(f"{dropped}; they are left out", ChipWarning, stacklevel=2)
    return kept


def _phrase(text: str) -> str:
    """Its words, each between spaces, so that one phrase is in another where its words are, in that order."""
    return f" {' '.join(tokenize_words(text))} "
