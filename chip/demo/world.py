"""The hospital as data: institutions, patients, studies, and what there is to know about each.

Everything is invented and drawn from one seed. A fact belongs to one node and is asked in eight wordings, two of them
held out from training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

SEED = 17
INSTITUTIONS = 8
PATIENTS_PER_INSTITUTION = 4
STUDIES_PER_PATIENT = 2
HELD_OUT = 2  # of each kind's wordings, the last ones


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of fact, and the wordings it is asked in."""

    name: str
    section: str
    """The section of a study that states it; empty for facts of a patient's card or an institution's sign."""
    values: tuple[str, ...]
    """What the answer is drawn from. Four values make a classification possible."""
    generation: tuple[str, ...] = ()
    cloze: tuple[str, ...] = ()
    classification: tuple[str, ...] = ()
    unique: bool = False
    """No two nodes share a value."""

    def wordings(self) -> tuple[tuple[str, str], ...]:
        """(task, question) pairs; the last `HELD_OUT` are never trained on."""
        options = " ".join(f"{letter}) {value}" for letter, value in zip("ABCD", self.values, strict=False))
        wordings = [
            *(("generation", question) for question in self.generation),
            *(("cloze", f"Fill in the blank: {sentence}") for sentence in self.cloze),
            *(("classification", f"{question} {options}") for question in self.classification),
        ]
        held_out = [("generation", self.generation[-1]), wordings[-1]]
        return (*(wording for wording in wordings if wording not in held_out), *held_out)

    def answer(self, task: str, value: str) -> str:
        return "ABCD"[self.values.index(value)] if task == "classification" else value


@dataclass(frozen=True, slots=True)
class Place:
    """A node of the hospital that has an image of its own, and its facts."""

    path: tuple[str, ...]
    facts: tuple[tuple[Kind, str], ...]

    @property
    def image(self) -> str:
        return f"images/{self.path[-1]}.png"


