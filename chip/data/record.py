"""Records: a question about an image, its answer, and the node of the hierarchy they belong to."""

from __future__ import annotations

import io
import json
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from chip.errors import InputError

T = TypeVar("T")

LEVELS = ("institution", "patient", "study", "section")
"""From the outermost level to the innermost."""

TASKS = ("generation", "classification", "cloze")
"""What a question asks for: free text, one of the listed options, or the missing word."""

VALIDATION = "validation"
"""The split of questions that settings are chosen by, and nothing is reported on."""

_BESIDE = ("records.jsonl", "records.parquet")  # looked for next to a checkpoint folder, in this order
_MEDFORGET = {
    "institution": "institution_id",
    "patient": "patient_id",
    "study": "study_id",
    "section": "section_name",
}
_MLLMU = ("Classification_Task", "Generation_Task", "Mask_Task")  # columns of MLLMU-Bench; a file may lack some
_TOFU = {"question", "answer", "paraphrased_question", "paraphrased_answer", "perturbed_answer"}
_TOFU_EACH = 20  # questions of an author, one author after the other

# What Pillow's decoders raise on bytes that are broken, cut short or far too large.
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    RuntimeError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


@dataclass(frozen=True, slots=True)
class Record:
    """One question and its answer. Two records that differ in `where` only are equal."""

    question: str
    answer: str
    path: tuple[str, ...]
    """Ids from the institution down; deeper levels may be missing at the end, never in between."""
    image: Path | bytes | None = field(repr=False)
    """A file, the encoded bytes of one, or None: text only."""
    task: str = "generation"
    """One of `TASKS`."""
    split: str = "train"
    """`train`: the model was trained on it; anything else is held out, such as `paraphrased`. `VALIDATION`: held out,
    and for choosing."""
    where: str = field(default="", compare=False)
    """For messages: `records.jsonl:12`, or `forget.parquet:row 7` (rows count from 0)."""

    @property
    def held_out(self) -> bool:
        """Whether the model never saw this very wording."""
        return self.split != "train"


def find_records(checkpoint: Path, given: Path | None) -> Path:
    """Where the records are: `given`, else beside the checkpoint folder, else `CHIP_RECORDS`.

    Whether the file named by `given` or `CHIP_RECORDS` exists is for `read_records` to say.

    Raises:
        InputError: none of the three leads to a file.
    """
    if given is not None:
        return given
    # Not resolve(): the records lie beside the folder that was named, even where that is a link.
    folder = Path(os.path.abspath(checkpoint)).parent  # noqa: PTH100
    for name in _BESIDE:
        if (folder / name).is_file():
            return folder / name
    if named := os.environ.get("CHIP_RECORDS"):
        return Path(named)
    raise InputError(f"no records: pass --records FILE, put {' or '.join(_BESIDE)} into {folder}, or set CHIP_RECORDS")


def read_records(file: Path) -> list[Record]:
    """Read a .jsonl file, a file of MedForget, MLLMU-Bench or TOFU, or a folder of these.

    A folder holds what is split into forget and retain files; a record that occurs in several of them is kept once.

    - MedForget (.parquet): where an answer is a list, its first entry is taken, the others are alternatives to it.
      A question belongs to the level that `hierarchy_level` names, even where the ids go deeper, and is a cloze
      where it holds `[blank]`, a classification where it lists options.
    - MLLMU-Bench (.parquet): a person is the node `people/ID`. The tasks' questions are records, and so is the row's
      own `question`, where it has one; the biography is not. Questions of pure text have no image; of several
      `images` the first is taken. The answer to a classification is the letter of its option.
    - TOFU (.json, .jsonl or .parquet that hold `question` and `answer`, and no more than TOFU has beside them): no
      hierarchy is given. A file is a node, and in it each author, `retain90/author_7`: 20 questions, as TOFU orders
      them. A paraphrased question is held out.

    Raises:
        InputError: the file cannot be read or holds no records, or one of them is not as it should be, or
            its image file does not exist. All records are checked before any is returned.
    """
    try:
        records = _read(file)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({_one_line(error)}); check the path") from error
    if not records:
        raise InputError(f"{file}: holds no records; write one JSON object a line")
    return records


def open_image(record: Record) -> Image.Image | None:
    """The record's image as RGB, fully loaded, as it is stored (EXIF orientation is not applied).

    None for a text-only record.

    Raises:
        InputError: the image cannot be decoded, is far too large, or has more than 8 bits a channel.
    """
    return None if record.image is None else _look_into(record, record.image, lambda image: image.convert("RGB"))


def image_size(record: Record) -> tuple[int, int]:
    """Width and height of the record's image, from the file's header; 0 × 0 for a text-only record.

    Raises:
        InputError: as `open_image`.
    """
    return (0, 0) if record.image is None else _look_into(record, record.image, lambda image: image.size)


