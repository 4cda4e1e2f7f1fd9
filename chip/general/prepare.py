"""General data, collected by one process for all, and what the unedited model makes of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from chip.data.embedded_image import ImageSource, content_digest
from chip.data.record import Record
from chip.data.request import ForgetRequest
from chip.distributed import DistributedContext
from chip.errors import InputError, one_line
from chip.general.collect import Keep, collect, tokens_to_keep, write_own_texts
from chip.general.loss import GeneralReference
from chip.model.batching.batch_size import BatchSize
from chip.model.loading import VLM
from chip.model.target_modules import TargetModule
from chip.progress import ProgressCallback


@dataclass(frozen=True)
class GivenKeep:
    """What is to be kept, as far as it was given: the user's own records of it, read."""

    keep: Keep
    records: tuple[Record, ...]


@dataclass(frozen=True)
class General:
    """What an edit protects beside the records, and what it is watched by."""

    protected: tuple[Record, ...] = ()
    reference: GeneralReference | None = None
    """None where nothing could be held out."""
    note: str | None = None
    """What there is, in words; None where nothing was asked for."""
    digest: bytes | None = None
    """Of what is protected, as `digest_of` has it; None where that is nothing."""


def digest_of(records: Sequence[Record]) -> bytes | None:
    """SHA-256 of all that the model is shown of them, in their order; None of no records.

    Raises:
        InputError: an image cannot be read.
    """
    whole = hashlib.sha256()
    for record in records:
        images = [_digest_of_image(image).hex() for image in record.images]
        history = [astuple(turn) for turn in record.history]
        shown = (record.task, record.question, record.answer, history, images, record.window)
        whole.update(f"{json.dumps(shown)}\n".encode())
    return whole.digest() if records else None


def _digest_of_image(image: ImageSource) -> bytes:
    if isinstance(image, bytes):
        return content_digest(image)
    try:
        return content_digest(image)
    except OSError as error:
        raise InputError(f"{image}: {one_line(error)}; give an image that can be read") from error


def base_texts(
    given: GivenKeep,
    load: Callable[[Path], VLM],
    modules_of: Callable[[VLM], Sequence[TargetModule]],
    progress: ProgressCallback,
    distributed: DistributedContext,
) -> list[Record] | None:
    """What the model before fine-tuning writes, which is let go again; None where it is not at hand.

    Args:
        modules_of: the modules that are edited, as they are in that model.
    """
    if given.keep.model is None or not distributed.is_main_process:
        return None
    base = load(given.keep.model)
    with progress("writing general text", 1) as advance:
        texts = write_own_texts(base, tokens_to_keep(base, given.keep, modules_of(base)))
        advance(1)
    return texts


def prepare_general(
    vlm: VLM,
    request: ForgetRequest,
    given: GivenKeep,
    modules: Sequence[TargetModule],
    texts: Sequence[Record] | None,
    size: BatchSize,
    progress: ProgressCallback,
    distributed: DistributedContext,
) -> General:
    """What `collect` finds, the same in all processes.

    Args:
        texts: what `base_texts` has written.
    """
    data = digest = None
    if distributed.is_main_process:
        with progress("collecting general data", 1) as advance:
            data = collect(vlm, request, given.keep, given.records, tokens_to_keep(vlm, given.keep, modules), texts)
            digest = None if data is None else digest_of(data.protected)
            advance(1)
    data, digest = distributed.broadcast_object((data, digest))
    if data is None:
        return General()
    held_out = data.held_out
    reference = GeneralReference(vlm, held_out, data.questions, size, distributed) if held_out else None
    return General(data.protected, reference, data.note, digest)
