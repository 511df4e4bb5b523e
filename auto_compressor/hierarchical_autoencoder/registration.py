"""Registers the models with the Auto classes of transformers: once, by being imported."""

from transformers import AutoConfig, AutoModel, AutoTokenizer

from ..tokenization_bytes import ByteTokenizer
from .configuration_hierarchical_autoencoder import HierarchicalAutoencoderConfig
from .modeling_hierarchical_autoencoder import HierarchicalAutoencoder


AutoConfig.register("hierarchical_autoencoder", HierarchicalAutoencoderConfig)
AutoModel.register(HierarchicalAutoencoderConfig, HierarchicalAutoencoder)
AutoTokenizer.register(HierarchicalAutoencoderConfig, tokenizer_class=ByteTokenizer)
