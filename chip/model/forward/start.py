"""Where a forward pass can start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor

from chip.model.forward.mid_layer import MidLayer
from chip.model.forward.trace import Call


@dataclass(frozen=True)
class Pixels:
    """From the batch's own inputs: images, tokens, masks."""


@dataclass(frozen=True)
class TowerOutputs:
    """From what the vision tower's layers returned: they do not compute."""

    outputs: Sequence[Any]
    """Of its first layers, in their order."""


@dataclass(frozen=True)
class ConnectorInputs:
    """From what the connectors are called with: the vision tower does not compute."""

    calls: Sequence[Call]


@dataclass(frozen=True)
class TextEmbeddings:
    """From what the text model is called with."""

    call: Call
    """Without the embeddings."""
    states: Tensor
    """(B, T, d): the embeddings."""
    embeddings: Tensor | None = field(default=None, kw_only=True)
    """As `states`, where each layer is given some of them too and `states` are another; None: only `states` matter."""
    shared: dict[Any, Any] = field(default_factory=dict, kw_only=True)
    """What layers hand to later ones beside hidden states. A run adds to it."""

    @property
    def layers_done(self) -> int:
        """How many layers of the text model do not compute."""
        return 0


@dataclass(frozen=True)
class HiddenStates(TextEmbeddings):
    """From what a layer of the text model returned; `states` are that."""

    after: int
    """Index of that layer."""

    @property
    def layers_done(self) -> int:
        return self.after + 1


@dataclass(frozen=True)
class InsideLayer(TextEmbeddings):
    """From within a layer of the text model, as `mid_layer` has it; `states` are what goes into the layer."""

    layer: int
    mid_layer: MidLayer

    @property
    def layers_done(self) -> int:
        return self.layer


Start: TypeAlias = Pixels | TowerOutputs | ConnectorInputs | TextEmbeddings
"""`TextEmbeddings` with its subclasses `HiddenStates` and `InsideLayer`."""
