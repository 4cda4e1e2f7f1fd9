"""General ability: colored shapes on a plain ground, owned by nobody."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.forgetting.worlds.wording import Fact, Kind
from chip.evaluation.groups import GENERAL

SCENES = 24
SIDE = 64  # pixels
COLORS = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 70, 220),
    "yellow": (235, 210, 40),
    "purple": (140, 50, 170),
    "orange": (240, 140, 30),
    "black": (10, 10, 10),
    "white": (250, 250, 250),
}
CORNERS = {"triangle": 3, "square": 4, "pentagon": 5, "hexagon": 6, "diamond": 4}
SHAPES = (*CORNERS, "circle", "ring", "bar")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight")

COLOR = Kind(("colour of the shapes", "hue drawn"), tuple(COLORS))
SHAPE = Kind(("shape", "geometric form"), SHAPES)
NUMBER = Kind(("number of shapes", "count of drawn things"), NUMBERS)


def scenes(rng: np.random.Generator, count: int = SCENES) -> tuple[list[Fact], dict[str, Image.Image]]:
    """What is seen in each scene, and its picture by path."""
    path = GENERAL.path
    facts: list[Fact] = []
    pictures: dict[str, Image.Image] = {}
    for number in range(count):
        image = f"images/scene_{number + 1}.png"
        values = {kind: str(rng.choice(kind.values)) for kind in (COLOR, SHAPE, NUMBER)}
        pictures[image] = _scene(values[COLOR], values[SHAPE], NUMBERS.index(values[NUMBER]) + 1, rng)
        facts += [Fact(path, image, kind, value, path) for kind, value in values.items()]
    return facts, pictures


def _scene(color: str, shape: str, number: int, rng: np.random.Generator) -> Image.Image:
    """Each shape in a cell of its own, of nine."""
    ground = tuple(int(level) for level in rng.integers(90, 170, 3))
    picture = Image.new("RGB", (SIDE, SIDE), ground)
    pen = ImageDraw.Draw(picture)
    for cell in rng.permutation(9)[:number]:
        y, x = ((place + 0.5) * SIDE / 3 for place in divmod(int(cell), 3))
        _shape(pen, shape, x, y, COLORS[color])
    return picture


def _shape(pen: ImageDraw.ImageDraw, shape: str, x: float, y: float, color: tuple[int, int, int]) -> None:
    radius = 0.4 * SIDE / 3
    match shape:
        case "circle":
            pen.circle((x, y), radius, fill=color)
        case "ring":
            pen.circle((x, y), radius, outline=color, width=3)
        case "bar":
            pen.rectangle((x - radius, y - radius / 3, x + radius, y + radius / 3), fill=color)
        case _:
            turn = 45 if shape == "diamond" else 0
            pen.regular_polygon((x, y, radius), CORNERS[shape], rotation=turn, fill=color)
