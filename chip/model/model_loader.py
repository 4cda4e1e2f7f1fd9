"""Loading one model after the other in the same way: on one device, or spread over several."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from chip.checkpoint.layout import Checkpoint
from chip.distributed import DistributedContext
from chip.errors import InputError
from chip.model.loading import VLM, load_vlm
from chip.model.offload import DeviceMap, MaxMemory


@contextmanager
def model_loader(
    distributed: DistributedContext,
    device: str | None,
    device_map: DeviceMap | None,
    max_memory: MaxMemory | None,
    stream: bool | None = None,
) -> Iterator[Callable[[Path | Checkpoint], VLM]]:
    """A function that loads a checkpoint, as `load_vlm` does.

    Where a model is spread, some of it may lie in a temporary folder, which goes at the end.

    Raises:
        InputError: the arguments contradict each other.
    """
    if device_map is None:
        if max_memory is not None:
            raise InputError(
                "says how to spread a model; give a device_map, such as auto", argument="max_memory", value=max_memory
            )
        yield partial(load_vlm, device=device, stream=stream)
        return
    if distributed.world_size > 1:
        raise InputError(
            "one process uses all devices; start chip without torchrun", argument="device_map", value=device_map
        )
    with TemporaryDirectory(prefix="chip-") as folder:
        spread = partial(load_vlm, device_map=device_map, max_memory=max_memory, offload_folder=folder)
        yield partial(spread, device=device, stream=stream)
