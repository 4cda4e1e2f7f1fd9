"""How many of the retained records an edit goes by."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from statistics import fmean

import numpy as np

from chip.data.request import ForgetRequest
from chip.data.sample import sample_for_edit
from chip.model.loading import VLM
from chip.model.target_modules import TargetModule

TOKENS_PER_INPUT = 20
"""Tokens for each input of the widest module. On the demo's hospital, where all others are asked what the target is,
exact match of others that the edit did not see was 0.933, 0.983, 0.988 and 0.999 with 2, 5, 10 and 20, and 1.000 with
all (`benchmarks/NOTES.md`)."""
MIN_RECORDS = 10_000
"""So few are all taken, and of more as many."""
GROUPS = 3
"""That are drawn from, each by itself: siblings, matched records, and the rest."""
_COUNTED = 64


def sample_request(vlm: VLM, request: ForgetRequest, modules: Sequence[TargetModule], seed: int = 0) -> ForgetRequest:
    """The request among the records that an edit of these modules goes by: see `sample_for_edit`.

    Second moments need some tokens for each input, and no more of them say more; so of the records that are neither the
    target's nor on its images `TOKENS_PER_INPUT` are taken of the siblings, of the matched ones and of the rest, and of
    the rest more where all are fewer than `MIN_RECORDS`: an edit among a million costs what one among these does.
    """
    if len(request.partition.retained) <= MIN_RECORDS:
        return request
    widest = max((module.shape(vlm.model)[1] for module in modules), default=0)
    needed = ceil(TOKENS_PER_INPUT * widest / _tokens_per_record(vlm, request, seed))
    each = max(MIN_RECORDS // GROUPS, needed)
    return sample_for_edit(request, each, each, seed, max(MIN_RECORDS, GROUPS * each))


def _tokens_per_record(vlm: VLM, request: ForgetRequest, seed: int) -> float:
    """Mean over some retained records, an image as one token: rather too many records than too few."""
    drawn = np.random.default_rng(seed).choice(request.partition.retained, _COUNTED, replace=False)
    prompts = vlm.prompts.read([request.hierarchy.records[index] for index in drawn])
    return fmean(len(prompt.tokens) for prompt in prompts)
