"""Whether what was read from JSON has the types that its dataclass declares: JSON holds whatever somebody wrote."""

from __future__ import annotations

from types import UnionType
from typing import get_args, get_origin, get_type_hints


def check_types(part: object) -> None:
    """Raise `TypeError` where a field is not of the type it is declared with: what JSON holds may be anything."""
    for name, kind in get_type_hints(type(part)).items():
        value = getattr(part, name)
        kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
        if isinstance(value, bool) or not isinstance(value, tuple(get_origin(one) or one for one in kinds)):
            raise TypeError(name)
        if isinstance(value, list):
            (content,) = (get_args(one)[0] for one in kinds if get_origin(one) is list)
            if any(type(item) is not content for item in value):
                raise TypeError(name)
