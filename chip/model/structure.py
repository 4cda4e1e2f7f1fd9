"""What the structure of a module says of it, whatever family it is from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

_WEIGHT = ("weight", "proj")
"""How the names of parameters end that are multiplied with."""


def linear_maps(module: nn.Module) -> Iterator[tuple[str, bool, bool]]:
    """Linear maps in `module`: name below it, whether it has a bias, whether it is a parameter without a module.

    Not those in torch's own attention, which takes its parameters past its modules, and not the queries, latents and
    positions that a model learns: these are tables, whatever their shape. A table of its own kind that is the whole
    `module` is one of pieces of images, and multiplied with their shares (Ovis 2).
    """
    attention = [f"{name}." for name, inner in module.named_modules() if isinstance(inner, nn.MultiheadAttention)]
    for name, inner in module.named_modules():
        if f"{name}.".startswith(tuple(attention)):
            continue
        if isinstance(inner, nn.Linear):
            yield name, inner.bias is not None, False
        elif not isinstance(inner, nn.Embedding) or (inner is module and type(inner) is not nn.Embedding):
            for own, parameter in inner.named_parameters(recurse=False):
                if parameter.dim() == 2 and own.endswith(_WEIGHT):
                    yield f"{name}.{own}".lstrip("."), False, True


def contains(part: nn.Module, others: Sequence[nn.Module]) -> bool:
    """Whether one of the others is the part itself, or lies in it."""
    return any(module is other for module in part.modules() for other in others)


def is_tower(part: nn.Module) -> bool:
    """Whether the part goes from pixels or waves on, and attends."""
    convolves = any(isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) for module in part.modules())
    return convolves and attends(part)


def parts_behind(module: nn.Module, layers: Sequence[nn.Module]) -> Iterator[nn.Module]:
    """The children that stand behind the one that holds the layers, those of a list one by one."""
    children = list(module.children())
    last = max((number for number, child in enumerate(children) if contains(child, layers)), default=len(children))
    for child in children[last + 1 :]:
        yield from child if isinstance(child, nn.ModuleList) else (child,)


def ends_in(part: nn.Module, width: int) -> bool:
    """Whether the last linear layer gives so many values, and nothing in the part attends."""
    linear = [module for module in part.modules() if isinstance(module, nn.Linear)]
    return bool(linear) and linear[-1].out_features == width and not attends(part)


def attends(part: nn.Module) -> bool:
    """Whether there is attention in it, by the names of its parts."""
    return any("attn" in name or "attention" in name for name, _ in part.named_modules())
