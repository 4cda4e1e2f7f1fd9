"""The attacks of an evaluation in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from chip.evaluation.rows import NO_ATTACK, Evaluation

PLAIN = "reconstruction: none"
"""A step that adds nothing: the question as it is."""


@dataclass(frozen=True)
class Kind:
    """One of `ATTACKS`."""

    title: str
    explanation: str


KINDS: Mapping[str, Kind] = {
    "reconstruction": Kind(
        "Reconstruction",
        "Does the model remember when it is told where to look? The question is led by more and more of the names of "
        "what it is about.",
    ),
    "cross-modal": Kind(
        "Cross-modal",
        "The question without its image, and with the image changed as files change on their way. Models answer less "
        "for it, the siblings too; what counts is whether the target comes back.",
    ),
    "quantization": Kind(
        "Quantization",
        "Models are often run with rounded weights. A small change may be lost in the rounding, and what it hid "
        "comes back.",
    ),
    "relearning": Kind(
        "Relearning",
        "The model is trained a little on records of others. What is only hidden returns with them; what is gone does "
        "not, or no faster than in a model that never knew it.",
    ),
    "membership": Kind(
        "Membership inference",
        "Can one tell, from how sure the model is of an answer, that it was trained on it? The measure is how often a "
        "right answer scores above a wrong one (AUC): 0.5 is a guess, 1 is always.",
    ),
}

_STEPS = {
    NO_ATTACK: "no attack",
    PLAIN: "the question alone",
    "reconstruction: institution": "institution named",
    "reconstruction: patient": "institution and patient named",
    "reconstruction: study": "institution, patient and study named",
    "cross-modal: without image": "without the image",
    "cross-modal: rotated": "image turned",
    "cross-modal: cropped": "image cropped",
    "cross-modal: jpeg": "image compressed",
    "quantization: 8 bits": "rounded to 8 bits",
    "quantization: 8 bits per channel": "rounded to 8 bits, one scale a row",
    "quantization: 4 bits": "rounded to 4 bits",
}


def step_words(attack: str) -> str:
    """An attack's step, as a row names it, in words; as it stands where it is not known."""
    if attack in _STEPS:
        return _STEPS[attack]
    kind, _, step = attack.partition(": ")
    return f"trained on others for {step}" if kind == "relearning" else step or attack


def steps(found: Evaluation, kind: str | None = None) -> list[str]:
    """The steps at which the target was asked, in their order; of one kind of attack, or of all."""
    asked = (row.attack for row in found.rows if (row.group, row.measure) == ("target", "exact_match"))
    return [
        attack
        for attack in dict.fromkeys(asked)
        if attack != NO_ATTACK and (kind is None or attack.startswith(f"{kind}: "))
    ]


def impossible(found: Evaluation) -> list[str]:
    """Titles of the attacks that were asked for and gave no figure: without images, none can be left out."""
    given = {row.attack.partition(": ")[0] for row in found.rows}
    return [KINDS[kind].title.lower() for kind in found.attacks if kind in KINDS and kind not in given]


def not_run(found: Evaluation) -> list[str]:
    """Titles of the attacks that were not asked for."""
    return [KINDS[kind].title.lower() for kind in KINDS if kind not in found.attacks]
