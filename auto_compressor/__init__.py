"""Compress text for language models: AutoCompressors, in the manner of transformers.

Public names are imported when they are first asked for, so that `auto-compressor --help` need not wait for torch. The
models are registered with the Auto classes as soon as transformers is loaded, be it before this package or after.
"""

import sys
from importlib import import_module
from importlib.util import find_spec

from .import_hook import AfterTransformers


# module of this package -> its public names
PUBLIC_NAMES = {
    "adaptive_outputs": ["ByteLMOutput"],
    "autocompressor_outputs": ["AutoCompressorOutput", "SegmentSummary"],
    "cache_policies": ["POLICIES"],
    "configuration_activation_compressor": ["ActivationCompressorConfig"],
    "configuration_adaptive_byte": ["AdaptiveByteConfig"],
    "configuration_autocompressor": [
        "AutoCompressorConfigMixin",
        "GemmaAutoCompressorConfig",
        "LlamaAutoCompressorConfig",
        "MistralAutoCompressorConfig",
        "OPTAutoCompressorConfig",
        "Qwen2AutoCompressorConfig",
        "Qwen3AutoCompressorConfig",
    ],
    "configuration_continuous_text_autoencoder": ["ContinuousTextAutoencoderConfig"],
    "configuration_gru_byte": ["GRUByteConfig"],
    "configuration_hierarchical_autoencoder": [
        "CodeSequenceConfig",
        "HierarchicalAutoencoderConfig",
        "HierarchicalLevelConfig",
    ],
    "continuous_outputs": ["ContinuousDecoderOutput", "ContinuousEncoderOutput", "ContinuousTextAutoencoderOutput"],
    "hierarchical_outputs": [
        "HierarchicalAutoencoderOutput",
        "HierarchicalDecoderOutput",
        "HierarchicalEncoderOutput",
    ],
    "merging_cache": ["MergingCache", "merging_attention"],
    "modeling_activation_compressor": ["ActivationCompressor", "ActivationCompressorOutput"],
    "modeling_adaptive_byte": ["AdaptiveByteForCausalLM"],
    "modeling_autocompressor": [
        "AutoCompressorMixin",
        "AutoCompressorModel",
        "GemmaAutoCompressorModel",
        "LlamaAutoCompressorModel",
        "MistralAutoCompressorModel",
        "OPTAutoCompressorModel",
        "Qwen2AutoCompressorModel",
        "Qwen3AutoCompressorModel",
    ],
    "modeling_continuous_text_autoencoder": ["ContinuousTextAutoencoder"],
    "modeling_gru_byte": ["GRUByteForCausalLM"],
    "modeling_hierarchical_autoencoder": [
        "ByteSegmentCompressor",
        "CodeExpander",
        "CodeSequenceTransformer",
        "HierarchicalAutoencoder",
        "LearnedQueryAttention",
        "SlidingWindowAttention",
        "VectorQuantizer",
    ],
    "recurrent_cache": ["RecurrentCache"],
    "softprompt_cache": ["SoftpromptCache"],
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


if "transformers" in sys.modules:
    import_module(f"{__name__}.registration")
elif not any(isinstance(finder, AfterTransformers) for finder in sys.meta_path):
    sys.meta_path.insert(0, AfterTransformers(__name__))
