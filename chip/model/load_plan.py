"""What transformers' loader makes of the tensors on disk, told from names and shapes before any weight is read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from chip.checkpoint.layout import Checkpoint

_RECOMPUTED = r"rotary_emb\.inv_freq|(^|\.)position_ids$"
"""Buffers that older checkpoints hold and models compute: the loader drops them, and nothing is lost."""


@dataclass(frozen=True)
class Origin:
    """What one parameter is made of; or several, where loading splits what is stored as one."""

    names: tuple[str, ...]
    """On disk, in the order in which the loader takes them."""
    parameters: tuple[str, ...]
    patterns: tuple[str, ...]
    """What the converter calls each of `names`; none where there is none."""
    converter: WeightConverter | None
    """Fuses, splits or transposes; None: there is one tensor, and it is the parameter."""

    def make(self, model: PreTrainedModel, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """Parameter -> its value, as transformers' loader makes it.

        Args:
            tensors: those of `names`, in their order, in the dtype of the parameters.
        """
        (first, *_) = self.parameters
        if self.converter is None:
            return dict(zip(self.parameters, tensors, strict=True))
        converter = deepcopy(self.converter)  # it gathers what it is given
        for name, pattern, tensor in zip(self.names, self.patterns, tensors, strict=True):
            converter.add_tensor(first, name, pattern, tensor)
        made = converter.convert(first, model=model, config=model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


@dataclass(frozen=True)
class LoadPlan:
    """What becomes of each tensor. Parameters are those of the class, and its buffers that are saved."""

    taken: Mapping[str, str]
    """Name on disk -> the parameter that it becomes, or becomes a part of."""
    converted: frozenset[str]
    """Names on disk, among these, of what is fused, split or transposed."""
    unexpected: Mapping[str, str]
    """Name on disk -> the name by which no parameter takes it."""
    ignored: frozenset[str]
    """Names on disk that the class is known to leave out, such as layers that predict several tokens."""
    missing: tuple[str, ...]
    """Parameters that no tensor becomes: they would be drawn at random."""
    origins: tuple[Origin, ...]
    """What the parameters are made of; each parameter is in one of them, but those that are missing or tied."""


def plan_loading(checkpoint: Checkpoint, model: PreTrainedModel) -> LoadPlan:
    """Follow transformers' loader (`convert_and_load_state_dict_in_model`) by name.

    Args:
        model: of the class that loads the checkpoint; it may be one without weights, on the meta device.
    """
    expected: dict[str, Tensor] = model.state_dict()
    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    prefix = model.base_model_prefix
    taken: dict[str, str] = {}
    unexpected: dict[str, str] = {}
    patterns: dict[str, str] = {}
    for name in sorted(checkpoint.entries, key=dot_natural_key):  # the order matters to some renamings
        target, pattern = rename_source_key(name, renamings, converters, prefix, expected)
        if target not in expected and name in expected:  # the name is already the module's
            target, pattern = rename_source_key(name, [], [], prefix, expected)
        if target not in expected:
            unexpected[name] = target
            continue
        taken[name] = target
        if pattern is not None:
            patterns[name] = pattern
    origins = _origins(taken, patterns, {pattern: each for each in converters for pattern in each.source_patterns})
    filled = {parameter for origin in origins for parameter in origin.parameters}
    left_out = _matching(unexpected, model._keys_to_ignore_on_load_unexpected)
    ignored = frozenset(left_out | _matching(unexpected, (_RECOMPUTED,)))
    missing = _missing(model, expected.keys() - filled)
    return LoadPlan(taken, frozenset(patterns), unexpected, ignored, missing, origins)


def own_names(model: PreTrainedModel, names: Iterable[str]) -> dict[str, str]:
    """Names of parameters in checkpoints, older ones too -> names of the model's; those that it has not stay."""
    expected: dict[str, Tensor] = model.state_dict()
    renamings = [each for each in get_model_conversion_mapping(model) if isinstance(each, WeightRenaming)]
    own: dict[str, str] = {}
    for name in names:
        target, _ = rename_source_key(name, renamings, [], model.base_model_prefix, expected)
        own[name] = target if name not in expected and target in expected else name
    return own


def is_recomputed(name: str) -> bool:
    """Whether a tensor that is not loaded is a buffer that the model computes by itself."""
    return re.search(_RECOMPUTED, name) is not None


def _origins(
    taken: Mapping[str, str], patterns: Mapping[str, str], converters: Mapping[str, WeightConverter]
) -> tuple[Origin, ...]:
    """`taken` the other way round. `patterns`: of the names on disk that are converted, by which of `converters`."""
    names_of: dict[str, list[str]] = {}
    for name, target in taken.items():
        names_of.setdefault(target, []).append(name)
    origins = []
    for target, names in names_of.items():
        converter = converters[patterns[names[0]]] if names[0] in patterns else None
        first, *others = (target,) if converter is None else converter.target_patterns
        parameters = (target, *(target.replace(first, other) for other in others))
        own = () if converter is None else tuple(patterns.get(name, name) for name in names)
        origins.append(Origin(tuple(names), parameters, own, converter))
    return tuple(origins)


def _missing(model: PreTrainedModel, unfilled: set[str]) -> tuple[str, ...]:
    """Those of the parameters that are tied to no other, or to none that is filled; not what a class allows."""
    groups: dict[str, set[str]] = {}
    for target, source in model.all_tied_weights_keys.items():
        groups.setdefault(source, {source}).add(target)
    tied = {name for group in groups.values() if not group <= unfilled for name in group}
    missing = unfilled - tied
    allowed = _matching({name: name for name in missing}, model._keys_to_ignore_on_load_missing)
    return tuple(sorted(missing - allowed, key=dot_natural_key))


def _matching(names: Mapping[str, str], patterns: Iterable[str] | None) -> set[str]:
    """The keys whose values match one of the patterns."""
    compiled = [re.compile(pattern) for pattern in patterns or ()]
    return {name for name, renamed in names.items() if any(pattern.search(renamed) for pattern in compiled)}
