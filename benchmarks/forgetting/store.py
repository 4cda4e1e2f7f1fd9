"""Files that outlive a run, one for each thing measured, named by all that decides it.

Each is written beside its place and renamed: a run may be killed at any moment, and the next one goes on.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.forgetting import models
from benchmarks.forgetting.methods import Method

FORMAT = 1
"""To be raised when the same is measured in another way."""


class Store:
    """Files of one kind."""

    def __init__(self, kind: str) -> None:
        self._folder = models.cache() / "forgetting" / "results" / kind

    def read(self, what: Mapping[str, Any]) -> dict[str, Any] | None:
        """What was found of this; None where nothing was yet."""
        path = self.path(what)
        if not path.exists():
            return None
        found: dict[str, Any] = json.loads(path.read_text())["found"]
        return found

    def write(self, what: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        with whole(self.path(what)) as beside:
            beside.write_text(json.dumps({"what": what, "found": found}) + "\n")

    def path(self, what: Mapping[str, Any], suffix: str = ".json") -> Path:
        """Of the file that holds what was found of `what`, whose `world` names the folder."""
        text = json.dumps({"format": FORMAT, **what}, sort_keys=True)
        return self._folder / str(what["world"]) / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}{suffix}"


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A place to write a file at; it is renamed to `path` if all goes well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def of_method(method: Method) -> dict[str, Any]:
    """All that decides what a method does: its settings, and the text of the modules that define it."""
    values = (getattr(method, each.name) for each in fields(method))
    kinds = [type(method), *(type(value) for value in values if isinstance(value, Method))]
    names = {each.__module__ for kind in kinds for each in kind.__mro__}
    own = sorted(name for name in names if name.partition(".")[0] not in sys.stdlib_module_names)
    code = hashlib.sha256("".join(map(_text, own)).encode()).hexdigest()
    return {"method": method.name, "settings": method.settings, "code": code}


@cache
def _text(module: str) -> str:
    return inspect.getsource(sys.modules[module])
