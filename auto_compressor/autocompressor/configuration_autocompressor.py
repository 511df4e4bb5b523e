"""Configurations of the AutoCompressors: those of the base models and a few fields more."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import GemmaConfig, LlamaConfig, MistralConfig, OPTConfig, Qwen2Config, Qwen3Config


SUMMARY_SOURCES = ("tokens", "means", "both")
SUMMARY_SCALES = (None, "normalized", "learned")


@dataclass(kw_only=True, repr=False)
class AutoCompressorConfigMixin:
    r"""
    Fields that turn the config of a decoder-only model into that of its AutoCompressor.

    Args:
        summary_length (`int`, defaults to 50):
            Summary vectors per compressed segment, where their number is fixed. 0 makes a plain language model.
        accumulate_summary (`bool`, defaults to `True`):
            Whether a segment sees the summary vectors of all earlier segments, or of the one before it only (the
            Recurrent Memory Transformer). May be changed after loading.
        segment_gradient_checkpointing (`bool`, defaults to `False`):
            Whether training recomputes every segment but the last in the backward pass.
        sum_token_id, eoc_token_id (`int`, *optional*):
            The control tokens `<sum>` and `<eoc>`. With both, and `compression_max_len` above 0, the number of summary
            vectors is variable: a segment that ends with `<sum>` is compressed until the model predicts `<eoc>`.
        compression_max_len (`int`, defaults to 8):
            Most summary vectors of a segment, where their number is variable.
        compression_lambda (`float`, defaults to 0.0):
            Weight of the length penalty in the loss.
        compression_alpha (`float`, defaults to 1.0):
            What a vector of the softprompt counts beside a token of text in the denominator of the length penalty.
        truncate_bptt_segments (`int`, defaults to 1):
            Segments through which variable-length summary vectors keep their gradient; older ones are detached.
        compress_stop_threshold (`float`, *optional*):
            Probability of `<eoc>` above which a segment gets no further vector at inference. By default 0.5: `<eoc>`
            must be more probable than not.
        segment_length (`int`, *optional*):
            Tokens of a segment where a caller names none: as many as the model was trained with, which training
            writes here. Without it, texts are cut into equal segments that fit the positions.
        summary_source (`str`, defaults to `"tokens"`):
            What the summary vectors of a fixed number are made of: `"tokens"`, the last hidden states at the summary
            embeddings (paper, section 3.1); `"means"`, the means of the segment's last hidden states over
            `summary_length` windows of equal length (Feldman and Artzi, "Simple Context Compression", 2025,
            arXiv 2510.20797, section 3); `"both"`, the sum of the two.
        summary_scale (`str`, *optional*):
            How large summary vectors are. By default as large as hidden states. `"normalized"` brings each to the root
            mean square of the token embeddings, which is what the first layer expects; `"learned"` starts there and
            learns a factor for each dimension.
        summary_residual (`bool`, defaults to `False`):
            Whether summary vectors of a fixed number are differences to the embeddings of the last tokens of their
            segment, as many as there are vectors: what is made of the hidden states is added to them by a projection
            that starts at 0. A new model thus reads the last tokens, and learns what to add of the others.
        ordinary_summary_positions (`bool`, defaults to `False`):
            Whether summary vectors are counted like tokens: those of a softprompt stand in front of the text, new ones
            behind it. It is so anyway where positions are rotary and the number of vectors is fixed. With OPT, or
            where their number is variable, a softprompt has no place of its own by default (position -1), and no other
            engine can read it in front of a prompt.
    """

    base_model_type: ClassVar[str]
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "last_hidden_state",
        "cache",
        "past_key_values",
        "softprompt",
        "softprompt_attention_mask",
        "summaries",
        "length_penalty",
    ]

    summary_length: int = 50
    accumulate_summary: bool = True
    segment_gradient_checkpointing: bool = False
    sum_token_id: int | None = None
    eoc_token_id: int | None = None
    compression_max_len: int = 8
    compression_lambda: float | int = 0.0
    compression_alpha: float | int = 1.0
    truncate_bptt_segments: int = 1
    compress_stop_threshold: float | int | None = None
    segment_length: int | None = None
    summary_source: str = "tokens"
    summary_scale: str | None = None
    summary_residual: bool = False
    ordinary_summary_positions: bool = False

    @property
    def variable_length(self) -> bool:
        """Whether the model decides how many summary vectors a segment gets."""
        return self.sum_token_id is not None and self.compression_max_len > 0

    @property
    def num_summary_tokens(self) -> int:
        """Summary embeddings, which are read after every segment that is compressed."""
        return 0 if self.variable_length or self.summary_source == "means" else self.summary_length

    @property
    def max_vectors(self) -> int:
        """Most summary vectors of a segment; 0 in a plain language model."""
        return self.compression_max_len if self.variable_length else self.summary_length

    @property
    def stop_threshold(self) -> float:
        """`compress_stop_threshold`; without it `<eoc>` must be more probable than not."""
        return 0.5 if self.compress_stop_threshold is None else self.compress_stop_threshold

    @property
    def end_of_text_id(self) -> int | None:
        """`eos_token_id`, the first one where there are several."""
        return self.eos_token_id[0] if isinstance(self.eos_token_id, list) else self.eos_token_id

    def __post_init__(self, **kwargs):
        lowest = {
            "summary_length": 0,
            "compression_max_len": 0,
            "compression_lambda": 0,
            "compression_alpha": 0,
            "truncate_bptt_segments": 1,
        }
        for name, value in lowest.items():
            if not value <= getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` must be {value} or more, and finite, got {getattr(self, name)}.")
        self._check_control_tokens()
        for name, choices in (("summary_source", SUMMARY_SOURCES), ("summary_scale", SUMMARY_SCALES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {choices}, got {getattr(self, name)!r}.")
        if self.variable_length and self.summary_source != "tokens":
            raise ValueError(f"`summary_source` must be 'tokens' for a variable number, got {self.summary_source!r}.")
        if self.variable_length and self.summary_residual:
            raise ValueError("`summary_residual` must be False for a variable number of vectors, got True.")
        threshold = self.compress_stop_threshold
        if threshold is not None and not 0 < threshold <= 1:
            raise ValueError(f"`compress_stop_threshold` must be above 0 and at most 1, got {threshold}.")
        if self.segment_length is not None and self.segment_length < 1:
            raise ValueError(f"`segment_length` must be 1 or more, or None, got {self.segment_length}.")
        super().__post_init__(**kwargs)

    def _check_control_tokens(self):
        if self.summary_length == 0 and self.compression_max_len == 0:
            raise ValueError(
                "One of `summary_length` and `compression_max_len` must be above 0, got 0 for both. (A plain language"
                " model has `summary_length` 0 and no control tokens.)"
            )
        ids = (self.sum_token_id, self.eoc_token_id)
        if ids == (None, None):
            return
        if None in ids or min(ids) < 0 or ids[0] == ids[1]:
            raise ValueError(
                "`sum_token_id` and `eoc_token_id` must be two different tokens, both given or neither,"
                f" got {ids[0]} and {ids[1]}."
            )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs) -> "AutoCompressorConfigMixin":
        """As in transformers; fields of this class among `kwargs` are checked too."""
        own = {name: kwargs.pop(name) for name in AutoCompressorConfigMixin.__dataclass_fields__ if name in kwargs}
        return super().from_dict(config_dict | own, **kwargs)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads a config of ours, of a plain base model, or of a published AutoCompressor (the base's type).

        Raises:
            ValueError: if the config belongs to another kind of model.
        """
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type not in (cls.model_type, cls.base_model_type):
            raise ValueError(
                f"{pretrained_model_name_or_path} holds a model of type {model_type!r}; {cls.__name__} reads"
                f" {cls.base_model_type!r} and {cls.model_type!r}."
            )
        return config_dict | {"model_type": cls.model_type}, kwargs


