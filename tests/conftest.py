"""What the tests share: one hospital, its model, and how hypothesis draws."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from hypothesis import settings

from chip.checkpoint.layout import Checkpoint
from chip.data.hierarchy import Hierarchy
from chip.data.readers import read_records
from chip.demo import write_demo
from chip.model.loading import VLM, load_vlm
from tests.folders import make_snapshot
from tests.judging import serving
from tests.signing_keys import Keys, write_key

settings.register_profile("chip", deadline=None, derandomize=True, print_blob=True)  # machines are shared and slow
settings.load_profile("chip")


def pytest_configure(config: pytest.Config) -> None:
    """No test asks the Hub. With a worker on each core (`pytest -n 2`), each has one thread, and so have the commands
    it starts."""
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    os.environ["HF_HUB_OFFLINE"] = "1"
    if hasattr(config, "workerinput"):
        torch.set_num_threads(1)
        os.environ["OMP_NUM_THREADS"] = "1"


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


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """`ours`, and somebody else's."""
    folder = tmp_path_factory.mktemp("keys")
    return {name: write_key(folder / f"{name}.pem") for name in ("ours", "theirs")}


@pytest.fixture
def server() -> Iterator[Any]:
    """Of a judge."""
    with serving() as judge:
        yield judge


@pytest.fixture
def vlm(hospital: Path) -> VLM:
    """The demo's model, fresh: a test may edit it."""
    return load_vlm(hospital / "ckpt", "cpu")
