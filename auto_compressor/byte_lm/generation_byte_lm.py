"""What recurrent byte language models share: the cache of their states, next-byte losses, and how they generate."""

import torch
from transformers import Cache, GenerationMixin, PreTrainedModel

from .byte_rows import ByteRows, check_input, next_token_targets
from .cached_prompts import CachedPromptMixin
from .gru_block import init_as_torch
from .recurrent_cache import RecurrentCache
from .tensors import masked_mean, token_losses


class RecurrentByteLM(CachedPromptMixin, PreTrainedModel, GenerationMixin):
    """A causal language model over bytes whose past is the states of recurrent layers."""

    accepts_loss_kwargs = False  # the Trainer divides the loss by accumulation steps

    def _init_weights(self, module):
        init_as_torch(module)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the first call makes the cache

    def open_cache(
        self,
        cache: Cache | None,
        num_layers: int,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None,
        labels: torch.LongTensor | None,
    ) -> RecurrentCache:
        """Returns the states to go on from, empty ones if there are none, once all arguments are found to fit."""
        if cache is None:
            cache = RecurrentCache(num_layers)
        if not isinstance(cache, RecurrentCache) or len(cache) != num_layers:
            raise ValueError(
                f"`cache` must be a RecurrentCache with {num_layers} layers, as a call of this model"
                f" returns, got {cache}."
            )
        num_seen, cached_rows = cache.get_seq_length(), cache.batch_size
        check_input(input_ids, attention_mask, labels, num_seen, cached_rows)
        return cache

    def byte_loss(self, logits: torch.Tensor, labels: torch.LongTensor, rows: ByteRows) -> torch.Tensor:
        """
        Mean over all targets, in nats.

        Args:
            logits (`torch.Tensor` of shape `(batch_size, length, vocab_size)`): Logits of the next byte, those of a
                row in front.
            labels (`torch.LongTensor` of shape `(batch_size, length)`): In the columns of the input.
            rows (`ByteRows`): The input.
        """
        end = self.config.eos_token_id if self.config.window_end_target else -100
        targets = next_token_targets(rows.to_front(labels), rows.mask, end)  # (batch, length)
        return masked_mean(token_losses(logits, targets), targets != -100, over_processes=self.training)


def kept_columns(logits: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """The last columns of `(batch_size, length, vocab_size)`, 0 for all, or those of an index."""
    return logits[:, slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep]


__all__ = ["RecurrentByteLM", "kept_columns"]
