"""The hospital as data: institutions, patients, studies, and what there is to know about each.

Everything is invented and drawn from one seed. A fact belongs to one node and is asked in eight wordings, two of them
held out from training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from chip.demo.kinds import HELD_OUT, INSTITUTION_KINDS, PATIENT_KINDS, STUDY_KINDS, Kind

SEED = 17
INSTITUTIONS = 8
PATIENTS_PER_INSTITUTION = 4
STUDIES_PER_PATIENT = 2

Path = tuple[str, ...]
"""A node's ids, from the institution down."""


@dataclass(frozen=True, slots=True)
class Place:
    """A node of the hospital that has an image of its own, and its facts."""

    path: Path
    facts: tuple[tuple[Kind, str], ...]

    @property
    def image(self) -> str:
        return image_of(self.path)


def image_of(path: Path) -> str:
    """Where a node's picture lies, relative to the records file."""
    return f"images/{path[-1]}.png"


def hospital_tree(
    institutions: int, patients_each: int, studies_each: int
) -> tuple[list[Path], list[Path], list[Path]]:
    """The paths of a hospital's institutions, patients and studies, each numbered through the whole hospital."""
    roots: list[Path] = [(f"institution_{number + 1}",) for number in range(institutions)]
    patients = _below(roots, "patient", patients_each)
    return roots, patients, _below(patients, "study", studies_each)


def _below(parents: Sequence[Path], level: str, count: int) -> list[Path]:
    return [(*parents[number // count], f"{level}_{number + 1}") for number in range(len(parents) * count)]


def draw_values(values: Sequence[str], unique: bool, count: int, rng: np.random.Generator) -> list[str]:
    """A value for each of `count` nodes; where it is `unique`, no two nodes share one."""
    return [str(value) for value in rng.choice(values, size=count, replace=not unique)]


def places(seed: int = SEED) -> list[Place]:
    """Every node with an image and facts of its own: 8 signs, 32 cards, 64 studies."""
    rng = np.random.default_rng(seed)
    levels = hospital_tree(INSTITUTIONS, PATIENTS_PER_INSTITUTION, STUDIES_PER_PATIENT)
    kinds = (INSTITUTION_KINDS, PATIENT_KINDS, STUDY_KINDS)
    return [place for paths, of_level in zip(levels, kinds, strict=True) for place in places_of(paths, of_level, rng)]


def places_of(paths: Sequence[Path], kinds: Sequence[Kind], seed: int | np.random.Generator) -> Iterator[Place]:
    """These nodes, with a fact of each kind."""
    rng = np.random.default_rng(seed)  # a generator is taken as it is
    columns = [draw_values(kind.values, kind.unique, len(paths), rng) for kind in kinds]
    for path, values in zip(paths, zip(*columns, strict=True), strict=True):
        yield Place(path, tuple(zip(kinds, values, strict=True)))


def rows(seed: int = SEED) -> Iterator[dict[str, str]]:
    """The records, as written to `records.jsonl`."""
    return rows_of(places(seed))


def rows_of(places: Iterable[Place], sections: bool = True) -> Iterator[dict[str, str]]:
    """All questions about the places. `sections`: whether a fact is filed under the section that states it."""
    for place in places:
        for kind, value in place.facts:
            wordings = kind.wordings()
            for number, (task, question) in enumerate(wordings):
                yield {
                    "image": place.image,
                    "question": question,
                    "answer": kind.answer(task, value),
                    **levels_of(place.path),
                    **({"section": kind.section} if kind.section and sections else {}),
                    "task": task,
                    "split": "paraphrased" if number >= len(wordings) - HELD_OUT else "train",
                }


def levels_of(path: Path) -> dict[str, str]:
    """A node's ids by level, as a line of a records file has them."""
    return dict(zip(("institution", "patient", "study"), path, strict=False))
