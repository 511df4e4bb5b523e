"""What `generate` is given beside a cache that holds text: the whole text, or new tokens and a mask over all of it."""

import torch
from transformers import Cache

from .cache_names import TakesCacheMixin, cache_in


class CachedPromptMixin(TakesCacheMixin):
    """
    In front of [`~transformers.GenerationMixin`], which takes any prompt that comes with a cache for the whole text.

    The cache is a [`SoftpromptCache`] or a [`RecurrentCache`]: it knows whether a text begins with what it has read.
    """

    def generate(self, inputs: torch.Tensor | None = None, *args, **kwargs):
        """
        As in transformers; the tokens after a cache are those of the whole text without one.

        Raises:
            ValueError: if `input_ids` is neither the whole text, which begins with what the cache holds, nor new
                tokens with an `attention_mask` over all; if the rows are others; if a row is padded on the right.
        """
        cache, attention_mask = cache_in(kwargs), kwargs.get("attention_mask")
        check_left_padding(attention_mask)
        if cache is not None and cache.get_seq_length() > 0:
            embeds, ids = kwargs.get("inputs_embeds"), kwargs.get("input_ids") if inputs is None else inputs
            fit_cache(cache, ids if embeds is None else None, embeds, attention_mask)
        return super().generate(inputs, *args, **kwargs)

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        """Beams and samples of a row begin with its cache: the rows of the cache are repeated as those of the text."""
        cache = cache_in(model_kwargs)
        if expand_size > 1 and cache is not None and cache.get_seq_length() and cache.batch_size == len(input_ids):
            cache.batch_repeat_interleave(expand_size)
        return super()._expand_inputs_for_generation(expand_size, is_encoder_decoder, input_ids, **model_kwargs)

    def _get_candidate_generator(self, *args, model_kwargs=None, **kwargs):
        """Assisted decoding reads ids from the beginning: it knows neither embeddings nor what a cache holds."""
        if model_kwargs.get("inputs_embeds") is not None:
            raise ValueError("`inputs_embeds` must be None in assisted decoding, which drafts from `input_ids` alone.")
        cache = cache_in(model_kwargs)
        if cache is not None and cache.get_seq_length() > 0:
            raise ValueError(
                f"`cache` must be empty in assisted decoding, it holds {cache.get_seq_length()} tokens: pass the whole"
                " text without it."
            )
        return super()._get_candidate_generator(*args, model_kwargs=model_kwargs, **kwargs)


def check_left_padding(attention_mask: torch.Tensor | None):
    """Raises a `ValueError` for rows of text that end with padding: the first new token would be drawn there."""
    if attention_mask is not None and attention_mask.ndim == 2:
        padded = (attention_mask[:, -1] == 0) & (attention_mask != 0).any(dim=1)  # (batch,)
        if padded.any():
            raise ValueError(
                "`attention_mask` must end with the text of every row, rows"
                f" {padded.nonzero()[:, 0].tolist()} end with padding: pad on the left (`padding_side='left'`)."
            )


def fit_cache(
    cache: Cache, ids: torch.Tensor | None, embeds: torch.Tensor | None, attention_mask: torch.Tensor | None
):
    """
    Checks a prompt against the text that a cache holds; a cache of the whole prompt forgets the last token.

    Args:
        cache (`SoftpromptCache` or `RecurrentCache`): Holds text; may be changed.
        ids (`(batch, length)`, *optional*), embeds (`(batch, length, embedding_dim)`, *optional*): The prompt.
        attention_mask (`(batch, length)` or `(batch, seen_length + length)`, *optional*): With the latter, the prompt
            is new tokens alone.
    """
    prompt, seen = ids if embeds is None else embeds, cache.get_seq_length()
    name = "input_ids" if embeds is None else "inputs_embeds"
    if prompt is None:
        raise ValueError(f"`input_ids` must be given where `cache` holds text: its {seen} tokens and new ones.")
    check_rows(cache, name, prompt)
    if ids is not None and attention_mask is not None and attention_mask.shape[1] == seen + ids.shape[1]:
        return
    if prompt.shape[1] < seen or not (ids is None or begins_with(cache, ids, attention_mask)):
        raise ValueError(
            f"`{name}` must begin with the {seen} tokens that `cache` holds, got {prompt.shape[1]} others: pass the"
            " whole text, or new `input_ids` alone with an `attention_mask` over all of it, of the shape"
            f" ({prompt.shape[0]}, {seen + prompt.shape[1]})."
        )
    if prompt.shape[1] == seen:
        cache.forget_last_token()


def check_rows(cache: Cache, name: str, prompt: torch.Tensor):
    """Raises a `ValueError` unless a cache has the rows of the prompt, or as many for each of them."""
    if cache.batch_size % prompt.shape[0] != 0:
        raise ValueError(f"`cache` must have the {prompt.shape[0]} rows of `{name}`, it has {cache.batch_size}.")


def begins_with(cache: Cache, ids: torch.Tensor, attention_mask: torch.Tensor | None) -> bool:
    """Whether `(batch, length)` ids begin with the text that a cache holds, whose rows may have been repeated."""
    repeats = cache.batch_size // ids.shape[0]
    mask = torch.ones_like(ids) if attention_mask is None else attention_mask
    return cache.is_beginning_of(ids.repeat_interleave(repeats, dim=0), mask.repeat_interleave(repeats, dim=0))


__all__ = ["CachedPromptMixin"]
