"""The operators, by the name that `--method` takes."""

from chip.operators.base import Operator
from chip.operators.chip import Chip
from chip.operators.shielded import Shielded

__all__ = ["OPERATORS", "Chip", "Operator", "Shielded"]

OPERATORS: dict[str, type[Operator]] = {operator.name: operator for operator in (Shielded, Chip)}
