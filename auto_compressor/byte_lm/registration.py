"""Registers the models with the Auto classes of transformers: once, by being imported."""

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ..tokenization_bytes import ByteTokenizer
from .modeling_adaptive_byte import AdaptiveByteForCausalLM
from .modeling_gru_byte import GRUByteForCausalLM


for model_class in (AdaptiveByteForCausalLM, GRUByteForCausalLM):
    AutoConfig.register(model_class.config_class.model_type, model_class.config_class)
    AutoModelForCausalLM.register(model_class.config_class, model_class)
    AutoTokenizer.register(model_class.config_class, tokenizer_class=ByteTokenizer)
