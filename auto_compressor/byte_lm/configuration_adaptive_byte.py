"""Config of the byte language model with adaptive borders."""

import math

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


BORDER_MODES = ("uncertainty", "teacher_forced")


@strict
class AdaptiveByteConfig(PreTrainedConfig):
    """
    Config of [`AdaptiveByteForCausalLM`].

    Args:
        vocab_size (`int`, defaults to 257): Number of tokens: the bytes, and the end of a text.
        hidden_size (`int`, defaults to 128): Width of all layers.
        num_levels (`int`, defaults to 3): Level 0 reads bytes, each other one the states at the borders below it.
        border_mode (`str`, defaults to `"uncertainty"`): Borders are where entropy (level 0) or predicted error (the
            others) have summed up to a threshold since the last one; or, with `"teacher_forced"`, where the true next
            unit is not the predicted one, which leaks the future.
        byte_entropy_threshold (`float`, defaults to 20.0): Threshold of level 0 for summed entropies, in nats.
        meta_uncertainty_threshold (`float` or `list[float]`, defaults to 1.0): Threshold for summed predicted errors
            of the levels between the lowest and the top one: one value for all of them, or one for each.
        border_error_threshold (`float`, defaults to 0.1): Mean squared error above which `"teacher_forced"` sets a
            border, on levels above 0.
        entropy_floor (`float`, defaults to 0.0): Entropies of level 0 below it, in nats, are penalised.
        entropy_reg_weight (`float`, defaults to 0.001): Weight of the penalty on entropies below `entropy_floor`.
        encoder_loss_weight, decoder_loss_weight, meta_loss_weight (`float`, defaults to 1.0): Weights of the next-byte
            losses of level 0 alone and of all levels, and of the error of predicted states.
        uncertainty_loss_weight (`float`, defaults to 0.1): Weight of the error of predicted errors.
        dropout (`float`, defaults to 0.0): Dropout between the two layers of every recurrent block.
        add_encoder_states (`bool`, defaults to `False`): Whether the decoder head also gets the states of level 0.
        detach_meta_targets (`bool`, defaults to `False`): Whether the states that the levels above 0 predict get no
            gradient from that.
        target_ratios (`list[float]`, *optional*): Units per patch of every level but the top one, at which training
            aims by moving the thresholds, which begin at the two given above and are then saved with the model.
        window_end_target (`bool`, defaults to `True`): Whether every row is followed by the end of a text. If not,
            only rows that end with `eos_token_id` have an end, and the last byte of others has no target.
        carry_state (`bool`, defaults to `False`): Whether training and evaluation let a window go on from the states
            behind the one before it.
    """

    model_type = "adaptive_byte"
    keys_to_ignore_at_inference = [
        "cache",
        "past_key_values",
        "encoder_logits",
        "losses",
        "border_masks",
        "entropies",
        "hidden_states",
    ]

    vocab_size: int = 257
    hidden_size: int = 128
    num_levels: int = 3
    border_mode: str = "uncertainty"
    byte_entropy_threshold: float | int = 20.0
    meta_uncertainty_threshold: float | int | list[float | int] = 1.0
    border_error_threshold: float | int = 0.1
    entropy_floor: float | int = 0.0
    entropy_reg_weight: float | int = 0.001
    encoder_loss_weight: float | int = 1.0
    decoder_loss_weight: float | int = 1.0
    meta_loss_weight: float | int = 1.0
    uncertainty_loss_weight: float | int = 0.1
    dropout: float | int = 0.0
    add_encoder_states: bool = False
    detach_meta_targets: bool = False
    target_ratios: list[float | int] | None = None
    window_end_target: bool = True
    carry_state: bool = False
    use_cache: bool = True
    eos_token_id: int = 256
    pad_token_id: int = 256

    @property
    def border_thresholds(self) -> list[float]:
        """The threshold of every level but the top one, in `"uncertainty"` mode."""
        meta, num_meta = self.meta_uncertainty_threshold, max(self.num_levels - 2, 0)
        thresholds = [self.byte_entropy_threshold, *(meta if isinstance(meta, list) else [meta] * num_meta)]
        return thresholds[: self.num_levels - 1]

    def validate_architecture(self):
        if self.border_mode not in BORDER_MODES:
            raise ValueError(f"`border_mode` must be one of {', '.join(BORDER_MODES)}, got {self.border_mode!r}.")
        for field in ("vocab_size", "hidden_size", "num_levels"):
            if getattr(self, field) < 1:
                raise ValueError(f"`{field}` must be 1 or more, got {getattr(self, field)}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` must be at least 0 and below 1, got {self.dropout}.")
        for field in ("entropy_reg", "encoder_loss", "decoder_loss", "meta_loss", "uncertainty_loss"):
            if not 0 <= getattr(self, f"{field}_weight") < math.inf:
                weight = getattr(self, f"{field}_weight")
                raise ValueError(f"`{field}_weight` must be 0 or more, and finite, got {weight}.")

    def validate_borders(self):
        meta, num_meta = self.meta_uncertainty_threshold, max(self.num_levels - 2, 0)
        if isinstance(meta, list) and len(meta) != num_meta:
            raise ValueError(
                f"`meta_uncertainty_threshold` must have a threshold for each of the {num_meta} levels between the"
                f" lowest and the top one, got {meta}."
            )
        ratios = self.target_ratios
        if ratios is None:
            return
        if len(ratios) != self.num_levels - 1 or not all(1 <= ratio < math.inf for ratio in ratios):
            raise ValueError(
                f"`target_ratios` must have a ratio of 1 or more for each of the {self.num_levels - 1} levels below"
                f" the top one, got {ratios}."
            )
        if self.border_mode != "uncertainty" or not all(0 < start < math.inf for start in self.border_thresholds):
            raise ValueError(
                "`target_ratios` needs `border_mode` uncertainty, and thresholds above 0 that training moves, got"
                f" {self.border_mode} and {self.border_thresholds}."
            )


__all__ = ["AdaptiveByteConfig"]
