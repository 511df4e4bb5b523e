"""Registers the models with the Auto classes of transformers: once, by being imported."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from .activation_compressor.configuration_activation_compressor import ActivationCompressorConfig
from .activation_compressor.modeling_activation_compressor import ActivationCompressor
from .autocompressor.configuration_autocompressor import (
    GemmaAutoCompressorConfig,
    LlamaAutoCompressorConfig,
    MistralAutoCompressorConfig,
    OPTAutoCompressorConfig,
    Qwen2AutoCompressorConfig,
    Qwen3AutoCompressorConfig,
)
from .autocompressor.modeling_autocompressor import (
    GemmaAutoCompressorModel,
    LlamaAutoCompressorModel,
    MistralAutoCompressorModel,
    OPTAutoCompressorModel,
    Qwen2AutoCompressorModel,
    Qwen3AutoCompressorModel,
)
from .byte_lm.configuration_adaptive_byte import AdaptiveByteConfig
from .byte_lm.configuration_gru_byte import GRUByteConfig
from .byte_lm.modeling_adaptive_byte import AdaptiveByteForCausalLM
from .byte_lm.modeling_gru_byte import GRUByteForCausalLM
from .continuous_text_autoencoder.configuration_continuous_text_autoencoder import ContinuousTextAutoencoderConfig
from .continuous_text_autoencoder.modeling_continuous_text_autoencoder import ContinuousTextAutoencoder
from .hierarchical_autoencoder.configuration_hierarchical_autoencoder import HierarchicalAutoencoderConfig
from .hierarchical_autoencoder.modeling_hierarchical_autoencoder import HierarchicalAutoencoder
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
