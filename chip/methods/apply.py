"""From records to new weights: every record passes through the model, and the method solves module by module."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace

from torch import Tensor

from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.sequence import Spent
from chip.data.record import Record
from chip.data.request import ForgetRequest
from chip.distributed import DistributedContext
from chip.errors import InputError
from chip.general.loss import GeneralLoss, GeneralReference
from chip.methods.base import Method, Search
from chip.methods.guard import Guard
from chip.methods.patch import Patch, Precision, Solution, WeightEditor
from chip.methods.search import hold_general, run_search
from chip.methods.source import StatisticsSource, can_keep
from chip.methods.trial import Baseline, Choice
from chip.methods.validation import ValidationSet, hold_out_validation
from chip.model.batching.batch_size import BatchSize
from chip.model.forward.self_check import check_pass
from chip.model.loading import VLM
from chip.model.scoring import Scores, score_records
from chip.model.target_modules import TargetModule, available_modules, parse_layers, select_modules
from chip.model.weights import Weights
from chip.progress import ProgressCallback, silent


def default_modules(
    vlm: VLM, method: Method, kinds: Sequence[str] | None = None, layers: str | None = None
) -> list[TargetModule]:
    """The modules to edit, in the order of data: as asked for, else what the method's steps choose for this depth.

    Where nothing is asked for, a step that the method can do without is left out of a model that lacks its modules.
    """
    depth, chosen = len(vlm.layers), set[TargetModule]()
    for step in method.steps:
        span = step.default_layers(depth) if layers is None else parse_layers(layers, depth)
        try:
            chosen |= set(select_modules(vlm.model, step.target_modules if kinds is None else kinds, span))
        except InputError:
            if kinds is not None or step.name not in method.optional_steps:
                raise
    return [module for module in available_modules(vlm.model) if module in chosen]


@dataclass(frozen=True)
class EditContext:
    """What all steps of an edit share."""

    vlm: VLM
    """The model that is measured and edited, in memory."""
    checkpoint: Checkpoint
    """Where it comes from: names on disk, and the dtypes that new weights are rounded to."""
    size: BatchSize = field(default_factory=BatchSize)
    progress: ProgressCallback = silent
    distributed: DistributedContext = field(default_factory=DistributedContext)
    general: GeneralReference | None = None
    """What a search watches beside the records."""
    precision: Precision = field(default_factory=Precision)
    weights: Weights | None = None
    """What is edited, the checkpoint's; by default those of `vlm`, which else is a copy of it to measure on."""
    spent: Spent = field(default_factory=Spent)
    """What earlier edits have cost, where the checkpoint is an edited one."""
    guard: Guard | None = None
    """What they took out, of which nothing is to come back; the patch then has what the next edit is to leave."""

    def editor(self, target_modules: Sequence[TargetModule]) -> WeightEditor:
        shared = self.distributed, self.precision, self.weights, self.guard
        return WeightEditor(self.vlm, self.checkpoint, target_modules, *shared)

    def score(self, records: Sequence[Record]) -> Scores:
        """What the model as it is answers."""
        return score_records(self.vlm, records, self.size, distributed=self.distributed)

    def general_loss(self) -> GeneralLoss | None:
        """What the model as it is has lost of general data; None where none is watched."""
        return None if self.general is None else self.general.compare(self.vlm)


def edit_step(
    context: EditContext, method: Method, request: ForgetRequest, target_modules: Sequence[TargetModule]
) -> Patch:
    """Measure, find the setting that is to be found, solve and edit, with one step of a method.

    Raises: as `chip.methods.plans.edit_model`.
    """
    vlm, distributed, progress, search = context.vlm, context.distributed, context.progress, method.search
    if search is not None:
        search, request = search.after(context.spent), hold_out_validation(request)
    if request.general and not method.needs.general:
        request = replace(request, general=())
    source = StatisticsSource(vlm, method, request, target_modules, context.size, distributed)
    trained = [index for index in request.partition.forget if not request.records[index].held_out]
    check_pass(vlm, request.records, trained, source.stages, method.needs.outputs)
    editor, choice = context.editor(target_modules), None
    if search is not None:
        if can_keep(vlm, method, target_modules, distributed):
            source.keep(progress)  # else each trial measures again
        questions = ValidationSet(request)
        choice, method = _search(context, search, questions, method, source, editor)
    patch = edit_stages(method, source, editor, progress, last=True)
    settings = asdict(method) | {"rank": context.precision.rank}
    return replace(patch, choice=choice, settings=settings, target_modules=tuple(target_modules))


def _search(
    context: EditContext,
    search: Search,
    questions: ValidationSet,
    method: Method,
    source: StatisticsSource,
    editor: WeightEditor,
) -> tuple[Choice, Method]:
    """The value of the setting that nobody gave, and the method with it. The model is afterwards as it was."""

    @contextmanager
    def edited(method: Method) -> Iterator[None]:
        with editor.restoring():
            edit_stages(method, source, editor)
            yield

    if (general := context.general) is not None:

        def divergence(method: Method) -> float:
            with edited(method):
                return general.divergence(context.vlm)

        method = hold_general(method, search, divergence)
    questions.warn_if_few()
    what = f"choosing the {search.setting.replace('_', ' ')}"
    with context.progress(what, len(search.grid).bit_length()) as advance:
        baseline = Baseline(search, questions, context.score, context.general_loss)
        choice = run_search(baseline, lambda value: edited(method.resolve_search(value)), lambda: advance(1))
    return choice, method.resolve_search(choice.value)


def edit_stages(
    method: Method,
    source: StatisticsSource,
    editor: WeightEditor,
    progress: ProgressCallback = silent,
    *,
    last: bool = False,
) -> Patch:
    """Measure, solve and edit, stage by stage in the order of data; `last`: as it will be, and not for a trial."""
    patch = Patch(shares_images=editor.vlm.shares_images)
    values: dict[str, Tensor] = {}  # of all the connectors' parameters solved for so far
    waiting: list[Solution] = []
    source.restart()
    with progress("editing", source.steps) as advance:
        for stage in source.stages:
            # 1. Parameters of the same connector that come earlier, as they will be.
            overrides = {name: values[name] for name in source.parameters_before(stage) if name in values}
            # 2. Every record passes through the stage, and the method's sums see its tokens.
            # 3. The method solves for the new weights of the stage's modules, and the sums go: no name holds them.
            solutions = editor.solve(method, source.collect(stage, overrides, advance), patch if last else None)
            for solution in solutions:
                if solution.module.connector is not None:
                    values |= solution.values
            # 4. Later stages see the edited model, or the original one until all are solved.
            if method.needs.model == "sequential":
                editor.apply(solutions, patch)
            else:
                waiting += solutions
    editor.apply(waiting, patch)
    return patch
