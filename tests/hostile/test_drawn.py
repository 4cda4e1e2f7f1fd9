"""Hostile inputs that hypothesis draws: records, texts, files and options of any kind."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.hostile.case import EDIT, INSPECT, TREE, VERIFY, WHERE, Harm, either, line, nothing, put, record, write
from tests.hostile.judging import check_case
from tests.hostile.records import FIELDS

pytestmark = pytest.mark.slow

TEXT = st.text(st.characters(exclude_categories=()), max_size=20)
"""Of any code points, halves of surrogate pairs too."""
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def source(families: dict[str, Path]) -> Path:
    return families["llava"]


def check(source: Path, harm: Harm, says: str, run: tuple[str, ...]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        check_case(either("drawn", harm, says, run), source, Path(folder) / "place")


@settings(max_examples=150)
@given(fields=st.dictionaries(st.sampled_from(FIELDS), VALUES, min_size=1, max_size=3))
def test_fields_of_a_record(source: Path, fields: dict[str, Any]) -> None:
    check(source, record(**fields), WHERE, TREE)


@settings(max_examples=100)
@given(content=st.binary(max_size=60) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_a_line_of_the_records(source: Path, content: bytes) -> None:
    check(source, line(content.replace(b"\n", b" ")), "records.jsonl:", TREE)


@settings(max_examples=60)
@given(question=TEXT, answer=TEXT)
def test_what_is_asked_and_answered(source: Path, question: str, answer: str) -> None:
    check(source, record(question=question, answer=answer), WHERE, EDIT)


@settings(max_examples=100)
@given(content=st.binary(max_size=60) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_a_file_of_json(source: Path, content: bytes) -> None:
    check(source, write("ckpt/config.json", content), "ckpt", INSPECT)
    check(source, write("edited/chip_receipt.json", content), "edited", VERIFY)


@settings(max_examples=60)
@given(key=st.sampled_from(["model_type", "architectures", "text_config", "vision_config", "dtype"]), value=VALUES)
def test_a_value_in_the_configuration(source: Path, key: str, value: Any) -> None:
    check(source, put("ckpt/config.json", key, value), "ckpt", INSPECT)


ARGUMENT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=100)
@given(name=st.sampled_from(["layers", "batch-size", "method", "forget", "device", "target-modules"]), value=ARGUMENT)
def test_an_option(source: Path, name: str, value: str) -> None:
    check(source, nothing, f"--{name}", (*EDIT, f"--{name}={value}"))
