"""What shows the general ability of any model: text and plain questions that no edit protects."""

from __future__ import annotations

from collections.abc import Sequence

from chip.data.keep import text_record, without_target
from chip.data.record import Record
from chip.data.request import ForgetRequest
from chip.general.collect import (
    PROSE,
    GeneralData,
    fitting,
    held_out_questions,
    reserved_prose,
    why_no_language,
)
from chip.general.own_words import with_own_answers
from chip.model.loading import VLM


def held_out_data(vlm: VLM, request: ForgetRequest, auto: bool, given: Sequence[Record], argument: str) -> GeneralData:
    """All that was given, and with `auto` prose that comes with chip; plain questions where there is any of the two.

    What tells of the target is left out of both, and that is said: that a model has lost it is no loss. `note` says why
    `auto` gives nothing, and is empty otherwise.

    Args:
        vlm: its context bounds the texts, and it answers what was given without an answer.
        given: as `read_keep` has read it.
        argument: what errors call that.

    Raises:
        InputError: all that was given tells of the target, or an image cannot be read.
    """
    texts = with_own_answers(vlm, fitting(vlm, without_target(given, request, argument)))
    note = ""
    if auto and (no_language := why_no_language(vlm)):
        note = f"{no_language}; it has no general ability to measure"
    elif auto:
        prose = [text_record(text, PROSE) for text in reserved_prose()]
        texts += fitting(vlm, without_target(prose, request, None))
    held_out = tuple(text for text in texts if len(vlm.prompts.read([text])[0].tokens) > 1)  # else nothing is predicted
    return GeneralData((), held_out, tuple(held_out_questions()) if held_out else (), note)
