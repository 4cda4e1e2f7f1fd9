"""What a method is: it says what to measure at a module, and what the module's weights become."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar

import torch
from torch import Tensor

from chip.checkpoint.sequence import Spent
from chip.data.record import Record
from chip.data.request import ForgetRequest
from chip.kernels.symmetric import SymmetricSum
from chip.methods.settings import check_settings, settings_of
from chip.model.target_modules import Component, TargetModule, layer_range
from chip.model.tokens import Statistics

if TYPE_CHECKING:
    from chip.model.loading import VLM

M = TypeVar("M", bound="Method")


@dataclass(frozen=True)
class Removed:
    """Directions that an update takes out of a module's outputs. They tell of the forgotten: never stored."""

    rows: Tensor
    """(r,) int64: the output rows S they live on."""
    basis: Tensor
    """Q (r, k), orthonormal columns."""

    def norm_in(self, parameter: Tensor) -> float:
        """‖Qᵀ W_S‖ (Frobenius, fp64 on the CPU) of a weight (d_out, d_in) or a bias (d_out,)."""
        return float(torch.linalg.norm(self.basis.cpu().double().T @ self._rows_of(parameter)))

    def rounding(self, parameter: Tensor) -> float:
        """The most that rounding to the dtype of `parameter` can leave: u ‖W_S‖, u the unit roundoff.

        Eightfold, for the rounding of the projection itself.
        """
        return 8 * torch.finfo(parameter.dtype).eps / 2 * float(torch.linalg.norm(self._rows_of(parameter)))

    def _rows_of(self, parameter: Tensor) -> Tensor:
        return parameter.cpu()[self.rows.cpu()].double()


@dataclass(frozen=True)
class WeightUpdate:
    """What one module's parameters become, before they are rounded to the dtype they are stored in."""

    weight: Tensor
    """(d_out, d_in), fp32 or fp64."""
    bias: Tensor | None
    """(d_out,); None where it stays as it is."""
    removed: Removed | None = None
    """What must be gone from the outputs, so that it can be looked for in the file that was written."""
    metric: SymmetricSum | None = None
    """A (d_in, d_in): tr(E A Eᵀ) is what an error E of the new weight costs. It is read where an edit is cut to fewer
    directions. None: the method does not say, and all inputs count alike."""


@dataclass(frozen=True)
class Needs:
    """What a method asks of the pass through the model."""

    outputs: bool = True
    """Its statistics see what comes out of a module too. Without, modules that have the same input share their
    statistics, and only one module's are in memory at a time."""
    general: bool = False
    """It can make use of general text, which then passes through the model too."""
    guard: bool = False
    """It can leave as it is what earlier edits took out, and says what a later one is to leave (`Method.taken`), and by
    what metric."""
    model: Literal["original", "sequential"] = "original"
    """Statistics are taken from the model as it was, or each module's from the model whose earlier ones are edited."""
    connector: Literal["original", "composed"] = "original"
    """`composed`: each map of a connector is measured behind the ones before it as they will be, and its tokens say
    what came in before the edit as well. Goes with `outputs=False`."""
    whole_connectors: bool = False
    """The maps of a connector are measured in one pass, and solved for together. Goes with `outputs=True`."""
    whole_mlps: bool = False
    """The maps of a layer's MLP are measured in one pass, and solved for together; what comes out of the last one is
    then what leaves the layer. Goes with `outputs=True`."""
    looks: int = 1
    """How many passes a stage takes; see `Method.look_again`."""


@dataclass(frozen=True)
class MeasuredModule:
    """One module of a stage as it is, and what was measured at it."""

    weight: Tensor
    """W, (d_out, d_in), in the dtype the model computes in."""
    bias: Tensor | None
    """(d_out,)"""
    statistics: Any
    activation: Callable[[Tensor], Tensor] | None
    """In a connector what its output goes through, value by value, before the next linear map; of a gated MLP's `gate`,
    what its output goes through. None: nothing known."""
    guarded: Tensor | None = None
    """F (r, d_in), fp32: Fᵀ F is the sum of what `Method.taken` said in earlier edits. None: nothing."""


LOSS_WEIGHT = 3.0  # those who stay are many more
MOST_EDITS = 10
"""By how many edits what is lost counts at most: a target that is left for the sake of others is left for good."""
ENOUGH = 0.05
"""Where other edits came before, the excess of the target's answers above never trained on that no edit goes below."""


@dataclass(frozen=True)
class Search:
    """A setting that a method leaves to be found by trials."""

    setting: str
    """Name of the method's field."""
    grid: tuple[float, ...]
    """Values to try, from the strongest forgetting to the weakest."""
    max_retain_drop: float
    """What siblings and others may lose each, of their mean answer probability and of their exact match."""
    max_general_kl: float = inf
    """KL to the unedited model on general data that is allowed, nats a token."""
    loss_weight: float = LOSS_WEIGHT
    """What is lost by those who stay counts so many times what is left of the target."""
    enough: float | None = None
    """Excess of the target's answer probability above never trained on below which nothing more is won; None: 0."""

    def after(self, spent: Spent) -> Search:
        """The same search, where other edits came before.

        What an edit takes from those who stay adds to what the others took. Wanted least is the mean over the edits of
        what is left of their targets, and the sum of what they take: so that counts by their number, as far as to
        `MOST_EDITS`. And what the trials do not show, as they ask in wordings that the edit has seen, adds up too: an
        edit is no stronger than it has to be.
        """
        if not spent.edits:
            return self
        return replace(self, loss_weight=self.loss_weight * min(1 + spent.edits, MOST_EDITS), enough=ENOUGH)


