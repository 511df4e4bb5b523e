"""Configurations of the AutoCompressors: those of the base models and a few fields more."""

from dataclasses import dataclass
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig, OPTConfig


@dataclass(kw_only=True, repr=False)
class AutoCompressorConfigMixin:
    r"""
    Fields that turn the config of a decoder-only model into that of its AutoCompressor.

    Args:
        summary_length (`int`, defaults to 50):
            Summary vectors per compressed segment. 0 makes a plain language model.
        accumulate_summary (`bool`, defaults to `True`):
            Whether a segment sees the summary vectors of all earlier segments, or of the last one only (the
            Recurrent Memory Transformer). May be changed after loading.
        segment_gradient_checkpointing (`bool`, defaults to `False`):
            Whether training recomputes every segment but the last in the backward pass.
    """

    base_model_type: ClassVar[str]
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values", "softprompt", "softprompt_attention_mask"]

    summary_length: int = 50
    accumulate_summary: bool = True
    segment_gradient_checkpointing: bool = False

    def __post_init__(self, **kwargs):
        if self.summary_length < 0:
            raise ValueError(f"`summary_length` must be 0 or more, got {self.summary_length}.")
        super().__post_init__(**kwargs)

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


__all__ = ["AutoCompressorConfigMixin", "LlamaAutoCompressorConfig", "OPTAutoCompressorConfig"]
