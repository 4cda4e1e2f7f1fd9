"""Settings of a method: fields of its dataclass that say what they do and which values make sense.

The command line makes its options from them and `Method` checks them; nothing else repeats them.
"""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields
from math import inf
from typing import Any

from chip.errors import InputError

_KEY = "setting"
LARGEST = 1e15
"""Value of a setting, where nothing else bounds it: its square is a number in fp32, too."""


@dataclass(frozen=True)
class Setting:
    """What one field of a method means, and which values it takes."""

    help: str
    """One line: what a higher value does, with the symbol of the formula where there is one."""
    minimum: float
    maximum: float
    words: tuple[str, ...]
    """What may stand there instead of a number."""

    def check(self, name: str, value: float | str | None) -> None:
        """Raise `InputError` unless the value is None, one of `words`, or a number from `minimum` to `maximum`."""
        if value is None or value in self.words:
            return
        if isinstance(value, str):
            expected = " or ".join(("a number", *self.words))
            raise InputError(f"give {expected}", argument=name, value=value)
        if value in (inf, -inf):
            raise InputError("give a finite number", argument=name, value=value)
        if not self.minimum <= value <= self.maximum:
            raise InputError(f"must lie between {self.minimum:g} and {self.maximum:g}", argument=name, value=value)


def setting(
    default: Any, help: str, *, minimum: float = 0.0, maximum: float = LARGEST, words: tuple[str, ...] = ()
) -> Any:
    """A dataclass field that is a setting; None as its default means that another setting decides."""
    return field(default=default, metadata={_KEY: Setting(help, minimum, maximum, words)})


def settings_of(method: Any) -> dict[str, tuple[Field[Any], Setting]]:
    """Name -> field and meaning of each setting of a method, or of its class, in the order of the fields."""
    return {each.name: (each, each.metadata[_KEY]) for each in fields(method) if _KEY in each.metadata}


def check_settings(method: Any) -> None:
    """Raise `InputError` where a setting of the method has a value that makes no sense."""
    for name, (_, meaning) in settings_of(method).items():
        meaning.check(name, getattr(method, name))
