"""Keys and values of past tokens that lie in files between two uses, for many answers generated at once."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache

from chip.model.forward.activation_store import in_file


class DiskCache(DynamicCache):  # type: ignore[misc]
    """transformers' own, of which no more than one layer is in memory at a time.

    What a recurrent layer holds, which does not grow with the text, stays in memory.
    """

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Keys and values of all tokens so far, as `DynamicCache.update`."""
        if layer_idx < len(self.layers) and getattr(self.layers[layer_idx], "is_initialized", False):
            layer = self.layers[layer_idx]
            layer.keys, layer.values = layer.keys.to(key_states.device), layer.values.to(key_states.device)
        result = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        layer = self.layers[layer_idx]
        layer.keys, layer.values = in_file(layer.keys.cpu()), in_file(layer.values.cpu())
        return result
