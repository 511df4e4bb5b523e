"""The models to start from: names that need no hub, and one way to load any of them as an AutoCompressor."""

from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
)

from ..files.bases import check_causal_lm, load_base_config, resolve_base
from .loading import load
from .registration import MODELS


AUTOCOMPRESSORS = {
    name: model_class
    for model_class in MODELS
    for name in (model_class.config_class.base_model_type, model_class.config_class.model_type)
}


def autocompressor_class(model_type: str) -> type[PreTrainedModel]:
    """
    Returns the AutoCompressor for a `model_type`, of a base model or of our own.

    Raises:
        ValueError: if there is none.
    """
    if model_type not in AUTOCOMPRESSORS:
        raise ValueError(
            f"No AutoCompressor for models of type {model_type!r}; there is one for {list(AUTOCOMPRESSORS)}."
        )
    return AUTOCOMPRESSORS[model_type]


def load_autocompressor(name: str, **kwargs) -> PreTrainedModel:
    """
    Loads `name` as the AutoCompressor of its architecture.

    Args:
        name (`str`): A base model, an AutoCompressor or LoRA adapters: a hub name, a folder, or `smollm2`. Adapters
            are merged into their base.
        kwargs: As for `from_pretrained`; config fields such as `summary_length` too.

    Raises:
        OSError: if the checkpoint is damaged, or cannot be reached; the message names what needs no hub.
        ValueError: if there is no AutoCompressor for its `model_type`.
    """
    folder = resolve_base(name)
    model_class = autocompressor_class(load_base_config(name, **kwargs).model_type)
    return load(model_class, folder, **kwargs)


def load_language_model(name: str, **kwargs) -> PreTrainedModel:
    """
    Loads `name` as [`load_autocompressor`] where there is an AutoCompressor for it, else as the causal language model
    that it is.

    Raises:
        OSError: if the checkpoint is damaged, or cannot be reached; the message names what needs no hub.
        ValueError: if it is no causal language model.
    """
    config = load_base_config(name, **kwargs)
    if config.model_type in AUTOCOMPRESSORS:
        return load_autocompressor(name, **kwargs)
    check_causal_lm(name, config)
    return load(AutoModelForCausalLM, resolve_base(name), **kwargs)


__all__ = [
    "autocompressor_class",
    "load_autocompressor",
    "load_language_model",
]
