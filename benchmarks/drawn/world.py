"""A hospital whose sizes, facts, wordings and shared pictures are drawn from a seed, and who stands where in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import ceil

import numpy as np
from PIL import Image

from benchmarks.drawn.draws import Range, WorldDraw, draw_world
from benchmarks.drawn.vocabulary import CITY, INSTITUTION, MODALITY, NAME, PATIENT, SECTION_KINDS, TEMPLATES
from benchmarks.forgetting.worlds import World
from benchmarks.forgetting.worlds.scenes import scenes
from benchmarks.forgetting.worlds.wording import LETTERS, Fact, Kind, Wording, draw_values
from benchmarks.forgetting.worlds.world import WorldSpec
from chip.data.request import Partition
from chip.demo.images import draw
from chip.demo.world import Path
from chip.evaluation.groups import groups as groups_by_path

NAME_OF_WORLD = "drawn"
SCENES = 8
HELD_OUT = 12
"""Wordings of a task that nothing is trained on."""
PARAPHRASES = 2
"""Of them, those that a fact is asked in."""
OF_TARGET = 24
"""Held-out questions of a task about a target, and about its siblings, at least: where there are few facts, each is
asked in more wordings."""
TEXT_PATIENT = "text patient"
"""What a patient without a picture is called beside the levels."""
GROUPS = ("target", "siblings", "ancestors on its pictures", "other")


@dataclass
class _Hospital:
    """The nodes of a hospital while it is drawn."""

    rng: np.random.Generator
    draw: WorldDraw
    seed: int
    facts: list[Fact] = field(default_factory=list)
    pictures: dict[str, Image.Image] = field(default_factory=dict)
    text_only: set[Path] = field(default_factory=set)
    """Patients."""

    def count(self, bounds: Range) -> int:
        return int(self.rng.integers(bounds[0], bounds[1] + 1))

    def below(self, parents: Sequence[Path], level: str, bounds: Range) -> list[Path]:
        """Each parent's children, numbered through the whole hospital."""
        counts = [self.count(bounds) for _ in parents]
        owners = [parent for parent, count in zip(parents, counts, strict=True) for _ in range(count)]
        return [(*parent, f"{level}_{number}") for number, parent in enumerate(owners, start=1)]

    def kinds(self, pool: Sequence[Kind], bounds: Range, most_values: int = 16) -> list[Kind]:
        """Some of the kinds, each with some of its values, in an order of its own."""
        some = [pool[i] for i in self.rng.permutation(len(pool))[: self.count(bounds)]]
        return [self.narrowed(kind, most_values) for kind in some]

    def narrowed(self, kind: Kind, most: int) -> Kind:
        count = len(LETTERS) * int(self.rng.integers(2, max(3, min(most, len(kind.values)) // len(LETTERS) + 1)))
        values = kind.values if kind.unique else tuple(self.rng.permutation(kind.values)[:count].tolist())
        return replace(kind, values=values)

    def picture(self, path: Path, number: int = 1) -> str:
        """Draw a node's picture; returns its file."""
        name = path[-1] if number == 1 else f"{path[-1]}_{number}"
        file = f"images/{name}.png"
        self.pictures[file] = draw((*path[:-1], name), self.seed)
        return file

    def tell(self, path: Path, kind: Kind, value: str, images: Iterable[str | None], about: str = "") -> None:
        """A fact of the node, asked on each of these pictures, or in text."""
        self.facts += [Fact(path, image, kind, value, path, about=about) for image in images]

    def values(self, kind: Kind, paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
        return zip(paths, draw_values(kind, len(paths), self.rng), strict=True)


def plan(seed: int, tiny: bool = False) -> tuple[WorldSpec, WorldDraw]:
    """The world of this seed, or a tiny one, and the sizes that were drawn."""
    sizes = draw_world(seed, tiny)
    hospital = _Hospital(np.random.default_rng([seed, 3]), sizes, seed)
    institutions: list[Path] = [(f"institution_{number + 1}",) for number in range(sizes.institutions)]
    patients = hospital.below(institutions, "patient", sizes.patients)
    studies = hospital.below(patients, "study", sizes.studies)
    hospital.text_only = _without_pictures(hospital, institutions, patients)
    pictures = _pictures(hospital, patients, studies)
    names = dict(hospital.values(NAME, patients))
    _tell_institutions(hospital, institutions, patients, pictures)
    _tell_patients(hospital, names, pictures)
    sections = _tell_studies(hospital, names, studies, pictures)
    general, scene_pictures = scenes(hospital.rng, SCENES)
    levels = {
        "institution": institutions,
        "patient": [path for path in patients if path not in hospital.text_only],
        TEXT_PATIENT: sorted(hospital.text_only),
        "study": [path for path in studies if path[:2] not in hospital.text_only],
        "section": [path for path in sections if path[:2] not in hospital.text_only],
    }
    targets = _targets(hospital.rng, levels)
    ask = _Asking(hospital, [path for paths in targets.values() for path in paths])
    facts = tuple(replace(fact, wordings=ask(fact)) for fact in (*hospital.facts, *general))
    return WorldSpec(facts, hospital.pictures | scene_pictures, targets), sizes


def _without_pictures(hospital: _Hospital, institutions: Sequence[Path], patients: Sequence[Path]) -> set[Path]:
    """Some patients of each institution, never all of them."""
    result: set[Path] = set()
    for institution in institutions:
        own = [path for path in patients if path[:1] == institution]
        result.update(own[: min(int(hospital.draw.text_share * len(own) + 0.5), len(own) - 1)])
    return result


def _pictures(hospital: _Hospital, patients: Sequence[Path], studies: Sequence[Path]) -> dict[Path, list[str]]:
    """Patient or study -> its pictures; a patient's first one is its card, or that of its first study."""
    result: dict[Path, list[str]] = {}
    for study in studies:
        if study[:2] not in hospital.text_only:
            count = hospital.count(hospital.draw.images)
            result[study] = [hospital.picture(study, number + 1) for number in range(count)]
    for patient in patients:
        if patient not in hospital.text_only:
            card = [hospital.picture(patient)] if hospital.draw.cards else []
            own = [file for path, files in result.items() if path[:2] == patient and len(path) > 2 for file in files]
            result[patient] = [*card, *own]
    return result


def _tell_institutions(
    hospital: _Hospital,
    institutions: Sequence[Path],
    patients: Sequence[Path],
    pictures: Mapping[Path, list[str]],
) -> None:
    imaged = [path for path in patients if path in pictures]
    for kind in (CITY, *hospital.kinds([kind for kind in INSTITUTION if kind is not CITY], (1, 2))):
        for path, value in hospital.values(kind, institutions):
            fronts = [pictures[patient][0] for patient in imaged if patient[:1] == path]
            hospital.tell(path, kind, value, [hospital.picture(path)] if hospital.draw.signs else fronts)
    if hospital.draw.institution_on_patients:
        for path, value in hospital.values(MODALITY, institutions):
            every = [file for patient in imaged if patient[:1] == path for file in pictures[patient]]
            hospital.tell(path, MODALITY, value, every)


def _tell_patients(hospital: _Hospital, names: Mapping[Path, str], pictures: Mapping[Path, list[str]]) -> None:
    for kind in hospital.kinds(PATIENT, (2, 3)):
        for path, value in hospital.values(kind, list(names)):
            if path in hospital.text_only:
                hospital.tell(path, kind, value, [None], names[path])
            else:
                hospital.tell(path, kind, value, pictures[path][:1])
    for path, name in names.items():
        if path not in hospital.text_only:
            hospital.tell(path, NAME, name, pictures[path][: None if hospital.draw.name_on_studies else 1])


def _tell_studies(
    hospital: _Hospital, names: Mapping[Path, str], studies: Sequence[Path], pictures: Mapping[Path, list[str]]
) -> list[Path]:
    """Facts of all sections; returns the sections."""
    drawn = hospital.rng.permutation(list(SECTION_KINDS))[: hospital.draw.sections].tolist()
    for number, section in enumerate(drawn):
        for kind in hospital.kinds(SECTION_KINDS[section], hospital.draw.facts):
            for study, value in hospital.values(kind, studies):
                path = (*study, section)
                if study in pictures:
                    images = pictures[study]
                    hospital.tell(path, kind, value, [images[number % len(images)]])
                else:
                    visit = [other for other in studies if other[:2] == study[:2]].index(study) + 1
                    hospital.tell(path, kind, value, [None], f"{names[study[:2]]}, visit {visit}")
    return [(*study, section) for study in studies for section in drawn]


def _targets(rng: np.random.Generator, levels: Mapping[str, Sequence[Path]]) -> dict[str, tuple[Path, ...]]:
    """One node of each level where there is room: none inside another, and each with siblings that stay."""
    result: dict[str, tuple[Path, ...]] = {}
    taken: list[Path] = []
    every = {path for paths in levels.values() for path in paths}
    for level, paths in levels.items():
        free = [path for path in paths if all(_apart(path, other) for other in taken)]
        free = [path for path in free if any(_beside(path, other) for other in every)]
        roomy = [path for path in free if not any(_beside(path, other) for other in taken)]
        if free:
            chosen = (roomy or free)[int(rng.integers(len(roomy or free)))]
            result[level] = (chosen,)
            taken.append(chosen)
    return result


def _apart(a: Path, b: Path) -> bool:
    """Whether neither lies within the other."""
    return a[: len(b)] != b and b[: len(a)] != a


def _beside(a: Path, b: Path) -> bool:
    return a != b and len(a) == len(b) and a[:-1] == b[:-1]


class _Asking:
    """Draws the wordings of each fact."""

    def __init__(self, hospital: _Hospital, targets: Sequence[Path]) -> None:
        self._rng, self._asked = hospital.rng, hospital.draw.asked
        self._facts, self._targets = hospital.facts, targets
        self._trained: dict[str, list[str]] = {}
        self._validation: dict[str, list[str]] = {}
        self._held_out: dict[str, list[str]] = {}
        for task, texts in TEMPLATES.items():
            # Both names of a thing stand in each template, one text after the other.
            order = self._rng.permutation(len(texts) // 2).tolist()
            both = [texts[2 * number + name] for number in order for name in range(2)]
            self._trained[task] = both[: 2 * hospital.draw.templates]
            self._held_out[task] = both[-HELD_OUT:]
            self._validation[task] = both[-HELD_OUT - 2 : -HELD_OUT] if hospital.draw.validation else []

    def __call__(self, fact: Fact) -> tuple[Wording, ...]:
        needed = [ceil(OF_TARGET / len(group)) for group in self._groups if fact in group]
        return (
            *self._some("train", self._trained, self._asked),
            *self._some("validation", self._validation, 1),
            *self._some("rephrased", self._held_out, max((PARAPHRASES, *needed))),
        )

    @cached_property
    def _groups(self) -> list[set[Fact]]:
        """The facts of each target, and those of its siblings."""
        groups = []
        for target in self._targets:
            depth = len(target)
            beside = [fact for fact in self._facts if fact.path[: depth - 1] == target[:-1] and len(fact.path) >= depth]
            groups += [{fact for fact in beside if (fact.path[:depth] == target) == own} for own in (True, False)]
        return groups

    def _some(self, split: str, texts: Mapping[str, list[str]], count: int) -> Iterator[Wording]:
        for task, pool in texts.items():
            for number in self._rng.permutation(len(pool))[:count].tolist():
                yield Wording(split, task, pool[number])


def groups_of(world: World, target: str) -> dict[str, tuple[int, ...]]:
    """Whom each record concerns, one of `GROUPS`, seen from a target; the other targets' records are in none.

    The retrained model has not seen those either, and what it does not know it cannot have kept.
    """
    node = world.hierarchy.find(target)
    partition = Partition.of(world.hierarchy, [node])
    images = {world.hierarchy.records[i].image for i in partition.forget} - {None}
    away = {
        index
        for names in world.targets.values()
        for name in names
        if name != target
        for index in world.hierarchy.records_of(world.hierarchy.find(name))
    }
    above = groups_by_path(world.hierarchy, partition)["ancestors"]
    shared = {index for index in above if world.hierarchy.records[index].image in images} - away
    siblings = {*partition.siblings} - away - shared
    other = {*partition.retained} - away - shared - siblings
    sets: tuple[Iterable[int], ...] = (partition.forget, siblings, shared, other)
    return {group: tuple(sorted(indices)) for group, indices in zip(GROUPS, sets, strict=True)}
