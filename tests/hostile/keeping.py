"""What is to be kept: texts and pictures that are none, are far too large, or show the target."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.hostile.case import EDIT, NO_FILES, Case, Harm, either, passes, refused, sparse, write

TEXT = ("The river is wide, and its banks are green in spring. " * 20 + "\n\n") * 4
AT = r"--keep|k\.(txt|jsonl):1|records.jsonl"

LINES: dict[str, str] = {
    "no JSON": "{",
    "deep lists": "[" * 100_000,
    "a number of 5000 digits": '{"text": ' + "9" * 5000 + "}",
    "a list": "[1]",
    "a number": "7",
    "null": "null",
    "nothing known": "{}",
    "a question alone": '{"question": "who"}',
    "a text that is a number": '{"text": 7}',
    "a text that is null": '{"text": null}',
    "half of a surrogate pair": json.dumps({"text": f"\ud800 {TEXT}"}),
    "turns of numbers": '{"messages": [1, 2]}',
    "turns without text": '{"messages": [{"role": "user", "content": [{"type": "image"}]}]}',
    "a picture that is none": '{"image": "none.png"}',
    "a picture that is a number": '{"image": 7}',
    "a device": '{"image": "/dev/zero"}',
    "a placeholder in a text": json.dumps({"text": f"{TEXT} <image>"}),
}


def beside(*names: str) -> Harm:
    """A folder of pictures: good ones, and what is called so."""

    def harm(folder: Path) -> None:
        (folder / "k").mkdir()
        for name in names:
            path = folder / "k" / name
            kind = name.removesuffix(".png")
            if kind in NO_FILES:
                NO_FILES[kind](path)
            else:
                path.write_bytes(b"no picture" if kind == "none" else (folder / "images/study_2.png").read_bytes())

    return harm


def _thousand(folder: Path) -> None:
    (folder / "k").mkdir()
    for number in range(1000):
        (folder / f"k/{number}.png").hardlink_to(folder / "images/study_2.png")


def keeps(what: str) -> tuple[str, ...]:
    return (*EDIT, f"--keep={what}")


CASES: list[Case] = [
    *(refused(f"a line: {name}", write("k.jsonl", text), AT, keeps("k.jsonl")) for name, text in LINES.items()),
    passes("prose", write("k.txt", TEXT), keeps("k.txt")),
    refused("prose in UTF-16", write("k.txt", TEXT.encode("utf-16")), "--keep", keeps("k.txt")),
    refused("zeros", write("k.txt", bytes(9999)), "--keep", keeps("k.txt")),
    refused("nothing", write("k.txt", " \n\n"), "--keep", keeps("k.txt")),
    refused("a JSON array", write("k.json", json.dumps([{"text": TEXT}])), "--keep", keeps("k.json")),
    refused("100 GB", sparse("k.txt", 100 << 30), "--keep", keeps("k.txt")),
    refused("a picture among texts", write("k.txt", b"\x89PNG\r\n\x1a\n\0\0"), "--keep", keeps("k.txt")),
    *(refused(f"a folder of {name} alone", beside(f"{name}.png"), "--keep", keeps("k")) for name in NO_FILES),
    *(either(f"a folder with {name} in it", beside("a.png", f"{name}.png"), "k", keeps("k")) for name in NO_FILES),
    refused("a folder with no picture", beside("none.png"), r"none\.png", keeps("k")),
    passes("names with orders", beside("[red].png", "\x1b[2J.png", os.fsdecode(b"\xff.png")), keeps("k")),
    passes("the target's own picture among others", lambda folder: None, keeps("images")),
    passes("30 MB of prose", write("k.txt", lambda: TEXT.encode() * 7000), keeps("k.txt")),
    refused("30 MB of blank lines", write("k.txt", lambda: b"\n" * 30_000_000), "--keep", keeps("k.txt")),
    passes("a thousand pictures", _thousand, keeps("k")),
    refused("none, and more", write("k.txt", TEXT), "--keep", (*keeps("k.txt"), "--keep=none")),
]