@strict
class OPTAutoCompressorConfig(AutoCompressorConfigMixin, OPTConfig):
    """Configuration of an [`OPTAutoCompressorModel`]: [`OPTConfig`] and [`AutoCompressorConfigMixin`]."""

    model_type = "opt_autocompressor"
    base_model_type = "opt"


@strict
class LlamaAutoCompressorConfig(AutoCompressorConfigMixin, LlamaConfig):
    """Configuration of a [`LlamaAutoCompressorModel`]: [`LlamaConfig`] and [`AutoCompressorConfigMixin`]."""

    model_type = "llama_autocompressor"
    base_model_type = "llama"


@strict
class MistralAutoCompressorConfig(AutoCompressorConfigMixin, MistralConfig):
    """Configuration of a [`MistralAutoCompressorModel`]: [`MistralConfig`] and [`AutoCompressorConfigMixin`]."""

    model_type = "mistral_autocompressor"
    base_model_type = "mistral"


@strict
class Qwen2AutoCompressorConfig(AutoCompressorConfigMixin, Qwen2Config):
    """Configuration of a [`Qwen2AutoCompressorModel`]: [`Qwen2Config`] and [`AutoCompressorConfigMixin`]."""

    model_type = "qwen2_autocompressor"
    base_model_type = "qwen2"


@strict
class Qwen3AutoCompressorConfig(AutoCompressorConfigMixin, Qwen3Config):
    """Configuration of a [`Qwen3AutoCompressorModel`]: [`Qwen3Config`] and [`AutoCompressorConfigMixin`]."""

    model_type = "qwen3_autocompressor"
    base_model_type = "qwen3"


@strict
class GemmaAutoCompressorConfig(AutoCompressorConfigMixin, GemmaConfig):
    """Configuration of a [`GemmaAutoCompressorModel`]: [`GemmaConfig`] and [`AutoCompressorConfigMixin`]."""

    model_type = "gemma_autocompressor"
    base_model_type = "gemma"


__all__ = [
    "AutoCompressorConfigMixin",
    "GemmaAutoCompressorConfig",
    "LlamaAutoCompressorConfig",
    "MistralAutoCompressorConfig",
    "OPTAutoCompressorConfig",
    "Qwen2AutoCompressorConfig",
    "Qwen3AutoCompressorConfig",
]
