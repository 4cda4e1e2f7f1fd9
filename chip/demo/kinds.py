"""What there is to know about each node of the demo's hospital, and the questions that ask for it."""

from __future__ import annotations

from dataclasses import dataclass

from chip.demo.vocabulary import (
    CITIES,
    COMPLAINTS,
    DIAGNOSES,
    DIRECTORS,
    LESION_SIZES,
    LOCATIONS,
    MEDICATIONS,
    NAMES,
    SCANNERS,
)

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


STUDY_KINDS = (
    Kind(
        "complaint",
        "history",
        COMPLAINTS,
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
        MEDICATIONS,
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
        SCANNERS,
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
        cloze=(
            "the contrast agent was [blank].",
            "as contrast they gave [blank].",
        ),
        classification=(
            "Which contrast agent?",
            "Choose the contrast that was used.",
        ),
    ),
    Kind(
        "size",
        "findings",
        LESION_SIZES,
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
        LOCATIONS,
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
        DIAGNOSES,
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
        cloze=(
            "the urgency is [blank].",
            "the impression rates the urgency as [blank].",
        ),
        classification=(
            "What is the urgency?",
            "Choose the urgency that was assigned.",
        ),
    ),
)

PATIENT_KINDS = (
    Kind(
        "name",
        "",
        NAMES,
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
        CITIES,
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
        DIRECTORS,
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
