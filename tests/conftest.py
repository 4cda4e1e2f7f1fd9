"""What the tests share: one hospital, one model in memory, and how hypothesis draws."""

from __future__ import annotations

import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("COLUMNS", "120")

from hypothesis import settings

settings.register_profile("chip", deadline=None, derandomize=True, print_blob=True)  # machines are shared and slow
settings.load_profile("chip")

from pathlib import Path

import pytest

from chip.demo import write_demo
from chip.hierarchy import Hierarchy
from chip.records import read_records
from chip.vlm.loading import VLM, load_vlm


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
def vlm(hospital: Path) -> VLM:
    """The demo's model, fresh: a test may edit it."""
    return load_vlm(hospital / "ckpt", "cpu")
