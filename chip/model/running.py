"""Running a model: what its own code raises at an input is one line for the user."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from chip.errors import foreign_code
from chip.model.batching.batch_size import out_of_memory
from chip.model.forward.trace import StopForward

_TROUBLE = "the model does not take what the processor makes of a record"
_HINT = "see whether config.json, the processor's files and the weights belong together"


def running(model: Any) -> AbstractContextManager[None]:
    """Only a call of the model may stand in the block; what it raises becomes an `InputError`.

    Too little memory is for the caller to handle, who can try again with less, and so is where a pass is to end.
    """
    return foreign_code(model.name_or_path or type(model).__name__, _TROUBLE, _HINT, leave=_leave)


def _leave(error: Exception) -> bool:
    return isinstance(error, StopForward) or out_of_memory(error)