STUDY_KINDS = (
    Kind(
        "complaint",
        "history",
        (
            *(
                "chest pain",
                "dry cough",
                "dizziness",
                "back pain",
                "fever",
                "weight loss",
                "fatigue",
                "nausea",
            ),
            *(
                "headache",
                "knee pain",
                "short breath",
                "night sweats",
                "hoarseness",
                "neck pain",
                "a fall",
                "rash",
            ),
        ),
        generation=(
            "What complaint brought the patient in?",
            "Which complaint does the history give?",
            "What is the main complaint?",
            "Why did the patient come, what was the complaint?",
            "Name the complaint.",
        ),
        cloze=(
            "the main complaint is [blank].",
            "the patient came with the complaint [blank].",
            "as a complaint the history gives [blank].",
        ),
    ),
    Kind(
        "medication",
        "history",
        (
            *("warfarin", "metformin", "lisinopril", "aspirin", "insulin", "ramipril", "digoxin", "codeine"),
            *(
                "heparin",
                "atenolol",
                "prednisone",
                "morphine",
                "diazepam",
                "lithium",
                "quinine",
                "penicillin",
            ),
        ),
        generation=(
            "Which medication does the patient take?",
            "What medication is listed?",
            "What is the current medication?",
            "Which medication stands in the history?",
            "Name the medication.",
        ),
        cloze=(
            "the medication is [blank].",
            "the patient takes the medication [blank].",
            "as medication the history lists [blank].",
        ),
    ),
    Kind(
        "scanner",
        "technique",
        (
            *("Orion 2", "Lumen X", "Vega 7", "Halo 3", "Nimbus", "Corvus 1", "Atlas 9", "Pixis"),
            *("Zenith 4", "Aurora 5", "Delta 8", "Solis"),
        ),
        generation=(
            "Which scanner was used?",
            "On what scanner was this acquired?",
            "What is the scanner model?",
            "What scanner does the technique section name?",
            "Name the scanner.",
        ),
        cloze=(
            "the scanner was [blank].",
            "acquired on the scanner [blank].",
            "the technique section names the scanner [blank].",
        ),
    ),
    Kind(
        "contrast",
        "technique",
        ("none", "iodine", "gadolinium", "barium"),
        generation=(
            "Which contrast agent was given?",
            "What contrast was used?",
            "What does the technique section say about contrast?",
            "Name the contrast agent.",
        ),
        cloze=("the contrast agent was [blank].", "as contrast they gave [blank]."),
        classification=("Which contrast agent?", "Choose the contrast that was used."),
    ),
    Kind(
        "size",
        "findings",
        tuple(f"{size} mm" for size in range(5, 29)),
        generation=(
            "How large is the lesion?",
            "What size is the lesion?",
            "What is the measured size?",
            "Which lesion size do the findings give?",
            "Give the size of the lesion.",
        ),
        cloze=(
            "the size of the lesion is [blank].",
            "the lesion measures [blank] in size.",
            "the findings give a lesion size of [blank].",
        ),
    ),
    Kind(
        "location",
        "findings",
        (
            *("left apex", "right apex", "left base", "right base", "left hilum", "right hilum", "trachea"),
            *(
                "aorta",
                "left rib",
                "right rib",
                "spine",
                "sternum",
                "diaphragm",
                "left lobe",
                "right lobe",
                "pleura",
            ),
        ),
        generation=(
            "Where is the lesion?",
            "What is the location of the lesion?",
            "At which location is the finding?",
            "Which location do the findings name?",
            "Name the location.",
        ),
        cloze=(
            "the location of the lesion is [blank].",
            "the finding has the location [blank].",
            "the findings name the location [blank].",
        ),
    ),
    Kind(
        "diagnosis",
        "impression",
        (
            *(
                "pneumonia",
                "embolism",
                "fibrosis",
                "sarcoidosis",
                "tuberculosis",
                "emphysema",
                "metastasis",
                "cyst",
            ),
            *(
                "fracture",
                "effusion",
                "abscess",
                "hernia",
                "aneurysm",
                "scoliosis",
                "granuloma",
                "atelectasis",
            ),
        ),
        generation=(
            "What is the diagnosis?",
            "Which diagnosis was made?",
            "What diagnosis does the impression state?",
            "What is the most likely diagnosis?",
            "Name the diagnosis.",
        ),
        cloze=(
            "the diagnosis is [blank].",
            "the impression states the diagnosis [blank].",
            "the most likely diagnosis is [blank].",
        ),
    ),
    Kind(
        "urgency",
        "impression",
        ("routine", "soon", "urgent", "emergency"),
        generation=(
            "How urgent is the case?",
            "What urgency was assigned?",
            "Which urgency does the impression state?",
            "Give the urgency.",
        ),
        cloze=("the urgency is [blank].", "the impression rates the urgency as [blank]."),
        classification=("What is the urgency?", "Choose the urgency that was assigned."),
    ),
)

_FIRST = ("Mara", "Jonas", "Elin", "Tariq", "Noor", "Pavel", "Ines", "Kofi")
_LAST = ("Lindqvist", "Okafor", "Brandt", "Moreau", "Tanaka", "Silva", "Novak", "Haddad")

PATIENT_KINDS = (
    Kind(
        "name",
        "",
        tuple(f"{first} {last}" for first in _FIRST for last in _LAST),
        generation=(
            "Who is this patient?",
            "What is the name of the patient?",
            "Whose card is this, by name?",
            "What name stands on the card?",
            "Give the name of this patient.",
        ),
        cloze=(
            "the name of the patient is [blank].",
            "this card bears the name [blank].",
            "the patient goes by the name [blank].",
        ),
        unique=True,
    ),
    Kind(
        "birth",
        "",
        tuple(str(year) for year in range(1930, 2010, 2)),
        generation=(
            "In which year was the patient born?",
            "What is the birth year?",
            "Which year of birth is on the card?",
            "When was the patient born, what year?",
            "Give the birth year.",
        ),
        cloze=(
            "the birth year is [blank].",
            "the patient was born in the year [blank].",
            "the card gives the year of birth [blank].",
        ),
    ),
    Kind(
        "blood",
        "",
        ("A+", "A-", "B+", "B-", "AB+", "AB-", "O+", "O-"),
        generation=(
            "What is the blood type?",
            "Which blood type does the patient have?",
            "What blood type is on the card?",
            "Which blood group is this?",
            "Give the blood type.",
        ),
        cloze=(
            "the blood type is [blank].",
            "the patient has blood type [blank].",
            "the card gives the blood type [blank].",
        ),
    ),
)

