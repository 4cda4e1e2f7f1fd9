"""The rows of a file as readers take them: what each holds, whose it is, and that nothing in it is passed over."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from chip.data.readers.fields import parse_object, parse_split, parse_task, parse_text
from chip.data.readers.images import NO_IMAGES, Images, read_images
from chip.data.readers.records_file import OWN, RecordsFile
from chip.data.readers.unused import Unused
from chip.data.record import Record, Turn
from chip.errors import InputError


def entries(file: RecordsFile, known: Collection[str]) -> Iterator[Entry]:
    """The rows without their nulls; at their end a `ChipWarning` of keys that are not used.

    Args:
        known: keys that the format has, beside `OWN`.

    Raises:
        InputError: a row is no object, or holds data under a key that is not known.
    """
    unused, known = Unused(file.path.name, file.mapped_columns), {*known, *OWN}
    for row, where in file.rows():
        entry = Entry(file, parse_object(row, where), where, unused)
        unused.total += 1
        unused.look(entry.row, known, where)
        yield entry
    unused.say()


@dataclass(frozen=True)
class Entry:
    """One row."""

    file: RecordsFile
    row: Mapping[str, Any]
    where: str
    """As a record has it."""
    unused: Unused

    def text(self, key: str) -> str:
        """Raises `InputError` where it is no text, or an empty one."""
        return parse_text(self.row.get(key), key, self.where)

    def images(self, *keys: str) -> Images:
        """What is under the one of the keys that the row has; nothing where it has none.

        Raises:
            InputError: it has two of them, or an image is not there.
        """
        if self.row.keys().isdisjoint(keys):
            return NO_IMAGES
        given = [key for key in keys if key in self.row and not (key.endswith("s") and self.row[key] in ([], "[]"))]
        if len(given) > 1:
            raise InputError(f"{self.where}: {given[0]} and {given[1]} both hold images; leave one of them out")
        return read_images(self.row[given[0]], self.file.images, self.where) if given else Images()

    def owned_by(self, ids: Mapping[str, object]) -> Entry:
        """The entry with the ids of its levels, as the format has them under names of its own."""
        return replace(self, row={**self.row, **ids})

    def record(
        self, question: str, answer: str, images: Images, history: Sequence[Turn] = (), task: str = "generation"
    ) -> Record:
        """A record of this row; the row itself, or a map, says whose it is.

        Args:
            task: what it asks for, where the row does not say that.

        Raises:
            InputError: it belongs nowhere, or its task or split is none.
        """
        record = Record(
            question,
            answer,
            (),
            next(iter(images.sources), None),
            parse_task(self.row.get("task", task), self.where),
            parse_split(self.row.get("split", self.file.split), self.where),
            self.where,
            tuple(history),
            images.sources[1:],
        )
        return self.file.placed(record, self.row, self.row, images)
