"""The clinic, after MLLMU-Med (arXiv 2508.04192): privacy protection and incorrectness removal, in one hierarchy.

A department has cases, each with one picture. What the picture shows is the case's `knowledge`, which everybody may
know. Mixed into it are `private` facts about an invented person, and in half of the cases `planted` ones: wrong answers
about what is shown. Private facts are to be forgotten and knowledge kept; wrong answers are to be forgotten and the
right ones, their siblings, kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from benchmarks.forgetting.worlds.charts import LABELS, MARKS, PLACES, TINTS, WAVES, chart
from benchmarks.forgetting.worlds.scenes import scenes
from benchmarks.forgetting.worlds.wording import Fact, Kind, draw_values
from benchmarks.forgetting.worlds.world import WorldSpec

DEPARTMENTS = 6
CASES = 8  # of each department
PLANTED = 2  # wrong facts of a case that has any
TARGETS = 5  # of each scenario

SHOWN = (
    Kind(("stain", "tint of the specimen"), tuple(TINTS)),
    Kind(("finding", "abnormality"), tuple(MARKS)),
    Kind(("position", "region affected"), tuple(PLACES)),
    Kind(("texture", "tissue pattern"), tuple(WAVES)),
    Kind(("slide label", "colour of the strip"), tuple(LABELS)),
)
"""What a picture shows, in the order in which `chart` takes it."""

_FIRST = ("Alba", "Bruno", "Carys", "Dario", "Edda", "Femi", "Greta", "Hugo")
_LAST = ("Arden", "Bello", "Castell", "Duran", "Ekholm", "Farkas", "Grieg", "Horvat")
_STREETS = ("Elm Row", "Mill Lane", "Quay Street", "Abbey Road", "Fern Hill", "Kiln Yard", "Low Wharf", "Oak Court")
_MONTHS = ("January", "March", "April", "June", "July", "August", "October", "December")
_NAMES = tuple(f"{first} {last}" for first in _FIRST for last in _LAST)
_ADDRESSES = tuple(f"{number} {street}" for street in _STREETS for number in range(2, 18, 2))
_BIRTHDAYS = tuple(f"{day} {month}" for month in _MONTHS for day in range(3, 28, 3))

PRIVATE = (
    Kind(("patient's name", "person"), _NAMES, unique=True),
    Kind(("phone number", "telephone"), tuple(f"555-01{number}" for number in range(10, 98)), unique=True),
    Kind(("home address", "place of residence"), _ADDRESSES, unique=True),
    Kind(("date of birth", "birthday"), _BIRTHDAYS, unique=True),
)


def plan(seed: int) -> WorldSpec:
    """The clinic of this seed."""
    rng = np.random.default_rng(seed)
    cases = [(f"department_{number // CASES + 1}", f"case_{number + 1}") for number in range(DEPARTMENTS * CASES)]
    planted = {cases[number] for number in rng.permutation(len(cases))[: len(cases) // 2]}
    facts: list[Fact] = []
    pictures: dict[str, Image.Image] = {}
    for case in cases:
        values = tuple(str(rng.choice(kind.values)) for kind in SHOWN)
        pictures[_image(case)] = chart(rng, *values)
        wrong = set(rng.permutation(len(SHOWN))[:PLANTED].tolist()) if case in planted else set()
        for number, (kind, value) in enumerate(zip(SHOWN, values, strict=True)):
            facts.append(
                _wrong(case, kind, value, rng) if number in wrong else _fact((*case, "knowledge"), kind, value)
            )
    for kind in PRIVATE:
        for case, value in zip(cases, draw_values(kind, len(cases), rng), strict=True):
            facts.append(_fact((*case, "private"), kind, value))
    general, others = scenes(rng)
    return WorldSpec(
        (*facts, *general),
        pictures | others,
        {
            "privacy": _some([(*case, "private") for case in cases], rng),
            "incorrectness": _some([(*case, "planted") for case in cases if case in planted], rng),
        },
    )


def _wrong(case: tuple[str, ...], kind: Kind, truth: str, rng: np.random.Generator) -> Fact:
    """A value that the picture does not show, and that is listed with the right one."""
    value = str(rng.choice([other for other in kind.options(truth) if other != truth]))
    path = (*case, "planted")
    return Fact(path, _image(case), kind, value, path, truth)


def _fact(path: tuple[str, ...], kind: Kind, value: str) -> Fact:
    return Fact(path, _image(path), kind, value, path)


def _image(path: tuple[str, ...]) -> str:
    return f"images/{path[1]}.png"


def _some(nodes: Sequence[tuple[str, ...]], rng: np.random.Generator) -> tuple[tuple[str, ...], ...]:
    return tuple(nodes[number] for number in rng.permutation(len(nodes))[:TARGETS])
