"""An edit of a model in memory, for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from chip.checkpoint.layout import Checkpoint
from chip.data.request import ForgetRequest
from chip.methods.apply import EditContext, default_modules
from chip.methods.base import Method
from chip.methods.patch import Patch
from chip.methods.plans import edit_model
from chip.model.loading import VLM
from chip.model.restoring import restoring


@contextmanager
def edited(
    vlm: VLM,
    source: Checkpoint,
    method: Method,
    request: ForgetRequest,
    kinds: Sequence[str] | None = None,
    layers: str | None = None,
) -> Iterator[Patch]:
    """What the edit changes, while the model has it; then the model is as it was.

    Args:
        kinds, layers: as `--target-modules` and `--layers` have them; by default the method's own.
    """
    target_modules = default_modules(vlm, method, kinds, layers)
    with restoring(vlm, [name for module in target_modules for name in module.parameter_names]):
        yield edit_model(EditContext(vlm, source), method, request, target_modules)
