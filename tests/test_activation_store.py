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
    tensors = [torch.randn(3, 5), torch.randn(4, 2).bfloat16(), torch.empty(0, 3), torch.tensor(7)]
    again = onload(offload({"states": tensors, "nested": (None, True)}, place))
    assert again["nested"] == (None, True)
    for before, after in zip(tensors, again["states"], strict=True):
        assert before.dtype == after.dtype
        assert torch.equal(before, after)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="macOS has no such call")
def test_a_full_disk_is_an_error_and_not_the_end_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(RunError, match=r"no room for 2,400 bytes that the run holds there \(No space left on device\)"):
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
