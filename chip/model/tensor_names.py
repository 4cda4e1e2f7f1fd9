"""Which tensor on disk is which parameter of the module: transformers renames most of them while loading."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from chip.checkpoint.layout import Checkpoint
from chip.errors import InputError
from chip.model.load_plan import plan_loading
from chip.model.skeleton import build_skeleton


def key_map(checkpoint: Checkpoint) -> Mapping[str, str]:
    """Module parameter name to name on disk, for every parameter that is loaded from one tensor as it is.

    Parameters are those of the class that `AutoModelForImageTextToText` loads, which is built on the meta
    device: no weights are read. Left out are parameters that loading fuses, splits or transposes, and tensors
    that no parameter takes. Raises `InputError` where transformers' own code has no model for `config.json`.
    """
    return _one_to_one(checkpoint, build_skeleton(checkpoint.folder))


def disk_names(
    checkpoint: Checkpoint, parameters: Iterable[str], change: str = "edit", hint: str = "choose other layers"
) -> dict[str, str]:
    """Names on disk of `parameters`, each of which can be edited there without touching another.

    Raises `InputError` naming every one that is no parameter of the model, is not stored one to one, or is
    tied to another; `change` and `hint` are what could not be done to it, and what helps.
    """
    model = build_skeleton(checkpoint.folder)
    names = _one_to_one(checkpoint, model)
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    ties: dict[str, str] = model.all_tied_weights_keys
    tied = ties | {source: target for target, source in ties.items()}

    def fault(parameter: str) -> str | None:
        if parameter not in known:
            return f"{parameter!r} is no parameter of {type(model).__name__}"
        if parameter in tied:
            return f"{parameter!r} is tied to {tied[parameter]!r}"
        if parameter not in names:
            return f"{parameter!r} has no tensor of its own on disk (missing, fused or converted)"
        return None

    requested = list(parameters)
    if faults := [message for parameter in requested if (message := fault(parameter))]:
        raise InputError(f"{checkpoint.folder}: cannot {change} {'; '.join(faults)}; {hint}")
    return {parameter: names[parameter] for parameter in requested}


@dataclass(frozen=True)
class StoredTensors:
    """Where a parameter lies on disk."""

    names: tuple[str, ...]
    """Of the tensor; of a parameter that loading fuses, one for each expert, or one for all."""
    per_expert: bool = False
    transposed: bool = False
    """Whether the last two dimensions are the other way round there."""

    def parts(self, value: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Names on disk, and what each holds of a value of the parameter."""
        turned = value.mT.contiguous() if self.transposed else value
        return zip(self.names, turned if self.per_expert else (turned,), strict=True)


def stored_tensors(
    checkpoint: Checkpoint, linear: Iterable[str], fused: Iterable[str], read: Callable[[str], Tensor]
) -> dict[str, StoredTensors]:
    """Where parameters lie on disk, each in tensors of its own.

    Args:
        linear: parameters that are stored as they are.
        fused: parameters of all experts, (experts, ...).
        read: such a parameter's values as loaded, which tell which tensor is which part of it.

    Raises:
        InputError: as `disk_names` does, or a fused parameter is stored in yet another form.
    """
    single = {name: StoredTensors((disk,)) for name, disk in disk_names(checkpoint, linear).items()}
    blocks = list(fused)
    if not blocks:
        return single
    sources: defaultdict[str, list[str]] = defaultdict(list)
    for disk, target in plan_loading(checkpoint, build_skeleton(checkpoint.folder)).taken.items():
        sources[target].append(disk)  # in the order in which they are fused
    return single | {name: _stored(checkpoint, name, tuple(sources[name]), read(name)) for name in blocks}


def _stored(checkpoint: Checkpoint, name: str, sources: tuple[str, ...], value: Tensor) -> StoredTensors:
    for per_expert, transposed in ((False, False), (True, False), (False, True), (True, True)):
        stored = StoredTensors(sources, per_expert, transposed)
        if len(sources) == (len(value) if per_expert else 1) and _holds(checkpoint, stored, value):
            return stored
    where = f"{len(sources)} tensors" if len(sources) != 1 else f"{sources[0]!r}"
    what = f"{name!r}, which is stored in {where} in a form that chip does not write"
    raise InputError(f"{checkpoint.folder}: cannot edit {what}; choose other layers")


def _holds(checkpoint: Checkpoint, stored: StoredTensors, value: Tensor) -> bool:
    """Whether the tensors on disk have these values."""
    return all(
        checkpoint.entries[name].shape == tuple(part.shape)
        and torch.equal(checkpoint.read(name).to(part.dtype), part.cpu())
        for name, part in stored.parts(value)
    )


def _one_to_one(checkpoint: Checkpoint, model: PreTrainedModel) -> dict[str, str]:
    """Parameter -> the one tensor that it is loaded from as it is."""
    plan, expected = plan_loading(checkpoint, model), model.state_dict()
    takers = Counter(plan.taken.values())
    return {
        target: name
        for name, target in plan.taken.items()
        if takers[target] == 1
        and name not in plan.converted
        and tuple(expected[target].shape) == checkpoint.entries[name].shape
    }
