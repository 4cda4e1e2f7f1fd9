"""The operators, by the name that `--method` takes."""

from collections.abc import Mapping
from dataclasses import fields

from chip.errors import InputError
from chip.operators.base import Operator
from chip.operators.chip import Chip
from chip.operators.shielded import Shielded

__all__ = ["OPERATORS", "Chip", "Operator", "Shielded", "make_operator"]

OPERATORS: dict[str, type[Operator]] = {operator.name: operator for operator in (Shielded, Chip)}


def make_operator(name: str, settings: Mapping[str, float | str]) -> Operator:
    """The operator of this name with these settings; all others have their defaults.

    Raises:
        InputError: there is no such operator, or it has no such setting, or the value is outside its range.
    """
    if name not in OPERATORS:
        raise InputError(f"--method {name}: there are {', '.join(OPERATORS)}")
    own = {field.name for field in fields(OPERATORS[name])}
    for setting in settings:
        if setting not in own:
            raise InputError(f"--{setting.replace('_', '-')} is not a setting of --method {name}; drop it")
    return OPERATORS[name](**settings)
