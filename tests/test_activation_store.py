"""Where activations wait between passes."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest
import torch

from chip.errors import RunError
from chip.model.forward.activation_store import offload, onload


@pytest.mark.parametrize("place", ["device", "host", "file"])
def test_what_is_offloaded_comes_back_as_it_was(place: str) -> None:
    value = {
        "states": (torch.randn(3, 5), torch.randn(4, 2).bfloat16()),
        "none": [None, torch.empty(0, 3), torch.tensor(7)],
        "flag": True,
    }
    again = onload(offload(value, place))
    assert again["flag"] is True
    assert again["none"][0] is None
    for mine, theirs in ((again["states"], value["states"]), (again["none"][1:], value["none"][1:])):  # type: ignore[index]
        for a, b in zip(mine, theirs, strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="macOS has no such call")
def test_a_full_disk_is_an_error_and_not_the_end_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(RunError, match=r"no room for 2,400 bytes of activations \(No space left on device\)"):
        offload(torch.zeros(600), "file")


def test_a_file_is_allocated_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks: list[int] = []
    allocate = os.posix_fallocate

    def counted(file: int, start: int, size: int) -> None:
        allocate(file, start, size)
        blocks.append(os.fstat(file).st_blocks * 512)

    monkeypatch.setattr(os, "posix_fallocate", counted)
    offload(torch.zeros(2**18), "file")
    assert blocks[0] >= 2**20
