"""The cache of a recurrent language model: states in place of keys and values."""

from collections.abc import Callable

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from .byte_rows import ByteRows


HASH_BASE = 6364136223846793005  # odd and large, of a known generator of random numbers


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

    def count_tokens(self, num_columns: int, rows: ByteRows):
        """Adds the columns that the model has just read, and the text in them."""
        for layer in self.layers:
            layer.num_tokens += num_columns
        self.layers[0].remember(text=text_hash(rows, self.layers[0].states.get("text")))

    def is_beginning_of(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> bool:
        """Whether `(batch_size, length)` ids, or those that the mask shows, begin with the text that was read."""
        seen = self.get_seq_length()
        held = self.layers[0].states.get("text")
        given = text_hash(ByteRows.from_input(input_ids[:, :seen], attention_mask[:, :seen]))
        return held is None or torch.equal(given.to(held.device), held)

    def forget_last_token(self):
        """States cannot go back."""
        raise ValueError(
            f"`input_ids` must hold a token more than the {self.get_seq_length()} that `cache` has read: add new ones,"
            " pass a cache of all but the last, or no cache."
        )


def text_hash(rows: ByteRows, before: torch.LongTensor | None = None) -> torch.LongTensor:
    """
    A number for all tokens of each row, `(batch_size,)`: of whole texts the same as of their parts in order.

    Args:
        rows (`ByteRows`): The tokens.
        before (`torch.LongTensor` of shape `(batch_size,)`, *optional*): The number of what stands in front of them.
    """
    # Token 0 counts too, padding does not.
    tokens = (rows.tokens + 1) * rows.mask  # (batch, length)
    lengths = rows.mask.sum(dim=1)  # (batch,)
    before = torch.zeros_like(lengths) if before is None else before
    # Integers wrap around. HASH_BASE ** n for n = 0, 1, ...
    powers = torch.full((tokens.shape[1] + 1,), HASH_BASE, device=tokens.device).index_fill(0, lengths.new_zeros(1), 1)
    powers = powers.cumprod(dim=0)  # (length + 1,)
    # (batch, length): how many tokens of its row stand behind each one
    to_end = (lengths[:, None] - 1 - torch.arange(tokens.shape[1], device=tokens.device)).clamp(min=0)
    return before * powers[lengths] + (tokens * powers[to_end]).sum(dim=1)


__all__ = ["RecurrentCache", "RecurrentLayer"]
