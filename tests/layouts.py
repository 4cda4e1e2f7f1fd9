"""The same records in every layout that people have: each writes a file to its schema."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, Any]
LEVELS = ("institution", "patient", "study", "section")


@dataclass(frozen=True)
class Layout:
    """How one format writes chip's own rows."""

    row: Callable[[Row], Row]
    kind: str = "jsonl"
    """`json`, `jsonl`, `csv`, `tsv`, `parquet`, `arrow`; `saved`: a folder of `datasets`; `images`: an image folder."""
    map: Mapping[str, str] = field(default_factory=dict)
    text: bool = True
    """Whether it has records without an image."""


def _owned(row: Row) -> Row:
    """What every layout can carry beside its own columns."""
    return {key: row.get(key) for key in (*LEVELS, "split")}


def _asked(row: Row, breaks: str = "\n") -> str:
    return f"<image>{breaks}{row['question']}" if "image" in row else row["question"]


def _images(row: Row) -> Row:
    return {"images": [row["image"]] if "image" in row else []}


def _parts(row: Row) -> list[Row]:
    text = {"type": "text", "text": row["question"]}
    return [{"type": "image", "path": row["image"]}, text] if "image" in row else [text]


def _turns(asked: object, answered: object, role: str = "role", content: str = "content") -> list[Row]:
    names = ("user", "assistant") if role == "role" else ("human", "gpt")
    return [{role: name, content: text} for name, text in zip(names, (asked, answered), strict=True)]


def _medforget(row: Row) -> Row:
    names = ("institution_id", "patient_id", "study_id", "section_name")
    return {
        "metadata": json.dumps([{"Question": row["question"], "Answer": [row["answer"]]}]),
        "hierarchy_metadata": json.dumps({name: row.get(level) for name, level in zip(names, LEVELS, strict=True)}),
        "image": None,
        "image_path": row.get("image"),
        "split": row.get("split", "train"),
    }


def _deep(row: Row) -> Row:
    """Ids in a column that is an object, and in the path of the image."""
    ids = {f"{level}_nr": row[level] for level in LEVELS if level in row}
    return {**row, **dict.fromkeys(LEVELS), "metadata": ids, "split": row.get("split")}


def _own(row: Row) -> Row:
    return row


def _conversations(row: Row, images: Row) -> Row:
    return {**images, "conversations": _turns(_asked(row), row["answer"], "from", "value"), **_owned(row)}


