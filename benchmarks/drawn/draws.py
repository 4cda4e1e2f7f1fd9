"""What a seed decides: the sizes of a hospital, and of the model that learns it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import exp, log
from typing import Any

import numpy as np

FAMILIES = ("llava", "qwen2_5_vl", "gemma3", "smolvlm")
"""Each stands in every fourth even seed and in every fourth odd one; all else is drawn."""
CONNECTOR_WIDTHS = (128, 192, 256, 384, 512, 768, 1024)
TOKENS_ALONG_A_SIDE = (2, 3, 4, 5, 6, 8)
TOKENS_PER_COLUMN = (0.1, 20.0)
NEAR = 1.35
"""Factor by which a world's tokens per column may miss what was drawn, where several shapes come so near."""
TEXT_WIDTHS = (96, 128, 160, 192)
TEXT_MLPS = (384, 512, 768, 1024)
HEAD = 32
"""Width of an attention head."""

Range = tuple[int, int]
"""Least and most; each parent draws its own count."""


@dataclass(frozen=True)
class WorldDraw:
    """How large a hospital is, and what of it shares a picture."""

    institutions: int
    patients: Range
    studies: Range
    images: Range
    """Of a study."""
    sections: int
    facts: Range
    """Of a section."""
    text_share: float
    """Of the patients, those without any picture."""
    signs: bool
    """Institutions have a picture; else what is known of them is asked on their patients' pictures."""
    cards: bool
    """Patients have a picture; else what is known of them is asked on that of their first study."""
    institution_on_patients: bool
    """A question of the institution's is asked on its patients' pictures too."""
    name_on_studies: bool
    """A patient's name is asked on the studies' pictures too."""
    templates: int
    """Of a task, that are trained on."""
    asked: int
    """Wordings of a task in which each fact is trained."""
    validation: bool
    """There are questions to choose settings by, trained on by nobody; else some trained ones are set apart."""


@dataclass(frozen=True)
class ModelDraw:
    """The shape of a model."""

    family: str
    tokens_side: int
    """Image tokens along a side of an image."""
    connector_width: int
    """What the connector's first map takes in."""
    layers: int
    width: int
    mlp: int
    heads: int
    key_value_heads: int
    vision_layers: int
    concatenated: int
    """Layers of LLaVA's tower whose outputs stand side by side before the connector."""

    @property
    def image_tokens(self) -> int:
        return self.tokens_side**2


def draw_world(seed: int, tiny: bool = False) -> WorldDraw:
    """The hospital of this seed.

    Args:
        tiny: as small as a hospital can be that has a target of each level, for tests.
    """
    rng = np.random.default_rng([seed, 1])

    def one_of(*ranges: Range) -> Range:
        return ranges[int(rng.integers(len(ranges)))]

    def coin(probability: float = 0.5) -> bool:
        return bool(rng.random() < probability)

    drawn = WorldDraw(
        institutions=int(rng.integers(3, 5)),
        patients=one_of((2, 3), (3, 3), (3, 4)),
        studies=one_of((1, 2), (2, 2), (2, 3)),
        images=one_of((1, 1), (1, 2), (2, 2)),
        sections=int(rng.integers(2, 4)),
        facts=one_of((2, 2), (2, 3), (3, 3)),
        text_share=float(rng.choice((0.0, 0.25, 0.4))),
        signs=coin(),
        cards=coin(0.6),
        institution_on_patients=coin(),
        name_on_studies=coin(),
        templates=int(rng.integers(3, 6)),
        asked=int(rng.integers(2, 4)),
        validation=coin(),
    )
    smallest: dict[str, Any] = {"institutions": 3, "patients": (2, 2), "studies": (2, 2), "images": (1, 1)}
    return replace(drawn, **smallest, sections=2, facts=(2, 2)) if tiny else drawn


def draw_model(seed: int, images: int, tiny: bool = False) -> ModelDraw:
    """The model of this seed.

    Args:
        images: of the whole world, which with the tokens of each and the connector's width makes the tokens per column.
        tiny: of the drawn shapes the smallest, for tests.
    """
    rng = np.random.default_rng([seed, 2])
    side, connector_width = _draw_connector(rng, images)
    width = int(rng.choice(TEXT_WIDTHS))
    heads = width // HEAD
    vision_layers = int(rng.integers(1, 4))
    concatenated = [n for n in range(1, vision_layers + 2) if connector_width % (n * HEAD) == 0]
    drawn = ModelDraw(
        family=FAMILIES[seed // 2 % len(FAMILIES)],
        tokens_side=side,
        connector_width=connector_width,
        layers=int(rng.integers(2, 6)),
        width=width,
        mlp=int(rng.choice(TEXT_MLPS)),
        heads=heads,
        key_value_heads=int(rng.choice([n for n in range(1, heads + 1) if heads % n == 0])),
        vision_layers=vision_layers,
        concatenated=int(rng.choice([n for n in concatenated if connector_width // n <= 384] or concatenated[-1:])),
    )
    smallest: dict[str, Any] = {
        "tokens_side": 2,
        "connector_width": 256,
        "layers": 2,
        "width": 128,
        "mlp": 384,
        "heads": 4,
    }
    return replace(drawn, **smallest, key_value_heads=4, vision_layers=1, concatenated=2) if tiny else drawn


def _draw_connector(rng: np.random.Generator, images: int) -> tuple[int, int]:
    """Image tokens along a side of an image, and the connector's width: near what was drawn for their ratio."""
    least, most = map(log, TOKENS_PER_COLUMN)
    wanted = exp(float(rng.uniform(least, most)))
    shapes = [(side, width) for side in TOKENS_ALONG_A_SIDE for width in CONNECTOR_WIDTHS]
    off = np.array([abs(log(side**2 * images / width / wanted)) for side, width in shapes])
    return shapes[int(rng.choice(np.flatnonzero(off <= max(log(NEAR), off.min()))))]
