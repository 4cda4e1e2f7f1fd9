"""Results that outlive a run, a file for each thing measured, found again by what was measured.

A key states facts and versions, never source code: a renamed variable leaves every result where it is. Whoever changes
what a method does raises the method's `version`; whoever changes how all are judged raises `PROTOCOL`.

Each file is written beside its place and renamed: a run may be killed at any moment, and the next one goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.forgetting import models
from benchmarks.forgetting.methods import BenchmarkMethod

PROTOCOL = 2
"""How methods are judged: the questions asked, the groups, measures and attacks. To be raised when any of that changes,
or a metric's code does."""


class Store:
    """Files of one kind."""

    def __init__(self, kind: str) -> None:
        self._folder = models.cache() / "forgetting" / "results" / kind

    def read(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """What was measured under this key; None where nothing was yet."""
        path = self.path(key)
        if not path.exists():
            return None
        value: dict[str, Any] = json.loads(path.read_text())["value"]
        return value

    def write(self, key: Mapping[str, Any], value: Mapping[str, Any]) -> None:
        """Store a value; NaN is allowed in it."""
        with atomic_write(self.path(key)) as beside:
            beside.write_text(json.dumps({"key": key, "value": value}) + "\n")

    def path(self, key: Mapping[str, Any], suffix: str = ".json") -> Path:
        """Of the file that belongs to a key, whose `world` names the folder."""
        text = json.dumps({"protocol": PROTOCOL, **key}, sort_keys=True)
        return self._folder / str(key["world"]) / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}{suffix}"


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A place to write a file at; it is renamed to `path` if all goes well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def method_key(method: BenchmarkMethod) -> dict[str, Any]:
    """All that decides what a method does: its name, its version, and its settings in their order.

    Settings count by their values alone, so that they may be renamed. Where one is itself a method (a control's), its
    key is part of the key.
    """
    values = (getattr(method, name) for name in method.settings)
    return {"method": method.name, "version": method.version, "settings": [_setting(value) for value in values]}


def _setting(value: Any) -> Any:
    if isinstance(value, BenchmarkMethod):
        return method_key(value)
    return value.name if isinstance(value, Path) else value  # a checkpoint, wherever its cache lies
