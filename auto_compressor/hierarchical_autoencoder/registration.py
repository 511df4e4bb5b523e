"""Registers the models with the Auto classes of transformers: once, by being imported."""

from transformers import AutoModel

from ..files.hub import register
from ..tokenization_bytes import ByteTokenizer
from .card import CARD
from .modeling_hierarchical_autoencoder import HierarchicalAutoencoder


register(HierarchicalAutoencoder, AutoModel, CARD, tokenizer_class=ByteTokenizer)
