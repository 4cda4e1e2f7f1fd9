"""The methods, by the name that `--method` takes."""

from collections.abc import Mapping

from chip.errors import InputError
from chip.methods.base import Method
from chip.methods.chip import Chip
from chip.methods.settings import settings_of
from chip.methods.shielded import Shielded

__all__ = ["METHODS", "Chip", "Method", "Shielded", "make_method", "register_method"]

METHODS: dict[str, type[Method]] = {}


def register_method(method: type[Method]) -> type[Method]:
    """Make a method known to the command line and to `make_method`; it may be used as a class decorator.

    Raises:
        ValueError: another method has that name.
    """
    if METHODS.setdefault(method.name, method) is not method:
        raise ValueError(f"two methods are called {method.name!r}")
    return method


for _method in (Shielded, Chip):
    register_method(_method)


def make_method(name: str, settings: Mapping[str, float | str]) -> Method:
    """The method of this name with these settings; all others have their defaults.

    Raises:
        InputError: there is no such method, or it has no such setting, or the value is outside its range.
    """
    if name not in METHODS:
        raise InputError(f"there are {', '.join(METHODS)}", argument="method", value=name)
    own = settings_of(METHODS[name])
    for setting, value in settings.items():
        if setting not in own:
            raise InputError(f"not a setting of method {name}; drop it", argument=setting, value=value)
    return METHODS[name](**settings)
