"""What an evaluation asks, of every model alike."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from chip.data.record import Record
from chip.data.request import ForgetRequest
from chip.errors import InputError
from chip.evaluation.attacks import Attack, find_attacks
from chip.evaluation.groups import groups
from chip.evaluation.judge import Judge

LARGEST_SEED = 2**63 - 1
"""Of those that both numpy and torch take."""


@dataclass(frozen=True)
class EvalConfig:
    """What is asked, of every model alike.

    Raises:
        InputError: there is no attack of some name, or the seed is none.
    """

    request: ForgetRequest
    attacks: Collection[str | Attack] = ()
    """Names of attacks, or attacks with settings of their own."""
    seed: int = 0
    known_groups: Mapping[str, Sequence[int]] | None = None
    """As `groups` has them, where one knows better, such as what a target shares with its parent."""
    unseen: Sequence[Record] = ()
    """Records like the target's that were never trained on, for membership inference; they are in no group. Where there
    are none: the target's own questions with wrong answers."""
    draws: int = 16
    """Answers drawn for each of the target's questions; 0: none."""
    wrong_answers: int = 5
    """For the truth ratio, at most; as many as in TOFU."""
    sampled: int = 256
    """Records of a group, at most, for which text is generated: they are drawn by the seed. As many siblings are asked
    under attack; of the target, all."""
    judge: Judge | None = None
    """Is sent questions and answers of the records for which text is generated."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= LARGEST_SEED:
            raise InputError(f"must lie between 0 and {LARGEST_SEED}", argument="seed", value=self.seed)
        find_attacks(self.attacks)

    @cached_property
    def attacks_to_run(self) -> tuple[Attack, ...]:
        return find_attacks(self.attacks)

    @property
    def records(self) -> tuple[Record, ...]:
        return self.request.hierarchy.records

    @cached_property
    def groups(self) -> Mapping[str, Sequence[int]]:
        """Each record in one of `GROUPS`."""
        return self.known_groups or groups(self.request.hierarchy, self.request.partition)

    @cached_property
    def attacked(self) -> list[int]:
        """The target, and siblings: they show whether an attack breaks more than it finds."""
        return sorted((*self.groups["target"], *self.sample("siblings")))

    @cached_property
    def members(self) -> list[int]:
        """The target's trained wordings."""
        return [index for index in self.groups["target"] if not self.records[index].held_out]

    @cached_property
    def retained(self) -> list[int]:
        """Trained wordings of what is retained."""
        forgotten = set(self.request.partition.forget)
        return [i for i, record in enumerate(self.records) if i not in forgotten and not record.held_out]

    def sample(self, group: str) -> list[int]:
        """The group's records for which text is generated."""
        indices = self.groups[group]
        if len(indices) <= self.sampled:
            return list(indices)
        return sorted(np.random.default_rng(self.seed).choice(indices, self.sampled, replace=False).tolist())
