"""Registers the models with the Auto classes of transformers: once, by being imported."""

from transformers import AutoModelForCausalLM

from ..files.hub import register
from ..tokenization_bytes import ByteTokenizer
from .card import CARDS
from .modeling_adaptive_byte import AdaptiveByteForCausalLM
from .modeling_gru_byte import GRUByteForCausalLM


for model_class in (AdaptiveByteForCausalLM, GRUByteForCausalLM):
    card = CARDS[model_class.config_class.model_type]
    register(model_class, AutoModelForCausalLM, card, tokenizer_class=ByteTokenizer)