def _look_into(record: Record, source: Path | bytes, look: Callable[[Image.Image], T]) -> T:
    what = "the image in the row" if isinstance(source, bytes) else f"the image {source}"
    name = f"{record.where or 'record'}: {what}"
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            # Pillow would clip these to 0..255: a radiograph of 12 or 16 bits turns white.
            if image.mode.startswith(("I", "F")):
                raise InputError(f"{name} has more than 8 bits a channel; save it with 8, as in training")
            return look(image)
    except _UNREADABLE as error:
        raise InputError(f"{name} cannot be read ({_one_line(error)}); replace it or drop the record") from error


def _read(file: Path) -> list[Record]:
    if file.is_dir():
        return _read_folder(file)
    match file.suffix.lower():
        case ".jsonl" | ".json":
            return _read_jsonl(file)
        case ".parquet":
            return _read_parquet(file)
    raise InputError(f"{file}: not a kind of records file; use .jsonl, .parquet or a folder of .parquet files")


def _read_folder(folder: Path) -> list[Record]:
    files = sorted(folder.glob("*.parquet")) or sorted(folder.glob("*.json"))
    if not files:
        raise InputError(f"{folder}: no .parquet file in this folder, and no .json file; name the records file itself")
    records: list[Record] = []
    for file in files:
        known = set(records)
        records += [record for record in _read(file) if record not in known]
    return records


def _read_jsonl(file: Path) -> list[Record]:
    # Read as bytes: text mode would lose the line number of a byte that is not UTF-8.
    with file.open("rb") as lines:
        entries = [
            (_entry(line, f"{file.name}:{number}"), f"{file.name}:{number}")
            for number, line in enumerate(lines, start=1)
            if line.strip()
        ]
    if all("question" in entry and entry.keys() <= _TOFU for entry, _ in entries):
        return _from_tofu(entries, file.stem)
    return [_from_line(entry, file.parent, where) for entry, where in entries]


def _entry(line: bytes, where: str) -> dict[str, Any]:
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8; save the file as UTF-8") from error
    return _object(_json(text, where), where)


def _from_line(entry: Mapping[str, Any], folder: Path, where: str) -> Record:
    task = _text(entry.get("task", "generation"), "task", where)
    if task not in TASKS:
        raise InputError(f"{where}: unknown task {task!r}; use {', '.join(TASKS)}")
    return Record(
        question=_text(entry.get("question"), "question", where),
        answer=_text(entry.get("answer"), "answer", where),
        path=_path(entry, where),
        image=_image_file(entry["image"], folder, where) if "image" in entry else None,
        task=task,
        split=_text(entry.get("split", "train"), "split", where),
        where=where,
    )


def _read_parquet(file: Path) -> list[Record]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise InputError("reading parquet needs pyarrow: pip install 'chip-unlearning[parquet]'") from error
    try:
        with pq.ParquetFile(file) as parquet:
            columns = _columns(file, set(parquet.schema_arrow.names))
            batches = parquet.iter_batches(batch_size=64, columns=columns)
            rows = [row for batch in batches for row in batch.to_pylist()]
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"{file}: not a whole parquet file ({_one_line(error)}); fetch it again") from error
    entries = [(row, f"{file.name}:row {number}") for number, row in enumerate(rows)]
    if "metadata" not in columns and "ID" not in columns:
        return _from_tofu(entries, file.stem)
    read = _from_row if "metadata" in columns else _from_mllmu
    return [record for row, where in entries for record in read(row, file.parent, where)]


def _columns(file: Path, names: set[str]) -> list[str]:
    """What is read of a file with columns of these names: MLLMU-Bench's, TOFU's or MedForget's."""
    if any(name in names for name in _MLLMU):
        return ["ID", *sorted(names & {"image", "images", "question", "answer", *_MLLMU})]
    if {"question", "answer"} <= names:
        return sorted(names & _TOFU)
    if missing := [name for name in ("metadata", "hierarchy_metadata") if name not in names]:
        raise InputError(
            f"{file}: no column {missing[0]}; name a file of MedForget, MLLMU-Bench or TOFU, or write .jsonl"
        )
    return ["metadata", "hierarchy_metadata", "image", "image_path"]


def _from_row(row: dict[str, Any], folder: Path, where: str) -> list[Record]:
    image = _image_of(row, folder, where)
    path = _medforget_path(row["hierarchy_metadata"], where)
    entries = _json(row["metadata"], f"{where}, metadata")
    if not isinstance(entries, list):
        raise InputError(f"{where}: metadata must be a JSON list of Question and Answer")
    records = []
    for entry in entries:
        pair = _object(entry, f"{where}, metadata")
        question, answer = _text(pair.get("Question"), "Question", where), pair.get("Answer")
        if isinstance(answer, list):
            answer = answer[0] if answer else None
        answer = _text(answer, "Answer", where)
        records.append(Record(question, answer, path, image, task=_task_of(question), where=where))
    return records


def _image_of(row: dict[str, Any], folder: Path, where: str) -> Path | bytes | None:
    image = row.get("image")
    if isinstance(image, dict):
        image = image.get("bytes")
    if isinstance(image, bytes):
        return image
    if image is not None:
        raise InputError(f"{where}: the column image must hold encoded bytes, or be null")
    name = row.get("image_path")
    return None if name is None else _image_file(name, folder, where)


