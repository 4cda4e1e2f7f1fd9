"""What can be read in a file of a checkpoint, whatever its name and encoding."""

from __future__ import annotations

import codecs
import html
import io
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

_VOCABULARIES = {"tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "tekken.json", "dict.txt"}
_VOCABULARY_SUFFIXES = {".model", ".tiktoken"}

_BLOCK = 1 << 22  # characters
_OVERLAP = 1 << 10  # characters; no name is longer
_HEADER = 8  # bytes of a header's length
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}
_ESCAPED_CHARACTERS = re.compile(r"(?:\\+u[0-9a-fA-F]{4})+")
_EMPHASIS = re.compile(r"\*+|`+|\\(?=_|[^\w\s])")
"""Of Markdown: signs of emphasis and code, and what keeps a sign from being one."""
_CONTINUATION = re.compile(r"\\\r?\n[ \t]*")
"""Of YAML and of shells: a line ends in the middle of what it says."""
_TAG = re.compile(r"<[^<>]*>")
_ESCAPED_SPACE = re.compile(r"\\+[nrtbf]")


def lists_words(path: Path) -> bool:
    """Whether a file is a vocabulary, or names tensors."""
    return path.name in _VOCABULARIES or path.suffix in {*_VOCABULARY_SUFFIXES, ".safetensors"}


def texts_of(path: Path) -> Iterator[str]:
    """The file's text, in blocks that overlap: as it is and, where there are any, with escapes as what they stand for.

    Of a vocabulary, which is long, once; of weights in safetensors, the header; of what is no text, its bytes as
    Latin-1. Raises `OSError`.
    """
    read = _from_json if lists_words(path) else readings
    with path.open("rb") as file:
        if path.suffix == ".safetensors":
            size = int.from_bytes(file.read(_HEADER), "little")
            yield from read(file.read(min(size, _BLOCK)).decode("utf-8", "replace"))
            return
        encoding = _encoding(file.read(_BLOCK))
        file.seek(0)
        rest = ""
        with io.TextIOWrapper(file, encoding, errors="replace") as text:
            while block := text.read(_BLOCK):
                yield from read(rest + block)
                rest = block[-_OVERLAP:]


def _encoding(beginning: bytes) -> str:
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if beginning.startswith(mark):
            return encoding
    even, odd = beginning[::2].count(0), beginning[1::2].count(0)
    if even != odd and not min(even, odd):  # UTF-16 without a mark
        return "utf-16-be" if even else "utf-16-le"
    try:
        beginning.decode("utf-8")
    except UnicodeDecodeError as error:
        cut_off = len(beginning) == _BLOCK and error.end == _BLOCK  # within the last character
        return "utf-8" if cut_off else "latin-1"
    return "utf-8"


def readings(text: str) -> Iterator[str]:
    """The text, and what it says in JSON, in a line that goes on in the next, in Markdown, HTML and in an address."""
    yield text
    if "\\" in text:
        yield from _from_json(_CONTINUATION.sub("", text))
    if (plain := _EMPHASIS.sub("", text)) != text:
        yield plain
    if "&" in text or "<" in text:  # a tag stands between words, or within one
        yield from {html.unescape(_TAG.sub(between, text)) for between in (" ", "")} - {text}
    if "%" in text and (plain := unquote(unquote(text))) != text:  # twice: an address within an address
        yield plain


def _from_json(text: str) -> Iterator[str]:
    yield _ESCAPED_SPACE.sub(" ", _ESCAPED_CHARACTERS.sub(_characters, text)) if "\\" in text else text


def _characters(escapes: re.Match[str]) -> str:
    units = bytes.fromhex("".join(re.findall("u(.{4})", escapes[0])))
    return units.decode("utf-16-be", "replace")
