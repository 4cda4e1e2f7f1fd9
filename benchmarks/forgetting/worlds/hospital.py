"""The hospital, after MedForget (Wu et al. 2025, arXiv 2512.09867): institution ⊃ patient ⊃ study ⊃ section.

Eight institutions have a sign each, their patients a card, and the patients' studies a scan with four sections of a
report: the demo's hospital, asked about in other words, with facts for its sections. The `header` of a report repeats
who the patient is and where: facts about the nodes above.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from benchmarks.forgetting.worlds.scenes import SCENES, scenes
from benchmarks.forgetting.worlds.wording import Fact, Kind, draw_values
from benchmarks.forgetting.worlds.world import WorldSpec
from chip.data.record import LEVELS
from chip.demo.images import draw
from chip.demo.vocabulary import CITIES, COMPLAINTS, DIAGNOSES, DIRECTORS, LESION_SIZES, MEDICATIONS, NAMES
from chip.demo.world import Path, hospital_tree, image_of

INSTITUTIONS = 8
PATIENTS = 3  # of each institution
STUDIES = 2  # of each patient
TARGETS = 5  # of each level
HEADER = "header"

CITY = Kind(("city of the institution", "town"), CITIES[:8], unique=True)
NAME = Kind(("patient's name", "person"), NAMES, unique=True)

INSTITUTION_KINDS = (
    CITY,
    Kind(("director", "head of the house"), DIRECTORS[:8], unique=True),
    Kind(("founding year", "year of opening"), tuple(str(year) for year in range(1850, 1946, 4))),
)
PATIENT_KINDS = (
    NAME,
    Kind(("birth year", "year of birth"), tuple(str(year) for year in range(1947, 2011, 2))),
    Kind(
        ("insurer", "health plan"),
        ("Birk", "Calyx", "Domus", "Ferrum", "Gallia", "Hestia", "Juno", "Lumia", "Nova", "Orbis", "Pax", "Tellus"),
    ),
)
_OTHERS = {"short breath": "rash", "rash": "insomnia"}
"""Complaints that stand in the place of the demo's."""
_PAIRED = ("apex", "base", "hilum", "rib", "lobe")
_SINGLE = ("trachea", "aorta", "spine", "sternum", "diaphragm", "pleura")
SECTIONS: Mapping[str, tuple[Kind, ...]] = {
    "history": (
        Kind(
            ("complaint", "reason for the visit"), tuple(_OTHERS.get(complaint, complaint) for complaint in COMPLAINTS)
        ),
        Kind(("medication", "drug taken"), MEDICATIONS),
    ),
    "findings": (
        Kind(("lesion size", "extent of the lesion"), LESION_SIZES),
        Kind(
            ("location", "site of the lesion"),
            (*(f"{side} {place}" for side in ("left", "right") for place in _PAIRED), *_SINGLE),
        ),
    ),
    "impression": (
        Kind(("diagnosis", "disease"), DIAGNOSES),
        Kind(("follow-up", "next appointment"), tuple(f"in {weeks} weeks" for weeks in range(2, 34, 2))),
    ),
}


def plan(
    seed: int,
    institution_count: int = INSTITUTIONS,
    patients_each: int = PATIENTS,
    target_count: int = TARGETS,
    scene_count: int = SCENES,
) -> WorldSpec:
    """The hospital of this seed.

    Args:
        target_count: of each level, where there are so many that do not lie side by side.
        scene_count: pictures that show general ability.
    """
    rng = np.random.default_rng(seed)
    institutions, patients, studies = hospital_tree(institution_count, patients_each, STUDIES)
    facts = [
        *own_facts(institutions, INSTITUTION_KINDS, rng),
        *own_facts(patients, PATIENT_KINDS, rng),
        *(
            fact
            for section, kinds in SECTIONS.items()
            for fact in own_facts([(*study, section) for study in studies], kinds, rng)
        ),
    ]
    facts += _repeated(facts, patients, studies)
    general, pictures = scenes(rng, scene_count)
    scans = {image_of(path): draw(path, seed) for path in (*institutions, *patients, *studies)}
    reports = [(*study, section) for study in studies for section in SECTIONS]
    levels = (institutions, patients, studies, reports)
    targets = {level: apart(nodes, rng)[:target_count] for level, nodes in zip(LEVELS, levels, strict=True)}
    return WorldSpec((*facts, *general), scans | pictures, targets)


def own_facts(paths: Sequence[Path], kinds: Sequence[Kind], rng: np.random.Generator) -> Iterator[Fact]:
    """Facts of these nodes about themselves."""
    for kind in kinds:
        for path, value in zip(paths, draw_values(kind, len(paths), rng), strict=True):
            yield Fact(path, _image(path), kind, value, owner=path)


def _repeated(facts: Sequence[Fact], patients: Sequence[Path], studies: Sequence[Path]) -> list[Fact]:
    """Facts as nodes below their own state them: an institution's city by its patients, both and names by headers."""
    by_owner = {(fact.path, fact.kind): fact for fact in facts}
    repeated = [(by_owner[patient[:1], CITY], patient) for patient in patients]
    for study in studies:
        header = (*study, HEADER)
        repeated += [(by_owner[study[:2], NAME], header), (by_owner[study[:1], CITY], header)]
    return [Fact(path, _image(path), fact.kind, fact.value, fact.owner) for fact, path in repeated]


def _image(path: Path) -> str:
    """The sections of a study share its scan."""
    return image_of(path[: len(LEVELS) - 1])


def apart(nodes: Sequence[Path], rng: np.random.Generator) -> tuple[Path, ...]:
    """Some of the nodes in random order, no two with the same parent; institutions have none."""
    by_parent: dict[object, Path] = {}
    for number in rng.permutation(len(nodes)):
        node = nodes[number]
        by_parent.setdefault(node[:-1] or node, node)
    return tuple(by_parent.values())
