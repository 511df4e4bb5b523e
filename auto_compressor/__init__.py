"""Compress text for language models: AutoCompressors, in the manner of transformers.

Public names are imported when they are first asked for, so that `auto-compressor --help` need not wait for torch. The
models are registered with the Auto classes as soon as transformers is loaded, be it before this package or after.
"""

import sys
from importlib import import_module
from importlib.util import find_spec

from .import_hook import AfterTransformers
from .moved_modules import MovedModules


# module of this package -> its public names
PUBLIC_NAMES = {
    "byte_lm.outputs": ["ByteLMOutput"],
    "autocompressor.outputs": ["AutoCompressorOutput", "SegmentSummary"],
    "activation_compressor.cache_policies": ["POLICIES"],
    "activation_compressor.configuration_activation_compressor": ["ActivationCompressorConfig"],
    "byte_lm.configuration_adaptive_byte": ["AdaptiveByteConfig"],
    "autocompressor.configuration_autocompressor": [
        "AutoCompressorConfigMixin",
        "GemmaAutoCompressorConfig",
        "LlamaAutoCompressorConfig",
        "MistralAutoCompressorConfig",
        "OPTAutoCompressorConfig",
        "Qwen2AutoCompressorConfig",
        "Qwen3AutoCompressorConfig",
    ],
    "continuous_text_autoencoder.configuration_continuous_text_autoencoder": ["ContinuousTextAutoencoderConfig"],
    "byte_lm.configuration_gru_byte": ["GRUByteConfig"],
    "hierarchical_autoencoder.configuration_hierarchical_autoencoder": [
        "CodeSequenceConfig",
        "HierarchicalAutoencoderConfig",
        "HierarchicalLevelConfig",
    ],
    "continuous_text_autoencoder.outputs": [
        "ContinuousDecoderOutput",
        "ContinuousEncoderOutput",
        "ContinuousTextAutoencoderOutput",
    ],
    "hierarchical_autoencoder.outputs": [
        "HierarchicalAutoencoderOutput",
        "HierarchicalDecoderOutput",
        "HierarchicalEncoderOutput",
    ],
    "activation_compressor.merging_cache": ["MergingCache", "merging_attention"],
    "activation_compressor.modeling_activation_compressor": ["ActivationCompressor", "ActivationCompressorOutput"],
    "byte_lm.modeling_adaptive_byte": ["AdaptiveByteForCausalLM"],
    "autocompressor.modeling_autocompressor": [
        "AutoCompressorMixin",
        "AutoCompressorModel",
        "GemmaAutoCompressorModel",
        "LlamaAutoCompressorModel",
        "MistralAutoCompressorModel",
        "OPTAutoCompressorModel",
        "Qwen2AutoCompressorModel",
        "Qwen3AutoCompressorModel",
    ],
    "continuous_text_autoencoder.modeling_continuous_text_autoencoder": ["ContinuousTextAutoencoder"],
    "byte_lm.modeling_gru_byte": ["GRUByteForCausalLM"],
    "hierarchical_autoencoder.modeling_hierarchical_autoencoder": [
        "ByteSegmentCompressor",
        "CodeExpander",
        "CodeSequenceTransformer",
        "HierarchicalAutoencoder",
        "LearnedQueryAttention",
        "SlidingWindowAttention",
        "VectorQuantizer",
    ],
    "byte_lm.recurrent_cache": ["RecurrentCache"],
    "autocompressor.softprompt_cache": ["SoftpromptCache"],
    "tokenization_bytes": ["ByteTokenizer"],
}

MODULES = {name: module for module, names in PUBLIC_NAMES.items() for name in names}

__all__ = sorted(MODULES)


def __getattr__(name: str):
    """Imports a public name, or a module of the package, when it is first asked for."""
    if name in MODULES:
        import_module(f"{__name__}.registration")
        value = getattr(import_module(f"{__name__}.{MODULES[name]}"), name)
    elif find_spec(f"{__name__}.{name}") is not None:
        value = import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
    sys.meta_path.insert(0, MovedModules(__name__))
if "transformers" in sys.modules:
    import_module(f"{__name__}.registration")
elif not any(isinstance(finder, AfterTransformers) for finder in sys.meta_path):
    sys.meta_path.insert(0, AfterTransformers(__name__))
