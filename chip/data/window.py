"""Windows: which part of an image's values becomes the scale from black to white."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chip.errors import InputError

_FORM = "give CENTER,WIDTH in the image's own values, such as 40,400; the width is 1 or more"


class Window(NamedTuple):
    """Center and width, in the values of the image: of DICOM after its modality transform, such as Hounsfield units."""

    center: float
    width: float
    """1 or more."""

    @classmethod
    def of(cls, value: object) -> Window:
        """`40,400`, or two numbers.

        Raises:
            InputError: it is neither.
        """
        parts = value.split(",") if isinstance(value, str) else value
        try:
            center, width = (float(part) for part in parts)  # type: ignore[attr-defined]
        except (TypeError, ValueError) as error:
            raise InputError(_FORM, argument="window", value=value) from error
        if not math.isfinite(center) or not 1 <= width < math.inf:
            raise InputError(_FORM, argument="window", value=value)
        return cls(center, width)

    def __str__(self) -> str:
        return f"{self.center:g},{self.width:g}"

    def apply(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """0 (black) to 1 (white) of each value: the linear function of DICOM, PS3.3 C.11.2.1.2.1."""
        if self.width == 1:
            return (values > self.center - 0.5).astype(np.float64)
        scaled = (values - (self.center - 0.5)) / (self.width - 1) + 0.5
        return np.asarray(scaled, dtype=np.float64).clip(0, 1)


def gray(shares: NDArray[np.float64]) -> NDArray[np.uint8]:
    """8 bits of each share of white in 0..1."""
    return np.rint(shares * 255).astype(np.uint8)
