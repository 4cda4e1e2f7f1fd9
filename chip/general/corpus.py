"""The text that comes with chip: prose that nobody has rights to, beginnings of sentences, and plain questions."""

from __future__ import annotations

from importlib.resources import files

from chip.data.keep import cut_prose


def prose() -> list[str]:
    """Pieces of a novel, in its order."""
    return cut_prose(_read("alice.txt"))


def openers() -> list[str]:
    """Beginnings of sentences about many things, for a model to go on from."""
    return _read("openers.txt").splitlines()


def questions() -> list[str]:
    """What anybody might ask; none is about a record."""
    return _read("questions.txt").splitlines()


def _read(name: str) -> str:
    return (files("chip.general") / "corpus" / name).read_text(encoding="utf-8")
