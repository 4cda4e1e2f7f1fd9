"""The groups of an evaluation in plain words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from chip.pages.words import listed

_NAMES = {"shared": "shared facts", "unrelated": "unrelated records", "general": "general questions"}
_SIBLINGS = {
    "institution": "the other institutions",
    "patient": "the other patients of the same institution",
    "study": "the other studies of the same patient",
    "section": "the other sections of the same study",
}
_ANCESTORS = {
    "patient": "the institution's own facts",
    "study": "the patient's and the institution's own facts",
    "section": "the study's, the patient's and the institution's own facts",
}
_COUSINS = {
    "study": "studies of other patients of the same institution",
    "section": "sections of other studies of the same patient",
}
_WITH_ARTICLE = {"institution": "an institution"}
_PLURAL = {"study": "studies"}


def name_of(group: str) -> str:
    """What one of `GROUPS` is called in a sentence."""
    return _NAMES.get(group, group)


def meaning_of(group: str, levels: Sequence[str]) -> str:
    """What one of `GROUPS` is, told by the targets' level where they have but one."""
    level = levels[0] if len(set(levels)) == 1 else ""
    return {
        "target": "what was to be forgotten",
        "shared": "what the target's records and those above it both state",
        "siblings": _SIBLINGS.get(level, "what stands beside the target, under the same parent"),
        "ancestors": _ANCESTORS.get(level, "what stands above the target"),
        "cousins": _COUSINS.get(level, "what has a grandparent in common with the target"),
        "unrelated": "everything further away",
        "general": "what images show that no record is about",
    }[group]


def targets_of(levels: Sequence[str]) -> str:
    """`a patient`, `2 studies and a section`; empty where the levels are not known."""
    told = [
        _WITH_ARTICLE.get(level, f"a {level}") if count == 1 else f"{count} {_PLURAL.get(level, f'{level}s')}"
        for level, count in Counter(levels).items()
    ]
    return listed(told) if told else ""