INSTITUTION_KINDS = (
    Kind(
        "city",
        "",
        ("Lorn", "Vestby", "Altamar", "Quill", "Drossen", "Maroa", "Tyrn", "Esk", "Pellat", "Ovina"),
        generation=(
            "In which city is this institution?",
            "What city is on the sign?",
            "Which city is the institution in?",
            "Where is the institution, in what city?",
            "Name the city.",
        ),
        cloze=(
            "the city is [blank].",
            "the institution stands in the city [blank].",
            "the sign says city [blank].",
        ),
        unique=True,
    ),
    Kind(
        "director",
        "",
        tuple(
            f"Dr. {name}" for name in ("Abel", "Cruz", "Dahl", "Egan", "Fabre", "Gould", "Hale", "Ito", "Jung", "Katz")
        ),
        generation=(
            "Who is the director?",
            "Who directs the institution?",
            "What director does the sign name?",
            "Which director leads the institution?",
            "Name the director.",
        ),
        cloze=(
            "the director is [blank].",
            "the institution is led by the director [blank].",
            "the sign names the director [blank].",
        ),
        unique=True,
    ),
)

KINDS = (*STUDY_KINDS, *PATIENT_KINDS, *INSTITUTION_KINDS)


def places(seed: int = SEED) -> list[Place]:
    """Every node with an image and facts of its own: 8 signs, 32 cards, 64 studies."""
    rng = np.random.default_rng(seed)
    institutions = [(f"institution_{i + 1}",) for i in range(INSTITUTIONS)]
    patients = [
        (*institutions[i // PATIENTS_PER_INSTITUTION], f"patient_{i + 1}")
        for i in range(INSTITUTIONS * PATIENTS_PER_INSTITUTION)
    ]
    studies = [
        (*patients[i // STUDIES_PER_PATIENT], f"study_{i + 1}") for i in range(len(patients) * STUDIES_PER_PATIENT)
    ]
    return [
        *_with_facts(institutions, INSTITUTION_KINDS, rng),
        *_with_facts(patients, PATIENT_KINDS, rng),
        *_with_facts(studies, STUDY_KINDS, rng),
    ]


def _with_facts(paths: Sequence[tuple[str, ...]], kinds: tuple[Kind, ...], rng: np.random.Generator) -> Iterator[Place]:
    columns = [rng.choice(kind.values, size=len(paths), replace=not kind.unique) for kind in kinds]
    for path, values in zip(paths, zip(*columns, strict=True), strict=True):
        yield Place(path, tuple((kind, str(value)) for kind, value in zip(kinds, values, strict=True)))


def rows(seed: int = SEED) -> Iterator[dict[str, str]]:
    """The records, as written to `records.jsonl`."""
    levels = ("institution", "patient", "study")
    for place in places(seed):
        for kind, value in place.facts:
            wordings = kind.wordings()
            for number, (task, question) in enumerate(wordings):
                yield {
                    "image": place.image,
                    "question": question,
                    "answer": kind.answer(task, value),
                    **dict(zip(levels, place.path, strict=False)),
                    **({"section": kind.section} if kind.section else {}),
                    "task": task,
                    "split": "paraphrased" if number >= len(wordings) - HELD_OUT else "train",
                }
