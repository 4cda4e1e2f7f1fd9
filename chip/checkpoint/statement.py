"""What chip says of files, in the form of in-toto: the files by their digests, and what is stated of them.

https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md. The receipt of an edit is such a statement, and
so is what `chip eval --statement` writes. Neither is a signature: `chip.checkpoint.signing` makes those.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chip.checkpoint.json_file import read_json
from chip.errors import InputError

STATEMENT = "https://in-toto.io/Statement/v1"
EDIT = "https://pypi.org/project/chip-unlearning#edit-v1"
EVALUATION = "https://pypi.org/project/chip-unlearning#evaluation-v1"
"""Types of predicate."""

LIMITS = (
    "Not deletion in the legal sense: the model no longer answers as before, under the tests named here.",
    "Other questions, attacks, or further training may bring something back.",
    "What the model knows of the target beyond the records was not measured.",
    "What is kept is known for the questions that were asked.",
)
"""What no figure of chip shows."""


def statement_text(subject: Mapping[str, str], kind: str, predicate: Mapping[str, Any]) -> bytes:
    """The statement as it is stored: JSON, with the digest of itself at the end of the predicate.

    That digest finds what happens by accident, not what somebody has made to fit.

    Args:
        subject: file, relative to its folder -> SHA-256 in hexadecimal.
        kind: type of the predicate, such as `EDIT`.
    """

    def text(more: Mapping[str, str]) -> bytes:
        return to_json(
            {
                "_type": STATEMENT,
                "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in subject.items()],
                "predicateType": kind,
                "predicate": {**predicate, **more},
            }
        )

    return text({"digest": hashlib.sha256(text({})).hexdigest()}) + b"\n"


@dataclass(frozen=True)
class Statement:
    """What is stated of files."""

    subject: Mapping[str, str]
    """File, relative to its folder -> SHA-256 in hexadecimal."""
    kind: str
    """Type of the predicate."""
    predicate: Mapping[str, Any]


def read_statement(path: Path) -> Statement:
    """What `statement_text` has put into a file.

    Raises:
        InputError: there is no such file, or it is not byte for byte as chip writes it.
    """
    content, _ = read_json(path.parent, path.name)
    try:
        subject = {str(each["name"]): str(each["digest"]["sha256"]) for each in content["subject"]}
        kind, predicate = content["predicateType"], dict(content["predicate"])
        del predicate["digest"]
        whole = statement_text(subject, kind, predicate) == path.read_bytes()
    except (ValueError, TypeError, LookupError, RecursionError):  # not of this form
        whole = False
    if not whole:
        raise InputError(f"{path}: no statement of chip's, or damaged, or changed by hand; take it again")
    return Statement(subject, kind, predicate)


def is_statement(path: Path, kind: str) -> bool:
    """Whether the file holds a statement with a predicate of this type."""
    try:
        return read_statement(path).kind == kind
    except InputError:
        return False


def finite(value: Any) -> Any:
    """JSON's values with None in the place of NaN and infinity, which it has not."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {name: finite(item) for name, item in value.items()}
        case list() | tuple():
            return [finite(item) for item in value]
    return value


def to_json(content: Mapping[str, Any]) -> bytes:
    """As every receipt is written. Raises `ValueError` for NaN and infinity, which JSON has not."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False).encode()
