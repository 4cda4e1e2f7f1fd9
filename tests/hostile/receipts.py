"""Receipts that somebody has changed, cut, forged, or that belong to another folder."""

from __future__ import annotations

from typing import Any

from tests.hostile.case import NO_FILES, VERIFY, Case, instead, put, refused, shorten, sparse, write

RECEIPT = "edited/chip_receipt.json"
AT = "edited"
ODD: tuple[Any, ...] = (None, -1, 1e300, "x", [], {}, {"x": None}, {"x": {}}, ...)
PARTS = ("receipt", "tensors", "files", "settings", "previous", "digest", "created", "method", "sequence", "figures")
KEYS = ("_type", "subject", "predicateType", "predicate", *(f"predicate.{part}" for part in PARTS))

FILES: dict[str, bytes] = {
    "an empty file": b"",
    "null": b"null",
    "a list": b"[]",
    "a list of pairs": b'[["receipt", 1]]',
    "an empty object": b"{}",
    "no JSON": b"{",
    "not UTF-8": b'{"receipt": "\xff"}',
    "deep": b'{"previous":' * 50_000 + b"null" + b"}" * 50_000,
    "a number of 5000 digits": b'{"receipt": ' + b"9" * 5000 + b"}",
    "half of a surrogate pair": b'{"receipt": "\\ud800"}',
    "NaN": b'{"receipt": NaN}',
}

CASES: list[Case] = [
    *(refused(f"it is {name}", write(RECEIPT, text), AT, VERIFY) for name, text in FILES.items()),
    *(
        refused(f"{key} is {'missing' if value is ... else repr(value)}", put(RECEIPT, key, value), AT, VERIFY)
        for key in KEYS
        for value in ODD
    ),
    refused("cut short", shorten(RECEIPT, 0.5), AT, VERIFY),
    refused("64 GB of nothing", sparse(RECEIPT, 64 << 30), AT, VERIFY),
    *(refused(f"it is {name}", instead(RECEIPT, make), AT, VERIFY) for name, make in NO_FILES.items()),
    refused("no receipt", lambda _: None, "ckpt", ("verify", "ckpt")),
    refused("no folder", lambda _: None, "none", ("verify", "none")),
    refused("a file", lambda _: None, "records", ("verify", "records.jsonl")),
]
