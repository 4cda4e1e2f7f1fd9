"""Which tensor on disk is which parameter of the module: transformers renames most of them while loading."""

from collections import Counter
from collections.abc import Iterable, Mapping

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from chip.checkpoint.layout import CONFIG, Checkpoint
from chip.errors import InputError

# What transformers, torch and the configurations' own checks raise at a config.json they cannot follow.
_UNBUILDABLE = (
    *(
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        ImportError,
        RuntimeError,
    ),
    StrictDataclassError,
)


def key_map(checkpoint: Checkpoint) -> Mapping[str, str]:
    """Module parameter name to name on disk, for every parameter that is loaded from one tensor as it is.

    Parameters are those of the class that `AutoModelForImageTextToText` loads, which is built on the meta
    device: no weights are read. Left out are parameters that loading fuses, splits or transposes, and tensors
    that no parameter takes. Raises `InputError` where transformers' own code has no model for `config.json`.
    """
    return _one_to_one(checkpoint, _skeleton(checkpoint))


def disk_names(checkpoint: Checkpoint, parameters: Iterable[str]) -> dict[str, str]:
    """Names on disk of `parameters`, each of which can be edited there without touching another.

    Raises `InputError` naming every one that is no parameter of the model, is not stored one to one, or is
    tied to another.
    """
    model = _skeleton(checkpoint)
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

    wanted = list(parameters)
    if faults := [found for parameter in wanted if (found := fault(parameter))]:
        raise InputError(f"{checkpoint.folder}: cannot edit {'; '.join(faults)}; choose other layers")
    return {parameter: names[parameter] for parameter in wanted}


def _skeleton(checkpoint: Checkpoint) -> PreTrainedModel:
    """The model without its weights."""
    path = checkpoint.folder / CONFIG
    for architecture in checkpoint.config.get("architectures") or ():
        if not hasattr(transformers, str(architecture)):
            # AutoModel would go by model_type alone, and load the weights into a class that they do not fit.
            raise InputError(f"{path}: transformers has no {architecture}; use a checkpoint in its own layout")
    try:
        config = AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            # Parameters are the same under every attention, and this one asks for no other package.
            return AutoModelForImageTextToText.from_config(config, trust_remote_code=False, attn_implementation="eager")
    except _UNBUILDABLE as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{path}: transformers cannot build an image-text-to-text model from it ({reason}); "
            "use a checkpoint of a family it knows"
        ) from error


def _one_to_one(checkpoint: Checkpoint, model: PreTrainedModel) -> dict[str, str]:
    """What transformers' loader does with each name, less the loading."""
    expected: dict[str, torch.Tensor] = model.state_dict()
    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    prefix = model.base_model_prefix
    targets: dict[str, str] = {}  # name on disk -> parameter
    converted: set[str] = set()  # names on disk that a converter takes
    for name in checkpoint.entries:
        target, converter = rename_source_key(name, renamings, converters, prefix, expected)
        if target not in expected and name in expected:  # the name is already the module's
            target, converter = rename_source_key(name, [], [], prefix, expected)
        if target in expected:
            targets[name] = target
        if converter is not None:
            converted.add(name)
    takers = Counter(targets.values())
    return {
        target: name
        for name, target in targets.items()
        if takers[target] == 1
        and name not in converted
        and tuple(expected[target].shape) == checkpoint.entries[name].shape
    }
