"""Methods, readers and attacks from outside: modules that register theirs as soon as they are imported.

A package names such a module in the entry-point group `chip`; a single file is named by the environment variable
`CHIP_PLUGINS=module[,module]`, and must lie where Python finds modules, such as in a folder of `PYTHONPATH`.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points

from chip.errors import foreign_code

GROUP = "chip"
"""The entry-point group whose modules are imported."""
VARIABLE = "CHIP_PLUGINS"
"""The environment variable that names further ones."""


def load_plugins() -> None:
    """Import all plugins that are known; each is imported once. Every look-up in a registry calls this first.

    Raises:
        InputError: one of them cannot be imported.
    """
    _load(os.environ.get(VARIABLE, ""))


@cache
def _load(names: str) -> None:
    for point in entry_points(group=GROUP):
        _import(point.module, f"entry point {point.name!r} of the group {GROUP!r}")
    for name in filter(None, (name.strip() for name in names.split(","))):
        _import(name, VARIABLE)


def _import(module: str, source: str) -> None:
    with foreign_code(source, f"the module {module} cannot be imported", "is it on PYTHONPATH?"):
        import_module(module)
