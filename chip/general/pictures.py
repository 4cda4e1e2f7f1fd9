"""Pictures of nothing in particular, so that what a connector does to any image is kept too."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

SIDE = 224  # pixels; a processor makes of it what it needs


def draw_pictures(count: int, seed: int) -> list[bytes]:
    """PNG images: smooth clouds in a color, grainy ones, stripes and shapes on a plain ground, in turn."""
    painters = (_clouds, _grain, _stripes, _shapes)
    return [_png(painters[number % 4](np.random.default_rng([seed, number]))) for number in range(count)]


def _png(pixels: NDArray[np.float64]) -> bytes:
    file = io.BytesIO()
    Image.fromarray((pixels.clip(0, 1) * 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def _field(rng: np.random.Generator, smooth: float) -> NDArray[np.float64]:
    """(SIDE, SIDE, 1): noise in 0..1."""
    noise = gaussian_filter(rng.standard_normal((SIDE, SIDE)), smooth)
    return np.asarray(((noise - noise.min()) / np.ptp(noise))[..., None])


def _clouds(rng: np.random.Generator) -> NDArray[np.float64]:
    first, second = rng.random((2, 3))
    mix = _field(rng, rng.uniform(8, 32))
    return np.asarray(mix * first + (1 - mix) * second)


def _grain(rng: np.random.Generator) -> NDArray[np.float64]:
    gray = 0.7 * _field(rng, 24) + 0.3 * _field(rng, rng.uniform(1, 3))
    return np.asarray(gray.repeat(3, axis=2))


def _stripes(rng: np.random.Generator) -> NDArray[np.float64]:
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    angle, count = rng.uniform(0, np.pi), rng.uniform(3, 20)
    wave = (0.5 + 0.5 * np.sin(2 * np.pi * count * (x * np.cos(angle) + y * np.sin(angle))))[..., None]
    first, second = rng.random((2, 3))
    return np.asarray(wave * first + (1 - wave) * second)


def _shapes(rng: np.random.Generator) -> NDArray[np.float64]:
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    pixels = np.ones((SIDE, SIDE, 3)) * rng.random(3)
    for _ in range(6):
        (cy, cx), (ry, rx) = rng.random(2), rng.uniform(0.05, 0.3, 2)
        inside = (np.abs(y - cy) < ry) & (np.abs(x - cx) < rx)
        if rng.random() < 0.5:
            inside = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1
        pixels[inside] = rng.random(3)
    return np.asarray(pixels)
