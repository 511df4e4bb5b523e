"""A key/value cache that knows which of its keys belong to a softprompt."""

from collections.abc import Callable

import torch
from transformers import Cache, DynamicCache, QuantizedCache
from transformers.cache_utils import DynamicLayer, QuantizedLayer


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
        input_ids (`torch.Tensor` of shape `(batch_size, text_length or more)`, *optional*):
            The text tokens whose keys the cache holds, and perhaps more that were cropped; `None` if not known.
        given (`torch.Tensor` of shape `(batch_size or 1, length, embedding_dim)`, *optional*):
            The softprompt that the whole text was read after, its compressed segments too.
    """

    softprompt: torch.Tensor | None = None
    softprompt_attention_mask: torch.Tensor | None = None
    compressed_length: int = 0
    input_ids: torch.Tensor | None = None
    given: torch.Tensor | None = None

    @classmethod
    def from_cache(cls, cache: Cache | None) -> "SoftpromptCache":
        """Returns `cache`, which becomes a `SoftpromptCache` itself; an empty one if there is none.

        A user's own cache so remembers the softprompt whose keys it holds, wherever it is passed next. The layers of
        an empty one keep all keys, which must fit into a sliding window anyway: one that is full drops its first key,
        and cannot be cropped.

        Raises:
            ValueError: for another kind of cache, as a `StaticCache`, whose size leaves no room for the softprompt.
        """
        if isinstance(cache, cls):
            return cache
        if cache is None:
            return cls()
        if type(cache) not in (DynamicCache, QuantizedCache):
            raise ValueError(
                "`cache` must be able to grow and to remember a softprompt: pass a SoftpromptCache or a DynamicCache,"
                f" not a {type(cache).__name__}."
            )
        cache.__class__ = cls
        return cache

    @property
    def softprompt_length(self) -> int:
        return 0 if self.softprompt is None else self.softprompt.shape[1]

    @property
    def text_length(self) -> int:
        """Text tokens whose keys the cache holds."""
        return max(self.get_query_offset() - self.softprompt_length, 0)

    @property
    def batch_size(self) -> int:
        """Rows of the keys; -1 before the first."""
        is_empty = not self.layers or getattr(self.layers[0], "keys", None) is None
        return -1 if is_empty else self.layers[0].keys.shape[0]

    @property
    def is_empty(self) -> bool:
        return self.get_query_offset() == 0

    @property
    def is_quantized(self) -> bool:
        return any(isinstance(layer, QuantizedLayer) for layer in self.layers)

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return super().get_seq_length(layer_idx)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.compressed_length + self.text_length

    def begin(self, softprompt: torch.Tensor, softprompt_attention_mask: torch.Tensor | None, compressed_length: int):
        """States what the segment starts from, before its keys are written."""
        self.softprompt = softprompt
        self.softprompt_attention_mask = softprompt_attention_mask
        self.compressed_length = compressed_length

    def remember(self, input_ids: torch.Tensor | None):
        """Takes down the ids `(batch_size, length)` of text of the segment, before its keys are written."""
        if self.text_length > 0 and input_ids is not None and self.input_ids is not None:
            # (batch, text_length + length)
            input_ids = torch.cat([self.input_ids[:, : self.text_length], input_ids], dim=1)
        elif self.text_length > 0:
            input_ids = None
        self.input_ids = input_ids

    def check_given(self, softprompt: torch.Tensor | None, rows: int | None = None):
        """Raises a `ValueError` for another softprompt than that after which the text was read, or for other rows."""
        if rows not in (None, self.batch_size):
            raise ValueError(f"`cache` must have the {rows} rows of the text, it has {self.batch_size}.")
        if softprompt is None or softprompt is self.given or self.is_empty:
            return
        same = self.given is not None and self.given.shape[1:] == softprompt.shape[1:]
        same = same and max(len(self.given), len(softprompt)) % min(len(self.given), len(softprompt)) == 0
        if same:
            rows = max(len(self.given), len(softprompt))
            held, asked = (part.repeat_interleave(rows // len(part), dim=0) for part in (self.given, softprompt))
            same = torch.equal(held, asked.to(held.device, held.dtype))
        if not same:
            raise ValueError(
                "`softprompt` must be None where `cache` holds text, or the one that this text was read after: the"
                " keys of another one are not in the cache. Pass the whole text with an empty cache."
            )

    def is_beginning_of(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> bool:
        """Whether `(batch_size, length)` ids, or those that the mask shows, begin with the text, where it is known."""
        if self.input_ids is None:
            return True
        # Of the segment alone: what came before it lives on in the softprompt.
        held, text = self.input_ids[:, : self.text_length], slice(self.compressed_length, self.get_seq_length())
        given, hidden = input_ids[:, text].to(held.device), attention_mask[:, text].to(held.device) == 0
        return bool(((given == held) | hidden).all())

    def forget_last_token(self):
        """Lets the last token be read again."""
        if self.text_length == 0:
            raise ValueError("`cache` must hold the last token of `input_ids`: it holds summary vectors only.")
        self.crop(-1)

    def crop(self, tokens_to_remove: int):
        """
        Removes the last `-tokens_to_remove` tokens.

        Raises:
            ValueError: if they are not text whose keys the cache holds.
        """
        if not -self.text_length <= tokens_to_remove <= 0:
            raise ValueError(
                f"`tokens_to_remove` must be between {-self.text_length}, the text of the last segment, and 0,"
                f" got {tokens_to_remove}."
            )
        super().crop(tokens_to_remove)

    def reset(self):
        # Old versions of transformers make the keys zero and count them still.
        for layer in self.layers:
            layer.keys, layer.values, layer.is_initialized = None, None, False
        super().reset()
        self.softprompt, self.softprompt_attention_mask, self.input_ids, self.compressed_length = None, None, None, 0
        self.given = None

    def reorder_cache(self, beam_idx: torch.LongTensor):
        super().reorder_cache(beam_idx)
        self._select_rows(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int):
        super().batch_repeat_interleave(repeats)
        self._select_rows(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor):
        super().batch_select_indices(indices)
        self._select_rows(lambda tensor: tensor[indices.to(tensor.device)])

    def _select_rows(self, select: Callable[[torch.Tensor], torch.Tensor]):
        for name in ("softprompt", "softprompt_attention_mask", "input_ids", "given"):
            if getattr(self, name) is not None:
                setattr(self, name, select(getattr(self, name)))


class PrefixedLayer(DynamicLayer):
    """
    A layer that begins with keys and values of earlier passes, which are joined once: with the first new ones.

    Args:
        keys, values (`tuple(torch.Tensor)`): One for each pass, `(rows, heads, length, head_dim)`.

    Attributes:
        first (`tuple(torch.Tensor, torch.Tensor)`): The keys and values that were written first. A gradient of part of
            them is no longer than they are, one of part of all keys is.
    """

    def __init__(self, keys: tuple[torch.Tensor, ...] = (), values: tuple[torch.Tensor, ...] = ()):
        super().__init__()
        self.given = keys, values

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        if self.is_initialized:
            return super().update(key_states, value_states, *args, **kwargs)
        self.lazy_initialization(key_states, value_states)
        self.first = key_states, value_states
        pairs = zip(self.given, self.first, strict=True)
        self.keys, self.values = (torch.cat([*given, new], dim=2) for given, new in pairs)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return super().get_seq_length() if self.is_initialized else sum(keys.shape[2] for keys in self.given[0])


class SegmentCache(SoftpromptCache):
    """
    The cache of a segment that nobody continues.

    Args:
        parts (`tuple(tuple(tuple(torch.Tensor, torch.Tensor)))`): What it begins with: for every earlier pass, keys
            and values of each layer, `(rows, heads, length, head_dim)`.
    """

    def __init__(self, parts: tuple[tuple[tuple[torch.Tensor, torch.Tensor], ...], ...]):
        super().__init__()
        self.layer_class_to_replicate = PrefixedLayer
        self.layers = [PrefixedLayer(*zip(*layer, strict=True)) for layer in zip(*parts, strict=True)]

    @property
    def first(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The keys and values that every layer was given first, behind those of the prefix."""
        return [layer.first for layer in self.layers]


__all__ = ["SegmentCache", "SoftpromptCache"]
