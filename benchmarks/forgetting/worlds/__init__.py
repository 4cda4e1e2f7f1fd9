"""Worlds from a seed, all of it invented: a hospital to forget nodes of, a ward that is a small one, and a clinic with
secrets and errors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.forgetting.worlds import clinic, hospital
from benchmarks.forgetting.worlds.files import write
from benchmarks.forgetting.worlds.world import World, WorldSpec

__all__ = ["WORLDS", "World", "build"]

WORLDS: dict[str, Callable[[int], WorldSpec]] = {
    "hospital": hospital.plan,
    "clinic": clinic.plan,
    "ward": partial(hospital.plan, institution_count=3, patients_each=2, target_count=1, scene_count=6),
}


def build(name: str, seed: int, folder: Path) -> World:
    """Draw a world and write it into `folder`; the same world and the same bytes for the same seed."""
    return write(name, seed, WORLDS[name](seed), folder)
