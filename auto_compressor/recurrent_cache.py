"""The cache of a recurrent language model: states in place of keys and values."""

from collections.abc import Callable

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin


class RecurrentLayer(CacheLayerMixin):
    """
    The states of one layer or level after the last token.

    Attributes:
        states (`dict[str, torch.Tensor]`): By name, each `(batch_size, ...)`; empty before the first token.
        num_tokens (`int`): Columns seen, padding among them.
    """

    def __init__(self):
        super().__init__()
        self.states: dict[str, torch.Tensor] = {}
        self.num_tokens = 0

    def remember(self, **states: torch.Tensor):
        """Replaces states, without what led to them: gradients end where a call of the model begins."""
        self.states.update({name: state.detach() for name, state in states.items()})

    def get_seq_length(self) -> int:
        return self.num_tokens

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.num_tokens + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor):
        raise ValueError("A recurrent model has no keys and values.")

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        raise ValueError("A recurrent model has no keys and values.")

    def reset(self):
        self.states, self.num_tokens = {}, 0

    def reorder_cache(self, beam_idx: torch.LongTensor):
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int):
        self._map(lambda state: state.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor):
        self._map(lambda state: state[indices.to(state.device)])

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]):
        self.states = {name: function(state) for name, state in self.states.items()}


class RecurrentCache(Cache):
    """
    Cache of a recurrent language model, one [`RecurrentLayer`] per layer or level. Its size does not grow.

    Args:
        num_layers (`int`): Layers or levels.
    """

    def __init__(self, num_layers: int):
        super().__init__(layers=[RecurrentLayer() for _ in range(num_layers)])

    @property
    def batch_size(self) -> int | None:
        """Rows of the states; None before the first token."""
        return next((len(state) for layer in self.layers for state in layer.states.values()), None)

    def count_tokens(self, num_tokens: int):
        """Adds the tokens that the model has just read."""
        for layer in self.layers:
            layer.num_tokens += num_tokens


__all__ = ["RecurrentCache", "RecurrentLayer"]
