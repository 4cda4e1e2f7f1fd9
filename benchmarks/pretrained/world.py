"""The patients that a pretrained model is taught: a part of the hospital, asked about with a picture, or by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.forgetting.worlds.files import write
from benchmarks.forgetting.worlds.hospital import (
    CITY,
    INSTITUTION_KINDS,
    NAME,
    PATIENT_KINDS,
    SECTIONS,
    apart,
    own_facts,
)
from benchmarks.forgetting.worlds.wording import Fact, Kind
from benchmarks.forgetting.worlds.world import World, WorldSpec
from chip.data.record import LEVELS
from chip.demo.images import draw
from chip.demo.world import Path as NodePath
from chip.demo.world import hospital_tree, image_of

SEED = 0
STUDY_KINDS: Mapping[str, Kind] = {"history": SECTIONS["history"][1], "impression": SECTIONS["impression"][0]}
"""Section -> what its report says: the medication, and the diagnosis."""


@dataclass(frozen=True)
class Size:
    """How many there are of each; twelve patients by default, with 36 pictures less than a training of an hour."""

    institutions: int = 6
    patients: int = 2
    """Of each institution."""
    studies: int = 2
    """Of each patient."""
    targets: int = 3
    """Of each level; no two lie side by side where there is room for that."""


def build(size: Size, folder: Path) -> World:
    """Draw the world and write it into `folder`; the same bytes for the same size."""
    return write("pretrained", SEED, plan(size), folder)


def plan(size: Size) -> WorldSpec:
    """Facts that a picture shows, and most of them once more in text only, by name.

    An institution goes by its city, a patient by name, and a study by its number and the patient's name; so what tells
    whom a question is about is the picture, or a few words, and never both.
    """
    rng = np.random.default_rng(SEED)
    institutions, patients, studies = hospital_tree(size.institutions, size.patients, size.studies)
    facts = [*own_facts(institutions, INSTITUTION_KINDS, rng), *own_facts(patients, PATIENT_KINDS, rng)]
    for section, kind in STUDY_KINDS.items():
        facts += own_facts([(*study, section) for study in studies], (kind,), rng)
    pictures = {image_of(path): draw(path, SEED) for path in (*institutions, *patients, *studies)}
    levels = zip(LEVELS[:-1], (institutions, patients, studies), strict=True)
    targets = {level: apart(nodes, rng)[: size.targets] for level, nodes in levels if len(nodes) > size.targets}
    return WorldSpec((*facts, *_by_name(facts, size.studies)), pictures, targets)


def _by_name(facts: list[Fact], studies_each: int) -> Iterator[Fact]:
    """The facts that are no name themselves, asked without a picture."""
    named = {(fact.path, fact.kind): fact.value for fact in facts}
    for fact in facts:
        if fact.kind not in (CITY, NAME):
            yield replace(fact, image=None, about=_name(fact.path, named, studies_each))


def _name(path: NodePath, named: Mapping[tuple[NodePath, Kind], str], studies_each: int) -> str:
    if len(path) == 1:
        return f"Institution in {named[path, CITY]}"
    patient = f"Patient {named[path[:2], NAME]}"
    if len(path) == 2:
        return patient
    number = (int(path[2].rpartition("_")[2]) - 1) % studies_each + 1
    return f"{patient}, study {number}"
