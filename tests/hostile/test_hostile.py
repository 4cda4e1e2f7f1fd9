"""Every hostile input ends in right values, or in one line and exit code 2: no traceback, no hang, no memory eaten.

`pytest tests/hostile -k images` tries one kind.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile import (
    configs,
    file_types,
    images,
    keeping,
    layouts,
    names,
    options,
    processors,
    receipts,
    records,
    texts,
    weights,
)
from tests.hostile.case import Case
from tests.hostile.judging import check_case

pytestmark = pytest.mark.slow

KINDS = (records, layouts, texts, images, configs, processors, weights, options, receipts, file_types, names, keeping)
CASES = [pytest.param(case, id=f"{kind.__name__.rpartition('.')[2]}-{case}") for kind in KINDS for case in kind.CASES]


@pytest.mark.parametrize("case", CASES)
def test_it_ends_well(case: Case, families: dict[str, Path], tmp_path: Path) -> None:
    check_case(case, families[case.family], tmp_path / "place")


def test_there_are_many() -> None:
    assert len({str(case.id) for case in CASES}) >= 600
