"""What `chip.edit` is called with, as one text: `retain_weight=48 layers=0-2`, or nothing for the defaults."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import Any

from chip.errors import InputError
from chip.methods import Method, Shielded, make_method

_OTHERS = ("layers", "target_modules", "rank")
"""Arguments of `chip.edit` itself; all others are settings of the method."""


@dataclass(frozen=True)
class EditArguments:
    """One way to edit, which every target is edited in."""

    text: str
    """As given; empty: the defaults."""
    method: Method | None
    """None: the default of `chip.edit`."""
    others: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, text: str) -> EditArguments:
        """From `name=value` with spaces between them; `method` names the method.

        Raises:
            InputError: something has no `=`, or the method has no such setting.
        """
        given: dict[str, str] = {}
        for part in shlex.split(text):
            name, equals, value = part.partition("=")
            if not equals:
                raise InputError("give name=value", argument="edit_args", value=part)
            given[name.replace("-", "_")] = value
        others: dict[str, Any] = {name: given.pop(name) for name in _OTHERS if name in given}
        if "target_modules" in others:
            others["target_modules"] = others["target_modules"].split(",")
        if "rank" in others:
            others["rank"] = int(others["rank"])
        if not given:
            return cls(text, None, others)
        name = given.pop("method", Shielded.name)
        return cls(text, make_method(name, {setting: _number(value) for setting, value in given.items()}), others)


def _number(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value
