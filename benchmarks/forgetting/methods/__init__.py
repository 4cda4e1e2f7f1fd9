"""The methods that the benchmark compares, by name."""

from benchmarks.forgetting.methods.authors import AuthorsChip
from benchmarks.forgetting.methods.base import GRID_SIZE, Applied, BenchmarkMethod, measured
from benchmarks.forgetting.methods.controls import (
    RandomChange,
    RandomProjection,
    Retrained,
    RetrainedAgain,
    ShuffledLabels,
    Untouched,
)
from benchmarks.forgetting.methods.edits import ChipEdit, ShieldedEdit
from benchmarks.forgetting.methods.neurons import Kvw, Manu
from benchmarks.forgetting.methods.nullu import Nullu
from benchmarks.forgetting.methods.subspaces import Contrastive, Kodge, Oblique
from benchmarks.forgetting.methods.trained import GradDiff, GradientAscent, Idk, KlMin, Llmu, Npo

__all__ = [
    "CLOSED_FORM",
    "CONTROLS",
    "GRID_SIZE",
    "METHODS",
    "OURS",
    "TRAINED",
    "Applied",
    "BenchmarkMethod",
    "Retrained",
    "RetrainedAgain",
    "Untouched",
    "measured",
]

OURS: tuple[type[BenchmarkMethod], ...] = (ShieldedEdit, ChipEdit, AuthorsChip)
CLOSED_FORM: tuple[type[BenchmarkMethod], ...] = (Nullu, Kodge, Oblique, Contrastive, Kvw, Manu)
TRAINED: tuple[type[BenchmarkMethod], ...] = (GradientAscent, GradDiff, KlMin, Npo, Idk, Llmu)
CONTROLS: tuple[type[BenchmarkMethod], ...] = (RandomProjection, RandomChange, ShuffledLabels)

METHODS: dict[str, type[BenchmarkMethod]] = {
    method.name: method for method in (*OURS, *CLOSED_FORM, *TRAINED, *CONTROLS)
}
"""All that have settings; `Retrained` and `Untouched`, which all are compared with, and `RetrainedAgain` have none."""
