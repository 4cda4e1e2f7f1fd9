"""What a model runs with: what its figures and its edits depend on beside the data."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

import torch

from chip.distributed import DistributedContext
from chip.model.loading import VLM


def environment_of(vlm: VLM, distributed: DistributedContext | None = None) -> dict[str, Any]:
    """Versions, the device's kind, the dtype that the model computes in, and the number of processes."""
    device = vlm.device
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers")},
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type} {platform.machine()}",
        "dtype": str(vlm.model.dtype).removeprefix("torch."),
        "processes": 1 if distributed is None else distributed.world_size,
    }
