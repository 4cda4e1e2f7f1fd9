"""The methods: one file each, one registry.

A method from outside imports what it needs from here; see `chip.plugins`.
"""

from collections.abc import Mapping

from chip.errors import InputError
from chip.methods.base import Method, Needs, WeightUpdate, membership
from chip.methods.chip import Chip
from chip.methods.combined import Combined
from chip.methods.gated import Gated
from chip.methods.gated_text import GatedText
from chip.methods.settings import setting, settings_of
from chip.methods.shielded import Shielded
from chip.methods.shielded_gated import ShieldedGated
from chip.methods.shielded_gated_text import ShieldedGatedText
from chip.plugins import load_plugins

__all__ = [
    "DEFAULT",
    "METHODS",
    "Chip",
    "Combined",
    "Gated",
    "GatedText",
    "Method",
    "Needs",
    "Shielded",
    "ShieldedGated",
    "ShieldedGatedText",
    "WeightUpdate",
    "find_methods",
    "make_method",
    "membership",
    "register_method",
    "setting",
]

DEFAULT = Combined
"""What `edit` takes where no method is given."""
METHODS: dict[str, type[Method]] = {}
"""Name, as `--method` takes it -> class."""


def register_method(method: type[Method]) -> type[Method]:
    """Make a method known to the command line and to `make_method`; it may be used as a class decorator.

    Raises:
        InputError: another method has this name.
    """
    if METHODS.setdefault(method.name, method) is not method:
        raise InputError(
            "a method of this name is registered already; choose another", argument="name", value=method.name
        )
    return method


for _method in (Combined, Shielded, Gated, GatedText, ShieldedGated, ShieldedGatedText, Chip):
    register_method(_method)


def find_methods() -> Mapping[str, type[Method]]:
    """All methods by name, those of plugins among them."""
    load_plugins()
    return METHODS


def make_method(name: str, settings: Mapping[str, float | str]) -> Method:
    """The method of this name with these settings; all others have their defaults.

    Raises:
        InputError: there is no such method, or it has no such setting, or the value is outside its range.
    """
    methods = find_methods()
    if name not in methods:
        raise InputError(f"there are {', '.join(methods)}", argument="method", value=name)
    own = settings_of(methods[name])
    for given, value in settings.items():
        if given not in own:
            raise InputError(f"not a setting of method {name}; drop it", argument=given, value=value)
    return methods[name](**settings)
