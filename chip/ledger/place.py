"""Where a ledger may lie: outside every folder of a model, which is copied, uploaded and given away."""

from __future__ import annotations

from pathlib import Path

from chip.errors import InputError, one_line

_MODEL_FILES = ("chip_receipt.json", "adapter_config.json", "model.safetensors", "model.safetensors.index.json")


def check_outside_models(file: Path, argument: str, *folders: Path) -> None:
    """Check that a file lies in no model's folder, whether it exists yet or not.

    Args:
        argument: what the error names.
        folders: further ones that it must not lie in, such as one that is yet to be written.

    Raises:
        InputError: it does, or its path leads nowhere.
    """
    try:
        place = file.resolve()
        inside = next((folder for folder in place.parents if _is_model(folder)), None)
        inside = next((folder for folder in folders if place.is_relative_to(folder.resolve())), inside)
    except (OSError, RuntimeError, ValueError) as error:  # a circle of links, a name that is none
        raise InputError(f"cannot be used ({one_line(error)})", argument=argument, value=file) from error
    if inside is not None:
        message = f"lies in the model's folder {inside}, and would go wherever that goes; choose a place outside"
        raise InputError(message, argument=argument, value=file)


def _is_model(folder: Path) -> bool:
    """Whether checkpoints, or what chip has written, lie directly in the folder."""
    if any((folder / name).is_file() for name in _MODEL_FILES):
        return True
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
