"""What a run is given, checked before anything is computed or written."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from chip.checkpoint.contents import describe_left_out, folder_contents
from chip.checkpoint.folder import files_in
from chip.checkpoint.hub import checkpoint_folder
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.model_card import CARD
from chip.checkpoint.output import check_output
from chip.checkpoint.paths import hub_name, hub_revision
from chip.checkpoint.receipt import RECEIPT
from chip.checkpoint.signing import Signer, SigningKey
from chip.checkpoint.texts import lists_words, readings, texts_of
from chip.data.hierarchy import Hierarchy
from chip.data.names import TargetNames
from chip.data.overlap import SameImage, count_overlap
from chip.data.readers import RecordSource, find_source, read_records
from chip.data.record import SYSTEM
from chip.data.request import ForgetRequest
from chip.edit_options import EditOptions
from chip.errors import ChipWarning, InputError, RunError
from chip.general.collect import AUTO, NONE, Keep
from chip.general.prepare import GivenKeep
from chip.methods import Method
from chip.methods.source import check_general
from chip.model.skeleton import build_skeleton
from chip.model.unreached import describe_unreached
from chip.progress import ProgressCallback, silent


def resolve_signer(source: Checkpoint, sign: SigningKey | Path | str | None) -> Signer | None:
    """What signs the output; refused where the key cannot be used, or would be copied with the checkpoint."""
    if sign is None:
        return None
    key = sign if isinstance(sign, SigningKey) else SigningKey(str(sign))
    _check_outside(source, key.files)
    return Signer(key)


def resolve_output(
    source: Checkpoint,
    out: Path | str | None,
    options: EditOptions,
    progress: ProgressCallback = silent,
    *,
    copies: bool = True,
) -> Path:
    """Where to write; refused where that is no place for a copy of the checkpoint, or for what is written without."""
    output = _default_output(source.place) if out is None else Path(out)
    overwrite, link_unchanged = options.get("overwrite", False), options.get("link_unchanged", False)
    check_output(source, output, overwrite=overwrite, link_unchanged=link_unchanged, copies=copies, progress=progress)
    if link_unchanged and hub_name(source.folder) is not None:
        note = "unchanged shards become second names of files in the Hub's cache: a write to one changes both"
        warnings.warn(note, ChipWarning, stacklevel=3)
    if copies and (left_out := folder_contents(source).left_out):
        warnings.warn(describe_left_out(left_out), ChipWarning, stacklevel=3)
    return output


def _default_output(folder: Path) -> Path:
    named = folder if folder.name not in ("", "..") else folder.resolve()
    return named.with_name(f"{named.name}-edited")


def resolve_records(source: Checkpoint, records: Path | str | RecordSource | None) -> Hierarchy:
    """All records; refused where they would be copied with the checkpoint."""
    found = find_source(source.place, records, source.given)
    _check_outside(source, [found.path])  # before a map is kept beside it
    return Hierarchy(read_records(found))


def resolve_request(
    source: Checkpoint, hierarchy: Hierarchy, forget: Sequence[str], label: str | None
) -> ForgetRequest:
    """Who is to be forgotten, among whom; refused where the output would tell of it."""
    request = ForgetRequest.of(hierarchy, forget)
    images = {image for record in hierarchy.records for image in record.images if isinstance(image, Path)}
    _check_outside(source, sorted(images))
    _check_not_named(source, request, label)
    _check_trained(request)
    for note in describe_unreached(source, build_skeleton(source.folder, len(source.entries))):
        warnings.warn(note, ChipWarning, stacklevel=3)
    if named := own_system_prompt(request):
        warnings.warn(named, ChipWarning, stacklevel=3)
    if overlap := count_overlap(request):
        message = f"{overlap:,} of the target's records are also retained ones: the same question, image and answer; "
        warnings.warn(f"{message}it cannot be forgotten there and kept here", ChipWarning, stacklevel=3)
    return request


def warn_of_copies(request: ForgetRequest, same_pixels: SameImage) -> None:
    """Say what can only be said of images that were decoded: which are others', saved anew."""
    both = count_overlap(request, same_pixels)
    if both and (copies := both - count_overlap(request)):
        what = f"{copies:,} of the target's records are also retained ones: the same question and answer"
        message = f"{what}, and an image of other bytes and the same pixels; it cannot be forgotten there and kept here"
        warnings.warn(message, ChipWarning, stacklevel=3)


