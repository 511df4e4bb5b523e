"""Configuration of the activation compressor, which belongs to one base model."""

import math

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class ActivationCompressorConfig(PreTrainedConfig):
    r"""
    Config of [`ActivationCompressor`].

    Args:
        base_model_type, base_name_or_path, base_fingerprint (`str`, *optional*):
            The base model: its type, its name, and its weights as [`~identity.model_fingerprint`] tells them.
        num_hidden_layers, num_key_value_heads, head_dim (`int`): Sizes of the base model's cache.
        compression_ratio (`float`, defaults to 4.0):
            Bytes of the full cache of a text divided by those of its slots; 1 compresses nothing.
        num_slots (`int`, *optional*):
            Slots per layer and head whatever the length of the text, in place of `compression_ratio`.
        num_sinks (`int`, defaults to 4), recent_window (`int`, defaults to 32):
            The first and the last tokens, which always keep a slot of their own.
        observation_window (`int`, defaults to 64): Last queries whose mean attention is the importance of a token.
        compression_layers (`list[int]`, *optional*): Layers that are compressed; the others stay full. Default: all.
        layer_budgets (`list[float]`, *optional*):
            Relative slots of each compressed layer. They share what equal budgets (the default) would take.
        use_residuals (`bool`, defaults to `True`):
            Whether a part of the slots goes to gated residuals: tokens that merging would change most.
        residual_fraction (`float`, defaults to 0.5):
            Share of the slots that goes to gated residuals, without the slots of sinks and recent window.
        residual_importance (`float`, defaults to 0.5):
            Power of the importance of tokens in the choice of gated residuals. At 0 they are what merging changes
            most, whether it was looked at or not, which keeps more of what is asked for later; at 1 they follow what
            was looked at last.
        residual_int8 (`bool`, defaults to `False`):
            Whether the slots of gated residuals are held in int8, so that more of them fit.
        similarity_threshold (`float`, defaults to 0.85):
            Tokens whose keys are less similar than this to all slots rather keep one as residuals.
        adaptive_threshold (`bool`, defaults to `True`):
            Whether `similarity_threshold` follows the similarity at which the residual slots are just enough.
        threshold_momentum (`float`, defaults to 0.9):
            Share of its old value that an adaptive threshold keeps at every step of training.
        freeze_base (`bool`, defaults to `True`): Whether training leaves the base model as it is.
        distillation_weight (`float`, defaults to 1.0): Weight of KL(full cache || compressed cache) in the loss.
        importance_weight (`float`, defaults to 1.0):
            Weight of KL(attention || importance), the attention being that of the continuation to the full cache.
        contrastive_weight (`float`, defaults to 0.1): Weight of the contrastive loss of tokens against slots.
        contrastive_temperature (`float`, defaults to 0.1): Temperature of the contrastive loss.
    """

    model_type = "activation_compressor"
    keys_to_ignore_at_inference = ["cache", "past_key_values", "losses"]

    base_model_type: str | None = None
    base_name_or_path: str | None = None
    base_fingerprint: str | None = None
    num_hidden_layers: int = 12
    num_key_value_heads: int = 12
    head_dim: int = 64
    compression_ratio: float | int = 4.0
    num_slots: int | None = None
    num_sinks: int = 4
    recent_window: int = 32
    observation_window: int = 64
    compression_layers: list[int] | None = None
    layer_budgets: list[float | int] | None = None
    use_residuals: bool = True
    residual_fraction: float | int = 0.5
    residual_importance: float | int = 0.5
    residual_int8: bool = False
    similarity_threshold: float | int = 0.85
    adaptive_threshold: bool = True
    threshold_momentum: float | int = 0.9
    freeze_base: bool = True
    distillation_weight: float | int = 1.0
    importance_weight: float | int = 1.0
    contrastive_weight: float | int = 0.1
    contrastive_temperature: float | int = 0.1

    @property
    def compressed_layers(self) -> list[int]:
        """Indices of the layers that are compressed, in order."""
        if self.compression_layers is None:
            return list(range(self.num_hidden_layers))
        return sorted(self.compression_layers)

    @property
    def min_slots(self) -> int:
        """Fewest slots of a layer: those that are protected, and one that all other tokens can join."""
        return self.num_sinks + self.recent_window + 1

    def __post_init__(self, **kwargs):
        lowest = {"num_hidden_layers": 1, "num_key_value_heads": 1, "head_dim": 1, "compression_ratio": 1}
        lowest |= {"num_sinks": 0, "recent_window": 0, "observation_window": 1, "distillation_weight": 0}
        lowest |= {"importance_weight": 0, "contrastive_weight": 0, "residual_importance": 0}
        for name, value in lowest.items():
            if not value <= getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` must be {value} or more, and finite, got {getattr(self, name)}.")
        if self.num_slots is not None and self.num_slots < self.min_slots:
            raise ValueError(
                f"`num_slots` must be more than `num_sinks` + `recent_window` = {self.min_slots - 1},"
                f" got {self.num_slots}."
            )
        for name in ("residual_fraction", "threshold_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 0 and below 1, got {getattr(self, name)}.")
        if not -1 <= self.similarity_threshold <= 1:
            raise ValueError(f"`similarity_threshold` must be in [-1, 1], got {self.similarity_threshold}.")
        if not self.contrastive_temperature > 0:
            raise ValueError(f"`contrastive_temperature` must be above 0, got {self.contrastive_temperature}.")
        self._check_layers()
        super().__post_init__(**kwargs)

    def _check_layers(self):
        layers = self.compressed_layers
        if not layers or layers != sorted(set(layers) & set(range(self.num_hidden_layers))):
            raise ValueError(
                f"`compression_layers` must name different layers from 0 to {self.num_hidden_layers - 1}, at least"
                f" one, got {self.compression_layers}."
            )
        if self.layer_budgets is not None and (
            len(self.layer_budgets) != len(layers) or not all(0 < share < math.inf for share in self.layer_budgets)
        ):
            raise ValueError(
                f"`layer_budgets` must give a positive number for each of the {len(layers)} compressed layers, got"
                f" {self.layer_budgets}."
            )


__all__ = ["ActivationCompressorConfig"]
