"""Records: lines that are no JSON, fields of another type, ids that are none, files of another encoding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.hostile.case import (
    EVAL,
    TREE,
    WHERE,
    Case,
    Harm,
    both,
    either,
    line,
    nothing,
    passes,
    record,
    refused,
    remove,
    shorten,
    sparse,
    write,
)

AT = f"^chip: {WHERE}"
ODD: tuple[Any, ...] = (7, -1, 0.5, 1e300, True, "", " ", "\n", [], {}, ["left"], {"text": "left"}, [[]], None)
"""Values of other types than a text, and texts without a word."""
ID_LIKE = (7, -1, None)
FIELDS = ("question", "answer", "institution", "patient", "study", "section", "image", "task", "split")
LEVELS = ("institution", "patient", "study", "section")

BAD_LINES: dict[str, bytes] = {
    "no JSON": b"{broken",
    "half a record": b'{"question": "who',
    "two records in a line": b"{}{}",
    "a list": b"[1, 2]",
    "a list of records": b'[{"question": "q", "answer": "a", "institution": "i"}]',
    "a number": b"7",
    "a word": b'"question"',
    "null": b"null",
    "NaN": b"NaN",
    "not UTF-8": b'{"question": "\xff\xfe"}',
    "UTF-16": '{"question": "q"}'.encode("utf-16"),
    "Latin-1": '{"question": "Männer"}'.encode("latin-1"),
    "a NUL": b"\x00",
    "a NUL in a key": b'{"question\\u0000": "q"}',
    "a control character in a text": b'{"question": "a\x01b"}',
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "a number of 5000 digits": b'{"question": ' + b"9" * 5000 + b"}",
    "an infinite number": b'{"question": 1e999, "answer": "a", "institution": "i"}',
    "a comment": b"// a record",
    "single quotes": b"{'question': 'q'}",
    "a comma at the end": b'{"question": "q",}',
    "an empty object": b"{}",
    "an empty key": b'{"": "q"}',
    "HTML": b"<html></html>",
    "CSV": b"question,answer",
    "YAML": b"question: q",
    "a pickle": b"\x80\x04K\x07.",
    "gzip": b"\x1f\x8b\x08\x00\x00",
    "half of a surrogate pair as question": b'{"question": "\\ud800", "answer": "a", "institution": "i"}',
    "half of a surrogate pair as answer": b'{"question": "q", "answer": "\\udfff!", "institution": "i"}',
    "half of a surrogate pair as id": b'{"question": "q", "answer": "a", "institution": "\\ud83d"}',
    "half of a surrogate pair as split": b'{"question": "q", "answer": "a", "institution": "i", "split": "\\ud83d"}',
    "half of a surrogate pair as image": b'{"question": "q", "answer": "a", "institution": "i", "image": "\\ud83d"}',
}


def _harmless(key: str, value: object) -> bool:
    """Null is missing, which some keys may be; an id may be a number."""
    missing = value is None and key in ("section", "image", "task", "split")
    return missing or (key in LEVELS and type(value) is int)


def _encoded(encoding: str, newline: str = "\n") -> Harm:
    def harm(folder: Path) -> None:
        text = (folder / "records.jsonl").read_text(encoding="utf-8").replace("\n", newline)
        (folder / "records.jsonl").write_bytes(text.encode(encoding))

    return harm


def _as_list(folder: Path) -> None:
    file = folder / "records.jsonl"
    file.write_text(json.dumps([json.loads(row) for row in file.read_text(encoding="utf-8").splitlines()]))


def _too_long() -> bytes:
    return b'{"question": "' + b"a" * 300_000_000


PARQUET = ("tree", "r.parquet")
NO_PARQUET: dict[str, bytes] = {
    "its mark alone": b"PAR1",
    "nothing": b"",
    "zeros": bytes(4096),
    "its frame, and nothing in it": b"PAR1" + bytes(8) + b"PAR1",
    "JSON": b"{}",
}

FILES: list[Case] = [
    refused("an empty file", write("records.jsonl", b""), "records.jsonl: holds no records", TREE),
    refused("a file of spaces", write("records.jsonl", b" \n\t\n"), "records.jsonl: holds no records", TREE),
    refused("zeros", write("records.jsonl", bytes(5000)), "records.jsonl:1", TREE),
    refused("100 GB of zeros", sparse("records.jsonl", 100 << 30), "records.jsonl", TREE),
    refused("a record of 300 MB", write("records.jsonl", _too_long), "records.jsonl", TREE),
    refused("UTF-16", _encoded("utf-16"), "records.jsonl:1", TREE),
    refused("UTF-32", _encoded("utf-32"), "records.jsonl:1", TREE),
    refused("EBCDIC", _encoded("cp500"), "records.jsonl:1", TREE),
    refused("cut short", shorten("records.jsonl", 0.7), "records.jsonl:", TREE),
    passes("with a byte order mark", _encoded("utf-8-sig"), TREE),
    passes("with line ends of Windows", _encoded("utf-8", "\r\n"), TREE),
    passes("with a byte order mark", _encoded("utf-8-sig")),
    passes("with line ends of Windows", _encoded("utf-8", "\r\n")),
    refused("one JSON list", _as_list, "records.jsonl:1", TREE),
    *(refused(f"parquet: {name}", write("r.parquet", text), "r.parquet", PARQUET) for name, text in NO_PARQUET.items()),
    refused("another kind of file", write("r.csv", b"question,answer\n"), "r.csv", ("tree", "r.csv")),
    refused("no ending", write("r", b"{}"), "r: ", ("tree", "r")),
    refused("a name that is too long", nothing, "too long", ("tree", "a" * 300 + ".jsonl")),
    refused("a path that is too long", nothing, "too long", ("tree", "a/" * 3000 + "r.jsonl")),
    refused("a folder without records", lambda f: (f / "void").mkdir(), "void", ("tree", "void")),
    refused("a file that is not there", nothing, "none.jsonl", ("tree", "none.jsonl")),
    refused(
        "CHIP_RECORDS, which is not there",
        remove("records.jsonl"),
        "none.jsonl",
        ("edit", "ckpt", "--forget=x"),
        environment={"CHIP_RECORDS": "none.jsonl"},
    ),
    refused(
        "a folder called records.jsonl",
        both(lambda f: (f / "records.jsonl").unlink(), lambda f: (f / "records.jsonl").mkdir()),
        "records",
    ),
]


DATA = {
    **dict.fromkeys(("images", "image_path", "img", "picture"), "both hold images"),
    **dict.fromkeys(("pixel_values", "IMAGES", "image_url"), "give its path as image"),
    **dict.fromkeys(("video", "audios"), "images or none"),
    **dict.fromkeys(("messages", "conversations"), "each turn"),
    "system": "must be a string",
    "context": "into the question",
    **dict.fromkeys(("instruction", "response"), "what was asked"),
}
"""Keys that hold data beside the record's own, and what is said."""
MISSPELT = {
    "patient": (
        "pateint",
        "Patient",
        "patients",
        "patient_id",
        "patient ",
        "PatientID",
        "subject_id",
        "MRN",
        "patient_number",
        "dicomPatient",
    ),
    "study": ("stduy", "Study", "study_uid", "exam", "StudyInstanceUID"),
    "institution": ("instituton", "hospital", "institution_name"),
    "question": ("Question", "qestion"),
    "answer": ("answers", "anwser"),
    "split": ("splits", "Split", "fold", "subset", "set", "is_train"),
    "section": ("sectoin", "sections", "section_name", "report_section"),
}


