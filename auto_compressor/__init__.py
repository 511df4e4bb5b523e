"""Compress text for language models: AutoCompressors, in the manner of transformers."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from .adaptive_outputs import ByteLMOutput
from .autocompressor_outputs import AutoCompressorOutput, SegmentSummary
from .cache_policies import POLICIES
from .configuration_activation_compressor import ActivationCompressorConfig
from .configuration_adaptive_byte import AdaptiveByteConfig
from .configuration_autocompressor import (
    GemmaAutoCompressorConfig,
    LlamaAutoCompressorConfig,
    MistralAutoCompressorConfig,
    OPTAutoCompressorConfig,
    Qwen2AutoCompressorConfig,
    Qwen3AutoCompressorConfig,
)
from .configuration_continuous_text_autoencoder import ContinuousTextAutoencoderConfig
from .configuration_gru_byte import GRUByteConfig
from .configuration_hierarchical_autoencoder import (
    CodeSequenceConfig,
    HierarchicalAutoencoderConfig,
    HierarchicalLevelConfig,
)
from .continuous_outputs import (
    ContinuousDecoderOutput,
    ContinuousEncoderOutput,
    ContinuousTextAutoencoderOutput,
)
from .hierarchical_outputs import (
    HierarchicalAutoencoderOutput,
    HierarchicalDecoderOutput,
    HierarchicalEncoderOutput,
)
from .merging_cache import MergingCache, merging_attention
from .modeling_activation_compressor import ActivationCompressor, ActivationCompressorOutput
from .modeling_adaptive_byte import AdaptiveByteForCausalLM
from .modeling_autocompressor import (
    AutoCompressorMixin,
    AutoCompressorModel,
    GemmaAutoCompressorModel,
    LlamaAutoCompressorModel,
    MistralAutoCompressorModel,
    OPTAutoCompressorModel,
    Qwen2AutoCompressorModel,
    Qwen3AutoCompressorModel,
)
from .modeling_continuous_text_autoencoder import ContinuousTextAutoencoder
from .modeling_gru_byte import GRUByteForCausalLM
from .modeling_hierarchical_autoencoder import (
    ByteSegmentCompressor,
    CodeExpander,
    CodeSequenceTransformer,
    HierarchicalAutoencoder,
    LearnedQueryAttention,
    SlidingWindowAttention,
    VectorQuantizer,
)
from .recurrent_cache import RecurrentCache
from .softprompt_cache import SoftpromptCache
from .tokenization_bytes import ByteTokenizer


AutoConfig.register("opt_autocompressor", OPTAutoCompressorConfig)
AutoConfig.register("llama_autocompressor", LlamaAutoCompressorConfig)
AutoConfig.register("mistral_autocompressor", MistralAutoCompressorConfig)
AutoConfig.register("qwen2_autocompressor", Qwen2AutoCompressorConfig)
AutoConfig.register("qwen3_autocompressor", Qwen3AutoCompressorConfig)
AutoConfig.register("gemma_autocompressor", GemmaAutoCompressorConfig)
AutoModelForCausalLM.register(OPTAutoCompressorConfig, OPTAutoCompressorModel)
AutoModelForCausalLM.register(LlamaAutoCompressorConfig, LlamaAutoCompressorModel)
AutoModelForCausalLM.register(MistralAutoCompressorConfig, MistralAutoCompressorModel)
AutoModelForCausalLM.register(Qwen2AutoCompressorConfig, Qwen2AutoCompressorModel)
AutoModelForCausalLM.register(Qwen3AutoCompressorConfig, Qwen3AutoCompressorModel)
AutoModelForCausalLM.register(GemmaAutoCompressorConfig, GemmaAutoCompressorModel)
AutoConfig.register("activation_compressor", ActivationCompressorConfig)
AutoModel.register(ActivationCompressorConfig, ActivationCompressor)
AutoConfig.register("hierarchical_autoencoder", HierarchicalAutoencoderConfig)
AutoModel.register(HierarchicalAutoencoderConfig, HierarchicalAutoencoder)
AutoTokenizer.register(HierarchicalAutoencoderConfig, tokenizer_class=ByteTokenizer)
AutoConfig.register("continuous_text_autoencoder", ContinuousTextAutoencoderConfig)
AutoModel.register(ContinuousTextAutoencoderConfig, ContinuousTextAutoencoder)
AutoConfig.register("adaptive_byte", AdaptiveByteConfig)
AutoConfig.register("gru_byte", GRUByteConfig)
AutoModelForCausalLM.register(AdaptiveByteConfig, AdaptiveByteForCausalLM)
AutoModelForCausalLM.register(GRUByteConfig, GRUByteForCausalLM)
AutoTokenizer.register(AdaptiveByteConfig, tokenizer_class=ByteTokenizer)
AutoTokenizer.register(GRUByteConfig, tokenizer_class=ByteTokenizer)

__all__ = [
    "POLICIES",
    "ActivationCompressor",
    "ActivationCompressorConfig",
    "ActivationCompressorOutput",
    "AdaptiveByteConfig",
    "AdaptiveByteForCausalLM",
    "AutoCompressorMixin",
    "AutoCompressorModel",
    "AutoCompressorOutput",
    "ByteLMOutput",
    "ByteSegmentCompressor",
    "ByteTokenizer",
    "CodeExpander",
    "CodeSequenceConfig",
    "CodeSequenceTransformer",
    "ContinuousDecoderOutput",
    "ContinuousEncoderOutput",
    "ContinuousTextAutoencoder",
    "ContinuousTextAutoencoderConfig",
    "ContinuousTextAutoencoderOutput",
    "GRUByteConfig",
    "GRUByteForCausalLM",
    "GemmaAutoCompressorConfig",
    "GemmaAutoCompressorModel",
    "HierarchicalAutoencoder",
    "HierarchicalAutoencoderConfig",
    "HierarchicalAutoencoderOutput",
    "HierarchicalDecoderOutput",
    "HierarchicalEncoderOutput",
    "HierarchicalLevelConfig",
    "LearnedQueryAttention",
    "LlamaAutoCompressorConfig",
    "LlamaAutoCompressorModel",
    "MergingCache",
    "MistralAutoCompressorConfig",
    "MistralAutoCompressorModel",
    "OPTAutoCompressorConfig",
    "OPTAutoCompressorModel",
    "Qwen2AutoCompressorConfig",
    "Qwen2AutoCompressorModel",
    "Qwen3AutoCompressorConfig",
    "Qwen3AutoCompressorModel",
    "RecurrentCache",
    "SegmentSummary",
    "SlidingWindowAttention",
    "SoftpromptCache",
    "VectorQuantizer",
    "merging_attention",
]
