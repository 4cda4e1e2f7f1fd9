"""What an attack is, and the attacks by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import ClassVar

from chip.errors import InputError
from chip.evaluation.context import EvalContext
from chip.plugins import load_plugins

ALL = "all"
"""Instead of names: every attack that is registered."""
STANDARD = "standard"
"""Instead of names: those that cost little, and need nothing but the model and its records."""

ORIGINAL, REFERENCE = "original", "reference"
"""What an attack may need beside them: the model before the edit, and one retrained without the target."""
LACKING = {
    ORIGINAL: "needs the model before the edit (--original)",
    REFERENCE: "needs a model retrained without the target (--reference)",
}


class Attack(ABC):
    """One way to bring back what a model was to forget. An instance is its settings."""

    name: ClassVar[str]
    """As `--attacks` takes it."""
    help: ClassVar[str]
    """What it does, in one line."""
    standard: ClassVar[bool] = False
    """Whether it is one of those that `standard` stands for."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """`ORIGINAL`, `REFERENCE`: without them it is skipped."""

    @abstractmethod
    def run(self, context: EvalContext) -> None:
        """Ask the model under attack, and put what it shows into the context's outputs. The model is left as it was.

        Each step is named as `NAME: STEP`, and measured by `context.score_attacked` or put there by `context.put`. What
        cannot be run on these records is said by `context.skip`.

        Raises:
            InputError: the attack cannot be run on this model or these records.
            RunError: it does not fit into memory.
        """


ATTACKS: dict[str, Attack] = {}
"""Name -> attack with its default settings, in the order in which they were registered."""


def register_attack(attack: Attack) -> None:
    """Make an attack known by its name.

    Raises:
        InputError: another attack has this name.
    """
    if attack.name in (*ATTACKS, ALL, STANDARD):
        raise InputError(
            "an attack of this name is registered already; choose another", argument="name", value=attack.name
        )
    ATTACKS[attack.name] = attack


def find_attacks(attacks: str | Collection[str | Attack]) -> tuple[Attack, ...]:
    """The attacks of these names.

    Args:
        attacks: names, or attacks with settings of their own; or a text: `all`, or names with commas between them.
            `standard` stands for the names of those that cost little.

    Raises:
        InputError: there is no attack of some name, or a plugin cannot be imported.
    """
    load_plugins()
    if isinstance(attacks, str):
        attacks = list(ATTACKS) if attacks == ALL else [name for name in attacks.split(",") if name]
    resolved = [one for attack in attacks for one in (_find(attack) if isinstance(attack, str) else (attack,))]
    return tuple({attack.name: attack for attack in resolved}.values())


def _find(name: str) -> tuple[Attack, ...]:
    if name == STANDARD:
        return tuple(attack for attack in ATTACKS.values() if attack.standard)
    if name not in ATTACKS:
        raise InputError(f"not known; there are {', '.join(ATTACKS)}", argument="attacks", value=name)
    return (ATTACKS[name],)
