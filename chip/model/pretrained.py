"""A model with all its weights, as transformers loads it; what goes wrong in that is one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, GenerationConfig

from chip.errors import InputError, foreign_code, reason
from chip.model.offload import DeviceMap
from chip.model.quiet import quiet, refusing


def load_pretrained(folder: Path, on_cpu: bool, options: Mapping[str, Any]) -> Any:
    """The model with its weights: fp32 where it computes on the CPU, else in the dtype they are stored in."""
    check_generation(folder)
    with refusing_weights(folder, options.get("device_map")), quiet():
        model, info = AutoModelForImageTextToText.from_pretrained(
            folder,
            dtype=torch.float32 if on_cpu else "auto",
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are named below
            **options,
        )
    for trouble in ("missing_keys", "mismatched_keys"):
        if info[trouble]:
            raise InputError(
                f"{folder}: {trouble.replace('_', ' ')} {sorted(info[trouble])[:3]}; the checkpoint is incomplete"
            )
    return model


@contextmanager
def refusing_weights(folder: Path, device_map: DeviceMap | None) -> Iterator[None]:
    """Whatever transformers raises at the weights becomes an `InputError`; see `foreign_code`."""
    with foreign_code(folder, "its weights cannot be loaded", "fetch it again"):
        try:
            yield
        except ValueError as error:
            if device_map is None:
                raise
            message = f"{folder} cannot be spread so ({reason(error)}); give another map, or other sizes"
            raise InputError(message, argument="device_map", value=device_map) from error


def check_generation(folder: Path) -> None:
    """Loading reads the defaults for generation as well, and ends in an error of any kind where they are none."""
    path = folder / "generation_config.json"
    if path.exists():
        with refusing(path, "transformers cannot read it", "remove it, or fetch it again"):
            ends = GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id
        if not all(isinstance(end, int | None) for end in (ends if isinstance(ends, list) else [ends])):
            raise InputError(f"{path}: eos_token_id {ends!r} is no token; remove it, or fetch the file again")