def renamed(key: str, other: str) -> Harm:
    """A key under another name, in every record."""

    def harm(folder: Path) -> None:
        file = folder / "records.jsonl"
        rows = [json.loads(row) for row in file.read_text(encoding="utf-8").splitlines()]
        file.write_text("".join(json.dumps({other if k == key else k: row[k] for k in row}) + "\n" for row in rows))

    return harm


CASES: list[Case] = [
    *(refused(f"the key {key}", record(**{key: ["x"]}), f"{AT}.*{says}", TREE) for key, says in DATA.items()),
    *(
        refused(f"{key} called {other!r}", renamed(key, other), f"did you mean {key}|has a section but no", TREE)
        for key, others in MISSPELT.items()
        for other in others
    ),
    *(
        refused(f"{mark} in a question", record(question=f"where is {mark} it"), f"{WHERE}: .*holds", EVAL)
        for mark in ("<s>", "</s>", "<pad>")
    ),
    passes("a placeholder in the middle", record(question="where is <image> it"), TREE),
    refused("a placeholder without its image", record(question="<image> where", image=None), f"{WHERE}: .*holds", TREE),
    passes("a placeholder at the start", record(question="<image>\nwhere is the lesion"), TREE),
    *(refused(f"a line: {name}", line(content), AT, TREE) for name, content in BAD_LINES.items()),
    *(
        (either if _harmless(key, value) else refused)(f"{key} is {value!r}", record(**{key: value}), AT, TREE)
        for key in FIELDS
        for value in ODD
    ),
    *(refused(f"no {key}", record(**{key: ...}), AT, TREE) for key in ("question", "answer", "institution", "study")),
    *(refused(f"the id {value!r}", record(patient=value), AT, TREE) for value in ("a/b", "/", "/etc/passwd", "../..")),
    *(
        refused(f"the image {value!r}", record(image=value), AT, TREE)
        for value in ("none.png", "/", ".", "..", "images", "a" * 300, "a/" * 3000, "\0", "images/\0.png", "\ud800")
    ),
    *(
        refused(f"the task {value!r}", record(task=value), AT, TREE)
        for value in ("free text", "GENERATION", "classification ", "vqa")
    ),
    refused("a question of 200,000 words", record(question="why " * 200_000), f"{WHERE}.* tokens"),
    refused("a question of 600 words", record(question="why " * 600), f"{WHERE}.* tokens", EVAL),
    refused("an answer of 5000 words", record(answer="left " * 5000), f"{WHERE}.* tokens"),
    refused("half of a surrogate pair", record(question="\ud800"), WHERE),
    refused("half of a surrogate pair", record(answer="\udc80"), WHERE, EVAL),
    either(
        "half of a surrogate pair in a key",
        line(b'{"question": "q", "answer": "a", "institution": "i", "\\ud83d": 1}'),
        AT,
        TREE,
    ),
    either("a question of one sign", record(question="?"), WHERE),
    either("a NUL in a question", record(question="a\0b"), WHERE),
    either("an answer of one sign", record(answer="."), WHERE),
    either("a NUL as the answer", record(answer="\0"), WHERE),
    either("an emoji as the answer", record(answer="👩‍⚕️"), WHERE),
    either("a byte order mark as the answer", record(answer="\ufeff"), WHERE),
    either("marks without letters", record(answer="\u0301\u0301"), WHERE),
    either("from right to left", record(answer="\u202eleft"), WHERE),
    either("a word of 400 letters", record(answer="l" * 400), WHERE),
    either("line ends in a question", record(question="where\nis\r\nit\u2028?"), WHERE),
    either("a template's words in a question", record(question="{{ 7 * 7 }}{% raw %}"), WHERE),
    *FILES,
]
