"""Which tensor on disk is which parameter of the module: transformers renames most of them while loading."""

from collections import Counter
from collections.abc import Iterable, Mapping

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
