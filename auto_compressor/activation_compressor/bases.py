"""The compressors to start from: any that is saved, and the one that comes with the package."""

from transformers import AutoConfig

from ..files.bases import resolve_base
from ..files.loading import checkpoint_options, load
from .configuration_activation_compressor import ActivationCompressorConfig
from .modeling_activation_compressor import ActivationCompressor


def load_activation_compressor(name: str, **kwargs) -> ActivationCompressor:
    """
    Loads a compressor of caches, in evaluation mode. Its base model is loaded apart, see [`ActivationCompressor`].

    Args:
        name (`str`): A hub name, a folder, or `smollm2-cache`, whose base `load_base_model("smollm2")` loads.
        kwargs: As for `from_pretrained`.

    Raises:
        OSError: if the checkpoint is damaged, or cannot be reached.
        ValueError: if it is another kind of model.
    """
    folder = resolve_base(name)
    config = load(AutoConfig, folder, **checkpoint_options(kwargs))
    if not isinstance(config, ActivationCompressorConfig):
        raise ValueError(f"{name} must be an activation_compressor, it is of the type {config.model_type}.")
    return load(ActivationCompressor, folder, **kwargs).eval()


__all__ = ["load_activation_compressor"]
