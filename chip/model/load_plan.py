"""What transformers' loader makes of the tensors on disk, told from names and shapes before any weight is read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from chip.checkpoint.layout import Checkpoint

_RECOMPUTED = r"rotary_emb\.inv_freq|(^|\.)position_ids$"
"""Buffers that older checkpoints hold and models compute: the loader drops them, and nothing is lost."""


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


def plan_loading(checkpoint: Checkpoint, model: PreTrainedModel) -> LoadPlan:
    """Follow transformers' loader (`convert_and_load_state_dict_in_model`) by name.

    Args:
        model: of the class that loads the checkpoint; it may be one without weights, on the meta device.
    """
    expected: dict[str, Tensor] = model.state_dict()
    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    targets_of = {
        pattern: converter.target_patterns for converter in converters for pattern in converter.source_patterns
    }
    prefix = model.base_model_prefix
    taken: dict[str, str] = {}
    unexpected: dict[str, str] = {}
    converted: set[str] = set()
    filled: set[str] = set()
    for name in sorted(checkpoint.entries, key=dot_natural_key):  # the order matters to some renamings
        target, pattern = rename_source_key(name, renamings, converters, prefix, expected)
        if target not in expected and name in expected:  # the name is already the module's
            target, pattern = rename_source_key(name, [], [], prefix, expected)
        if target not in expected:
            unexpected[name] = target
            continue
        taken[name] = target
        filled.add(target)
        if pattern is not None:
            converted.add(name)
            first, *others = targets_of[pattern]
            filled.update(target.replace(first, other) for other in others)
    left_out = _matching(unexpected, model._keys_to_ignore_on_load_unexpected)
    ignored = frozenset(left_out | _matching(unexpected, (_RECOMPUTED,)))
    missing = _missing(model, expected.keys() - filled)
    return LoadPlan(taken, frozenset(converted), unexpected, ignored, missing)


def is_recomputed(name: str) -> bool:
    """Whether a tensor that is not loaded is a buffer that the model computes by itself."""
    return re.search(_RECOMPUTED, name) is not None


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
