"""Which records take part where there are more than are needed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from chip.data.hierarchy import Hierarchy
from chip.data.record import Record
from chip.data.request import ForgetRequest
from chip.data.sample import draw, sample_for_edit, sample_to_ask
from chip.evaluation.summary import exact_match_intervals
from chip.model.scoring import Scores


def _record(institution: int, patient: int, question: str, image: Path | None = None) -> Record:
    return Record(question, "yes", (f"i{institution}", f"p{institution}.{patient}"), image)


@pytest.fixture
def request_of_many() -> ForgetRequest:
    """Two institutions of 8 patients, one of 40; ten questions each, one of which all are asked."""
    patients = [(0, n) for n in range(8)] + [(1, n) for n in range(8)] + [(2, n) for n in range(40)]
    records = [
        replace(_record(i, p, "Is it so?" if q == 0 else f"{q} of {i} {p}?"), answer=f"{i} {p} {q}")
        for i, p in patients
        for q in range(10)
    ]
    records[0] = replace(records[0], image=Path("shared.png"))
    records[-1] = replace(records[-1], image=Path("shared.png"))  # somebody else's, far away
    return ForgetRequest.of(Hierarchy(records), ["p0.0"])


def test_each_institution_has_its_part_and_no_record_comes_twice(request_of_many: ForgetRequest) -> None:
    records, others = request_of_many.hierarchy.records, request_of_many.partition.retain_other
    drawn = draw(others, records, 60, np.random.default_rng(0))
    assert len(set(drawn)) == 60
    assert drawn == sorted(drawn)
    assert Counter(records[i].path[0] for i in drawn) == {"i1": 10, "i2": 50}
    assert draw(others, records, 60, np.random.default_rng(0)) == drawn
    assert draw(others, records, 60, np.random.default_rng(1)) != drawn
    assert draw(others, records, len(others), np.random.default_rng(0)) == list(others)


def test_an_edit_goes_by_all_that_is_near_and_by_a_part_of_the_rest(request_of_many: ForgetRequest) -> None:
    full, sample = request_of_many, sample_for_edit(request_of_many, 50, 1000)
    assert len(sample.partition.forget) == len(full.partition.forget)
    assert len(sample.partition.siblings) == len(full.partition.siblings) == 70
    # 48 that are asked what the target is, the one on its image, and 50 of the others.
    assert len(sample.partition.retain_other) == 48 + 1 + 50
    assert len(sample.partition.on_shared_images) == len(full.partition.on_shared_images) == 1
    assert len(sample_for_edit(full, 50, 20).partition.siblings) == 20
    assert sample_for_edit(full, 10_000, 10_000) is full
    filled = sample_for_edit(full, 50, 1000, total=300)  # more of the rest, so that it costs what 300 would
    assert len(filled.partition.retain_other) == 300 - 70 + 1


def test_what_is_asked_is_drawn_apart_and_said_with_its_interval(request_of_many: ForgetRequest) -> None:
    full, asked = request_of_many, sample_to_ask(request_of_many, 100)
    assert [len(asked.partition.groups[group]) for group in ("target", "siblings", "other")] == [10, 70, 100]
    assert {r.question for r in asked.hierarchy.records} != {
        r.question for r in sample_for_edit(full, 100, 100).hierarchy.records
    }
    right = torch.zeros(len(asked.hierarchy.records), dtype=torch.float64)
    right[::2] = 1
    intervals = exact_match_intervals(full, asked, Scores(right, right))
    assert intervals.keys() == {"other"}
    low, high = intervals["other"]
    assert 0.3 < low < 0.5 < high < 0.7
    assert exact_match_intervals(full, full, Scores(torch.ones(560), torch.ones(560))) == {}
