"""Whether questions about one image may share it."""

from __future__ import annotations

import io
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from chip.data.record import Record
from chip.model.batching.batch import Batch
from chip.model.batching.batch_size import BatchSize, out_of_memory
from chip.model.batching.batches import Batches
from chip.model.batching.model_inputs import ModelInputs
from chip.model.batching.packing import alone, join

_QUESTIONS = ("What does it show?", "Is this a scan of somebody's chest, and whose?")


class RunnableModel(ModelInputs, Protocol):
    """A model that can be run too."""

    @property
    def model(self) -> Any: ...

    def hidden_states(self, batch: Batch) -> Tensor:
        """(B, T, d): the text model's last."""


def sharing_holds(vlm: RunnableModel) -> bool:
    """Run two questions about one image together, and each alone: whether their hidden states agree.

    They do not where image tokens attend to the question behind them, positions are counted in a way of their own, or
    layers do not attend and take no mask of pairs of tokens (linear attention, state spaces). A wrong
    position moves them by 6 % and more; rounding by far less than the root of the dtype's precision.
    """
    encoded = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(encoded, "PNG")
    where = f"{vlm.model.name_or_path}, shown a test picture"
    records = [Record(question, "yes", ("i",), encoded.getvalue(), where=where) for question in _QUESTIONS]
    batches = Batches(vlm, records, range(len(records)), BatchSize(), together=False)
    prompts = dict(enumerate(vlm.prompts.read(records)))
    packed, *single = (batches.make([row]).to(vlm.device) for row in (join([0, 1], prompts), *alone(prompts)))
    if packed.attention_mask is None:  # they begin with nothing in common, or not with the image
        return False
    try:
        both = vlm.hidden_states(packed)[0].float()
    except MemoryError:
        raise
    except Exception as error:  # of any kind: layers that do not attend make of a mask of pairs what they can
        if isinstance(error, RuntimeError) and out_of_memory(error):
            raise
        return False
    own = [both[packed.segments[0] == segment] for segment in (1, 2)]  # each question's own tokens
    expected = [vlm.hidden_states(row)[0, -len(states) :].float() for row, states in zip(single, own, strict=True)]
    difference = torch.linalg.norm(torch.cat(own) - torch.cat(expected))
    return bool(difference <= torch.finfo(vlm.model.dtype).eps ** 0.5 * torch.linalg.norm(torch.cat(own)))
