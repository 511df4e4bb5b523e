"""A key/value cache that knows which of its keys belong to a softprompt."""

import torch
from transformers import Cache, DynamicCache, StaticCache


class SoftpromptCache(DynamicCache):
    r"""
    Cache of one segment: the keys and values of `[softprompt ; text]`.

    It remembers the softprompt, so that a continuation needs only the new `input_ids`, and it counts text only:
    `get_seq_length()` is the number of text tokens seen, in this segment and in the compressed ones before it, by
    which [`~transformers.GenerationMixin.generate`] slices its inputs.

    Attributes:
        softprompt (`torch.Tensor` of shape `(batch_size, softprompt_length, embedding_dim)`, *optional*):
            The summary vectors whose keys stand first in the cache; `None` until the first forward pass.
        softprompt_attention_mask (`torch.Tensor` of shape `(batch_size, softprompt_length)`, *optional*):
            1 for vectors that are attended to; `None` if all are.
        compressed_length (`int`):
            Text tokens of earlier segments, which live on in the softprompt only.
    """

    softprompt: torch.Tensor | None = None
    softprompt_attention_mask: torch.Tensor | None = None
    compressed_length: int = 0

    @classmethod
    def from_cache(cls, cache: Cache | None) -> "SoftpromptCache":
        """Returns `cache` as a `SoftpromptCache` that shares its layers; an empty one if there is none.

        The layers of an empty one keep all keys, which must fit into a sliding window anyway: one that is full drops
        its first key, and cannot be cropped.

        Raises:
            ValueError: for a `StaticCache`, whose size leaves no room for the softprompt.
        """
        if isinstance(cache, cls):
            return cache
        if isinstance(cache, StaticCache):
            raise ValueError("`cache` must be able to grow: pass a DynamicCache, not a StaticCache.")
        if cache is not None and not isinstance(cache, Cache):
            raise ValueError(f"`cache` must be a Cache, got {type(cache).__name__}.")
        if cache is None:
            return cls()
        softprompt_cache = cls.__new__(cls)
        softprompt_cache.__dict__.update(cache.__dict__)
        return softprompt_cache

    @property
    def softprompt_length(self) -> int:
        return 0 if self.softprompt is None else self.softprompt.shape[1]

    @property
    def text_length(self) -> int:
        """Text tokens whose keys the cache holds."""
        return max(self.get_query_offset() - self.softprompt_length, 0)

    @property
    def is_empty(self) -> bool:
        return self.get_query_offset() == 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return super().get_seq_length(layer_idx)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.compressed_length + self.text_length

    def begin(self, softprompt: torch.Tensor, softprompt_attention_mask: torch.Tensor | None, compressed_length: int):
        """States what the segment starts from, before its keys are written."""
        self.softprompt = softprompt
        self.softprompt_attention_mask = softprompt_attention_mask
        self.compressed_length = compressed_length

    def reset(self):
        super().reset()
        self.softprompt, self.softprompt_attention_mask, self.compressed_length = None, None, 0

    def reorder_cache(self, beam_idx: torch.LongTensor):
        super().reorder_cache(beam_idx)
        self._select_softprompts(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int):
        super().batch_repeat_interleave(repeats)
        self._select_softprompts(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor):
        super().batch_select_indices(indices)
        self._select_softprompts(lambda tensor: tensor[indices.to(tensor.device)])

    def _select_softprompts(self, select):
        if self.softprompt is not None:
            self.softprompt = select(self.softprompt)
        if self.softprompt_attention_mask is not None:
            self.softprompt_attention_mask = select(self.softprompt_attention_mask)


__all__ = ["SoftpromptCache"]