@dataclass(frozen=True)
class Method(ABC):
    """One way to edit. An instance is its settings: dataclass fields made by `settings.setting`.

    Raises:
        InputError: a setting lies outside its range.
    """

    name: ClassVar[str]
    """What `--method` takes."""
    version: ClassVar[int]
    """Raised whenever the weights that the method gives change, be it by a change in the method itself, in a kernel or
    in the pass: results of one version may be compared, and kept."""
    needs: ClassVar[Needs] = Needs()
    target_modules: ClassVar[tuple[str, ...]]
    """Kinds of module it edits by default."""
    optional_steps: ClassVar[tuple[str, ...]] = ()
    """Names of those of its `steps` that it does without in a model that lacks their modules."""
    layers: ClassVar[tuple[float, float]]
    """Which layers of the text model it edits by default, as a share of the depth."""

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def search(self) -> Search | None:
        """The setting that is still to be found; None where all are given."""
        return None

    def resolve_search(self, value: float) -> Self:
        """The same method with this value for the setting that was still to be found."""
        if self.search is None:
            raise ValueError(f"method {self.name} has nothing to search for")
        return replace(self, **{self.search.setting: value})

    def tighten(self, factor: float) -> Self | None:
        """The same method with an edit that may change general data less, by `factor` below 1; None where it cannot."""
        return None

    def only(self, method: type[M]) -> M:
        """One of the methods that this one is made of, with the settings that it has here."""
        return method(**{name: getattr(self, name) for name in settings_of(method)})

    @property
    def steps(self) -> tuple[Method, ...]:
        """Edits to make one after the other, each in the model that the one before has left."""
        return (self,)

    def plan(
        self, vlm: VLM, request: ForgetRequest, target_modules: Sequence[TargetModule]
    ) -> Sequence[tuple[Method, ForgetRequest]]:
        """The steps that are taken for this request, and what each is to forget: by default all of it."""
        return [(step, request) for step in self.steps]

    def plans(self, vlm: VLM, request: ForgetRequest, target_modules: Sequence[TargetModule]) -> Sequence[Plan]:
        """What may be done for this request, in order of preference; what is done is the first that is enough."""
        return (Plan(self.plan(vlm, request, target_modules)),)

    def default_layers(self, depth: int) -> Sequence[int]:
        """The layers of a text model of `depth` layers that it edits by default."""
        return layer_range(self.layers, depth)

    def can_edit(self, module: TargetModule) -> bool:
        """Whether the method has anything to say about such a module."""
        return True

    def select(self, modules: Sequence[TargetModule]) -> list[TargetModule]:
        """Those of the modules that it edits."""
        return [module for module in modules if self.can_edit(module)]

    def has_work(self, request: ForgetRequest) -> bool:
        """Whether the request holds anything that the method would take out."""
        return True

    def extra_records(self, request: ForgetRequest) -> tuple[Record, ...]:
        """Further records that pass through the model, behind those of the request; the same at every call."""
        return ()

    @abstractmethod
    def record_weights(self, request: ForgetRequest, device: torch.device) -> Any:
        """What the statistics of all modules need to know of the request: which record counts for what."""

    @abstractmethod
    def statistics(self, record_weights: Any, d_in: int, d_out: int) -> Statistics:
        """What to collect at a module; `record_weights` as this method's own function gives them."""

    def statistics_of(self, module: TargetModule, record_weights: Any, d_in: int, d_out: int) -> Statistics:
        """As `statistics`, where modules of a stage are asked for different things."""
        return self.statistics(record_weights, d_in, d_out)

    @abstractmethod
    def statistics_bytes(self, d_in: int, d_out: int) -> int:
        """What the statistics of one module take of its device's memory, at most."""

    def look_again(self, seen: Mapping[TargetModule, Any]) -> Mapping[TargetModule, Callable[[], Statistics]]:
        """What makes the statistics of a stage's next pass, where `needs.looks` > 1, from those of the last one."""
        raise NotImplementedError(f"method {self.name} takes one look")

    def solve_stage(self, modules: Mapping[TargetModule, MeasuredModule]) -> Mapping[TargetModule, WeightUpdate]:
        """The new parameters of a stage's modules, of those that change; by default each module is solved by itself.

        Raises:
            InputError: the method has nothing to say about such modules.
            torch.linalg.LinAlgError: a system has no trustworthy solution.
        """
        updates = {
            module: self.solve(measured.weight, measured.bias, measured.statistics, module.component)
            for module, measured in modules.items()
        }
        return {module: update for module, update in updates.items() if update is not None}

    def taken(self, statistics: Any) -> SymmetricSum:
        """A (d_in, d_in), where `needs.guard`: tr(D A Dᵀ) is what a later change D of the weight does to what this edit
        takes out."""
        raise NotImplementedError(f"method {self.name} has no use for a guard")

    @abstractmethod
    def solve(
        self, weight: Tensor, bias: Tensor | None, statistics: Any, component: Component = Component.TEXT
    ) -> WeightUpdate | None:
        """A module's new parameters, from the statistics it asked for; None where it has nothing to change.

        Args:
            weight: W, (d_out, d_in), in the dtype the model computes in.
            bias: (d_out,), or None.
            component: the part of the model that the module lies in.

        Raises:
            torch.linalg.LinAlgError: a system has no trustworthy solution.
        """


def membership(request: ForgetRequest, groups: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """(records, groups) fp32, 1 or 0: which of the request's records, general ones too, are in which group."""
    member = torch.zeros(len(request.records), len(groups))
    for column, group in enumerate(groups):
        member[list(group), column] = 1
    return member.to(device)


@dataclass(frozen=True)
class Plan:
    """Edits to make one after the other."""

    steps: Sequence[tuple[Method, ForgetRequest]]
    """Each with what it is to forget."""
    enough_for: ForgetRequest | None = None
    """What must be gone behind it, or the next plan is tried too, and the better stands; None: it stands anyway."""
