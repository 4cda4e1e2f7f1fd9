"""Pictures for the hospital's nodes: scans for studies, portraits for patients, signs for institutions.

A child's picture carries something of its parent's: the studies of a patient share an anatomy, those of an institution
a tint. What tells two studies apart is their own: where the structures lie and how bright they are.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.special import expit

SIZE = 64  # pixels

Pixels = NDArray[np.float64]  # (SIZE, SIZE) or (SIZE, SIZE, 3), in 0..1


def draw(path: tuple[str, ...], seed: int) -> Image.Image:
    """The picture of the node at `path`; the same for the same seed on every machine."""
    painter = (_sign, _portrait, _scan)[len(path) - 1]
    return Image.fromarray((painter(path, seed).clip(0, 1) * 255).astype(np.uint8))


def _rng(seed: int, *names: str) -> np.random.Generator:
    digest = hashlib.blake2b("/".join((str(seed), *names)).encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def _grid() -> tuple[Pixels, Pixels]:
    axis = np.linspace(-1, 1, SIZE)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    return y, x


def _ellipse(cy: float, cx: float, ry: float, rx: float) -> Pixels:
    """1 inside, falling off smoothly at the rim."""
    y, x = _grid()
    distance = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2
    return np.asarray(expit(8 * (1 - distance)))


def _tint(institution: str, seed: int) -> Pixels:
    return np.asarray(0.75 + 0.25 * _rng(seed, "tint", institution).random(3))


def _scan(path: tuple[str, ...], seed: int) -> Pixels:
    institution, patient, study = path
    anatomy, own = _rng(seed, "anatomy", patient), _rng(seed, "scan", study)
    body = _ellipse(0, 0, *(0.8 + 0.15 * anatomy.random(2)))
    gray = 0.25 * body
    for side in (-1, 1):
        center, radii = 0.1 * anatomy.standard_normal(2), 0.3 + 0.15 * anatomy.random(2)
        gray -= 0.15 * _ellipse(center[0], side * 0.42 + center[1], radii[0] + 0.15, radii[1] - 0.1)
    for _ in range(7):
        center, radii = own.uniform(-0.75, 0.75, 2), own.uniform(0.06, 0.28, 2)
        gray += own.uniform(-0.2, 0.6) * _ellipse(*center, *radii)
    texture = gaussian_filter(own.standard_normal((SIZE, SIZE)), 2.5)
    gray += 0.5 * body * texture
    return 2 * gray[..., None] * _tint(institution, seed)


def _portrait(path: tuple[str, ...], seed: int) -> Pixels:
    rng = _rng(seed, "portrait", path[1])
    half = rng.random((8, 4)) < 0.5
    cells = np.concatenate((half, half[:, ::-1]), axis=1)
    mask = np.kron(cells, np.ones((SIZE // 8, SIZE // 8)))[..., None]
    face, paper = rng.uniform(0.1, 0.9, 3), _tint(path[0], seed)
    return np.asarray(mask * face + (1 - mask) * paper)


def _sign(path: tuple[str, ...], seed: int) -> Pixels:
    rng = _rng(seed, "sign", path[0])
    y, x = _grid()
    angle, frequency = rng.uniform(0, np.pi), rng.uniform(2, 6)
    stripes = 0.5 + 0.5 * np.sign(np.sin(np.pi * frequency * (x * np.cos(angle) + y * np.sin(angle))))
    first, second = rng.uniform(0, 1, (2, 3))
    return np.asarray(stripes[..., None] * first + (1 - stripes[..., None]) * second)