def check_effect(method: Method, relative_change: Mapping[str, float]) -> None:
    """Refuse an edit that changes no tensor."""
    if not relative_change:
        message = "changes nothing of this model for this target, and would write it unedited; take another"
        raise InputError(message, argument="method", value=method.name)


def resolve_keep(source: Checkpoint, keep: Keep | Sequence[Path | str], method: Method) -> GivenKeep:
    """What is to be kept; refused where the method has no use for it, or the output would hold it."""
    resolved = Keep.of(keep)
    files = [Path(each) for each in resolved.sources if each not in (AUTO, NONE)]
    if resolved.model is not None:
        resolved = replace(resolved, model=checkpoint_folder(resolved.model, argument="keep_model"))
    check_general(method, files)
    _check_outside(source, files)
    return GivenKeep(resolved, tuple(resolved.given()))


def _check_outside(source: Checkpoint, paths: Iterable[Path]) -> None:
    """Raise `InputError` for one that would be copied with the checkpoint."""
    for path in paths:
        if Path(os.path.realpath(path)).is_relative_to(source.given.resolve()):
            raise InputError(f"{path}: lies in the checkpoint, and would be copied with it; move it elsewhere")


def _check_not_named(source: Checkpoint, request: ForgetRequest, label: str | None) -> None:
    """Raise `InputError` where the label, or what would be copied, names the target."""
    names = TargetNames.of(request.hierarchy, request.partition.targets)
    if label is not None and (name := _first_name(names.find_in_label, label)):
        raise InputError(f"names {name}, which is to be forgotten; choose another", argument="label", value=label)
    if (revision := hub_revision(source.given)) and (name := names.find(revision)):
        hint = "copy it into a folder of another name, and give that"
        raise InputError(f"{revision}: names {name}, and the receipt and the model card would say where from; {hint}")
    if found := _find_name(folder_contents(source).copied, names):
        path, name = found
        hint = "take that out of it, or call the node in the records otherwise"
        raise InputError(f"{path}: names {name}, which is to be forgotten, and would be copied; {hint}")


def check_written_names_nobody(folder: Path, request: ForgetRequest) -> None:
    """Look for the target's name in the folder that was written, once nothing more is written into it.

    Raises:
        RunError: a file has it, or is called so.
    """
    names = TargetNames.of(request.hierarchy, request.partition.targets)
    if found := _find_name(files_in(folder), names, written={CARD, RECEIPT}):
        path, name = found
        raise RunError(f"{path.name}: what was written names {name}; the source may have changed meanwhile, try again")


def _first_name(find: Callable[[str], str | None], text: str) -> str | None:
    """What `find` finds in the text as it stands, or in what its escapes say."""
    return next(filter(None, map(find, readings(text))), None)


def _find_name(
    files: Iterable[tuple[Path, Path]], names: TargetNames, written: Collection[str] = ()
) -> tuple[Path, str] | None:
    """The first of the files, each with its path in the folder, that names the target or is called so; and the name.

    Args:
        written: files that chip has written: a single word or number in them is not taken for a name.
    """
    for path, relative in files:
        if name := _first_name(names.find, str(relative)):
            return path, name
        vocabulary = lists_words(path) or str(relative) in written
        for text in texts_of(path):
            if name := names.find(text, vocabulary=vocabulary):
                return path, name
    return None


def own_system_prompt(request: ForgetRequest) -> str | None:
    """A note where only the target has some system prompt: text before all questions is not edited."""
    records, partition = request.hierarchy.records, request.partition
    own, others = (
        {turn.text: records[i].where for i in indices for turn in records[i].history if turn.role == SYSTEM}
        for indices in (partition.forget, partition.retained)
    )
    where = next((where for text, where in own.items() if text not in others), None)
    return (
        None if where is None else f"{where}: only the target has this system prompt; what it says stays in the model"
    )


def _check_trained(request: ForgetRequest) -> None:
    """An edit learns from the trained wordings only: the held-out ones are there to judge it."""
    partition, records = request.partition, request.hierarchy.records
    for part, indices in (("target", partition.forget), ("retained", partition.retained)):
        if all(records[i].held_out for i in indices):
            raise InputError(f"no {part} record has split 'train'; the edit has nothing to go by, add some")
