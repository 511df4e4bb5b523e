"""A plain recurrent byte language model, with as many parameters as the adaptive one that it is compared with."""

import torch
from torch import nn
from transformers import Cache
from transformers import initialization as init
from transformers.utils import can_return_tuple

from .byte_rows import ByteRows
from .cache_names import takes_cache
from .configuration_gru_byte import GRUByteConfig
from .generation_byte_lm import RecurrentByteLM, kept_columns
from .gru_block import GRUBlock
from .outputs import ByteLMOutput


class GRUByteForCausalLM(RecurrentByteLM):
    """
    Byte embeddings, recurrent blocks with residuals, and a head.

    Example:

    ```python
    >>> from auto_compressor import GRUByteConfig, GRUByteForCausalLM

    >>> model = GRUByteForCausalLM(GRUByteConfig(hidden_size=16, num_levels=3))
    >>> model.num_parameters(), model.num_effective_parameters
    (30324, 28065)
    ```
    """

    config: GRUByteConfig
    # Nothing depends on them: processes would wait for gradients. With a dot, as torch also names those of a root.
    _ddp_params_and_buffers_to_ignore = ["padding_parameters", ".padding_parameters"]

    def __init__(self, config: GRUByteConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(GRUBlock(config.hidden_size, config.dropout) for _ in range(config.num_blocks))
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.padding_parameters = nn.Parameter(torch.empty(config.num_padding_parameters))
        self.post_init()

    def _init_weights(self, module):
        super()._init_weights(module)
        if module is self:
            init.zeros_(self.padding_parameters)

    @property
    def num_effective_parameters(self) -> int:
        """Parameters without those that do nothing."""
        return self.num_parameters() - self.padding_parameters.numel()

    @takes_cache
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> ByteLMOutput:
        """Arguments and errors as in [`AdaptiveByteForCausalLM.forward`]."""
        cache = self.open_cache(cache, len(self.blocks), input_ids, attention_mask, labels)
        rows = ByteRows.from_input(input_ids, attention_mask)
        hidden_states = [self.embed_tokens(rows.tokens)]  # each (batch, length, hidden)
        for block, layer in zip(self.blocks, cache.layers, strict=True):
            # (batch, length, hidden), (batch, 2, hidden)
            outputs, state = block(hidden_states[-1], layer.states.get("encoder"), rows.lengths)
            layer.remember(encoder=state)
            hidden_states.append(hidden_states[-1] + outputs)
        cache.count_tokens(input_ids.shape[1], rows)
        logits = self.lm_head(hidden_states[-1])  # (batch, length, vocab)
        loss = None if labels is None else self.byte_loss(logits, labels, rows)
        show_states = kwargs.get("output_hidden_states", self.config.output_hidden_states)
        return ByteLMOutput(
            loss=loss,
            logits=kept_columns(rows.to_columns(logits), logits_to_keep),
            losses=None if loss is None else {"byte_decoder": loss},
            hidden_states=tuple(map(rows.states_in_columns, hidden_states)) if show_states else None,
            cache=cache if use_cache or (use_cache is None and self.config.use_cache) else None,
        )


__all__ = ["GRUByteForCausalLM"]
