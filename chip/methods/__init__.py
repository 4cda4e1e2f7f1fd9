"""The operators, by the name that `--method` takes."""

from collections.abc import Mapping
from dataclasses import fields

from chip.errors import InputError
from chip.methods.base import Method
from chip.methods.chip import Chip
from chip.methods.shielded import Shielded

__all__ = ["METHODS", "Chip", "Method", "Shielded", "make_method"]

METHODS: dict[str, type[Method]] = {method.name: method for method in (Shielded, Chip)}


def make_method(name: str, settings: Mapping[str, float | str]) -> Method:
    """The operator of this name with these settings; all others have their defaults.

    Raises:
        InputError: there is no such operator, or it has no such setting, or the value is outside its range.
    """
    if name not in METHODS:
        raise InputError(f"--method {name}: there are {', '.join(METHODS)}")
    own = {field.name for field in fields(METHODS[name])}
    for setting in settings:
        if setting not in own:
            raise InputError(f"--{setting.replace('_', '-')} is not a setting of --method {name}; drop it")
    return METHODS[name](**settings)
