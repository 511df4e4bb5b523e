"""A small model of every family, of random weights."""

from functools import cache

import torch
from activation_testing import tiny_base, tiny_compressor
from modeling_testing import tiny_autocompressor
from tiny_tokens import byte_level, make_llama
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from auto_compressor import (
    AdaptiveByteConfig,
    AdaptiveByteForCausalLM,
    ContinuousTextAutoencoder,
    ContinuousTextAutoencoderConfig,
    GRUByteConfig,
    GRUByteForCausalLM,
    HierarchicalAutoencoder,
    HierarchicalAutoencoderConfig,
)


SIZES = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
LEVEL = SIZES | {"num_expander_layers": 1, "window": 4, "memory_window": 4, "max_patch_length": 4}
CODEBOOK = {"quantizer": "residual_vq", "num_quantizers": 2, "codebook_size": 13, "codebook_dim": 4}


def hierarchical() -> PreTrainedModel:
    levels = [dict(LEVEL), LEVEL | CODEBOOK]
    return HierarchicalAutoencoder(
        HierarchicalAutoencoderConfig(level_configs=levels, code_sequence_config=SIZES, block_size=32)
    )


def adaptive() -> PreTrainedModel:
    thresholds = {"byte_entropy_threshold": 12.0, "meta_uncertainty_threshold": 1.5}
    return AdaptiveByteForCausalLM(AdaptiveByteConfig(hidden_size=8, num_levels=2, **thresholds))


def gru() -> PreTrainedModel:
    return GRUByteForCausalLM(GRUByteConfig(hidden_size=8, num_levels=1, num_blocks=1))


def continuous() -> PreTrainedModel:
    sizes = {"embedding_size": 8, "hidden_size": 8, "latent_dim": 4, "chunk_size": 4, "architecture": "chunk"}
    return ContinuousTextAutoencoder(ContinuousTextAutoencoderConfig(vocab_size=2048, **sizes))


def activation() -> PreTrainedModel:
    return tiny_compressor(tiny_base("llama"))


BYTE_MODELS = {"adaptive_byte": adaptive, "gru_byte": gru}
MODELS = BYTE_MODELS | {"hierarchical_autoencoder": hierarchical, "continuous_text_autoencoder": continuous}
MODELS |= {"activation_compressor": activation}
AUTOCOMPRESSORS = ("opt", "llama", "mistral", "qwen2", "qwen3", "gemma")


def make_model(name: str) -> PreTrainedModel:
    """The model of a family, always the same."""
    torch.manual_seed(0)
    return (tiny_autocompressor(name) if name in AUTOCOMPRESSORS else MODELS[name]()).eval()


@cache
def token_model() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A language model of tokens, always the same."""
    return make_llama(), byte_level()
