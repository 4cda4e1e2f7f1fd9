"""TOFU (Maini et al. 2024, arXiv 2401.06121): questions about authors who do not exist, without images."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace

from chip.data.readers.fields import parse_object, parse_text
from chip.data.readers.records_file import RecordsFile
from chip.data.record import Record
from chip.errors import ChipWarning

COLUMNS = {
    *("question", "answer", "paraphrased_question", "paraphrased_answer", "perturbed_answer"),
    *("option1", "option2", "option3", "option4"),  # of its questions about real authors and facts
}
"""All that TOFU's files have. With any other column, a file of questions and answers is not TOFU's."""

_QUESTIONS = 20  # of an author, one author after the other


class Tofu:
    """A .json, .jsonl or .parquet file that holds `question` and `answer`, and no more than TOFU has beside them.

    No hierarchy is given. A file is a node, and in it each author, `retain90/author_7`: 20 questions, as TOFU orders
    them. A paraphrased question is held out. With a map, such a file is a table of questions like any other.
    """

    def matches(self, file: RecordsFile) -> bool:
        return file.owners is None and {"question", "answer"} <= file.columns <= COLUMNS

    def read(self, file: RecordsFile) -> Iterator[Record]:
        for number, (row, where) in enumerate(file.rows()):
            entry = parse_object(row, where)
            ids = {"institution": file.path.stem, "patient": f"author_{number // _QUESTIONS + 1}"}
            question, answer = (parse_text(entry.get(key), key, where) for key in ("question", "answer"))
            record = file.placed(Record(question, answer, (), None, split=file.split, where=where), ids, entry)
            yield record
            if "paraphrased_question" in entry:
                paraphrased = parse_text(entry["paraphrased_question"], "paraphrased_question", where)
                yield replace(record, question=paraphrased, split="paraphrased")
        message = f"says of no record whose it is, and is read as TOFU's: {_QUESTIONS} questions each of an author"
        warnings.warn(f"{file.path.name}: {message}", ChipWarning, stacklevel=2)
