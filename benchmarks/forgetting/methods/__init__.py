"""The methods that the benchmark compares, by name."""

from benchmarks.forgetting.methods.base import GRID_SIZE, Applied, Method, measured
from benchmarks.forgetting.methods.controls import RandomChange, RandomProjection, Retrained, ShuffledLabels, Untouched
from benchmarks.forgetting.methods.edits import ChipEdit, ShieldedEdit
from benchmarks.forgetting.methods.neurons import Kvw, Manu
from benchmarks.forgetting.methods.retrained_again import RetrainedAgain
from benchmarks.forgetting.methods.subspaces import Contrastive, Kodge, Nullu, Oblique
from benchmarks.forgetting.methods.trained import GradDiff, GradientAscent, Idk, KlMin, Llmu, Npo

__all__ = [
    "CLOSED_FORM",
    "CONTROLS",
    "GRID_SIZE",
    "METHODS",
    "OURS",
    "TRAINED",
    "Applied",
    "Method",
    "Retrained",
    "RetrainedAgain",
    "Untouched",
    "measured",
]

OURS: tuple[type[Method], ...] = (ShieldedEdit, ChipEdit)
CLOSED_FORM: tuple[type[Method], ...] = (Nullu, Kodge, Oblique, Contrastive, Kvw, Manu)
TRAINED: tuple[type[Method], ...] = (GradientAscent, GradDiff, KlMin, Npo, Idk, Llmu)
CONTROLS: tuple[type[Method], ...] = (RandomProjection, RandomChange, ShuffledLabels)

METHODS: dict[str, type[Method]] = {method.name: method for method in (*OURS, *CLOSED_FORM, *TRAINED, *CONTROLS)}
"""All that have settings; `Retrained` and `Untouched`, which all are compared with, and `RetrainedAgain` have none."""
