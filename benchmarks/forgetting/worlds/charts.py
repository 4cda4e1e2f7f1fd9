"""The clinic's pictures. What they show is plain to see; each has its own noise too, which tells it from all others."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

SIDE = 64  # pixels

TINTS = {
    "amber": (1.0, 0.75, 0.2),
    "azure": (0.3, 0.65, 1.0),
    "crimson": (1.0, 0.25, 0.3),
    "emerald": (0.2, 0.85, 0.4),
    "lilac": (0.75, 0.5, 1.0),
    "grey": (0.7, 0.7, 0.7),
    "teal": (0.1, 0.75, 0.75),
    "rose": (1.0, 0.6, 0.8),
}
"""Of the whole picture."""
MARKS = ("nodule", "cavity", "streak", "lattice", "crescent", "cross", "plaque", "wedge")
PLACES = {
    f"{row} {column}": (y, x)
    for row, y in (("upper", 0.2), ("middle", 0.45), ("lower", 0.7))
    for column, x in (("left", 0.2), ("centre", 0.5), ("right", 0.8))
    if (row, column) != ("middle", "centre")
}
"""Of the mark, from the top and from the left."""
WAVES = {
    "smooth": (0.0, 0.0),
    "banded": (3.0, 0.0),
    "striped": (0.0, 3.0),
    "oblique": (3.0, 3.0),
    "ridged": (8.0, 0.0),
    "fibrous": (0.0, 8.0),
    "rising": (3.0, -3.0),
    "woven": (8.0, 8.0),
}
"""Periods of the ground's waves, down and across."""
LABELS = {
    "red": (220, 30, 30),
    "blue": (30, 60, 220),
    "green": (30, 150, 50),
    "yellow": (240, 220, 40),
    "white": (250, 250, 250),
    "black": (5, 5, 5),
    "orange": (245, 140, 20),
    "cyan": (40, 210, 230),
}
"""A strip along the lower edge."""
STRIP = 8  # pixels


def chart(rng: np.random.Generator, tint: str, mark: str, place: str, wave: str, label: str) -> Image.Image:
    """The picture that shows these."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    down, across = WAVES[wave]
    own = gaussian_filter(rng.standard_normal((SIDE, SIDE)), 3)
    gray = 0.5 + 0.2 * np.sin(2 * np.pi * (down * y + across * x)) + 0.15 * own / own.std()
    top, left = PLACES[place]
    covered = _mark(mark, (y - top) / 0.17, (x - left) / 0.17)[..., None]
    picture = np.where(covered, 0.95, gray[..., None] * np.array(TINTS[tint])).clip(0, 1) * 255
    picture[-STRIP:] = LABELS[label]
    return Image.fromarray(picture.astype(np.uint8))


def _mark(mark: str, y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Where the mark covers the ground; it reaches from −1 to 1."""
    radius = np.hypot(y, x)
    inside = np.maximum(abs(y), abs(x)) < 1
    match mark:
        case "nodule":
            covered = radius < 0.8
        case "cavity":
            covered = (radius > 0.6) & (radius < 1)
        case "streak":
            covered = inside & (abs(y - x) < 0.35)
        case "lattice":
            covered = inside & ((abs(y) % 0.66 < 0.25) | (abs(x) % 0.66 < 0.25))
        case "crescent":
            covered = (radius < 1) & (np.hypot(y, x - 0.5) > 0.8)
        case "plaque":
            covered = inside
        case "wedge":
            covered = inside & (abs(x) < (y + 1) / 2)
        case _:
            covered = inside & ((abs(y) < 0.3) | (abs(x) < 0.3))
    return np.asarray(covered)
