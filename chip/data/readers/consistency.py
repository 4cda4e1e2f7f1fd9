"""What records say twice, or in two ways: it may be meant so, and is said."""

from __future__ import annotations

import unicodedata
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from chip.data.record import Record
from chip.errors import ChipWarning

_SHOWN = 3


def warn_of_repeats(records: Sequence[Record], name: str) -> None:
    """Say by `ChipWarning`s about the file `name` which records, questions and ids occur more than once."""
    for said in (_repeated(records), _contradictory(records), _alike_ids(records)):
        if said:
            warnings.warn(f"{name}: {said}", ChipWarning, stacklevel=3)


def _repeated(records: Sequence[Record]) -> str:
    places = _places(records, lambda record: record)
    copies = sum(map(len, places)) - len(places)
    if not copies:
        return ""
    return f"copies of other records count like these ({copies:,}; {_listed(places[0])} are the same)"


def _contradictory(records: Sequence[Record]) -> str:
    """Questions about one image, or about none, that have several answers."""
    answers: dict[object, set[str]] = defaultdict(set)
    alike = [record for places in _alike(records, _input) for record in places]
    for record in alike:
        answers[_input(record)].add(record.answer.strip())
    several = dict.fromkeys(record for record in alike if len(answers[_input(record)]) > 1)
    places = _places(list(several), _input)
    if not places:
        return ""
    return (
        "the same question about the same image, or about none, has several answers "
        f"({len(places):,} times; {_listed(places[0])} ask one)"
    )


def _input(record: Record) -> object:
    return record.question.strip(), record.images, record.history


def _places(records: Sequence[Record], key: Callable[[Record], object]) -> list[list[str]]:
    """Where the records of each key stand that occurs more than once."""
    return [[record.where for record in alike] for alike in _alike(records, key)]


def _alike(records: Sequence[Record], key: Callable[[Record], object]) -> list[list[Record]]:
    """The records of each key that occurs more than once. Of the others' keys no more than a hash is held."""
    hashes = np.fromiter((hash(key(record)) for record in records), np.int64, len(records))
    _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    alike: dict[object, list[Record]] = defaultdict(list)
    for index in (counts[inverse] > 1).nonzero()[0].tolist():
        alike[key(records[index])].append(records[index])
    return [each for each in alike.values() if len(each) > 1]


def _alike_ids(records: Sequence[Record]) -> str:
    """Nodes whose ids differ in case, width or Unicode form alone."""
    nodes = dict.fromkeys(record.path[:depth] for record in records for depth in range(1, len(record.path) + 1))
    alike: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for *parents, last in nodes:
        alike[*parents, _folded(last)].append("/".join((*parents, last)))
    pairs = [paths for paths in alike.values() if len(paths) > 1]
    return f"{_listed(pairs[0])} differ in case or form alone, and are taken for different nodes" if pairs else ""


def _folded(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def _listed(items: Sequence[str]) -> str:
    shown = list(items[:_SHOWN])
    more = ["..."] if len(items) > _SHOWN else []
    return ", ".join((*shown, *more)) if more else " and ".join((", ".join(shown[:-1]), shown[-1]))
