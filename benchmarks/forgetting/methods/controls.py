"""Controls: changes that should not forget, and the model that never knew."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from benchmarks.forgetting.methods.base import BenchmarkMethod
from benchmarks.forgetting.methods.edits import Edit, ShieldedEdit
from chip.checkpoint.layout import Checkpoint
from chip.data.hierarchy import Hierarchy
from chip.data.record import Record
from chip.data.request import ForgetRequest, Partition
from chip.model.loading import VLM

ENERGY = 0.95
"""Share of a change's squared singular values that its rank stands for: what is left of them is mostly ridge."""


@dataclass(frozen=True)
class Control(BenchmarkMethod):
    """Does the direction matter, or the damage? The same method, without what should make it work."""

    tuned: ClassVar[bool] = False  # of what is compared with it

    like: Edit = field(default_factory=ShieldedEdit)
    """What it is the control of."""

    @property
    def settings(self) -> dict[str, Any]:
        return {"like": self.like.settings}

    @classmethod
    def grid(cls) -> list[Self]:
        return [cls(like=like) for like in ShieldedEdit.grid()]


@dataclass(frozen=True)
class RandomProjection(Control):
    """ΔW = −c W Q Qᵀ: of the rank and the norm of the other's change, along random directions of a layer's inputs.

    A bias is changed as in `RandomChange`.
    """

    name: ClassVar[str] = "random projection"
    source: ClassVar[str] = "control"

    def apply(self, vlm: VLM, source: Checkpoint, request: ForgetRequest, seed: int) -> dict[str, Tensor]:
        return _replaced(self.like.apply(vlm, source, request, seed), source, seed, _projection)


@dataclass(frozen=True)
class RandomChange(Control):
    """Gaussian changes of the norms of the other's."""

    name: ClassVar[str] = "random change"
    source: ClassVar[str] = "control"

    def apply(self, vlm: VLM, source: Checkpoint, request: ForgetRequest, seed: int) -> dict[str, Tensor]:
        return _replaced(self.like.apply(vlm, source, request, seed), source, seed, _noise)


@dataclass(frozen=True)
class ShuffledLabels(Control):
    """The same edit, with other records in the place of the target's."""

    name: ClassVar[str] = "shuffled labels"
    source: ClassVar[str] = "control"

    def apply(self, vlm: VLM, source: Checkpoint, request: ForgetRequest, seed: int) -> dict[str, Tensor]:
        return self.like.apply(vlm, source, shuffled(request, seed), seed)


@dataclass(frozen=True)
class Untouched(BenchmarkMethod):
    """Not a method: the checkpoint as it is."""

    name: ClassVar[str] = "untouched"
    source: ClassVar[str] = "reference"
    tuned: ClassVar[bool] = False

    @classmethod
    def grid(cls) -> list[Self]:
        """Nothing is tried: there is nothing to set."""
        return []

    def apply(self, vlm: VLM, source: Checkpoint, request: ForgetRequest, seed: int) -> dict[str, Tensor]:
        return {}


@dataclass(frozen=True)
class Retrained(BenchmarkMethod):
    """Not a method: a checkpoint that was trained without the target, in the place of the edited one."""

    name: ClassVar[str] = "retrained"
    source: ClassVar[str] = "reference"
    trains: ClassVar[bool] = True
    tuned: ClassVar[bool] = False

    reference: Path

    @classmethod
    def grid(cls) -> list[Self]:
        """Nothing is tried: there is nothing to set."""
        return []

    @property
    def settings(self) -> dict[str, Any]:
        return {"reference": self.reference.name}  # not where it lies

    def apply(self, vlm: VLM, source: Checkpoint, request: ForgetRequest, seed: int) -> dict[str, Tensor]:
        reference = Checkpoint.open(self.reference)
        return {
            name: reference.read(name) for name in source.entries if source.entries[name].torch_dtype.is_floating_point
        }


@dataclass(frozen=True)
class RetrainedAgain(Retrained):
    """Not a method: retrained without the target from another seed, and judged by this seed's retrained model. How far
    apart two retrainings are, no method can be told from."""

    name: ClassVar[str] = "retrained again"


def shuffled(request: ForgetRequest, seed: int) -> ForgetRequest:
    """The target's trained records change places in the hierarchy with as many retained ones.

    Those are drawn picture by picture, since half a picture's questions would not be forgotten for the sake of the
    other half: the control's edit has as much to forget, of others.
    """
    records, partition = request.hierarchy.records, request.partition
    generator = torch.Generator().manual_seed(seed)
    forget = [i for i in partition.forget if not records[i].held_out]
    retained = [i for i in partition.retained if not records[i].held_out]
    others = list(_by_picture(records, retained, generator))[: len(forget)]
    moved = list(records)
    for target, other in zip(forget, others, strict=False):
        moved[target] = replace(records[target], path=records[other].path)
        moved[other] = replace(records[other], path=records[target].path)
    hierarchy = Hierarchy(moved)
    return ForgetRequest(hierarchy, Partition.of(hierarchy, partition.targets), request.general)


def _by_picture(records: Sequence[Record], indices: Sequence[int], generator: torch.Generator) -> Iterator[int]:
    """The records about one picture after those about another, in random order; without an image, node by node."""
    pictures: dict[object, list[int]] = {}
    for i in indices:
        pictures.setdefault(records[i].image or records[i].path, []).append(i)
    groups = list(pictures.values())
    for group in torch.randperm(len(groups), generator=generator).tolist():
        yield from (groups[group][i] for i in torch.randperm(len(groups[group]), generator=generator).tolist())


def _replaced(
    tensors: dict[str, Tensor],
    source: Checkpoint,
    seed: int,
    change: Callable[[Tensor, Tensor, torch.Generator], Tensor],
) -> dict[str, Tensor]:
    """The same tensors, changed as far but elsewhere."""
    generator, result = torch.Generator().manual_seed(seed), {}
    for name, new in tensors.items():
        old = source.read(name).double()
        meant = new.double() - old
        random = change(old, meant, generator)
        scale = torch.linalg.norm(meant) / torch.linalg.norm(random).clamp(min=torch.finfo(random.dtype).tiny)
        result[name] = old + scale * random
    return result


def _noise(old: Tensor, meant: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(old.shape, generator=generator, dtype=old.dtype)


def _projection(old: Tensor, meant: Tensor, generator: torch.Generator) -> Tensor:
    if old.dim() != 2:
        return _noise(old, meant, generator)
    directions = torch.randn(old.shape[1], rank_of(meant), generator=generator, dtype=old.dtype)
    basis, _ = torch.linalg.qr(directions)
    projected: Tensor = (old @ basis) @ basis.T
    return -projected


def rank_of(change: Tensor) -> int:
    """The fewest singular values of a change that hold `ENERGY` of their squares."""
    squares = torch.linalg.svdvals(change).square()
    return int((squares.cumsum(0) < ENERGY * squares.sum()).sum()) + 1
