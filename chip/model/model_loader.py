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
from chip.model.loading_options import LoadingOptions

ModelLoader = Callable[[Path | Checkpoint], VLM]


@contextmanager
def model_loader(distributed: DistributedContext, options: LoadingOptions) -> Iterator[ModelLoader]:
    """A function that loads a checkpoint, as `load_vlm` does.

    Where a model is spread, some of it may lie in a temporary folder, which goes at the end.

    Raises:
        InputError: the options contradict each other.
    """
    device_map, max_memory = options.get("device_map"), options.get("max_memory")
    load = partial(load_vlm, device=options.get("device"), stream=options.get("stream"))
    if device_map is None:
        if max_memory is not None:
            raise InputError(
                "says how to spread a model; give a device_map, such as auto", argument="max_memory", value=max_memory
            )
        yield load
        return
    if distributed.world_size > 1:
        raise InputError(
            "one process uses all devices; start chip without torchrun", argument="device_map", value=device_map
        )
    with TemporaryDirectory(prefix="chip-") as folder:
        yield partial(load, device_map=device_map, max_memory=max_memory, offload_folder=folder)
