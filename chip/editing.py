"""The main flow: from a checkpoint and a request to forget, to an edited checkpoint and what it still knows."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from chip.checkpoint.contents import folder_contents
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.sequence import Spent
from chip.checkpoint.weights import weight_files
from chip.data.readers import RecordSource
from chip.data.record import Record
from chip.data.request import ForgetRequest
from chip.data.sample import sample_to_ask
from chip.distributed import DistributedContext, distributed_context
from chip.edit_options import Arguments, EditOptions, Terms
from chip.errors import InputError
from chip.evaluation.never_trained import never_trained_accuracy
from chip.evaluation.summary import exact_match_intervals, summarize
from chip.general.collect import AUTO, Keep
from chip.general.loss import GeneralLoss
from chip.general.prepare import General, GivenKeep, base_texts, prepare_general
from chip.ledger import Ledger
from chip.methods import DEFAULT, Method
from chip.methods.apply import EditContext, default_modules
from chip.methods.patch import Patch, Precision
from chip.methods.plans import edit_model
from chip.methods.record_sample import sample_request
from chip.model.adapters import open_with
from chip.model.copies import open_copy
from chip.model.environment import environment_of
from chip.model.loading import VLM
from chip.model.loading_options import check_keywords
from chip.model.model_loader import ModelLoader, model_loader
from chip.model.scoring import Scores, score_records
from chip.progress import ProgressCallback, silent
from chip.recording.guard_file import GuardFile
from chip.recording.runs import EditRecord
from chip.recording.targets import open_targets
from chip.report.documents import count_edits
from chip.report.edit_report import EditReport, Sampled
from chip.report.outcome import Outcome
from chip.report.spent import spent_before
from chip.request_checks import (
    check_written_names_nobody,
    resolve_keep,
    resolve_output,
    resolve_records,
    resolve_request,
    resolve_signer,
)
from chip.saving import Saving, output_folder, resolve_saving


def edit(
    checkpoint: Path | str,
    forget: Sequence[str] | None,
    *,
    records: Path | str | RecordSource | None = None,
    keep: Keep | Sequence[Path | str] = (AUTO,),
    out: Path | str | None = None,
    method: Method | None = None,
    dry_run: bool = False,
    ledger: Ledger | None = None,
    progress: ProgressCallback = silent,
    **options: Unpack[EditOptions],
) -> EditReport:
    """Make a model forget some nodes, and write it as a new checkpoint.

    Args:
        checkpoint: folder in the Hugging Face format, safetensors, or of a LoRA adapter alone; never written to. Or a
            repository on the Hub, as `checkpoint_folder` finds it; so are adapters, bases and the model of `keep`.
            Where it is quantized, what is edited and written is dequantized to bf16.
        forget: ids or paths of institutions, patients, studies or sections; None: all whose requests are open in the
            ledger, one edit for them together.
        records: a file or folder, or a `RecordSource`; by default those beside the checkpoint, else `CHIP_RECORDS`.
        keep: what no record holds and is to stay: files, folders of images, `auto` or `none`; see `Keep`.
        out: folder to write; by default the checkpoint's name (its adapter's) with `-edited`, beside it, or here.
        method: method and settings; by default `Combined()`.
        dry_run: compute the edit, and write nothing.
        ledger: gets an entry of what was done, or that it failed; the nodes' requests are in it. Never in the output.
        options: see `EditOptions`: where the model runs, what of it is edited, and how that is written.

    Raises:
        InputError: the request cannot be met as it stands. Nothing has been written.
        RunError: the run failed, or costs those who stay more than it may. No output is left.
    """
    check_keywords("edit", EditOptions, options)
    method, saving = method or DEFAULT(), resolve_saving(options)
    # 1. Resolve the request.
    source = open_with(checkpoint, options, rounded=saving.merged, progress=progress)
    measured = open_copy(options.get("measure_on"), source, options.get("device_map"), progress)
    terms = Terms.of(options, resolve_signer(source, options.get("sign")))
    given = resolve_keep(source, keep, method)
    hierarchy = resolve_records(source, records)
    forget = open_targets(ledger, source, hierarchy, progress) if forget is None else forget
    request = resolve_request(source, hierarchy, forget, terms.label)
    output = resolve_output(source, out, options, progress, copies=saving.merged)
    guard = GuardFile.open(source, output, options, progress, method)
    record = EditRecord(ledger, request, output)
    with (
        distributed_context() as distributed,
        record.only_if(distributed.is_main_process and not dry_run),
        model_loader(distributed, options) as load,
    ):
        to_ask = request if terms.all_records else sample_to_ask(request)
        shared = Arguments.of(method, given.keep, options), distributed, progress, terms, guard
        run = _Run(source, measured, request, to_ask, given, method, saving, *shared)
        if dry_run:
            return run.count(run.report(run.edit(load)))
        with output_folder(output, options.get("overwrite", False), distributed) as folder:
            edited = run.edit(load)  # 2. Edit the model.
            remaining = run.write(edited, folder, options.get("link_unchanged", False))  # 3. Write.
            after = run.evaluate(load(saving.reopen(source, folder)), edited)  # 4. Evaluate what was written.
            report = run.finish(run.report(edited, after, remaining, output), folder, edited)
        record.edited(report, output)
        return report


@dataclass
class _Edited:
    """The edit, before it is written."""

    patch: Patch
    records: int
    """That it goes by."""
    before: Scores
    """What the unedited model answers."""
    never_trained: float
    """Exact match of the target's questions, had the model never been trained on it."""
    general: General
    environment: Mapping[str, Any]
    spent: Spent
    """By the edits before."""