LAYOUTS: dict[str, Layout] = {
    "own": Layout(_own),
    "own, a JSON array": Layout(_own, "json"),
    "own, CSV": Layout(_own, "csv"),
    "own, tabs": Layout(_own, "tsv"),
    "own, parquet": Layout(_own, "parquet"),
    "own, Arrow": Layout(_own, "arrow"),
    "own, saved by datasets": Layout(_own, "saved"),
    "images": Layout(lambda row: {**row, "image": None, **_images(row)}),
    "messages in parts": Layout(lambda row: {"messages": _turns(_parts(row), row["answer"]), **_owned(row)}),
    "messages in parts, answers too": Layout(
        lambda row: {"messages": _turns(_parts(row), [{"type": "text", "text": row["answer"]}]), **_owned(row)}
    ),
    "ms-swift": Layout(
        lambda row: {"messages": _turns(_asked(row, ""), row["answer"]), **_images(row), "videos": [], **_owned(row)}
    ),
    "ms-swift, query": Layout(
        lambda row: {"query": _asked(row, ""), "response": row["answer"], **_images(row), **_owned(row)}
    ),
    "ms-swift, CSV": Layout(
        lambda row: {"query": _asked(row), "response": row["answer"], "images": row.get("image"), **_owned(row)}, "csv"
    ),
    "ms-swift, conversation": Layout(
        lambda row: {
            "conversation": [{"human": _asked(row), "assistant": row["answer"]}],
            **_images(row),
            **_owned(row),
        }
    ),
    "LLaVA": Layout(lambda row: _conversations(row, {"id": 1, "image": row.get("image")}), "json"),
    "ShareGPT, LLaMA-Factory": Layout(lambda row: _conversations(row, _images(row)), "json"),
    "ShareGPT, parquet": Layout(lambda row: _conversations(row, _images(row)), "parquet"),
    "ShareGPT, saved": Layout(lambda row: _conversations(row, _images(row)), "saved"),
    "Alpaca, LLaMA-Factory": Layout(
        lambda row: {
            "instruction": _asked(row, "") if "image" not in row else "<image>",
            "input": row["question"] if "image" in row else "",
            "output": row["answer"],
            **_images(row),
            **_owned(row),
        },
        "json",
    ),
    "TRL": Layout(
        lambda row: {
            "prompt": _turns(row["question"], "")[:1],
            "completion": _turns("", row["answer"])[1:],
            **_images(row),
            **_owned(row),
        },
        "parquet",
    ),
    "VQA-RAD": Layout(
        lambda row: {
            "qid": "1",
            "image_name": row.get("image"),
            "question": row["question"],
            "answer": row["answer"],
            **_owned(row),
        },
        "json",
    ),
    "SLAKE": Layout(
        lambda row: {
            "img_name": row.get("image"),
            "q_lang": "en",
            "modality": "X-Ray",
            "triple": ["vhead", "_", "_"],
            "question": row["question"],
            "answer": row["answer"],
            **_owned(row),
        },
        "json",
    ),
    "PathVQA": Layout(
        lambda row: {
            "image": {"bytes": None, "path": row["image"]} if "image" in row else None,
            "question": row["question"],
            "answer": row["answer"],
            **_owned(row),
        },
        "parquet",
    ),
    "an image folder": Layout(
        lambda row: {
            "file_name": row.get("image"),
            "question": row["question"],
            "answer": row["answer"],
            **_owned(row),
        },
        "images",
    ),
    "MedForget": Layout(_medforget, "parquet", {"split": "split"}),
    "ids in another column": Layout(
        _deep,
        map={
            "institution": "metadata.institution_nr",
            "patient": "metadata.patient_nr",
            "study": r"image:/(study_\d+)/",
            "section": "metadata.section_nr",
        },
        text=False,
    ),
    "ids in a table": Layout(
        lambda row: {**{k: v for k, v in row.items() if k != "patient"}, "image_id": row["image"]},
        map={"patient": "@table.csv:image_id:of"},
        text=False,
    ),
}


def write_layout(layout: Layout, rows: Sequence[Row], folder: Path) -> Path:
    """The rows in this layout, in a file or folder of its kind in `folder`, where their images are."""
    if not layout.text:
        rows = [row for row in rows if "image" in row]
    if "@table.csv:image_id:of" in layout.map.values():
        owners = {row["image"]: row["patient"] for row in rows}
        (folder / "table.csv").write_text("".join(f"{a},{b}\n" for a, b in [("image_id", "of"), *owners.items()]))
    written = [layout.row(row) for row in rows]
    if layout.kind == "images":
        path = folder / "images"
        written = [{**row, "file_name": _behind(row["file_name"])} for row in written]
        (path / "metadata.csv").write_text(_table(written, ","), encoding="utf-8")
        return path
    return write_rows(written, folder, layout.kind)


def write_rows(rows: Sequence[Row], folder: Path, kind: str, name: str = "train") -> Path:
    """The rows as a file of this kind, or a folder that `datasets` saves."""
    path = folder / (name if kind == "saved" else f"{name}.{kind}")
    match kind:
        case "json":
            path.write_text(json.dumps(rows), encoding="utf-8")
        case "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        case "csv" | "tsv":
            path.write_text(_table(rows, "," if kind == "csv" else "\t"), encoding="utf-8")
        case "parquet":
            pq.write_table(pa.Table.from_pylist(_filled(rows)), path)
        case "arrow" | "saved":
            import datasets

            table = datasets.Dataset(pa.Table.from_pylist(_filled(rows)))
            if kind == "saved":
                table.save_to_disk(str(path))
            else:
                with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.data.schema) as stream:
                    stream.write_table(table.data.table)
    return path


def _behind(path: str | None) -> str | None:
    return None if path is None else path.removeprefix("images/")


def _filled(rows: Sequence[Row]) -> list[Row]:
    """Each row with all columns: a table takes them of its first."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]


def _table(rows: Sequence[Row], delimiter: str) -> str:
    filled, text = _filled(rows), io.StringIO()
    writer = csv.DictWriter(text, list(filled[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(filled)
    return text.getvalue()
