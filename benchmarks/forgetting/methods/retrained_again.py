"""How far apart two retrainings are: what no method can be told from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from benchmarks.forgetting.methods.controls import Retrained


@dataclass(frozen=True)
class RetrainedAgain(Retrained):
    """Not a method: retrained without the target from another seed, and judged by this seed's retrained model."""

    name: ClassVar[str] = "retrained again"
