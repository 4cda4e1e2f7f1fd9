"""What the hostile inputs are made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.families import build, write_records
from tests.hostile.case import EDIT
from tests.hostile.runner import run


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders that nobody writes into, by the family of the checkpoint in them: that, records, and an edited one."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("llava", "qwen2_5_vl")}
    for name, folder in folders.items():
        write_records(folder)
        build(folder / "ckpt", name, max_shard_size="10MB")
        edited = run(folder, [*EDIT, "--out", "edited"])
        assert edited.code == 0, edited.err
    return folders