@dataclass(frozen=True)
class _Evaluated:
    """What the written model answers, and what it has lost of general data."""

    scores: Scores
    general: GeneralLoss | None


@dataclass(frozen=True)
class _Run:
    """What all steps of one edit share; `to_ask` is the request among the records that are asked before and after,
    `measured` the copy that statistics are measured on, None where that is the source."""

    source: Checkpoint
    measured: Checkpoint | None
    request: ForgetRequest
    to_ask: ForgetRequest
    keep: GivenKeep
    method: Method
    saving: Saving
    arguments: Arguments
    distributed: DistributedContext
    on_progress: ProgressCallback
    terms: Terms
    guard: GuardFile | None

    @property
    def progress(self) -> ProgressCallback:
        """One process shows it for all."""
        return self.on_progress if self.distributed.is_main_process else silent

    def edit(self, load: ModelLoader) -> _Edited:
        """The edit, and what the model answered before; the model itself is let go.

        Raises:
            InputError: it does not know the target, or nothing would change.
        """
        kinds, layers = self.arguments.target_modules, self.arguments.layers
        modules_of = partial(default_modules, method=self.method, kinds=kinds, layers=layers)
        texts = base_texts(self.keep, load, modules_of, self.progress, self.distributed)
        vlm = load(self.source)
        modules = modules_of(vlm)
        before = self.score(vlm, "asking before")
        never = never_trained_accuracy(self.to_ask, partial(self.score, vlm, "asking about other images"))
        if not self.terms.force and not before.answer_probability.isnan().any():  # the edit says where a NaN is
            Outcome.of(summarize(self.to_ask, before, None), never).check_known(self.request.partition.targets)
        shared = self.terms.size, self.progress, self.distributed
        general = prepare_general(vlm, self.request, self.keep, modules, texts, *shared)
        request = self.request if self.terms.all_records else sample_request(vlm, self.request, modules)
        request = replace(request, general=general.protected if self.method.needs.general else ())
        precision, spent = Precision(self.terms.rank, self.saving.merged), spent_before(self.source)
        seen, watched = vlm, general.reference
        if self.measured is not None:
            seen = replace(load(self.measured), processor=vlm.processor)
            watched = None if watched is None else watched.of(seen)
        guard = None if self.guard is None else self.guard.guard
        context = EditContext(seen, self.source, *shared, watched, precision, vlm.weights, spent, guard)
        patch = edit_model(context, self.method, request, modules)
        if not patch.relative_change:
            message = "changes nothing of this model for this target, and would write it unedited; take another"
            raise InputError(message, argument="method", value=self.method.name)
        before.check_numbers(self.to_ask.hierarchy.records)  # behind the edit, which says in which module they begin
        environment, count = environment_of(vlm, self.distributed), len(request.hierarchy.records)
        if self.source.quantized is not None:
            environment |= {"dequantized_from": self.source.quantized.scheme}
        return _Edited(patch, count, before, never, general, environment, spent)

    def score(self, vlm: VLM, what: str, records: Sequence[Record] | None = None) -> Scores:
        """What the model answers; by default to all that are asked."""
        records = self.to_ask.hierarchy.records if records is None else records
        return score_records(vlm, records, self.terms.size, self.progress, what, self.distributed)

    def evaluate(self, vlm: VLM, edited: _Edited) -> _Evaluated:
        scores = self.score(vlm, "asking after")
        return _Evaluated(scores, None if edited.general.reference is None else edited.general.reference.compare(vlm))

    def write(self, edited: _Edited, folder: Path, link_unchanged: bool) -> dict[str, float]:
        """The edit into the folder; ‖QᵀW′‖ / ‖QᵀW‖ as written, by tensor. Frees the edited weights."""
        patch, remaining = edited.patch, {}
        if self.distributed.is_main_process:
            remaining = self.saving.write(self.source, folder, patch, link_unchanged, self.progress)
        self.distributed.barrier()
        patch.tensors.clear()
        gc.collect()  # a spread model refers to itself
        return remaining

    def report(
        self,
        edited: _Edited,
        after: _Evaluated | None = None,
        remaining: dict[str, float] | None = None,
        output: Path | None = None,
    ) -> EditReport:
        patch = edited.patch
        groups = summarize(self.to_ask, edited.before, None if after is None else after.scores)
        general = None if after is None else after.general
        return EditReport(
            method=self.method.name,
            settings=_settings(edited),
            label=None if output is None else self.terms.label,
            output=None if output is None else str(output),
            seconds=time.monotonic() - self.terms.start,
            shares_images=patch.shares_images,
            relative_change=patch.relative_change,
            remaining=remaining or {},
            groups=groups,
            general=general,
            general_note=edited.general.note,
            general_digest=edited.general.digest if self.method.needs.general else None,
            sampled=self.sampled(edited, edited.before if after is None else after.scores),
            outcome=Outcome.of(groups, edited.never_trained, self.terms.max_left, patch.choice, general),
            choice=patch.choice,
            left_out=folder_contents(self.source).left_out,
            version=self.method.version,
            arguments=asdict(self.arguments),
            environment=edited.environment,
            spent=edited.spent,
            measured_on=None if self.measured is None else weight_files(self.measured),
        )

    def count(self, report: EditReport) -> EditReport:
        """The report of a dry run, with the place in its sequence that the edit would have."""
        main = self.distributed.is_main_process
        return count_edits(self.source, report, self.saving.merged, self.progress) if main else report

    def sampled(self, edited: _Edited, scores: Scores) -> Sampled | None:
        total, asked = (len(request.hierarchy.records) for request in (self.request, self.to_ask))
        intervals = exact_match_intervals(self.request, self.to_ask, scores)
        return None if edited.records == asked == total else Sampled(total, edited.records, asked, 0, intervals)

    def finish(self, report: EditReport, folder: Path, edited: _Edited) -> EditReport:
        """The report, once the folder is fit to be put in place, its receipt is written, it is signed, and guarded.

        Raises:
            RunError: those who stay lost more than was promised.
        """
        if not self.terms.accept:
            report.outcome.check_kept()
        if self.distributed.is_main_process:
            report = self.saving.document(self.source, folder, report, self.progress)
            check_written_names_nobody(folder, self.request)
            if self.terms.signer is not None:
                self.terms.signer.sign(folder)
            if self.guard is not None:
                self.guard.write(folder, edited.patch.guard)
        return report


def _settings(edited: _Edited) -> dict[str, Any]:
    """What the edit was made with: the method's settings, those that were found among them, and where."""
    choice = edited.patch.choice
    layers = [module.layer for module in edited.patch.target_modules if module.layer is not None]
    return {
        **{name: value for name, value in edited.patch.settings.items() if value is not None},
        **({} if choice is None else choice.limits),
        "target_modules": sorted({module.kind for module in edited.patch.target_modules}),
        "layers": f"{min(layers)}-{max(layers)}" if layers else "none",
    }
