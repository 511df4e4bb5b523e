"""Config of the plain recurrent byte language model, the baseline of the adaptive one."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class GRUByteConfig(PreTrainedConfig):
    """
    Config of [`GRUByteForCausalLM`].

    Args:
        vocab_size (`int`, defaults to 257): Number of tokens: the bytes, and the end of a text.
        hidden_size (`int`, defaults to 128): Width of all layers.
        num_levels (`int`, defaults to 3): Levels of the [`AdaptiveByteConfig`], of the same width, whose number of
            parameters the defaults of `num_blocks` and `num_padding_parameters` give.
        num_blocks (`int`, *optional*): Recurrent blocks, each with a residual.
        num_padding_parameters (`int`, *optional*): Parameters that do nothing but make the number of all equal.
        dropout (`float`, defaults to 0.0): Dropout between the two layers of every recurrent block.
        window_end_target, carry_state (`bool`): As in [`AdaptiveByteConfig`].
    """

    model_type = "gru_byte"
    keys_to_ignore_at_inference = ["cache", "past_key_values", "losses", "hidden_states"]

    vocab_size: int = 257
    hidden_size: int = 128
    num_levels: int = 3
    num_blocks: int | None = None
    num_padding_parameters: int | None = None
    dropout: float | int = 0.0
    window_end_target: bool = True
    carry_state: bool = False
    use_cache: bool = True
    eos_token_id: int = 256
    pad_token_id: int = 256

    def __post_init__(self, **kwargs):
        matched, block = self.num_adaptive_parameters, self.num_block_parameters
        outside = 2 * self.vocab_size * self.hidden_size + self.vocab_size  # embeddings and head
        if self.num_blocks is None:
            self.num_blocks = min(max((matched - outside) // block, 1), 8 * self.num_levels)
        if self.num_padding_parameters is None:
            self.num_padding_parameters = max(matched - outside - self.num_blocks * block, 0)
        super().__post_init__(**kwargs)

    @property
    def num_block_parameters(self) -> int:
        return 12 * self.hidden_size**2 + 12 * self.hidden_size

    @property
    def num_adaptive_parameters(self) -> int:
        """Parameters of the adaptive model with `num_levels`."""
        size, levels = self.hidden_size, self.num_levels
        bytes_ = 3 * self.vocab_size * size + 2 * self.vocab_size
        return bytes_ + levels * self.num_block_parameters + (levels - 1) * (14 * size**2 + 16 * size + 1)

    def validate_architecture(self):
        for field in ("vocab_size", "hidden_size", "num_levels", "num_blocks"):
            if getattr(self, field) < 1:
                raise ValueError(f"`{field}` must be 1 or more, got {getattr(self, field)}.")
        if self.num_padding_parameters < 0:
            raise ValueError(f"`num_padding_parameters` must be 0 or more, got {self.num_padding_parameters}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` must be at least 0 and below 1, got {self.dropout}.")


__all__ = ["GRUByteConfig"]
