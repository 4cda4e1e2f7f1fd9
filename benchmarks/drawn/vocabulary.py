"""What facts, answers and wordings are drawn from."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.forgetting.worlds.hospital import CITY, INSTITUTION_KINDS, NAME, PATIENT_KINDS, SECTIONS
from benchmarks.forgetting.worlds.wording import Kind
from chip.demo.vocabulary import SCANNERS

__all__ = ["CITY", "INSTITUTION", "MODALITY", "NAME", "PATIENT", "SECTION_KINDS", "TEMPLATES"]

MODALITY = Kind(
    ("imaging modality", "kind of machine"),
    ("radiograph", "tomography", "ultrasound", "resonance", "scintigraphy", "endoscopy", "angiogram", "elastography"),
)
"""The institution's: it has one kind of machine, and its patients' pictures are made with it."""
INSTITUTION = (
    *INSTITUTION_KINDS,
    Kind(("number of beds", "bed count"), tuple(f"{count} beds" for count in range(40, 200, 10))),
)
PATIENT = (
    *(kind for kind in PATIENT_KINDS if kind is not NAME),
    Kind(
        ("occupation", "line of work"),
        ("baker", "carpenter", "clerk", "diver", "farmer", "miner", "nurse", "tailor"),
    ),
    Kind(("blood group", "serotype"), ("A pos", "A neg", "B pos", "B neg", "AB pos", "AB neg", "O pos", "O neg")),
)
SECTION_KINDS: Mapping[str, tuple[Kind, ...]] = {
    "history": (
        *SECTIONS["history"],
        Kind(("allergy", "known intolerance"), ("latex", "pollen", "nuts", "eggs", "nickel", "iodine", "dust", "milk")),
    ),
    "technique": (
        Kind(("scanner", "device used"), SCANNERS),
        Kind(("slice thickness", "distance of the slices"), tuple(f"{n}.5 mm" for n in range(1, 17))),
        Kind(("protocol", "scan program"), tuple(f"program {letter}" for letter in "BDFGHKLMPRSTVWXZ")),
    ),
    "findings": (
        *SECTIONS["findings"],
        Kind(
            ("margin", "edge of the lesion"),
            ("sharp", "blurred", "lobed", "spiky", "wavy", "flat", "raised", "faint"),
        ),
    ),
    "impression": (
        *SECTIONS["impression"],
        Kind(("confidence", "certainty of the reading"), tuple(f"{n} percent" for n in range(20, 100, 5))),
    ),
    "plan": (
        Kind(
            ("procedure", "next intervention"),
            ("biopsy", "drainage", "stent", "bypass", "graft", "dialysis", "ablation", "puncture"),
        ),
        Kind(("ward", "floor of the stay"), tuple(f"ward {n}" for n in range(11, 27))),
        Kind(("diet", "food ordered"), ("soup", "rice", "broth", "fruit", "bread", "fish", "oats", "beans")),
    ),
}

_SAID = {
    "generation": (
        "What is the {term}?",
        "Name the {term}.",
        "Which {term} is it?",
        "State the {term}.",
        "Tell me the {term}.",
        "Please give the {term}.",
        "What {term} do you know?",
        "Say what the {term} is.",
        "I ask for the {term}.",
        "Report the {term}.",
        "Could you name the {term}?",
        "Let me hear the {term}.",
    ),
    "cloze": (
        "The {term} is [blank].",
        "The {term}: [blank].",
        "As {term} it says [blank].",
        "Recorded {term}: [blank].",
        "Fill in: the {term} is [blank].",
        "Here the {term} reads [blank].",
        "[blank] is the {term}.",
        "For the {term} we have [blank].",
        "It has the {term} [blank].",
        "The {term} was given as [blank].",
        "Under {term} stands [blank].",
        "We know that the {term} is [blank].",
    ),
    "classification": (
        "Which is the {term}?",
        "Choose the {term}:",
        "Pick the {term}:",
        "Which letter is the {term}?",
        "Select the {term}.",
        "Mark the {term}:",
        "Of these, what is the {term}?",
        "Which one is the {term}?",
        "Decide on the {term}:",
        "Tick the {term}.",
        "Which option is the {term}?",
        "Find the {term} among these:",
    ),
}
TEMPLATES: Mapping[str, tuple[str, ...]] = {
    task: tuple(text.replace("{term}", name) for text in texts for name in ("{term}", "{other}"))
    for task, texts in _SAID.items()
}
"""Task -> templates, each with both names of what is asked for, one after the other."""
