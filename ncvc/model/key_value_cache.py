"""Static cache of keys and values for generation and scoring: one tensor, filled from the left, never grown.

Costs 2 x num_layers x num_kv_heads x head_dim values per token and row: 96 KiB in fp32 at the report's shape. It knows
positions and masks of nothing: where rows are padded, whoever runs the network gives both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from ncvc.model.transformer import ModelConfig


class KeyValueCache:
    """``store`` [num_layers, 2, B, K, capacity, D], of which the first ``length`` columns are filled.

    Starts as zeros: a masked column counts nothing only where it holds a number.
    """

    def __init__(
        self, config: ModelConfig, *, batch: int, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (config.num_layers, 2, batch, config.num_kv_heads, capacity, config.head_dim)
        self._hold(torch.zeros(shape, device=device, dtype=dtype), length=0)

    def _hold(self, store: torch.Tensor, *, length: int) -> None:
        self.store, self.length = store, length
        self._layers = [layer.unbind() for layer in store]  # views, made once: a step has little time

    @classmethod
    def _of(cls, store: torch.Tensor, *, length: int) -> KeyValueCache:
        cache = cls.__new__(cls)
        cache._hold(store, length=length)
        return cache

    def extend(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new keys and values behind the old ones and return all of them up to now."""
        count, (keys, values) = key.size(2), self._layers[layer]  # [B, K, capacity, D]
        keys.narrow(2, self.length, count).copy_(key)
        values.narrow(2, self.length, count).copy_(value)
        return keys.narrow(2, 0, self.length + count), values.narrow(2, 0, self.length + count)

    def window(self, rows: slice, *, first: int) -> KeyValueCache:
        """An empty cache that writes into ``rows`` of this one, from column ``first`` on."""
        return self._of(self.store[:, :, rows, :, first:], length=0)

    def keep(self, rows: Sequence[int], *, first: int) -> None:
        """Let go of all rows but these and of the columns before ``first``; for a moment both copies are held."""
        index = torch.tensor(rows, device=self.store.device)
        self._hold(self.store[:, :, :, :, first:].index_select(2, index), length=self.length - first)

    def repeated(self, batch: int, *, capacity: int) -> KeyValueCache:
        """A cache of ``batch`` rows and ``capacity`` columns that all begin with what this one's only row holds."""
        layers, two, _, heads, _, width = self.store.shape
        store = self.store.new_zeros((layers, two, batch, heads, capacity, width))
        store[:, :, :, :, : self.length] = self.store[:, :, :, :, : self.length]
        return self._of(store, length=self.length)
