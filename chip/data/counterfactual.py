"""What a model that was never trained on a target would say of it: its questions, asked about images of others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from chip.data.record import Record
from chip.data.request import ForgetRequest

MAX_QUESTIONS = 256
"""Questions of a group, at most, where an estimate will do."""
COUNTERFACTUAL_IMAGES = 4
"""Images of others that a question of the target is asked about."""


class Counterfactuals:
    """A target's records with images of other nodes of the level in the place of their own, drawn by `generator`."""

    def __init__(self, request: ForgetRequest, generator: np.random.Generator) -> None:
        self._records, self._generator = request.hierarchy.records, generator
        self._images = _images_by_depth(request)

    def of(self, index: int) -> list[Record]:
        """The record about others' images; none where it has no image, or nobody else at its depth has another."""
        record = self._records[index]
        if record.image is None:
            return []
        images = [image for image in self._images.get(len(record.path), ()) if image != record.image]
        drawn = self._generator.permutation(len(images))[:COUNTERFACTUAL_IMAGES].tolist()
        return [replace(record, image=images[i]) for i in drawn]


def _images_by_depth(request: ForgetRequest) -> Mapping[int, list[Path | bytes]]:
    """Depth of a node -> the images of the retained records at that depth, each once."""
    images: dict[int, dict[Path | bytes, None]] = defaultdict(dict)
    for record in (request.hierarchy.records[i] for i in request.partition.retained):
        if record.image is not None:
            images[len(record.path)][record.image] = None
    return {depth: list(unique) for depth, unique in images.items()}
