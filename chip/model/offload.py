"""Models that accelerate's `device_map` spreads over devices, the host's memory and the disk.

What does not fit on a device is offloaded: such a parameter is on the meta device, but for the time its module runs. A
hook on the module then takes its value from a mapping: tensors on the host, and places in the checkpoint's files.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from chip.errors import InputError

DeviceMap = str | Mapping[str, int | str | torch.device]
"""One of `STRATEGIES`, or part of the model -> device, `cpu` or `disk`; as in Hugging Face's `from_pretrained`."""
MaxMemory = Mapping[int | str, int | str]
"""Index of a device, or `cpu` -> bytes, or a size as `20GiB`."""

STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")


def check_device_map(model: Any, device_map: DeviceMap) -> None:
    """Look whether the model can be spread so, before any weight is read.

    Args:
        model: it may be one without weights, on the meta device.

    Raises:
        InputError: accelerate is missing, no such strategy, or a map that does not say one place for each parameter.
    """
    if find_spec("accelerate") is None:
        message = "spreading a model needs accelerate; pip install accelerate"
        raise InputError(message, argument="device_map", value=device_map)
    if isinstance(device_map, str):
        if device_map not in STRATEGIES:
            message = f"not known, there is {', '.join(STRATEGIES)}; for one device give a device"
            raise InputError(message, argument="device_map", value=device_map)
        return
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters(remove_duplicate=False))
    for part in device_map:
        if part not in modules and part not in parameters:
            message = f"{type(model).__name__} has no such part; see its named_modules()"
            raise InputError(message, argument="device_map", value=part)
        if outer := [other for other in device_map if other != part and _holds(other, part)]:
            message = f"lies in {outer[0]!r}; give each part one place"
            raise InputError(message, argument="device_map", value=part)
    for name in parameters:
        if not any(_holds(part, name) for part in device_map):
            message = f"no place for {name!r}; give one for it, or for a part around it"
            raise InputError(message, argument="device_map", value=dict(device_map))


def _holds(part: str, name: str) -> bool:
    return part in ("", name) or name.startswith(f"{part}.")


def computes_on_host(device_map: DeviceMap, max_memory: MaxMemory | None, default: str) -> bool:
    """Whether nothing is computed elsewhere than on the CPU. `default`: the best device that there is."""
    used = [default] if max_memory is None else list(max_memory)
    places = used if isinstance(device_map, str) else list(device_map.values())
    return all(str(place) in ("cpu", "disk") for place in places)


def check_loaded(model: Any) -> None:
    """Raise `InputError` if a parameter is offloaded that nothing loads: one that belongs to no module with a hook."""
    for name, parameter in model.named_parameters():
        if parameter.is_meta and _loader(model, name) is None:
            message = "this parameter cannot be offloaded; give it a device of its own in a map"
            raise InputError(message, argument="device_map", value=name)


def input_device(model: Any) -> torch.device:
    """Where the model's inputs go."""
    hook = getattr(model, "_hf_hook", None)
    return torch.device(model.device if hook is None else hook.execution_device)


def place_of(model: Any, name: str) -> torch.device:
    """Where a parameter is computed with."""
    loader = _loader(model, name)
    return torch.device(model.get_parameter(name).device if loader is None else loader.execution_device)


def read_parameter(model: Any, name: str) -> Tensor:
    """A parameter's values, where they are computed with; not to be written to."""
    parameter: Tensor = model.get_parameter(name)
    loader = _loader(model, name)
    if loader is None:
        return parameter
    value: Tensor = loader.weights_map[name.rpartition(".")[2]]
    return value.to(torch.device(loader.execution_device), parameter.dtype)


@torch.no_grad()
def write_parameter(model: Any, name: str, value: Tensor) -> Tensor:
    """Give a parameter new values, in its own dtype; the tensor that holds them from now on.

    On the host they replace the old ones. What lies on the disk is left alone: it is the checkpoint's. Its new value is
    held in memory, where accelerate looks first.
    """
    parameter: Tensor = model.get_parameter(name)
    loader = _loader(model, name)
    if loader is None:
        return parameter.copy_(value).detach()
    key = f"{loader.weights_map.prefix}{name.rpartition('.')[2]}"
    host: dict[str, Tensor] = loader.weights_map.dataset.state_dict
    host[key] = host[key].copy_(value) if key in host else value.detach().to("cpu", parameter.dtype, copy=True)
    return host[key]


def _loader(model: Any, name: str) -> Any:
    """The hook that loads the parameter while its module runs; None where it is always there."""
    hook = getattr(model.get_submodule(name.rpartition(".")[0]), "_hf_hook", None)
    chain = getattr(hook, "hooks", (hook,))
    return next((link for link in chain if getattr(link, "offload", False)), None)
