"""What the tests share: one hospital, its model, and how hypothesis draws."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from chip.checkpoint.layout import Checkpoint
from chip.data.hierarchy import Hierarchy
from chip.data.readers import read_records
from chip.demo import write_demo
from chip.model.loading import VLM, load_vlm
from tests.folders import make_snapshot
from tests.judging import serving

settings.register_profile("chip", deadline=None, derandomize=True, print_blob=True)  # machines are shared and slow
settings.load_profile("chip")


def pytest_collection_finish() -> None:
    """What has been imported stays: no collection, of which each edit makes one, need go through it again."""
    gc.freeze()


@pytest.fixture
def source(tmp_path: Path) -> Checkpoint:
    """A small checkpoint in `tmp_path / "hub"`."""
    return make_snapshot(tmp_path)


@pytest.fixture(scope="session")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's folder. Nobody writes into it."""
    folder = tmp_path_factory.mktemp("demo") / "hospital"
    write_demo(folder)
    return folder


@pytest.fixture(scope="session")
def hierarchy(hospital: Path) -> Hierarchy:
    return Hierarchy(read_records(hospital / "records.jsonl"))


@pytest.fixture
def server() -> Iterator[Any]:
    """Of a judge."""
    with serving() as judge:
        yield judge


@pytest.fixture
def vlm(hospital: Path) -> VLM:
    """The demo's model, fresh: a test may edit it."""
    return load_vlm(hospital / "ckpt", "cpu")
