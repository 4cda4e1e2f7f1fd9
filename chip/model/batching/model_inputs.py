"""What batches need to know of a model; `chip.model.loading.VLM` says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from chip.model.batching.packing import Cost
from chip.model.chat import Prompts


class ModelInputs(Protocol):
    """A model, as far as its inputs go."""

    @property
    def device(self) -> torch.device:
        """Where its inputs go."""

    @property
    def prompts(self) -> Prompts:
        """Records in its chat format."""

    @property
    def image_token_id(self) -> int: ...

    @property
    def max_tokens(self) -> int:
        """The longest record that it takes."""

    @property
    def by_size(self) -> bool:
        """Whether all images of a batch must have one size."""

    @property
    def cost(self) -> Cost: ...

    @property
    def shares_images(self) -> bool:
        """Whether questions about one image can share it."""

    def positions(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(..., B, T) int64: where each token stands, as the model itself would say."""
