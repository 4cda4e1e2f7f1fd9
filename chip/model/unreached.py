"""What of a model an edit does not reach, said before it runs: it may know of the target, and stays as it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.paths import counted, listed
from chip.model.experts import find_blocks
from chip.model.families import find_language, other_parts
from chip.model.load_plan import is_recomputed
from chip.model.weight_checks import check_weights


def describe_unreached(checkpoint: Checkpoint, model: Any) -> list[str]:
    """A line each: experts, parts for other things than image and text, tensors that are not loaded, another class.

    Args:
        model: the checkpoint's, as `build_skeleton` gives it.

    Raises:
        InputError: as `check_weights` does.
    """
    plan = check_weights(checkpoint, model)
    spare = [name for name in plan.unexpected if not is_recomputed(name)]
    return [*_experts(model), *_other_parts(model), *_not_loaded(spare), *_class_named(checkpoint, model)]


def _experts(model: Any) -> Iterator[str]:
    """An edit reaches what ends in a block's output, and not what experts compute before that."""
    layers, width = find_language(model).layers, model.config.get_text_config().hidden_size
    unreached = [_unreached(layer, width) for layer in layers]
    if numel := sum(unreached):
        where = f"{sum(map(bool, unreached))} of {len(layers)} layers of the text model"
        yield f"{where} have experts: an edit does not reach {numel:,} of their parameters"


def _unreached(layer: Any, width: int) -> int:
    """How many parameters of a layer's experts end in no block's output."""
    reached = {f"{path}.{each.name}" for path, maps in find_blocks(layer, width) for each in maps}
    own = {name: value for name, value in layer.named_parameters() if "experts" in name.split(".")}
    return sum(value.numel() for name, value in own.items() if name not in reached)


def _other_parts(model: Any) -> Iterator[str]:
    if parts := other_parts(model):
        yield f"beside the vision tower and the text model, and not edited: {', '.join(parts)}"


def _not_loaded(names: list[str]) -> Iterator[str]:
    if names:
        be = "is" if len(names) == 1 else "are"
        yield f"{counted(names, 'tensor')} {be} not loaded, and copied unedited: {listed(names)}"


def _class_named(checkpoint: Checkpoint, model: Any) -> Iterator[str]:
    """transformers goes by `model_type`, and loads a class that the file need not name."""
    named = checkpoint.config.get("architectures")
    if named and type(model).__name__ not in named:
        yield f"config.json names {', '.join(map(str, named))}, and what is loaded and edited is {type(model).__name__}"
