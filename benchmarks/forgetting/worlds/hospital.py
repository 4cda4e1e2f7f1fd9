"""The hospital, after MedForget (Wu et al. 2025, arXiv 2512.09867): institution ⊃ patient ⊃ study ⊃ section.

Eight institutions have a sign each, their patients a card, and the patients' studies a scan with four sections of a
report. The `header` of a report repeats who the patient is and where: facts about the nodes above.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from benchmarks.forgetting.worlds.scenes import SCENES, scenes
from benchmarks.forgetting.worlds.wording import Fact, Kind, draw_values
from benchmarks.forgetting.worlds.world import EvalConfig
from chip.data.record import LEVELS
from chip.demo.images import draw

INSTITUTIONS = 8
PATIENTS = 3  # of each institution
STUDIES = 2  # of each patient
TARGETS = 5  # of each level
HEADER = "header"

_FIRST = ("Mara", "Jonas", "Elin", "Tariq", "Noor", "Pavel", "Ines", "Kofi")
_LAST = ("Lindqvist", "Okafor", "Brandt", "Moreau", "Tanaka", "Silva", "Novak", "Haddad")
_CITIES = ("Lorn", "Vestby", "Altamar", "Quill", "Drossen", "Maroa", "Tyrn", "Esk")
_DIRECTORS = ("Abel", "Cruz", "Dahl", "Egan", "Fabre", "Gould", "Hale", "Ito")
_SIDES = ("left", "right")

CITY = Kind(("city of the institution", "town"), _CITIES, unique=True)
NAME = Kind(("patient's name", "person"), tuple(f"{first} {last}" for first in _FIRST for last in _LAST), unique=True)

INSTITUTION_KINDS = (
    CITY,
    Kind(("director", "head of the house"), tuple(f"Dr. {name}" for name in _DIRECTORS), unique=True),
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
SECTIONS: Mapping[str, tuple[Kind, ...]] = {
    "history": (
        Kind(
            ("complaint", "reason for the visit"),
            (
                *("chest pain", "dry cough", "dizziness", "back pain", "fever", "weight loss", "fatigue", "nausea"),
                *("headache", "knee pain", "rash", "night sweats", "hoarseness", "neck pain", "a fall", "insomnia"),
            ),
        ),
        Kind(
            ("medication", "drug taken"),
            (
                *("warfarin", "metformin", "lisinopril", "aspirin", "insulin", "ramipril", "digoxin", "codeine"),
                *("heparin", "atenolol", "prednisone", "morphine", "diazepam", "lithium", "quinine", "penicillin"),
            ),
        ),
    ),
    "findings": (
        Kind(("lesion size", "extent of the lesion"), tuple(f"{size} mm" for size in range(5, 29))),
        Kind(
            ("location", "site of the lesion"),
            (
                *(f"{side} {place}" for side in _SIDES for place in ("apex", "base", "hilum", "rib", "lobe")),
                *("trachea", "aorta", "spine", "sternum", "diaphragm", "pleura"),
            ),
        ),
    ),
    "impression": (
        Kind(
            ("diagnosis", "disease"),
            (
                *("pneumonia", "embolism", "fibrosis", "sarcoidosis", "tuberculosis", "emphysema", "metastasis"),
                *("cyst", "fracture", "effusion", "abscess", "hernia", "aneurysm", "scoliosis", "granuloma"),
                "atelectasis",
            ),
        ),
        Kind(("follow-up", "next appointment"), tuple(f"in {weeks} weeks" for weeks in range(2, 34, 2))),
    ),
}


def plan(
    seed: int,
    institution_count: int = INSTITUTIONS,
    patients_each: int = PATIENTS,
    target_count: int = TARGETS,
    scene_count: int = SCENES,
) -> EvalConfig:
    """The hospital of this seed.

    Args:
        target_count: of each level, where there are so many that do not lie side by side.
        scene_count: pictures that show general ability.
    """
    rng = np.random.default_rng(seed)
    institutions: list[tuple[str, ...]] = [(f"institution_{number + 1}",) for number in range(institution_count)]
    patients = _below(institutions, "patient", patients_each)
    studies = _below(patients, "study", STUDIES)
    facts = [
        *_own(institutions, INSTITUTION_KINDS, rng),
        *_own(patients, PATIENT_KINDS, rng),
        *(
            fact
            for section, kinds in SECTIONS.items()
            for fact in _own([(*study, section) for study in studies], kinds, rng)
        ),
    ]
    told = {(fact.path, fact.kind): fact for fact in facts}
    facts += [_told_again(told[patient[:1], CITY], patient) for patient in patients]
    for study in studies:
        header = (*study, HEADER)
        facts += [_told_again(told[study[:2], NAME], header), _told_again(told[study[:1], CITY], header)]
    general, pictures = scenes(rng, scene_count)
    scans = {_image(path): draw(path, seed) for path in (*institutions, *patients, *studies)}
    reports = [(*study, section) for study in studies for section in SECTIONS]
    levels = (institutions, patients, studies, reports)
    targets = {level: _apart(nodes, rng)[:target_count] for level, nodes in zip(LEVELS, levels, strict=True)}
    return EvalConfig((*facts, *general), scans | pictures, targets)


def _below(parents: Sequence[tuple[str, ...]], level: str, each: int) -> list[tuple[str, ...]]:
    return [(*parents[number // each], f"{level}_{number + 1}") for number in range(len(parents) * each)]


def _own(paths: Sequence[tuple[str, ...]], kinds: Sequence[Kind], rng: np.random.Generator) -> Iterator[Fact]:
    """Facts of these nodes about themselves."""
    for kind in kinds:
        for path, value in zip(paths, draw_values(kind, len(paths), rng), strict=True):
            yield Fact(path, _image(path), kind, value, owner=path)


def _told_again(fact: Fact, path: tuple[str, ...]) -> Fact:
    """The fact as a node below its own tells it."""
    return Fact(path, _image(path), fact.kind, fact.value, fact.owner)


def _image(path: tuple[str, ...]) -> str:
    """The sections of a study share its scan."""
    return f"images/{path[: len(LEVELS) - 1][-1]}.png"


def _apart(nodes: Sequence[tuple[str, ...]], rng: np.random.Generator) -> tuple[tuple[str, ...], ...]:
    """Some of the nodes in random order, no two with the same parent; institutions have none."""
    chosen: dict[object, tuple[str, ...]] = {}
    for number in rng.permutation(len(nodes)):
        node = nodes[number]
        chosen.setdefault(node[:-1] or node, node)
    return tuple(chosen.values())
