"""The main flow: from a checkpoint and a request to forget, to an edited checkpoint and what it still knows."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from chip.checkpoint.contents import folder_contents
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.signing import SigningKey
from chip.data.readers import RecordSource
from chip.data.record import Record
from chip.data.request import ForgetRequest
from chip.data.sample import sample_to_ask
from chip.distributed import DistributedContext, distributed_context
from chip.errors import InputError
from chip.evaluation.never_trained import never_trained_accuracy
from chip.evaluation.summary import exact_match_intervals, summarize
from chip.general.collect import AUTO, Keep
from chip.general.loss import GeneralLoss
from chip.general.prepare import General, GivenKeep, base_texts, prepare_general
from chip.ledger import Ledger
from chip.methods import DEFAULT, Method
from chip.methods.apply import default_modules, edit_model
from chip.methods.patch import Patch, Precision
from chip.methods.record_sample import sample_request
from chip.model.adapters import open_checkpoint
from chip.model.batching.batch_size import BatchSize
from chip.model.environment import environment_of
from chip.model.loading import VLM
from chip.model.model_loader import model_loader
from chip.model.offload import DeviceMap, MaxMemory
from chip.model.scoring import Scores, score_records
from chip.progress import ProgressCallback, silent
from chip.recording.runs import EditRecord
from chip.report.edit_report import EditReport, Sampled
from chip.report.outcome import Outcome
from chip.request_checks import (
    Arguments,
    Terms,
    check_written_names_nobody,
    resolve_keep,
    resolve_output,
    resolve_request,
    resolve_signer,
)
from chip.saving import Saving, output_folder, resolve_saving

ModelLoader = Callable[[Path | Checkpoint], VLM]


def edit(
    checkpoint: Path | str,
    forget: Sequence[str],
    *,
    records: Path | str | RecordSource | None = None,
    keep: Keep | Sequence[Path | str] = (AUTO,),
    out: Path | str | None = None,
    adapter: Path | str | None = None,
    base: Path | str | None = None,
    save: str = "merged",
    rank: int | None = None,
    label: str | None = None,
    method: Method | None = None,
    target_modules: Sequence[str] | None = None,
    layers: str | None = None,
    device: str | None = None,
    device_map: DeviceMap | None = None,
    max_memory: MaxMemory | None = None,
    stream: bool | None = None,
    batch_size: int | None = None,
    all_records: bool = False,
    link_unchanged: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    max_left: float | None = None,
    accept: bool = False,
    force: bool = False,
    ledger: Ledger | None = None,
    sign: SigningKey | Path | str | None = None,
    progress: ProgressCallback = silent,
) -> EditReport:
    """Make a model forget some nodes, and write it as a new checkpoint.

    Args:
        checkpoint: folder in the Hugging Face format, safetensors, or of a LoRA adapter alone; never written to.
        forget: ids or paths of institutions, patients, studies or sections.
        records: a file or folder, or a `RecordSource`; by default those beside the checkpoint, else `CHIP_RECORDS`.
        keep: what no record holds and is to stay: files, folders of images, `auto` or `none`; see `Keep`.
        out: folder to write; by default the checkpoint's name (its adapter's) with `-edited`, beside it.
        adapter: folder of a LoRA adapter to merge into the checkpoint first; PEFT does that, in fp32.
        base: what an adapter alone belongs to; by default the base that its `adapter_config.json` names.
        save: `merged`, a copy of the checkpoint; or `adapter`, one to it that PEFT loads: it can be taken off again.
        rank: the most directions by which a module's weight changes; by default as many as the method wants.
        label: what the receipt and the model card call the request. It must not name what is forgotten.
        method: method and settings; by default `ShieldedGatedText()`.
        target_modules, layers: what to edit, by kind, and in which layers (`22-27`, `50%-100%`, `all`).
        device_map, max_memory: as in transformers: a model over devices, then the host, then the disk.
        stream: layers are read from the disk one after the other; by default where the model does not fit into memory.
        batch_size: records per forward pass; changes the result by rounding alone, and not at all where it is given.
        all_records: go by all retained records, and ask all, where else some are drawn; see `chip.data.sample`.
        link_unchanged: shards that do not change become hard links to the source's; a write to one changes both.
        overwrite: replace the folder that a former edit wrote at `out`, if nothing in it has been added or changed.
        dry_run: compute the edit, and write nothing.
        max_left: exact match that counts as forgotten; by default 0.10 more than never trained on it.
        accept, force: write it where those who stay lose too much; go on where the model does not know the target.
        ledger: gets an entry of what was done, or that it failed; the nodes' requests are in it. Never in the output.
        sign: private key to sign with, as a PEM file; see `SigningKey`.

    Raises:
        InputError: the request cannot be met as it stands. Nothing has been written.
        RunError: the run failed, or costs those who stay more than it may. No output is left.
    """
    method, saving = method or DEFAULT(), resolve_saving(save, link_unchanged)
    source = open_checkpoint(checkpoint, adapter, base, rounded=saving.merged)  # 1. Resolve the request.
    size, signer = BatchSize(batch_size), resolve_signer(source, sign)
    terms = Terms(label, max_left, accept, force, size, rank, signer, all_records)
    general = resolve_keep(source, keep, method)
    request = resolve_request(source, forget, records, label)
    output = resolve_output(source, out, overwrite, link_unchanged, progress, copies=saving.merged)
    record = EditRecord(ledger, request.hierarchy, forget, output)
    with (
        distributed_context() as distributed,
        record.only_if(distributed.is_main_process and not dry_run),
        model_loader(distributed, device, device_map, max_memory, stream) as load,
    ):
        asked = Arguments.of(method, target_modules, layers, general.keep, batch_size, rank, all_records)
        to_ask = request if all_records else sample_to_ask(request)
        run = _Run(source, request, to_ask, general, method, saving, asked, distributed, progress, terms)
        if dry_run:
            return run.report(run.edit(load))
        with output_folder(output, overwrite, distributed) as folder:
            edited = run.edit(load)  # 2. Edit the model.
            remaining = run.write(edited, folder, link_unchanged)  # 3. Write.
            after = run.evaluate(load(saving.reopen(source, folder)), edited)  # 4. Evaluate what was written.
            report = run.finish(run.report(edited, after, remaining, output), folder)
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


@dataclass(frozen=True)
class _Evaluated:
    """What the written model answers, and what it has lost of general data."""

    scores: Scores
    general: GeneralLoss | None


@dataclass(frozen=True)
class _Run:
    """What all steps of one edit share; `to_ask` is the request among the records that are asked before and after."""

    source: Checkpoint
    request: ForgetRequest
    to_ask: ForgetRequest
    keep: GivenKeep
    method: Method
    saving: Saving
    arguments: Arguments
    distributed: DistributedContext
    on_progress: ProgressCallback
    terms: Terms

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
        precision = Precision(self.terms.rank, self.saving.merged)
        patch = edit_model(vlm, self.source, self.method, request, modules, *shared, general.reference, precision)
        if not patch.relative_change:
            message = "changes nothing of this model for this target, and would write it unedited; take another"
            raise InputError(message, argument="method", value=self.method.name)
        before.check_numbers(self.to_ask.hierarchy.records)  # behind the edit, which says in which module they begin
        environment, count = environment_of(vlm, self.distributed), len(request.hierarchy.records)
        return _Edited(patch, count, before, never, general, environment)

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
            sampled=self.sampled(edited, edited.before if after is None else after.scores),
            outcome=Outcome.of(groups, edited.never_trained, self.terms.max_left, patch.choice, general),
            choice=patch.choice,
            left_out=folder_contents(self.source).left_out,
            version=self.method.version,
            arguments=asdict(self.arguments),
            environment=edited.environment,
        )

    def sampled(self, edited: _Edited, scores: Scores) -> Sampled | None:
        total, asked = (len(request.hierarchy.records) for request in (self.request, self.to_ask))
        intervals = exact_match_intervals(self.request, self.to_ask, scores)
        return None if edited.records == asked == total else Sampled(total, edited.records, asked, 0, intervals)

    def finish(self, report: EditReport, folder: Path) -> EditReport:
        """The report, once the folder is fit to be put in place, its receipt is written, and it is signed.

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
        return report


def _settings(edited: _Edited) -> dict[str, Any]:
    """What the edit was made with: the method's settings, those that were found among them, and where."""
    choice = edited.patch.choice
    limits = {} if choice is None else choice.limits
    layers = [module.layer for module in edited.patch.target_modules if module.layer is not None]
    return {
        **{name: value for name, value in edited.patch.settings.items() if value is not None},
        **limits,
        "target_modules": sorted({module.kind for module in edited.patch.target_modules}),
        "layers": f"{min(layers)}-{max(layers)}" if layers else "none",
    }
