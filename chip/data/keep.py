"""General data: what a pretrained model knows and no record holds, so that an edit can leave it alone."""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chip.data.answers import canonical_answer, tokenize_words
from chip.data.embedded_image import ImageSource
from chip.data.naming import naming_phrases
from chip.data.overlap import shown_among
from chip.data.record import FREE_TEXT, Record
from chip.data.request import ForgetRequest
from chip.errors import ChipWarning, InputError
from chip.regular_file import check_regular_file

PATH = ("general",)
"""Where general data is filed: it belongs to no node of the hierarchy."""
PIECE = 1000
"""Characters of a piece of plain text, about; a paragraph is never cut before them."""
LARGEST = 1 << 26
"""Bytes of a file, at most: it is read as a whole, and far fewer are enough."""
LONGEST = 2000
"""Characters of a piece, at most."""
IMAGE_QUESTION = "What does this image show?"
"""Asked about an image that comes without a question."""
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


def read_keep(sources: Sequence[Path], argument: str = "keep") -> list[Record]:
    """What files and folders hold that is to be kept, or to be measured on.

    A `.jsonl` file has `text`, or one question and its answer as `messages`, or an `image` in each line, alone or with
    one of the two. Any other file is plain text. A folder has images; one without an answer has an empty one, for the
    model itself to give.

    Args:
        argument: what errors call it.

    Raises:
        InputError: a source cannot be read, or holds nothing.
    """
    return [record for source in sources for record in _read(source, argument)]


def _read(source: Path, argument: str) -> list[Record]:
    content = _content(source, argument)
    if content is None:
        records = list(_images(source))
    else:
        texts = [text_record(text, source.name) for text in cut_prose(content)]
        records = list(_lines(source, content)) if source.suffix == ".jsonl" else texts
    if not records:
        raise InputError("holds no text and no images", argument=argument, value=source)
    return records


def _content(file: Path, argument: str) -> str | None:
    """A file's text; None for a folder."""
    try:
        if file.is_dir():
            return None
        if check_regular_file(file).st_size > LARGEST:
            raise InputError(f"has more than {LARGEST:,} bytes; give less of it", argument=argument, value=file)
        if file.suffix == ".json":
            raise InputError("would be read as prose; give JSON lines, as .jsonl", argument=argument, value=file)
        if "\0" in (text := file.read_text(encoding="utf-8")):
            raise InputError("holds bytes that no text has; give a file of plain text", argument=argument, value=file)
        return text
    except (OSError, UnicodeDecodeError) as error:
        reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        hint = "give a file of plain text or JSON lines, or a folder of images"
        raise InputError(f"{reason}; {hint}", argument=argument, value=file) from error


def text_record(text: str, where: str) -> Record:
    """A text as it stands."""
    return Record(text, "", PATH, None, FREE_TEXT, where=where)


def image_record(image: ImageSource, where: str, question: str = IMAGE_QUESTION, answer: str = "") -> Record:
    """An image, with a question about it; the answer is the model's own where there is none."""
    return Record(question, answer, PATH, image, where=where)


def _images(folder: Path) -> Iterator[Record]:
    files = sorted(path for path in folder.rglob("*") if not path.is_dir() and not path.name.startswith("."))
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    if images and len(images) < len(files):
        message = f"{folder}: {len(files) - len(images)} of {len(files)} files are no images; they are left out"
        warnings.warn(message, ChipWarning, stacklevel=2)
    yield from (image_record(path, str(path.relative_to(folder))) for path in images)


def _lines(file: Path, content: str) -> Iterator[Record]:
    left_out = 0
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            records, others = _entry(file, f"{file.name}:{number}", line)
            left_out += others
            yield from records
    if left_out:
        message = f"{file}: {left_out} later and system turns of conversations are left out; the first question stays"
        warnings.warn(message, ChipWarning, stacklevel=2)