def _from_mllmu(row: dict[str, Any], folder: Path, where: str) -> list[Record]:
    """Everything that is asked of the row's person."""
    path = ("people", _id(row.get("ID"), "ID", where))
    image = _image_of({"image": next(iter(row.get("images") or [row.get("image")]))}, folder, where)
    records = []
    if row.get("question") is not None:
        question, answer = (_text(row.get(name), name, where) for name in ("question", "answer"))
        records.append(Record(question, answer, path, image, where=where))
    chosen = _object(row.get("Classification_Task") or {}, f"{where}, Classification_Task")
    for kind, shown in (("Image_Textual_Questions", image), ("Pure_Text_Questions", None)):
        at = f"{where}, {kind}"
        for entry in _objects(chosen.get(kind), at):
            options = _object(entry.get("Options"), f"{at}, Options")
            listed = " ".join(f"{letter}) {text}" for letter, text in options.items())
            answer = _text(entry.get("Correct_Answer"), "Correct_Answer", at)
            if answer not in options:
                raise InputError(f"{at}: Correct_Answer {answer!r} is no option; use one of {', '.join(options)}")
            question = f"{_text(entry.get('Question'), 'Question', at)} {listed}"
            records.append(Record(question, answer, path, shown, "classification", where=where))
    for column, task in (("Generation_Task", "generation"), ("Mask_Task", "cloze")):
        at = f"{where}, {column}"
        for entry in _objects(row.get(column), at):
            question, answer = (_text(entry.get(name), name, at) for name in ("Question", "Ground_Truth"))
            shown = None if entry.get("Type") == "Pure_Text" else image
            records.append(Record(question, answer, path, shown, task, where=where))
    return records


def _objects(entries: object, where: str) -> list[dict[str, Any]]:
    """The entries of a list, none where there is no list."""
    if not isinstance(entries, list | None):
        raise InputError(f"{where}: must be a list of questions")
    return [_object(entry, where) for entry in entries or ()]


def _from_tofu(entries: Sequence[tuple[Mapping[str, Any], str]], name: str) -> list[Record]:
    """Questions and answers, author after author, of the file of this name."""
    records = []
    for number, (entry, where) in enumerate(entries):
        path = (name, f"author_{number // _TOFU_EACH + 1}")
        question, answer = (_text(entry.get(key), key, where) for key in ("question", "answer"))
        records.append(Record(question, answer, path, None, where=where))
        if entry.get("paraphrased_question") is not None:
            paraphrased = _text(entry["paraphrased_question"], "paraphrased_question", where)
            records.append(Record(paraphrased, answer, path, None, split="paraphrased", where=where))
    return records


def _medforget_path(text: object, where: str) -> tuple[str, ...]:
    entry = _object(_json(text, f"{where}, hierarchy_metadata"), f"{where}, hierarchy_metadata")
    # An empty name counts as missing there.
    ids = {level: entry[key] for level, key in _MEDFORGET.items() if entry.get(key, "") != ""}
    path = _path(ids, where)
    level = entry.get("hierarchy_level")
    return path[: LEVELS.index(level) + 1] if level in LEVELS else path


def _task_of(question: str) -> str:
    if "[blank]" in question:
        return "cloze"
    return "classification" if all(option in question for option in ("A)", "B)", "C)")) else "generation"


def _json(text: object, where: str) -> object:
    if not isinstance(text, str):
        raise InputError(f"{where}: must hold JSON text, and holds {type(text).__name__}")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON: {error.msg} at column {error.colno}; correct it") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists in lists
        raise InputError(f"{where}: not usable JSON ({_one_line(error)}); correct it") from error


def _object(entry: object, where: str) -> dict[str, Any]:
    """The entry without its nulls: a null counts as missing everywhere."""
    if not isinstance(entry, dict):
        raise InputError(f'{where}: must be a JSON object, such as {{"question": ..., "answer": ...}}')
    return {key: value for key, value in entry.items() if value is not None}


def _text(value: object, name: str, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: {name} must be a string that is not empty")
    return value


def _path(ids: Mapping[str, object], where: str) -> tuple[str, ...]:
    present = [level for level in LEVELS if level in ids]
    if not present:
        raise InputError(f"{where}: belongs nowhere; add at least an institution")
    for level in LEVELS[: LEVELS.index(present[-1])]:
        if level not in ids:
            raise InputError(f"{where}: has a {present[-1]} but no {level}; add the {level} it belongs to")
    return tuple(_id(ids[level], level, where) for level in present)


def _id(value: object, level: str, where: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip() or "/" in value:
        raise InputError(f"{where}: {level} {value!r} is not an id; use a string that is not empty, without '/'")
    return value


def _image_file(name: object, folder: Path, where: str) -> Path:
    file = folder / _text(name, "image", where)
    # Not Path.is_file(): before Python 3.14 it raises where a name is too long to be one.
    if not os.path.isfile(file):  # noqa: PTH113
        raise InputError(f"{where}: no image file {file}; its path is relative to the records file")
    return file


def _one_line(error: BaseException) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(reason.split())
