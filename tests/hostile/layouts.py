"""Records in other layouts, maps of whose they are, and pictures of medicine, all of them spoiled."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from tests.hostile.case import (
    EVAL,
    IMAGE,
    NO_FILES,
    TREE,
    WHERE,
    Case,
    Harm,
    both,
    instead,
    nothing,
    refused,
    sparse,
    write,
)
from tests.pictures import RAMP, dicom

OWNER = {"institution": "i", "patient": "p"}
TURNS = [{"role": "user", "content": "who"}, {"role": "assistant", "content": "Abel"}]
ODD: tuple[Any, ...] = (7, 0.5, True, "", "who", {}, [7], [[]], [None], {"role": "user"}, [{}], [{"role": 7}])
DEEP = "[" * 50_000


def rows(name: str, *given: dict[str, Any]) -> Harm:
    return write(name, "".join(json.dumps(row) + "\n" for row in given))


def tree(name: str, *options: str) -> tuple[str, ...]:
    return ("tree", name, *options)


ODD_CONTENT: tuple[Any, ...] = (
    *(7, [], {}, [7], "<image>", "\ud800"),
    *([{"type": "image"}], [{"type": []}], [{"type": "text"}]),
)

CONVERSATIONS = [
    *(
        refused(f"{key} is {value!r}", rows("r.jsonl", {key: value, **OWNER}), r"r\.jsonl:1", tree("r.jsonl"))
        for key in ("messages", "conversations", "conversation")
        for value in ODD
    ),
    *(
        refused(
            f"content is {value!r}",
            rows("r.jsonl", {"messages": [{"role": "user", "content": value}, TURNS[1]], **OWNER}),
            r"r\.jsonl:1",
            tree("r.jsonl"),
        )
        for value in ODD_CONTENT
    ),
    *(
        refused(
            f"an image part with {part!r}"[:60],
            rows(
                "r.jsonl", {"messages": [{"role": "user", "content": [{"type": "image", **part}]}, TURNS[1]], **OWNER}
            ),
            r"r\.jsonl:1",
            tree("r.jsonl"),
        )
        for part in (
            {"url": "https://a.org/a.png"},
            {"url": "data:image/png;base64,####"},
            {"base64": "#"},
            {"image": {"bytes": "x"}},
            {"image": 7},
            {"path": "/dev/zero"},
            {"path": "a" * 5000},
            {"image_url": {"url": {"url": "x"}}},
        )
    ),
    refused(
        "50,000 placeholders",
        rows("r.jsonl", {"messages": [{**TURNS[0], "content": "<image>" * 50_000}, TURNS[1]], **OWNER}),
        r"r\.jsonl:1",
        tree("r.jsonl"),
    ),
    refused(
        "100,000 turns, the last without an answer",
        rows("r.jsonl", {"messages": TURNS * 50_000 + TURNS[:1], **OWNER}),
        r"r\.jsonl:1",
        tree("r.jsonl"),
    ),
    refused(
        "deep lists in a history",
        rows("r.jsonl", {"query": "a", "response": "b", "history": DEEP, **OWNER}),
        r"r\.jsonl:1",
        tree("r.jsonl"),
    ),
]

TABLES: dict[str, bytes | str] = {
    "nothing": b"",
    "a quote that never ends": 'question,answer,institution\n"q,a,i\n',
    "a field of 70 MB": "question,answer,institution\n" + "q" * 70_000_000 + ",a,i\n",
    "NULs": b"question,answer,institution\n\0\0\0,a,i\n",
    "UTF-16": "question,answer,institution\nq,a,i\n".encode("utf-16"),
    "a field too many": "question,answer,institution\nq,a,i,j\n",
    "the header twice": "question,answer,question\nq,a,q\n",
    "lists that are none": f"messages,institution\n{DEEP},i\n",
    "an empty header": ",,\n1,2,3\n",
}

FILES = [
    *(
        refused(f"CSV: {name}"[:60], write("r.csv", content), r"r\.csv", tree("r.csv"))
        for name, content in TABLES.items()
    ),
    refused("CSV: 100 GB of zeros", sparse("r.csv", 100 << 30), r"r\.csv", tree("r.csv")),
    *(
        refused(f"Arrow: {name}", write("r.arrow", content), r"r\.arrow", tree("r.arrow"))
        for name, content in {"nothing": b"", "its mark alone": b"ARROW1", "zeros": bytes(4096), "JSON": b"{}"}.items()
    ),
]


def saved(state: str, info: str = "{}") -> Harm:
    """A folder that looks as if `datasets` had saved it."""

    def harm(folder: Path) -> None:
        (folder / "saved").mkdir()
        (folder / "saved" / "state.json").write_text(state)
        (folder / "saved" / "dataset_info.json").write_text(info)

    return harm


SAVED = [
    refused(f"a saved dataset: {state[:30]}", saved(state), "saved", tree("saved"))
    for state in ("{}", "[]", "{", '{"_data_files": [{"filename": "/etc/passwd"}]}', '{"_data_files": 7}')
]

MAPS = [
    *(
        refused(f"--map {text!r}"[:60], nothing, "--map", (*TREE, "--map", text))
        for text in (
            "",
            "=",
            "patient",
            "patient=",
            "x='a'",
            "patient=a:b",
            "patient=image:/(/",
            "patient=@a:b",
            "patient=dicom:X",
        )
    ),
    refused("a column that no row has", nothing, r"records\.jsonl:1", (*TREE, "--map", "patient=none.of.them")),
    refused("one level twice", nothing, "--map", (*TREE, "--map", "patient='a'", "--map", "patient='b'")),
    refused("a table that is a pipe's end", nothing, "--map", (*TREE, "--map", "patient=@/dev/zero:a:b")),
    refused("a table of zeros", write("t.csv", bytes(5000)), "t.csv", (*TREE, "--map", "patient=@t.csv:a:b")),
    *(
        refused(f"a map file: {text[:30]}", write("records.map.json", text), r"records\.map\.json|--map|--window", TREE)
        for text in ("", "{", "[]", "7", '{"map": 7}', '{"map": {"x": "y"}}', '{"window": "1"}', '{"images": 7}', DEEP)
    ),
    *(
        refused(f"a map file: {name}", instead("records.map.json", make), "map", TREE)
        for name, make in NO_FILES.items()
    ),
    *(
        refused(f"--window {text!r}", nothing, "--window", (*TREE, "--window", text))
        for text in ("", "1", "1,0", "a,b", "inf,1")
    ),
    refused("--images that is not there", nothing, r"records\.jsonl:1.*no image file", (*TREE, "--images", "none")),
]

SHORT = dicom()[:400]
BOMB = dicom(syntax=DeflatedExplicitVRLittleEndian)[:300] + zlib.compress(bytes(1 << 28), 9)[2:]
DICOM: dict[str, bytes] = {
    "its mark alone": b"\0" * 128 + b"DICM",
    "cut short": SHORT,
    "half of its pixels": dicom()[:-256],
    "huge by its header": dicom(Rows=65535, Columns=65535),
    "a line": dicom(np.zeros((1, 60000), np.uint16)),
    "no pixels high": dicom(Rows=0),
    "a thousand frames": dicom(NumberOfFrames=1000),
    "deflated": BOMB,
    "JPEG that is none": dicom(syntax=JPEGBaseline8Bit),
    "JPEG 2000 that is none": dicom(syntax=JPEG2000Lossless),
    "RLE that is none": dicom(syntax=RLELossless),
    "big-endian by its word alone": dicom().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.2\0"),
    "7 bits allocated": dicom(BitsAllocated=7),
    "no photometric interpretation": dicom(PhotometricInterpretation=""),
    "a window of width 0": dicom(WindowCenter=0, WindowWidth=0),
    "a sigmoid that is none": dicom(WindowCenter=0, WindowWidth=9, VOILUTFunction="CUBIC"),
}

PICTURES = [
    *(
        refused(f"DICOM: {name}", write(IMAGE, content), rf"{WHERE.partition(':')[0]}:\d+.*{IMAGE}", EVAL)
        for name, content in DICOM.items()
    ),
    refused(
        "DICOM: no patient in it",
        both(write(IMAGE, dicom(RAMP)), nothing),
        r"records\.jsonl:\d+",
        (*TREE, "--map", "patient=dicom:PatientName"),
    ),
]

CASES: list[Case] = [*CONVERSATIONS, *FILES, *SAVED, *MAPS, *PICTURES]