def _entry(file: Path, where: str, line: str) -> tuple[list[Record], int]:
    """The records of one line, and how many turns of it are left out."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:  # lists in lists in lists
        raise InputError(f"{where}: no JSON ({error})") from error
    if not isinstance(entry, dict) or not entry.keys() & {"text", "messages", "image"}:
        raise InputError(f"{where}: neither 'text' nor 'messages' nor 'image'; give one of them in each line")
    image = None if entry.get("image") is None else _image_file(file, where, entry["image"])
    if "messages" in entry:
        question, answer, others = _first_turn(where, entry["messages"])
        return [Record(question, answer, PATH, image, where=where)], others
    text = entry.get("text")
    if "text" in entry and (not isinstance(text, str) or not text.strip()):
        raise InputError(f"{where}: no text under 'text'; give one, or leave the key out")
    if image is not None:
        return [image_record(image, where, answer=(text or "").strip())], 0
    return [text_record(piece, where) for piece in _cut(str(text).strip())], 0


def _image_file(file: Path, where: str, name: object) -> Path:
    path = file.parent / name if isinstance(name, str) else None
    if path is None or not path.is_file():
        raise InputError(f"{where}: no image {name!r}; give its path, from the folder of {file.name}")
    return path


def _first_turn(where: str, messages: object) -> tuple[str, str, int]:
    """The first question and its answer, and how many other turns there are."""
    turns = messages if isinstance(messages, list) else []
    texts = [(turn.get("role"), _text(turn.get("content"))) for turn in turns if isinstance(turn, Mapping)]
    for (role, question), (next_role, answer) in itertools.pairwise(texts):
        if (role, next_role) == ("user", "assistant") and question and answer:
            return question, answer, len(turns) - 2
    raise InputError(f"{where}: no turn of 'user' with one of 'assistant' behind it under 'messages'")


def _text(content: Any) -> str:
    """A message's text: a string, or the text among its parts."""
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") == "text")
        content = " ".join(part for part in parts if isinstance(part, str))
    return content.strip() if isinstance(content, str) else ""


def cut_prose(content: str) -> list[str]:
    """Pieces of plain text: whole paragraphs, as many as make a piece."""
    pieces: list[str] = []
    piece: list[str] = []
    length = 0
    for paragraph in _paragraphs(content):
        piece.append(paragraph)
        length += len(paragraph)
        if length >= PIECE:
            pieces += _cut("\n\n".join(piece))
            piece, length = [], 0
    return pieces + (_cut("\n\n".join(piece)) if piece else [])


def _paragraphs(content: str) -> Iterator[str]:
    """What stands between blank lines."""
    lines: list[str] = []
    for line in (*content.split("\n"), ""):
        if line.strip():
            lines.append(line)
        elif lines:
            yield "\n".join(lines).strip()
            lines = []


def some_of(given: Sequence[Record], characters: int, seed: int) -> list[Record]:
    """As many of the records, drawn by the seed, as have so many characters; which are left out is said by a
    `ChipWarning`. In their order; all of them, if they have not more."""
    sizes = [len(record.question) + len(record.answer) for record in given]
    order = np.random.default_rng(seed).permutation(len(given))
    count = int(np.searchsorted(np.cumsum([sizes[i] for i in order]), characters)) + 1
    if count >= len(given):
        return list(given)
    message = f"{count:,} of {len(given):,} pieces to keep are taken, drawn at random; more makes hardly a better edit"
    warnings.warn(message, ChipWarning, stacklevel=2)
    return [given[i] for i in sorted(order[:count])]


def _cut(text: str) -> list[str]:
    return [text[start : start + LONGEST] for start in range(0, len(text), LONGEST)]


def tells_of_target(request: ForgetRequest) -> Callable[[Record], bool]:
    """Whether a record shows an image of the target, or holds an id, an answer or a name of it.

    An edit would otherwise protect what it is to remove. Answers that retained records give too tell nothing; names are
    what `naming_phrases` finds.
    """
    records, partition = request.hierarchy.records, request.partition
    shows_target = shown_among({image for i in partition.forget for image in records[i].images})
    answers = {canonical_answer(records[i]) for i in partition.forget}
    answers -= {canonical_answer(records[i]) for i in partition.retained}
    names = {" ".join(name) for name in naming_phrases(request)}
    phrases = {_phrase(text) for text in (*answers, *names, *(target.id for target in partition.targets))} - {"  "}

    def tells(record: Record) -> bool:
        said = _phrase(f"{record.question} {record.answer}")
        return any(map(shows_target, record.images)) or any(phrase in said for phrase in phrases)

    return tells


def without_target(given: Sequence[Record], request: ForgetRequest, argument: str | None = "keep") -> list[Record]:
    """What was given, without what tells of the target; how much is left out is said by a `ChipWarning`.

    Args:
        argument: what an error calls it; None: nothing need be left.

    Raises:
        InputError: nothing is left.
    """
    if not given:  # what tells of the target takes a look at all records
        return []
    tells = tells_of_target(request)
    remaining = [record for record in given if not tells(record)]
    if not remaining and argument is not None:
        message = "every text holds an answer, an id or a name of what is to be forgotten; give others"
        raise InputError(message, argument=argument)
    if len(remaining) < len(given):
        dropped = f"{len(given) - len(remaining)} of {len(given)} general texts"
        warnings.warn(
            f"{dropped} hold an answer, an id or a name of the target; they are left out", ChipWarning, stacklevel=2
        )
    return remaining


def _phrase(text: str) -> str:
    """Its words, each between spaces, so that one phrase is in another where its words are, in that order."""
    return f" {' '.join(tokenize_words(text))} "
